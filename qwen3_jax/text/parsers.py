"""What a model wrote, taken apart: thinking, content and tool calls, while it streams or afterwards.

    parse("<think>\\n2+2\\n</think>\\n\\n4")              # Parsed(thinking="2+2", content="4", tool_calls=())

    parser = AnswerParser(in_thinking=False, tools=True)
    for text in stream:
        for event in parser.feed(text): ...             # Piece("thinking" | "content", text) or ToolCall
    for event in parser.finish(): ...

A tag may be cut anywhere between two chunks; text that may yet become one is held back. Invariant: any chunking of a
text gives the same thinking, content and tool calls.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .byte_level import THINK_END, THINK_START, TOOL_CALL_END, TOOL_CALL_START
from .tool_json import StringState, ToolCall, read_call


@dataclass(frozen=True)
class Piece:
    """A piece of the answer; never empty."""

    kind: Literal["thinking", "content"]
    text: str


Event = Piece | ToolCall


@dataclass(frozen=True)
class Parsed:
    """A finished answer. `thinking` is None if there was no thinking section, "" if there was an empty one."""

    thinking: str | None
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


def parse(text: str, in_thinking: bool = False, tools: bool = True) -> Parsed:
    """Take a whole answer apart.

    in_thinking: the prompt had opened <think>. tools=False leaves tool calls in the content as they are.
    """
    parser = AnswerParser(in_thinking, tools)
    return parser.collect([*parser.feed(text), *parser.finish()])


class ThinkingParser:
    r"""Splits a stream into thinking and content at <think> and </think>.

    The tags go, and so do newlines (only newlines, however many): after <think>, before </think>, after </think>, and
    between the start of the answer and <think>. Qwen3 writes "<think>\n...\n</think>\n\n...". All other text is kept.
    There may be several spans of thinking. A second <think> inside a span is text, unless nothing was thought yet
    (a model may repeat the tag that its prompt had opened). A </think> that nothing opened is dropped along with the
    newlines after it; what came before has already been given out as content.

    in_thinking: the prompt had opened <think>. keep_tool_calls: think tags between <tool_call> and </tool_call> in
    the content are text (arguments of a call).
    """

    def __init__(self, in_thinking: bool = False, keep_tool_calls: bool = False) -> None:
        self.seen_thinking = in_thinking  # whether there is or was a thinking section
        self._thinking = in_thinking
        self._calls = keep_tool_calls
        self._tags = (THINK_START, THINK_END) + ((TOOL_CALL_START, TOOL_CALL_END) if keep_tool_calls else ())
        self._in_call = False
        self._partial = ""  # the start of what may be a tag
        self._newlines = 0  # newlines held back: a tag may follow that takes them
        self._skip = in_thinking  # newlines are dropped until text comes
        self._at_start = not in_thinking  # only newlines so far

    def feed(self, text: str) -> list[Piece]:
        """The next chunk; gives what is certain."""
        pieces: list[Piece] = []
        text = self._partial + text
        position = 0
        while (place := _next_tag(text, position, self._tags)) is not None:
            start, tag = place
            self._text(text[position:start], pieces)
            if not self._take(tag):
                self._text(tag, pieces)
            position = start + len(tag)
        held = _partial_tag(text, position, self._tags)
        self._text(text[position:held], pieces)
        self._partial = text[held:]
        return pieces

    def finish(self) -> list[Piece]:
        """The end of the stream: what was held back is text after all."""
        pieces: list[Piece] = []
        self._text(self._partial, pieces)
        self._partial = ""
        if self._newlines:
            pieces.append(Piece(self._kind, "\n" * self._newlines))
            self._newlines = 0
        return pieces

    @property
    def _kind(self) -> Literal["thinking", "content"]:
        return "thinking" if self._thinking else "content"

    def _take(self, tag: str) -> bool:
        """Act on a tag; False if it is text here."""
        if tag in (TOOL_CALL_START, TOOL_CALL_END):
            self._in_call = tag == TOOL_CALL_START and not self._thinking
            return False
        if self._in_call:
            return False
        if tag == THINK_START and self._thinking and not self._skip:
            return False
        self._thinking = tag == THINK_START
        self.seen_thinking |= self._thinking
        self._newlines = 0
        self._skip = True
        self._at_start = False
        return True

    def _text(self, text: str, pieces: list[Piece]) -> None:
        if self._skip:
            text = text.lstrip("\n")
        if not text:
            return
        self._skip = False
        body = text
        if self._thinking:
            body = text.rstrip("\n")
        elif self._at_start:
            body = text if text.strip("\n") else ""
        if body:
            pieces.append(Piece(self._kind, "\n" * self._newlines + body))
            self._newlines = 0
            self._at_start = False
        self._newlines += len(text) - len(body)


class ToolCallParser:
    r"""Finds Hermes tool calls in content: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>.

    Whitespace around calls goes: before a call, between calls, after the last. If text follows a call and text came
    before it, the whitespace between the call and that text stays, to keep them apart. What stands between the tags
    but is no call (bad JSON, no name, arguments that are no object) is given back as content with its tags and
    surroundings, unchanged. A call cut off by the end of the stream counts if its JSON is complete.
    """

    def __init__(self) -> None:
        self._call: list[str] | None = None  # the text after an open <tool_call>, in pieces
        self._string = StringState()  # of that text
        self._partial = ""  # the start of what may be a tag
        self._space = ""  # whitespace held back: a call may follow
        self._wrote = False  # whether any content was given out
        self._after_call = False  # whether a call was given out last

    def feed(self, text: str) -> list[Event]:
        """The next chunk of content; gives text that is certain, and each call when it is complete."""
        events: list[Event] = []
        text = self._partial + text
        position = 0
        while True:
            tag = TOOL_CALL_START if self._call is None else TOOL_CALL_END
            start = text.find(tag, position)
            if start < 0:
                break
            self._piece(text[position:start], events)
            position = start + len(tag)
            if self._call is None:
                self._call, self._string = [], StringState()
            elif self._string.open:  # the tag is part of an argument
                self._piece(tag, events)
            else:
                self._close(tag, events)
        held = _partial_tag(text, position, (tag,))
        self._piece(text[position:held], events)
        self._partial = text[held:]
        return events

    def finish(self) -> list[Event]:
        """The end of the stream: an open call is closed, and what was held back is text after all."""
        events: list[Event] = []
        if self._call is not None:
            self._close(self._partial, events)
        else:
            self._text(self._partial, events)
        self._partial = ""
        if self._space and not self._after_call:
            events.append(Piece("content", self._space))
        self._space = ""
        return events

    def _piece(self, text: str, events: list[Event]) -> None:
        if self._call is None:
            self._text(text, events)
        else:
            self._call.append(text)
            self._string.feed(text)

    def _close(self, end: str, events: list[Event]) -> None:
        """End the open call. `end` is its closing tag, or as much of it as was written."""
        body = "".join(self._call or ())
        self._call = None
        call = read_call(body)
        again = body.rfind(TOOL_CALL_START)
        if call is None and again >= 0 and (call := read_call(body[again + len(TOOL_CALL_START) :])) is not None:
            self._text(TOOL_CALL_START + body[:again], events)  # a call begun, left off, and begun again
        if call is None:
            self._text(TOOL_CALL_START + body + end, events)
        else:
            self._space = ""
            self._after_call = True
            events.append(call)

    def _text(self, text: str, events: list[Event]) -> None:
        body = text.rstrip()
        if body:
            whole = self._space + body
            if self._after_call and not self._wrote:
                whole = whole.lstrip()
            events.append(Piece("content", whole))
            self._space = ""
            self._wrote = True
            self._after_call = False
        self._space += text[len(body) :]


class AnswerParser:
    """Both parsers in sequence: a model's text in, thinking, content and (tools=True) tool calls out."""

    def __init__(self, in_thinking: bool = False, tools: bool = True) -> None:
        self._thinking = ThinkingParser(in_thinking, keep_tool_calls=tools)
        self._calls = ToolCallParser() if tools else None

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
        for delta in pieces:
            if delta.kind == "content" and self._calls:
                events += self._calls.feed(delta.text)
            else:
                events.append(delta)
        return events


def _next_tag(text: str, position: int, tags: tuple[str, ...]) -> tuple[int, str] | None:
    """The first whole tag from `position` on, with its place."""
    while (position := text.find("<", position)) >= 0:
        for tag in tags:
            if text.startswith(tag, position):
                return position, tag
        position += 1
    return None


def _partial_tag(text: str, position: int, tags: tuple[str, ...]) -> int:
    """Where a tag that the end cuts off starts, no earlier than `position`; len(text) without one."""
    start = text.rfind("<", position)  # "<" stands only at the start of a tag
    if start >= 0 and any(tag.startswith(text[start:]) for tag in tags):
        return start
    return len(text)
