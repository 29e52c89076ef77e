"""The messages and tools of /v1/messages as those of /v1/chat/completions.

A message is a list of blocks there. Blocks of text are paragraphs, with a blank line between them; those of the assistant are
joined with nothing, so that a replayed answer has its own tokens.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.serving.agent_tools import error_at, plain_function
from qwen3_jax.serving.replay import unpacked

Json = dict[str, Any]
_BETWEEN = "\n\n"
_error = functools.partial(error_at, field="messages")
_BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "system": ("text",),
    "tool_result": ("text",),
}
_ROLES = ("user", "assistant", "system")
_BILLING = "x-anthropic-billing-header:"  # Claude Code's; it differs each time, so that no prompt would be cached
_OTHER_BLOCKS = {
    "redacted_thinking": "only Anthropic can read it; leave it out",
    **dict.fromkeys(("image", "document", "container_upload", "file"), "Qwen3 reads only text"),
}
_RUNS_NONE = (
    "this server runs no tools of its own; give a tool that your program runs, with an 'input_schema', or leave it out"
)
# Fields of a tool that say how to offer or call it, at the values that change nothing; the model is not shown them.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "strict": (True, False),  # arguments of a forced call always fit the schema
    "eager_input_streaming": (True, False),  # a call is streamed whole
    "defer_loading": (False,), "allowed_callers": ([], ["direct"]),
}  # fmt: skip


def functions_of(tools: Sequence[Any]) -> list[Json]:
    """Return the tools of a request in the form of /v1/chat/completions.

    Raises:
        RequestError: a tool that is not supported; names its place.
    """
    functions = []
    for i, tool in enumerate(tools):
        place = f"tools[{i}]"
        if not isinstance(tool, Mapping):
            raise error_at(place, "must be an object", "tools")
        if tool.get("type") not in (None, "custom"):
            raise error_at(place, f"is of type {tool['type']!r}: {_RUNS_NONE}", "tools")
        if "input_schema" not in tool:
            form = "{'name', 'description', 'input_schema'}"
            raise error_at(place, f"has no 'input_schema'; the form of a tool is {form}", "tools")
        renamed = {"parameters" if name == "input_schema" else name: value for name, value in tool.items()}
        renamed.pop("cache_control", None)
        functions.append({"type": "function", "function": plain_function(renamed, place, _DEFAULTS)})
    return functions


def messages_of(messages: Sequence[Any], system: str | Sequence[Any] | None) -> list[Json]:
    """Return the messages of a request.

    Raises:
        RequestError: a block that cannot be read; names its place.
    """
    plain: list[Json] = []
    if isinstance(system, Sequence) and not isinstance(system, str):
        system = [block for block in system if not _is_billing(block)]
    if system:
        plain += _Blocks("system", system, "system").messages
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise _error(place, "must be an object with role and content")
        role = message.get("role")
        if role not in _ROLES:
            raise _error(place, f"has the role {role!r}; the roles are {', '.join(_ROLES)}")
        plain += _Blocks(role, message.get("content"), f"{place}.content").messages
    return plain


class _Blocks:
    """The content of a message.

    Attributes:
        messages: what it is in /v1/chat/completions: tool results are messages of their own there.
    """

    def __init__(self, role: str, content: Any, place: str):
        self._role, self._place = role, place
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Json] = []
        self.messages: list[Json] = []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence):
            raise _error(place, "must be a text or a list of blocks")
        for i, block in enumerate(content):
            self._read(block, f"{place}[{i}]")
        if role == "assistant":
            self.messages.append(self._answer())
        elif self._texts or not self.messages:
            self._flush()

    def _text(self) -> str:
        """The blocks of text that stand together."""
        return ("" if self._role == "assistant" else _BETWEEN).join(self._texts)

    def _read(self, block: Any, place: str) -> None:
        if not isinstance(block, Mapping):
            raise _error(place, "must be a block (an object with a type)")
        kind = block.get("type")
        if kind not in _BLOCKS[self._role]:
            known = f"the blocks there are {', '.join(_BLOCKS[self._role])}"
            raise _error(place, f"is of type {kind!r}: {_OTHER_BLOCKS.get(str(kind), known)}")
        if kind == "text":
            self._texts.append(_string(block, "text", place))
        elif kind == "thinking":
            if self._texts or self._calls:
                raise _error(
                    place, "is thinking behind the text or a call of its answer; Qwen3 thinks only before them"
                )
            thinking = _string(block, "thinking", place)
            self._thinking.append(thinking or unpacked(str(block.get("signature"))) or "")
        elif kind == "tool_use":
            if not isinstance(block.get("name"), str) or not isinstance(block.get("input"), Mapping):
                raise _error(place, "must have a name and an input, which is an object")
            function = {"name": block["name"], "arguments": block["input"]}
            self._calls.append({"id": block.get("id"), "type": "function", "function": function})
        else:
            self._result(block, place)

    def _result(self, block: Mapping[str, Any], place: str) -> None:
        if self._texts:
            self._flush()
        content = block.get("content")
        text = "" if content is None else _Blocks("tool_result", content, f"{place}.content").messages[0]["content"]
        if block.get("is_error"):
            text = f"Error: {text}"
        self.messages.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})

    def _flush(self) -> None:
        self.messages.append({"role": self._role, "content": self._text()})
        self._texts = []

    def _answer(self) -> Json:
        answer: Json = {"role": "assistant", "content": self._text()}
        if self._thinking:
            answer["reasoning_content"] = "\n\n".join(self._thinking)
        if self._calls:
            answer["tool_calls"] = self._calls
        return answer


def _is_billing(block: Any) -> bool:
    return isinstance(block, Mapping) and str(block.get("text")).startswith(_BILLING)


def _string(block: Mapping[str, Any], field: str, place: str) -> str:
    text = block.get(field)
    if not isinstance(text, str):
        raise _error(place, f"must have a string {field!r}")
    return text
