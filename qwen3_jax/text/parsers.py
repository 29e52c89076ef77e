r"""What a model wrote, taken apart: thinking, content and tool calls, while it streams or afterwards.

    parse("<think>\n2+2\n</think>\n\n4")              # Parsed(thinking="2+2", content="4", tool_calls=())

    parser = AnswerParser(in_thinking=False, tools=TOOLS)
    for text in stream:
        for event in parser.feed(text): ...             # Piece("thinking" | "content", text) or ToolCall
    for event in parser.finish(): ...

A tag may be cut anywhere between two chunks; text that may yet become one is held back. Invariant: any chunking of a
text gives the same thinking, content and tool calls.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .byte_level import THINK_END, THINK_START, TOOL_CALL_END, TOOL_CALL_START
from .tool_json import StringState, ToolCall, read_calls
from .tool_xml import XmlState, function_names, read_xml_calls

Tools = bool | Sequence[Mapping[str, Any]]
"""Whether calls are read; the tools' schemas give the arguments of XML calls their types."""


@dataclass(frozen=True)
class Piece:
    """A piece of the answer; never empty.

    Attributes:
        kind: where it belongs.
        text: the piece.
        start: its place in the text that was fed; the piece stands there as it is.
    """

    kind: Literal["thinking", "content"]
    text: str
    start: int = field(default=0, compare=False)


Event = Piece | ToolCall

_BACKTICKS = re.compile("`+")
_FENCE = re.compile("`{3,}|~{3,}")
_FUNCTION_ENDS = re.compile(r"(?:</parameter>|<function=[^>\n]+>)\s*</function>")
# Where the next XML call begins behind one that lacks end tags, or only its <tool_call>'s end.
_AGAIN = re.compile(rf"(?:{TOOL_CALL_END}|(?<=</function>))\s*{TOOL_CALL_START}(?=\s*<function=)")


@dataclass(frozen=True)
class Parsed:
    """A finished answer. `thinking` is None if there was no thinking section, "" if there was an empty one."""

    thinking: str | None
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


def parse(text: str, in_thinking: bool = False, tools: Tools = True) -> Parsed:
    """Take a whole answer apart.

    in_thinking: the prompt had opened <think>. tools: False leaves tool calls in the content as they are; a list of
    tools in OpenAI's form gives the arguments of Qwen3-Coder's XML calls their types (without it they are strings).
    """
    parser = AnswerParser(in_thinking, tools)
    return parser.collect([*parser.feed(text), *parser.finish()])


class ThinkingParser:
    r"""Splits a stream into thinking and content at <think> and </think>.

    An answer has one thinking section, at its start. The tags go, and so do newlines (only newlines, however many):
    between the start of the answer and <think>, after <think>, before </think>, after </think>. Qwen3 writes
    "<think>\n...\n</think>\n\n...". All other text is kept: once the section is closed, or the answer has begun without
    one, think tags are text that the answer quotes. A second <think> inside the section is text, unless nothing was
    thought yet (a model may repeat the tag that its prompt had opened). A </think> before anything else closes a
    section that the prompt had closed already; it is dropped.

    in_thinking: the prompt had opened <think>. begun: it had begun the answer itself.
    """

    def __init__(self, in_thinking: bool = False, *, begun: bool = False) -> None:
        self.seen_thinking = in_thinking  # whether there is or was a thinking section
        self._phase: Literal["start", "thinking", "closed", "content"] = "start"
        if in_thinking or begun:
            self._phase = "thinking" if in_thinking else "content"
        self._fed = 0  # characters so far
        self._partial = ""  # the start of what may be a tag
        self._newlines = 0  # newlines held back: a tag may follow that takes them
        self._skip = in_thinking  # newlines are dropped until a thought comes

    def feed(self, text: str) -> list[Piece]:
        """The next chunk; gives what is certain."""
        pieces: list[Piece] = []
        start = self._fed - len(self._partial)
        self._fed += len(text)
        text, self._partial = self._partial + text, ""
        place: int | None = 0
        while place is not None and place < len(text) and self._phase != "content":
            place = (self._think if self._phase == "thinking" else self._begin)(text, place, start, pieces)
        if place is not None and place < len(text):
            pieces.append(Piece("content", text[place:], start + place))
        return pieces

    def finish(self) -> list[Piece]:
        """The end of the stream: what was held back is text after all."""
        text = "\n" * self._newlines + self._partial
        self._newlines, self._partial = 0, ""
        kind: Literal["thinking", "content"] = "thinking" if self._phase == "thinking" else "content"
        return [Piece(kind, text, self._fed - len(text))] if text else []

    def _begin(self, text: str, place: int, start: int, pieces: list[Piece]) -> int | None:
        """Read on before the answer; return the place behind what was read, or None if all is held back."""
        first = len(text) - len(text[place:].lstrip("\n"))
        at_start = self._phase == "start"
        self._newlines += (first - place) * at_start  # behind </think> they are dropped
        if first == len(text):
            return first
        rest = text[first:]
        for tag, phase in ((THINK_START, "thinking"), (THINK_END, "closed")) if at_start else ():
            if rest.startswith(tag):
                self._phase = phase  # type: ignore[assignment] # one of the two above
                self.seen_thinking |= phase == "thinking"
                self._newlines, self._skip = 0, True
                return first + len(tag)
            if tag.startswith(rest):
                self._partial = rest
                return None
        self._phase = "content"
        pieces.append(Piece("content", "\n" * self._newlines + rest, start + first - self._newlines))
        self._newlines = 0
        return len(text)

    def _think(self, text: str, place: int, start: int, pieces: list[Piece]) -> int | None:
        """Read on inside the thinking section; returns as `_begin`."""
        if self._skip:
            place = len(text) - len(text[place:].lstrip("\n"))
            if text.startswith(THINK_START, place):
                return place + len(THINK_START)
        tags = (THINK_START, THINK_END) if self._skip else (THINK_END,)
        end = text.find(THINK_END, place)
        held = _partial_tag(text, place, tags) if end < 0 else end
        thought = text[place:held]
        body = thought.rstrip("\n")
        if body:
            pieces.append(Piece("thinking", "\n" * self._newlines + body, start + place - self._newlines))
            self._newlines, self._skip = 0, False
        self._newlines += len(thought) - len(body)
        if end < 0:
            self._partial = text[held:]
            return None
        self._phase, self._newlines = "closed", 0
        return end + len(THINK_END)


class ToolCallParser:
    r"""Finds tool calls in content: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>, Hermes' form, or
    <tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>, that of Qwen3-Coder.

    Whitespace around calls goes: before a call, between calls, after the last. If text follows a call and text came
    before it, the whitespace between the call and that text stays, to keep them apart. What stands between the tags
    but is no call (bad JSON, no name, arguments that are no object) is given back as content with its tags and
    surroundings, unchanged; so is a call that the answer only quotes: behind a quotation mark or a backtick, or in a
    fenced block of code. A call cut off by the end of the stream counts if it is complete. Qwen3-Coder sometimes leaves
    <tool_call> out: <function=f> at the start of a line opens a call too, if there is a tool f.

    tools: their schemas give the arguments of XML calls their types. start: the place of the content's first character.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = (), start: int = 0) -> None:
        self._tools = tools
        self._openers = (TOOL_CALL_START, *(f"<function={name}>" for name in function_names(tools)))
        self._fed = start  # the place behind all text so far
        self._call: list[str] | None = None  # the text of an open call behind <tool_call>, in pieces
        self._head = ""  # <tool_call>, or nothing if it was left out
        self._opened = 0  # the place of the head
        self._string, self._xml = StringState(), XmlState()  # of that text
        self._quotes = _Quotes()
        self._partial = ""  # the start of what may be a tag
        self._space = ""  # whitespace held back: a call may follow
        self._wrote = False  # whether any content was given out
        self._after_call = False  # whether a call was given out last

    def feed(self, text: str) -> list[Event]:
        """The next chunk of content; gives text that is certain, and each call when it is complete."""
        events: list[Event] = []
        base = self._fed - len(self._partial)
        self._fed += len(text)
        text = self._partial + text
        position = 0
        while True:
            tags = self._openers if self._call is None else (TOOL_CALL_END,)
            start, tag = _first(text, position, tags)
            if start < 0:
                break
            self._piece(text[position:start], base + position, events)
            position = start + len(tag)
            if self._call is None:
                self._open(tag, base + start, events)
            elif self._string.open if not self._xml.is_xml else self._xml.open:  # the tag is part of an argument
                self._piece(tag, base + start, events)
            else:
                self._close(tag, events)
        held = _partial_tag(text, position, tags)
        self._piece(text[position:held], base + position, events)
        self._partial = text[held:]
        return events

    def finish(self) -> list[Event]:
        """The end of the stream: an open call is closed, and what was held back is text after all."""
        events: list[Event] = []
        if self._call is not None:
            self._close(self._partial, events)
        else:
            self._text(self._partial, self._fed - len(self._partial), events)
        self._partial = ""
        if self._space and not self._after_call:
            events.append(Piece("content", self._space, self._fed - len(self._space)))
        self._space = ""
        return events

    def _open(self, tag: str, start: int, events: list[Event]) -> None:
        """Open a call, unless its tag is quoted."""
        is_bare = tag != TOOL_CALL_START
        if self._quotes.open or (is_bare and not self._quotes.at_line_start):
            self._piece(tag, start, events)
            return
        self._call, self._opened, self._head = [], start, "" if is_bare else tag
        self._string, self._xml = StringState(), XmlState()
        if is_bare:
            self._piece(tag, start, events)

    def _piece(self, text: str, start: int, events: list[Event]) -> None:
        if self._call is None:
            self._quotes.feed(text)
            self._text(text, start, events)
        else:
            self._call.append(text)
            self._xml.feed(text)
            self._string.feed(text)

    def _close(self, end: str, events: list[Event]) -> None:
        """End the open call. `end` is its closing tag, or as much of it as was written."""
        body, start = "".join(self._call or ()), self._opened + len(self._head)
        self._call = None
        if not self._xml.is_xml:
            self._close_json(body, end, events)
            return
        while (again := _AGAIN.search(body)) is not None:
            calls = read_xml_calls(body[: again.start()], self._tools, closed=True)
            size = again.end() - len(TOOL_CALL_START)
            self._give(calls, body[:size], "", start, events)
            self._head, body, start = TOOL_CALL_START, body[again.end() :], start + again.end()
        calls, size = self._read_xml(body, is_whole=end == TOOL_CALL_END)
        self._give(calls, body, end, start, events)
        if calls and body[size:].strip():
            self._text(body[size:] + end, start + size, events)

    def _read_xml(self, body: str, *, is_whole: bool) -> tuple[list[ToolCall], int]:
        """The calls at the start of a text, and its length up to their end; `is_whole`: its closing tag was written."""
        calls = read_xml_calls(body, self._tools, closed=is_whole)
        if calls or is_whole:
            return calls, len(body)
        if body.rstrip().endswith(TOOL_CALL_END):  # taken for a part of a value, which lacks its end tag
            return read_xml_calls(body.rstrip().removesuffix(TOOL_CALL_END), self._tools, closed=True), len(body)
        ends = [match.end() for match in _FUNCTION_ENDS.finditer(body)]
        for size in dict.fromkeys(ends[-1:] + ends[:1]):  # text follows, and <tool_call>'s end was left out
            if calls := read_xml_calls(body[:size], self._tools):
                return calls, size
        return [], len(body)

    def _close_json(self, body: str, end: str, events: list[Event]) -> None:
        calls = read_calls(body)
        if not calls and TOOL_CALL_START in body:  # begun, left off or left open, and begun again
            self._begun_again(body.split(TOOL_CALL_START), end, events)
        else:
            self._give(calls, body, end, self._opened + len(self._head), events)

    def _begun_again(self, parts: Sequence[str], end: str, events: list[Event]) -> None:
        """Give out the parts that are calls, and the others as text."""
        text, start, place = "", self._opened, self._opened
        for part in parts:
            calls = read_calls(part)
            place += len(TOOL_CALL_START) + len(part)
            if not calls:
                text += TOOL_CALL_START + part
                continue
            self._text(text, start, events)
            self._give(calls, "", "", start, events)
            text, start = "", place
        if text:
            self._quotes.feed(text + end)
            self._text(text + end, start, events)

    def _give(self, calls: Sequence[ToolCall], body: str, end: str, start: int, events: list[Event]) -> None:
        """Give out the calls that a text holds, or the text if it holds none."""
        if not calls:
            text = self._head + body + end
            self._quotes.feed(text)
            self._text(text, start - len(self._head), events)
            return
        self._space = ""
        self._after_call = True
        self._quotes = _Quotes()
        events += calls

    def _text(self, text: str, start: int, events: list[Event]) -> None:
        body = text.rstrip()
        if body:
            whole = self._space + body
            if self._after_call and not self._wrote:
                whole = whole.lstrip()
            events.append(Piece("content", whole, start + len(body) - len(whole)))
            self._space = ""
            self._wrote = True
            self._after_call = False
        self._space += text[len(body) :]


class AnswerParser:
    """Both parsers in sequence: a model's text in, thinking, content and tool calls out.

    in_thinking: the prompt had opened <think>. tools: False leaves calls in the content; a list of tools gives the
    arguments of XML calls their types. begun: the prompt had begun the answer itself.
    """

    def __init__(self, in_thinking: bool = False, tools: Tools = True, *, begun: bool = False) -> None:
        self._thinking = ThinkingParser(in_thinking, begun=begun)
        self._tools = tools
        self._calls: ToolCallParser | None = None  # from the content's first piece on

    @property
    def seen_thinking(self) -> bool:
        """Whether there is or was a thinking section."""
        return self._thinking.seen_thinking

    def feed(self, text: str) -> list[Event]:
        """The next chunk of the model's text."""
        return self._route(self._thinking.feed(text))

    def finish(self) -> list[Event]:
        """The end of the model's text."""
        events = self._route(self._thinking.finish())
        return [*events, *self._calls.finish()] if self._calls else events

    def collect(self, events: Iterable[Event]) -> Parsed:
        """All events of this parser's answer as one result."""
        texts: dict[str, list[str]] = {"thinking": [], "content": []}
        calls = []
        for event in events:
            if isinstance(event, ToolCall):
                calls.append(event)
            else:
                texts[event.kind].append(event.text)
        thinking = "".join(texts["thinking"]) if self.seen_thinking else None
        return Parsed(thinking, "".join(texts["content"]), tuple(calls))

    def _route(self, pieces: list[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if piece.kind == "thinking" or not self._tools:
                events.append(piece)
                continue
            if self._calls is None:
                self._calls = ToolCallParser(() if isinstance(self._tools, bool) else self._tools, piece.start)
            events += self._calls.feed(piece.text)
        return events


class _Quotes:
    """Whether the end of a text is inside a quotation: behind a quotation mark, or in code or a block quote of Markdown."""

    def __init__(self) -> None:
        self._line = ""  # the start of the current line
        self._last = ""  # the last character
        self._in_code = False  # a span of code that the current line has opened
        self._fence = ""  # the mark of an open block of code

    @property
    def open(self) -> bool:
        is_quote = self._last in ('"', "'") or self._line.lstrip().startswith(">")
        return is_quote or self._in_code or self._last == "`" or bool(self._fence)

    @property
    def at_line_start(self) -> bool:
        """Whether only white space stands before it on its line."""
        return not self._line.strip()

    def feed(self, text: str) -> None:
        """Read on, in time linear in `text`."""
        *lines, rest = text.split("\n")
        for line in lines:
            self._read(line)
            mark = self._line.strip()
            if self._fence:  # closed by a mark of its own kind that is as long
                self._fence = "" if mark.startswith(self._fence) and not mark.strip(self._fence[0]) else self._fence
            else:
                self._fence = fence[0] if (fence := _FENCE.match(mark)) else ""
            self._line, self._last, self._in_code = "", "\n", False
        self._read(rest)

    def _read(self, text: str) -> None:
        """Read on within a line."""
        marks = _BACKTICKS.findall(text)
        runs = len(marks) - bool(marks and text[0] == self._last == "`")
        self._in_code ^= runs % 2 == 1
        self._line += text[: 80 - len(self._line)]
        self._last = text[-1] if text else self._last


def _first(text: str, position: int, tags: tuple[str, ...]) -> tuple[int, str]:
    """The place of the first of several tags, and that tag; -1 if the text has no such tag."""
    places = [(place, tag) for tag in tags if (place := text.find(tag, position)) >= 0]
    return min(places, default=(-1, ""))


def _partial_tag(text: str, position: int, tags: tuple[str, ...]) -> int:
    """Where a tag that the end cuts off starts, no earlier than `position`; len(text) without one."""
    start = text.rfind("<", position)  # "<" stands only at the start of a tag
    if start >= 0 and any(tag.startswith(text[start:]) for tag in tags):
        return start
    return len(text)
