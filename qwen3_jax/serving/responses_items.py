"""The items and tools of /v1/responses as the messages and tools of /v1/chat/completions.

An answer is several items there: reasoning, messages and calls that stand next to each other are one turn of the assistant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.agent_tools import error_at, plain_function
from qwen3_jax.serving.replay import unpacked
from qwen3_jax.text import ChatTemplateError, check_message

Json = dict[str, Any]
_ROLES = ("user", "system", "developer", "assistant")
_READ = "message, reasoning, function_call and function_call_output"
_ITEMS = {
    "item_reference": "this server keeps no items; send the item itself",
    "custom_tool_call": "give the call as a function_call item",
    "custom_tool_call_output": "give it as a function_call_output item",
}
_TOOLS = {
    "custom": "Qwen3's calls have arguments, not free text; give a function with a parameter for the text",
    "tool_search": "every tool is shown to the model; leave it out",
}
_RUNS_NONE = "this server runs no tools of its own; give a function that your program runs, or leave it out"
_SEPARATOR = "__"  # between a namespace and the name of a tool in it
# Fields of a function that say how to offer or call it, at the values that change nothing; the model is not shown them.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "strict": (True, False),  # arguments of a forced call always fit the schema
    "defer_loading": (False,), "async": (False,), "allowed_callers": ([], ["direct"]),
}  # fmt: skip


class Tools:
    """The tools of a request.

    Args:
        tools: as the client sent them.

    Attributes:
        shown: in the form of /v1/chat/completions.

    Raises:
        RequestError: a tool that is not supported; names its place.
    """

    def __init__(self, tools: Sequence[Json]):
        self.shown: list[Json] = []
        self._namespaces: dict[str, tuple[str, str]] = {}
        for i, tool in enumerate(tools):
            self._add(tool, f"tools[{i}]", None)

    def named(self, name: str) -> Json:
        """Return the fields of a call's item that name the tool: a tool of a namespace is shown as NAMESPACE__NAME."""
        namespace, inner = self._namespaces.get(name, (None, name))
        return {"name": inner} | ({} if namespace is None else {"namespace": namespace})

    def _add(self, tool: Any, place: str, namespace: str | None) -> None:
        if not isinstance(tool, Mapping):
            raise error_at(place, "must be an object", "tools")
        kind = tool.get("type")
        if kind == "namespace" and namespace is None:
            name, inner = tool.get("name"), tool.get("tools")
            if not isinstance(name, str) or not name or not isinstance(inner, list):
                raise error_at(place, "must have a name and a list of tools", "tools")
            for i, each in enumerate(inner):
                self._add(each, f"{place}.tools[{i}]", name)
            return
        if kind != "function":
            raise error_at(place, f"is of type {kind!r}: {_TOOLS.get(str(kind), _RUNS_NONE)}", "tools")
        if "function" in tool:
            form = "{'type': 'function', 'name', 'description', 'parameters'}"
            raise error_at(place, f"is a tool of /v1/chat/completions; the form here is {form}", "tools")
        function = plain_function(tool, place, _DEFAULTS)
        if namespace is not None:
            shown = f"{namespace}{_SEPARATOR}{function['name']}"
            self._namespaces[shown] = namespace, function["name"]
            function["name"] = shown
        self.shown.append({"type": "function", "function": function})


def messages_of(items: str | Sequence[Any], instructions: str | None) -> list[Json]:
    """Return the messages of a request.

    Raises:
        RequestError: an item that cannot be read; names its place.
    """
    turns = _Turns()
    if instructions:
        turns.add({"role": "system", "content": instructions})
    if isinstance(items, str):
        turns.add({"role": "user", "content": items})
    else:
        for i, item in enumerate(items):
            turns.read(item, f"input[{i}]")
    return turns.messages


class _Turns:
    """Messages as they are read from items."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self._answer: Json | None = None  # the assistant's turn that the next item may continue
        self._calls: set[str] = set()

    def add(self, message: Json) -> None:
        """Add a message that is not the assistant's."""
        self.messages.append(message)
        self._answer = None

    def read(self, item: Any, place: str) -> None:
        """Read one item."""
        if not isinstance(item, Mapping):
            raise error_at(place, "must be an object", "input")
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(item, place)
        elif kind == "reasoning":
            turn = self._turn(
                new=self._answer is not None and not self._answer.keys().isdisjoint({"content", "tool_calls"})
            )
            thinking = [*filter(None, (turn.get("reasoning_content"), _thinking(item, place)))]
            turn["reasoning_content"] = "\n\n".join(thinking)
        elif kind == "function_call":
            self._call(item, place)
        elif kind == "function_call_output":
            self._output(item, place)
        else:
            reason = _ITEMS.get(str(kind), f"the items that are read are {_READ}")
            raise error_at(place, f"is of type {kind!r}: {reason}", "input")

    def _message(self, item: Mapping[str, Any], place: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in _ROLES:
            hint = "; the result of a tool is an item of type 'function_call_output'" * (role in ("tool", "function"))
            raise error_at(place, f"has the role {role!r}; the roles are {', '.join(_ROLES)}{hint}", "input")
        message = {"role": role, "content": content}
        _check(message, place)
        if role != "assistant":
            self.add(message)
            return
        turn = self._turn(
            new=self._answer is not None and "content" in self._answer and "tool_calls" not in self._answer
        )
        turn["content"] = [*turn.get("content", ()), *([content] if isinstance(content, str) else content or ())]

    def _call(self, item: Mapping[str, Any], place: str) -> None:
        name, namespace = item.get("name"), item.get("namespace")
        shown = f"{namespace}{_SEPARATOR}{name}" if namespace and isinstance(name, str) else name
        call = {
            "id": item.get("call_id"), "type": "function",
            "function": {"name": shown, "arguments": item.get("arguments") or ""},
        }  # fmt: skip
        _check(
            {"role": "assistant", "tool_calls": [call]}, place, (".tool_calls[0].function", ""), (".tool_calls[0]", "")
        )
        self._calls.add(str(item.get("call_id")))
        self._turn().setdefault("tool_calls", []).append(call)

    def _output(self, item: Mapping[str, Any], place: str) -> None:
        number = item.get("call_id")
        if number is not None and str(number) not in self._calls:
            reason = f"is the output of the call {number!r}, which is not among the items before it; send its function_call too"
            raise error_at(place, reason, "input")
        message = {"role": "tool", "tool_call_id": number, "content": item.get("output")}
        if message["content"] is None:
            raise error_at(place, "has no output", "input")
        _check(message, place, (".content", ".output"))
        self.add(message)

    def _turn(self, *, new: bool = False) -> Json:
        """The assistant's turn so far, or a new one."""
        if self._answer is None or new:
            self._answer = {"role": "assistant"}
            self.messages.append(self._answer)
        return self._answer


def _thinking(item: Mapping[str, Any], place: str) -> str:
    """The text of a reasoning item: its content, what it carries for this server, or its summary."""
    for field in ("content", "encrypted_content", "summary"):
        value = item.get(field)
        if field == "encrypted_content":
            text = unpacked(value) if isinstance(value, str) else ""
        else:
            parts = [] if value is None else value
            if not isinstance(parts, list) or not all(
                isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
            ):
                raise error_at(f"{place}.{field}", "must be a list of texts", "input")
            text = "\n\n".join(part["text"] for part in parts)
        if text:
            return text
    if item.get("encrypted_content") and unpacked(str(item["encrypted_content"])) is None:
        raise error_at(
            f"{place}.encrypted_content",
            "comes from another server, which alone can read it; leave the item out",
            "input",
        )
    return ""


def _check(message: Json, place: str, *renamed: tuple[str, str]) -> None:
    try:
        check_message(message, place)
    except ChatTemplateError as error:
        text = str(error)
        for old, new in renamed:
            text = text.replace(place + old, place + new)
        raise RequestError(f"{text}.", "input") from None
