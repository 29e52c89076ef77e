"""Conversations to prompts: Jinja chat templates rendered as transformers renders them, in Jinja's sandbox.

    text = render(built_in_template(), [{"role": "user", "content": "Hello"}])

Templates come with downloaded checkpoints, so they are untrusted code: the sandbox forbids attributes that reach the
interpreter, and a template sees only plain strings, numbers, lists and dicts.
"""

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from . import quoting
from .byte_level import THINK_END, THINK_START
from .errors import ChatTemplateError
from .messages import REASONING_FIELDS, plain_messages, plain_tools

# Stands for the last message's text while the template renders; private-use characters, which no text needs.
_MARK = "\ue000continue\ue001"
# Qwen3-Coder's template goes through the arguments of a call one by one, so they cannot stay JSON text.
_READS_ARGUMENTS = re.compile(r"arguments\s*(?:\|\s*(?:items|dictsort)|\.(?:items|keys|values)\()")
# The end of thinking whose beginning is in the prompt: on a line of its own, as models write it.
_OWN_LINE = re.compile(rf"(?:\A|\n)(?P<tag>{THINK_END})(?=\n|\Z)")
_EMPTY_THINKING = re.compile(rf"{THINK_START}\s*{THINK_END}\s*\Z")
_NOT_ASCII = re.compile(rf"{quoting.MARK}{quoting.MARK}|[^\x00-\x7f]")
_SWITCH = re.compile(r"(?<![A-Za-z0-9_/.<\\-])/(no_think|think)(?![A-Za-z0-9_/-])")


@functools.cache
def built_in_template() -> str:
    """Our own template, for folders that have none; it renders as Qwen3's does."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool = True,
    continue_final_message: bool = False,
    preserve_thinking: bool | None = None,
    special_tokens: Mapping[str, str] | None = None,
    quoted: Collection[str] | None = None,
) -> str:
    """Render a conversation with a Jinja chat template.

    Understood besides plain `content` strings: content as a list of {"type": "text", "text": ...} parts, joined with
    nothing between (input_text and output_text are the same, thinking may stand before them); no or null content on
    assistant and tool messages; the role `developer`, which is `system`; a `refusal` in place of the content; thinking
    under any of REASONING_FIELDS, or in pieces; `tool_calls` as {"function": {"name", "arguments"}} or
    {"name", "arguments"}, or as `parsers.ToolCall`, with the arguments an object or the JSON text of one, which stays as
    it is written (blank or null: no arguments; encoded twice: decoded once); messages that are dataclasses or pydantic
    models, as the openai package returns them.

    Templates look for thinking in an answer's text where a message has none of its own. They find it where a model puts
    it: from <think> at the start to </think>, or up to a </think> on a line of its own if there is no <think> before it.
    Other think tags are quoted, and stay with all that is around them.

    With continue_final_message the last message, the assistant's, stays open. Its text stands at the end to the
    letter. A text with thinking of its own, closed or not, gets no empty think block before it; one that starts inside
    the thinking that the prompt had opened (it has </think> but no <think>) gets <think> back. If the message has
    reasoning and no content at all, the thinking itself stays open.

    preserve_thinking=True keeps the thinking of earlier turns, which templates leave out, in the form in which the
    model wrote it: by the template's own variable if it has one, else as part of those turns' text. None is what the
    template does by itself.

    special_tokens: eos_token and the like, which some templates name.

    quoted: mark these texts of special tokens wherever messages and tools have them, so that `quoting.split` tells them
    from the template's own. None marks nothing.

    Raises ChatTemplateError.
    """
    conversation = _quoted_messages(template, messages, quoted or ())
    variables: dict[str, Any] = {
        **(special_tokens or {}),
        "tools": quoting.quote(plain_tools(tools), quoted or ()),
        "documents": None,
        "enable_thinking": enable_thinking,
    }
    if "reasoning_content" in template:
        closed = conversation[:-1] if continue_final_message else conversation
        conversation = [*map(_with_quoted_tags, closed), *conversation[len(closed) :]]
    if "preserve_thinking" in template:
        variables |= {} if preserve_thinking is None else {"preserve_thinking": preserve_thinking}
    elif preserve_thinking:
        conversation = _with_thinking_as_text(template, conversation)
    variables["add_generation_prompt"] = add_generation_prompt and not continue_final_message
    text = (_continued if continue_final_message else _whole)(template, conversation, variables)
    return text if quoted is not None else quoting.unquote(text)


def _quoted_messages(
    template: str, messages: Sequence[Mapping[str, Any]], tokens: Collection[str]
) -> list[dict[str, Any]]:
    """Plain messages with the texts of special tokens marked.

    They are marked behind all that joins or decodes texts: a token may be in two parts of a content, or escaped in a call.
    """
    conversation = plain_messages(messages)
    if _READS_ARGUMENTS.search(template):
        _decode_calls(conversation)
    return quoting.quote_messages(conversation, tokens)


def _with_quoted_tags(message: dict[str, Any]) -> dict[str, Any]:
    """Say where the thinking of an answer ends if its text quotes think tags, behind or within the thinking.

    Templates would drop what stands before the last tag. The empty reasoning_content tells them not to look.
    """
    text = message.get("content", "")
    if message["role"] != "assistant" or "reasoning_content" in message or THINK_END not in text:
        return message
    opened = text.lstrip().startswith(THINK_START)
    start = text.index(THINK_START) + len(THINK_START) if opened else 0
    closing = _OWN_LINE.search(text)
    if opened:
        end = text.index(THINK_END)
    elif closing is not None and THINK_START not in text[: closing.start()]:
        end = closing.start("tag")
    else:
        return {**message, "reasoning_content": ""}
    thinking, answer = text[start:end], text[end + len(THINK_END) :]
    if THINK_START not in thinking and THINK_END not in thinking + answer:
        return message
    return {**message, "reasoning_content": thinking.strip("\n"), "content": answer.lstrip("\n")}


def _with_thinking_as_text(template: str, conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the thinking of the turns before the last question into their text.

    The empty reasoning_content tells a template that the text is not to be searched for thinking.
    """
    questions = [i for i, message in enumerate(conversation) if _is_question(message)]
    moved = list(conversation)
    for i, message in enumerate(conversation[: questions[-1] if questions else 0]):
        thinking, text = message.get("reasoning_content", "").strip("\n"), message.get("content", "")
        if message["role"] != "assistant" or not (thinking or THINK_END in text):
            continue
        if THINK_START not in template or "reasoning_content" not in template:
            raise ChatTemplateError(f"the chat template has no place for the reasoning of messages[{i}]")
        if thinking:
            text = f"{THINK_START}\n{thinking}\n{THINK_END}\n\n" + text.lstrip("\n")
        moved[i] = {**message, **dict.fromkeys(REASONING_FIELDS, ""), "content": text}
    return moved


def _is_question(message: Mapping[str, Any]) -> bool:
    """Whether a message is the user speaking: tool results are sent as user text by some clients."""
    text = message.get("content", "")
    return message["role"] == "user" and not (text.startswith("<tool_response>") and text.endswith("</tool_response>"))


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what no template can render: an unknown role, content that is not text, a broken tool call.

    Raises:
        ChatTemplateError: names the message and the field.
    """
    plain_messages(messages)


def soft_switch(messages: Sequence[Mapping[str, Any]]) -> bool | None:
    """The mode that a conversation asks for: the last /think (True) or /no_think (False) in user or system text.

    None if there is neither. A switch stands alone: not inside a path, a URL or a tag such as </think>.
    """
    for message in reversed(plain_messages(messages)):
        text = message.get("content", "")
        # Tool results are sent as user text by some clients; they are not the user speaking.
        wrapped = text.startswith("<tool_response>") and text.endswith("</tool_response>")
        if message["role"] in ("user", "system") and not wrapped:
            switches = _SWITCH.findall(text)
            if switches:
                return switches[-1] == "think"
    return None


def _whole(template: str, conversation: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    return _run(template, {**variables, "messages": conversation})


def _continued(template: str, conversation: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """Render up to the last message's text and put that text there untouched.

    The template would strip newlines around think tags, and would take an unclosed <think> for an answer and write an
    empty think block before it. So it gets a mark in the text's place, and what stands before the mark is used.
    """
    last = conversation[-1]
    name = f"messages[{len(conversation) - 1}]"
    if last["role"] != "assistant":
        raise ChatTemplateError(
            f"continue_final_message needs the assistant's message last, but {name} is {last['role']}"
        )
    if last.get("tool_calls"):
        raise ChatTemplateError(f"continue_final_message cannot continue {name}: it ends in tool calls")
    reasoning = last.get("reasoning_content")
    text = last.get("content")
    marked = {**last, "content": _MARK}
    if text is None and reasoning is not None:
        for field in REASONING_FIELDS:
            marked.pop(field, None)
    conversation = [*conversation[:-1], marked]
    rendered = _whole(template, conversation, variables)
    if _MARK not in rendered:
        raise ChatTemplateError(f"the chat template leaves out {name}, so it cannot be continued")
    head = rendered[: rendered.rindex(_MARK)]
    bare = _EMPTY_THINKING.sub("", head)
    if text is None and reasoning is not None:
        if THINK_START not in template:
            raise ChatTemplateError(f"the chat template has no place for the reasoning of {name}")
        return f"{bare}{THINK_START}\n{reasoning}"
    text = text or ""
    if reasoning is None and bare != head:
        before, end, _ = text.partition(THINK_END)
        if text.lstrip().startswith(THINK_START) or (end and THINK_START in before):
            return bare + text
        if end:
            return f"{bare}{THINK_START}\n{text}"
    return head + text


def _decode_calls(conversation: list[dict[str, Any]]) -> None:
    """Replace the arguments of all calls that are JSON text by the objects they hold."""
    for message in conversation:
        for call in message.get("tool_calls", ()):
            function = call.get("function", call)
            if isinstance(function["arguments"], str):
                function["arguments"] = json.loads(function["arguments"], strict=False)


def _run(template: str, variables: dict[str, Any]) -> str:
    try:
        return _compile(template).render(variables)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid Jinja at line {error.lineno}: {error.message}"
        ) from None
    except Exception as error:  # a template can raise any exception
        raise ChatTemplateError(f"the chat template failed: {quoting.unquote(str(error))}") from error


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes <, > and & for HTML; a model must see the text unescaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(_escaped, text) if ensure_ascii else text


def _escaped(match: re.Match[str]) -> str:
    """A character as JSON escapes it; a mark of `quoting` stays one, and the character itself is doubled."""
    return match[0] if match[0] == quoting.MARK else json.dumps(match[0][0])[1:-1]


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace() less underscored names, which could shadow the object's own machinery."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # Jinja's signature: namespace(self=...) works
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r} on a namespace")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which training templates mark the assistant's text: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)
