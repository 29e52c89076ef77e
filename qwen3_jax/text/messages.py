"""Messages and tools as clients send them, checked and made plain: what a chat template is given.

A text of a message stays where it is, moves to the field that templates read, or the message is refused by its place.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ChatTemplateError
from .tool_json import given_arguments

ROLES = ("system", "user", "assistant", "tool")
# OpenAI's later name of the system role; templates know only the first.
ROLE_ALIASES = {"developer": "system"}
# Names that clients give a message's thinking, the one that templates read first.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# The same thinking once more, in pieces with signatures: OpenRouter's and LiteLLM's.
_THINKING_IN_PIECES = ("reasoning_details", "thinking_blocks")
_OTHER_ROLES = {"function": "tool", "human": "user", "ai": "assistant", "model": "assistant", "bot": "assistant"}
_ONLY_TEXT = "Qwen3 reads only text"
# Fields of a message that hold text of the conversation, or change it, in forms that no template reads.
_UNREAD_FIELDS = {
    "function_call": "give the call in 'tool_calls'",
    **dict.fromkeys(("audio", "images", "image", "videos", "files", "attachments"), _ONLY_TEXT),
    **dict.fromkeys(("prefix", "partial"), "set 'continue_final_message' to continue the last message"),
}
# Fields that only a message of the assistant can have.
_ASSISTANT_FIELDS = ("tool_calls", "refusal", *REASONING_FIELDS, *_THINKING_IN_PIECES)
# Fields of a message without content that say nothing.
_LABELS = frozenset(
    {"role", "name", "id", "index", "type", "tool_call_id", "tool_name", "status", "weight", "metadata"}
)
# The type of a part of the content -> its field.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THINKING_PARTS = ("thinking", "reasoning")
_CALL_PARTS = ("tool_use", "tool_call", "function_call")
_OTHER_PARTS = {
    **dict.fromkeys(_CALL_PARTS, "give the call in 'tool_calls'"),
    **dict.fromkeys(("tool_result", "function_call_output"), "give it as a message with the role 'tool'"),
}


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return checked copies with string content, null fields dropped, thinking under every name that it goes by.

    Raises:
        ChatTemplateError: names the message and the field.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(f"messages must be a list of objects with role and content, not a {_kind(messages)}")
    if not messages:
        raise ChatTemplateError("messages is empty: a conversation needs at least one message")
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def check_message(message: Mapping[str, Any], name: str) -> None:
    """Refuse a message that no template can render; `name` is what it is called in the error.

    Raises:
        ChatTemplateError: names the field.
    """
    _plain_message(message, name)


def plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return copies of tools, with all that was sent, in its order.

    Raises:
        ChatTemplateError: a tool is no object of JSON; names it.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ChatTemplateError(f"tools must be a list of JSON schemas, not a {_kind(tools)}")
    tools = [_fields(tool) for tool in tools]
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ChatTemplateError(f"tools[{i}] must be a JSON schema (an object), not a {_kind(tool)}")
    return [_plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _plain_message(message: Any, name: str) -> dict[str, Any]:
    message = _fields(message)
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"{name} must be an object with role and content, not a {_kind(message)}")
    plain = _plain({k: v for k, v in message.items() if k != "content" and v is not None}, name)
    role = plain["role"] = _role(plain.get("role"), name)
    _refuse_unread(plain, name)
    content, thought = _content(message.get("content"), f"{name}.content", plain.get("tool_calls"))
    if thought and role != "assistant":
        raise ChatTemplateError(f"{name}.content has thinking, which only the assistant's messages have")
    if plain.get("refusal"):
        if content or not isinstance(plain["refusal"], str):
            raise ChatTemplateError(f"{name} has both content and a refusal; give one of them as content")
        content = plain["refusal"]
    reasoning = _reasoning(plain, thought, name)
    if content is not None:
        plain["content"] = content
    elif role in ("system", "user"):
        raise ChatTemplateError(f"{name} ({role}) has no content")
    elif reasoning is None and not plain.get("tool_calls"):
        unread = [
            key for key, value in plain.items() if key not in _LABELS and isinstance(value, (str, list, dict)) and value
        ]
        if unread and message.get("content", ...) is ...:
            raise ChatTemplateError(f"{name} ({role}) has no content, but {unread[0]!r}; give its text as 'content'")
    if reasoning is not None:
        plain = {**plain, **dict.fromkeys(("thinking", "reasoning_content"), reasoning)}
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"], f"{name}.tool_calls")
    return plain


def _role(role: Any, name: str) -> str:
    known = ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if known in ROLES:
        return known
    other = None
    if isinstance(role, str):
        other = role.lower() if role.lower() in ROLES else _OTHER_ROLES.get(role.lower())
    hint = "" if other is None else f"; use {other!r}"
    roles = ", ".join((*ROLES, *ROLE_ALIASES))
    raise ChatTemplateError(f"{name} has the role {role!r}; the roles are {roles}{hint}")


def _refuse_unread(plain: Mapping[str, Any], name: str) -> None:
    for field, instead in _UNREAD_FIELDS.items():
        if plain.get(field):
            raise ChatTemplateError(f"{name}.{field} is not supported: {instead}")
    if plain["role"] != "assistant":
        for field in _ASSISTANT_FIELDS:
            if plain.get(field):
                raise ChatTemplateError(
                    f"{name} ({plain['role']}) has {field!r}, which only the assistant's messages have"
                )


def _reasoning(plain: Mapping[str, Any], thought: str, name: str) -> str | None:
    """The thinking of a message, under whatever name; None if it has no such field."""
    given = {field: plain[field] for field in REASONING_FIELDS if field in plain}
    for field, value in given.items():
        if not isinstance(value, str):
            raise ChatTemplateError(f"{name}.{field} must be a string, not a {_kind(value)}")
    given |= {"content": thought} if thought else {}
    told = {field: value for field, value in given.items() if value}
    if len(set(told.values())) > 1:
        raise ChatTemplateError(
            f"{name} has different thinking under {' and '.join(map(repr, told))}; keep one of them"
        )
    if not told:
        for field in _THINKING_IN_PIECES:
            text = _pieces(plain.get(field), f"{name}.{field}")
            if text:
                return text
    return next(iter((told or given).values()), None)


def _pieces(pieces: Any, name: str) -> str:
    """The text of thinking that comes in pieces; encrypted ones have none."""
    if not pieces:
        return ""
    if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
        raise ChatTemplateError(f"{name} must be a list of objects; give the thinking as 'reasoning_content'")
    texts = [piece.get(field) for piece in pieces for field in ("text", "summary", "thinking")]
    return "".join(text for text in texts if isinstance(text, str))


def _content(content: Any, name: str, calls: Any) -> tuple[str | None, str]:
    """The text of a message, or None without content, and the thinking of its parts, which stands before the text.

    Parts that repeat one of the message's calls, which LangChain's messages have, say nothing new.
    """
    if content is None or isinstance(content, str):
        return None if content is None else str.__str__(content), ""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ChatTemplateError(f"{name} must be a string or a list of text parts, not a {_kind(content)}")
    called = {call.get("id") for call in calls if isinstance(call, dict)} if isinstance(calls, list) else set()
    texts: list[str] = []
    thoughts: list[str] = []
    for i, part in enumerate(content):
        part = {"text": part} if isinstance(part, str) else _fields(part)
        if not isinstance(part, Mapping):
            raise ChatTemplateError(f"{name}[{i}] must be a text part with a string in it, not a {_kind(part)}")
        kind = part.get("type", "text")
        kind = kind if isinstance(kind, str) else repr(kind)
        if kind in _CALL_PARTS and not called.isdisjoint({part.get("call_id"), part.get("id")} - {None}):
            continue
        text = _thought(part, kind) if kind in _THINKING_PARTS else part.get(_TEXT_PARTS.get(kind, ""))
        if kind not in _TEXT_PARTS and kind not in _THINKING_PARTS:
            raise ChatTemplateError(f"{name}[{i}] is of type {kind!r}; {_OTHER_PARTS.get(kind, _ONLY_TEXT)}")
        if not isinstance(text, str):
            raise ChatTemplateError(f"{name}[{i}] must be a text part with a string in it, not a {_kind(text)}")
        if text and kind in _THINKING_PARTS and any(texts):
            raise ChatTemplateError(f"{name}[{i}] is thinking behind the answer's text; templates have it only before")
        (thoughts if kind in _THINKING_PARTS else texts).append(str.__str__(text))
    return "".join(texts), "".join(thoughts)


def _thought(part: Mapping[str, Any], kind: str) -> Any:
    """The text of a part that is thinking: Anthropic's, Mistral's, LangChain's, or a summary of OpenAI's."""
    value = next((part[key] for key in (kind, "text", "summary") if part.get(key) is not None), "")
    if isinstance(value, list) and all(
        isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in value
    ):
        return "".join(item["text"] for item in value)
    return value


def _tool_calls(calls: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise ChatTemplateError(f"{name} must be a list, not a {_kind(calls)}")
    checked = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ChatTemplateError(f"{name}[{i}] must be an object with a function that has a name")
        try:
            arguments = given_arguments(function, call)
        except ValueError as error:
            raise ChatTemplateError(
                f"{name}[{i}].function.arguments (a call of {function['name']!r}) must be a JSON object, or a text that "
                f"holds one: {error}"
            ) from None
        function = {**function, "arguments": arguments}
        checked.append({**call, "function": function} if "function" in call else function)
    return checked


def _plain(value: Any, name: str) -> Any:
    """A copy made only of JSON's own types: a richer object's methods would be open to the template."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    value = _fields(value)
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    raise ChatTemplateError(f"{name} is a {_kind(value)}, which JSON has no form for")


def _fields(value: Any) -> Any:
    """The fields of a dataclass or of a pydantic model, which the openai package returns; other values as they are."""
    if isinstance(value, (str, bytes, Mapping, Sequence, type)):
        return value
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)  # type: ignore[arg-type] # not a class
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", by_alias=True) if callable(dump) else value


def _kind(value: Any) -> str:
    return type(value).__name__
