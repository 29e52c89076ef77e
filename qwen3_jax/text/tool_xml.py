"""The XML of tool calls of Qwen3-Coder, whose arguments get their types from the tool's schema.

    <function=weather>
    <parameter=city>
    Paris
    </parameter>
    </function>

Source: chat_template.jinja of Qwen/Qwen3-Coder-30B-A3B-Instruct, which renders a string and a number alike. So a value is
read as the types that the schema allows; one that fits none of these types, or has no schema, stays a string. The model
sometimes leaves out end tags: a value without one ends at the next parameter, or with its function.
"""

import ast
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .json_schema import property_names, types_of_property
from .tool_json import ToolCall

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_FUNCTION_END = re.compile(r"</function>(?=\s*(?:<function=[^>\n]+>|\Z))")
_SPACE = re.compile(r"\s*")
# A value may contain the closing tag; the one that ends it stands before the next parameter or the function's end.
_END = re.compile(r"</parameter>(?=\s*(?:<parameter=[^>\n]+>|</function>\s*(?:<function=[^>\n]+>|\Z)|\Z))")
_NEXT = re.compile(r"\n[ \t]*(?=<parameter=([^>\n]+)>)")


def read_xml_calls(body: str, tools: Sequence[Mapping[str, Any]] = (), *, closed: bool = False) -> list[ToolCall]:
    """The calls that stand between <tool_call> and </tool_call>; empty if the text is not calls in this form.

    tools: in OpenAI's form; the one that is called gives the arguments their types. closed: the text is known to be whole,
    so that its end ends a value.
    """
    calls: list[ToolCall] = []
    position = 0
    while (opened := _FUNCTION.match(body, position)) is not None:
        function = _Function(_name(opened[1]), tools)
        end = function.read(body, opened.end(), closed)
        if end is None:
            return []
        position = end
        calls.append(function.call)
    return calls if not body[position:].strip() else []


class _Function:
    def __init__(self, name: str, tools: Sequence[Mapping[str, Any]]):
        self._name, self._schema = name, parameters_of(name, tools)
        self._names = property_names(self._schema, self._schema)
        self._arguments: dict[str, Any] = {}

    @property
    def call(self) -> ToolCall:
        text = json.dumps(self._arguments, ensure_ascii=False)
        return ToolCall(f"call_{uuid.uuid4().hex}", self._name, text)

    def read(self, body: str, position: int, closed: bool) -> int | None:
        """Read the parameters from a place on; return the place behind the function, or None if the text is not a call."""
        while (parameter := _PARAMETER.match(body, position)) is not None:
            key, start = _name(parameter[1]), parameter.end()
            ends = self._value(body, start, key, closed)
            if ends is None or key in self._arguments:
                return None
            text = body[start : ends[0]].removeprefix("\n").removesuffix("\n")
            self._arguments[key] = typed(text, types_of_property(key, self._schema, self._schema))
            position = ends[1]
        behind = _SPACE.match(body, position).end()  # type: ignore[union-attr] # matches anywhere
        end = _FUNCTION_END.match(body, behind)
        if end is not None:
            return end.end()
        return len(body) if behind == len(body) and (self._arguments or closed) else None

    def _value(self, body: str, start: int, key: str, closed: bool) -> tuple[int, int] | None:
        """Where a value ends, and where what follows it begins."""
        tag = _END.search(body, start)
        for following in _NEXT.finditer(body, start, len(body) if tag is None else tag.start()):
            name = _name(following[1])
            # Within an end tag's reach only a parameter of this function that is still to come: a value may quote others.
            if tag is None or (name in self._names and name not in self._arguments and name != key):
                return following.start(), following.start()
        if tag is not None:
            return tag.start(), tag.end()
        end = _FUNCTION_END.search(body, start)
        if end is not None:
            return end.start(), end.start()
        return (len(body), len(body)) if closed else None


def _name(text: str) -> str:
    """The name in a tag, which some models put into quotation marks."""
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


class XmlState:
    """Whether a call read so far is XML, and whether it stops inside an argument, where a closing tag is only text."""

    def __init__(self) -> None:
        self._head = ""
        self._tail = ""

    @property
    def is_xml(self) -> bool:
        return self._head.lstrip().startswith("<function=")

    @property
    def open(self) -> bool:
        return not self._tail.rstrip().endswith(("</function>", "</parameter>"))

    def feed(self, text: str) -> None:
        """Read on, in time linear in `text`."""
        if len(self._head) < 64:
            self._head += text[:64]
        self._tail = (self._tail + text[-128:])[-128:]


def parameters_of(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The JSON schema of a tool's arguments; empty if there is none."""
    for function in _functions(tools):
        if function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def function_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of tools in OpenAI's form."""
    return [name for function in _functions(tools) if isinstance(name := function.get("name"), str)]


def _functions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    return [function for function in functions if isinstance(function, Mapping)]


def typed(text: str, types: set[str]) -> Any:
    """The value that a text stands for if it is to have one of these types; the text itself if it is no such value."""
    if types <= {"string"}:
        return text
    bare = text.strip()
    if "null" in types and bare.lower() in ("null", "none"):
        return None
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    value = _value(bare)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return text
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        value = int(value)
    kinds = {int: {"integer", "number"}, float: {"number"}, list: {"array"}, dict: {"object"}}[type(value)]
    return value if kinds & types else text


def _value(text: str) -> Any:
    """The value of JSON or, as models write them too, of a Python literal; the text itself if it is neither."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
            text = json.dumps(value, allow_nan=False)  # no sets, bytes or NaN
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return text
        value = json.loads(text)
    return value if value == value and value not in (float("inf"), float("-inf")) else text
