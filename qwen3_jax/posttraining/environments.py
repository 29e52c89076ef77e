"""Environments: what answers the model within an episode of several turns.

    class Guess(Environment):                          # any class with these methods; no need to inherit
        def reset(self, record, seed):
            self.number = int(record["answer"])
        def step(self, message):
            right = message["content"].strip() == str(self.number)
            return Step(done=True, reward=1.0) if right else Step([{"role": "user", "content": "No. Again."}])

    class Rows(ToolEnvironment):                       # tools are methods
        def reset(self, record, seed):
            self.rows = record["rows"]
            return super().reset(record, seed)
        @tool
        def row(self, number: int) -> str:
            "Return the digits of a row."
            return self.rows[number]

One object serves one episode: it is made, `reset`, stepped after every answer of the model, and closed; by one thread at a
time, but not always the same one. All answers to a prompt are reset with the same record and seed, since rewards are compared
within the group. An exception, or a call that does not return in time, costs the episode, which then has no reward; what the
model did wrong (`ToolError`) is told to the model instead.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qwen3_jax.text.byte_level import TOOL_CALL_START

Message = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("string", (str,)), int: ("integer", (int,)), float: ("number", (int, float)), bool: ("boolean", (bool,)),
    list: ("array", (list,)), dict: ("object", (dict,)),
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The beginning of an episode.

    Attributes:
        messages: behind those of the prompt.
        tools: that the model may call, in OpenAI's form; None leaves those of the record.
    """

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Step:
    """What an environment says to an answer of the model.

    Attributes:
        messages: results of tools (role tool), or of a user; at least one unless the episode is over.
        done: the episode is over; messages are then only kept for people.
        reward: is added to the reward of the episode, for the part `environment: true`.
        failed: calls of the answer that brought an error.
        info: what people want to know, JSON values.
    """

    messages: Sequence[Message] = ()
    done: bool = False
    reward: float | None = None
    failed: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)


class Environment:
    """An environment that does nothing: the first answer ends the episode. Subclasses override what they need."""

    def reset(self, record: Mapping[str, Any], seed: int) -> Start | None:
        """Begin an episode.

        Args:
            record: of the prompt, as in its file.
            seed: the same for all answers to a prompt.
        """
        del record, seed
        return None

    def step(self, message: Message) -> Step:
        """Answer the model. An answer that a limit of tokens has cut off is not given to this method: it ends the episode.

        Args:
            message: what it wrote, with `content`, and `reasoning_content` and `tool_calls` where it has any, whose arguments
                are JSON text.
        """
        del message
        return Step(done=True)

    def close(self) -> None:
        """End the episode; called once, also after an error."""


class ToolError(Exception):
    """A call cannot be done for a reason that the model can mend; its text is the result of the tool."""


def tool(function: F) -> F:
    """Mark a method of a `ToolEnvironment` as a tool: its name, docstring and annotations are the description."""
    function.is_tool = True  # type: ignore[attr-defined]
    return function


class ToolEnvironment(Environment):
    """An environment of tools: calls are done one after the other, and an answer without one ends the episode.

    An answer with a call that cannot be read is told so; the call is counted as failed.
    """

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form; by default the methods marked by `tool`, in the order of the class."""
        return [_described(name, getattr(self, name)) for name in _tool_names(type(self))]

    def reset(self, record: Mapping[str, Any], seed: int) -> Start | None:
        """Show the tools to the model."""
        del record, seed
        return Start(tools=self.tools)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Return the result of one call.

        Raises:
            ToolError: the model is at fault.
        """
        if name not in _tool_names(type(self)):
            raise ToolError(f"there is no tool {name!r}; there is {', '.join(_tool_names(type(self)))}")
        method = getattr(self, name)
        _check_arguments(method, arguments)
        result = method(**arguments)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)

    def step(self, message: Message) -> Step:
        """Do the calls of an answer."""
        calls = message.get("tool_calls") or ()
        if not calls and TOOL_CALL_START in message.get("content", ""):
            text = 'Error: the call could not be read; it must be a JSON object with "name" and "arguments".'
            return Step([{"role": "tool", "content": text}], failed=1)
        if not calls:
            return Step(done=True)
        results: list[Message] = []
        failed = 0
        for call in calls:
            function = call["function"]
            try:
                text = self.call(function["name"], json.loads(function["arguments"]))
            except ToolError as error:
                failed += 1
                text = f"Error: {error}"
            results.append({"role": "tool", "name": function["name"], "content": text})
        return Step(results, failed=failed)


def _tool_names(of: type) -> list[str]:
    names: dict[str, None] = {}
    for base in reversed(of.__mro__):
        for name, value in vars(base).items():
            if getattr(value, "is_tool", False):
                names[name] = None
    return list(names)


def _described(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    """A method in OpenAI's form."""
    properties: dict[str, Any] = {}
    required = []
    for parameter, kind in _parameters(method).items():
        properties[parameter.name] = {} if kind is None else {"type": _KINDS[kind][0]}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    schema = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": inspect.getdoc(method) or "", "parameters": schema}
    return {"type": "function", "function": function}


def _parameters(method: Callable[..., Any]) -> dict[inspect.Parameter, Any]:
    """The parameters of a bound method, each with its type in `_KINDS`, or None."""
    hints = typing.get_type_hints(method)
    out: dict[inspect.Parameter, Any] = {}
    for parameter in inspect.signature(method).parameters.values():
        hint = hints.get(parameter.name)
        kind = typing.get_origin(hint) or hint
        out[parameter] = kind if kind in _KINDS else None
    return out


def _check_arguments(method: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse what the model wrote if the method does not take it.

    Raises:
        ToolError: a name or a type is wrong, or an argument is missing.
    """
    parameters = {parameter.name: (parameter, kind) for parameter, kind in _parameters(method).items()}
    for name, value in arguments.items():
        if name not in parameters:
            raise ToolError(f"there is no argument {name!r}; there is {', '.join(parameters) or 'none'}")
        kind = parameters[name][1]
        if kind is not None:
            described, types = _KINDS[kind]
            if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
                raise ToolError(f"the argument {name!r} must be of type {described}")
    for name, (parameter, _) in parameters.items():
        if name not in arguments and parameter.default is inspect.Parameter.empty:
            raise ToolError(f"the argument {name!r} is missing")
