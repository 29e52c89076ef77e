"""The XML of one tool call of Qwen3-Coder, whose arguments get their types from the tool's schema.

    <function=weather>
    <parameter=city>
    Paris
    </parameter>
    </function>

Source: chat_template.jinja of Qwen/Qwen3-Coder-30B-A3B-Instruct, which renders a string and a number alike. So a value is
read as the types that the schema allows; one that fits none of these types, or has no schema, stays a string.
"""

import ast
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .tool_json import ToolCall

_FUNCTION = re.compile(r"<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
# A value may contain the closing tag; the one that ends it stands before the next parameter or the function's end.
_END = re.compile(r"</parameter>(?=\s*(?:<parameter=[^>\n]+>|</function>\s*\Z|\Z))")
_MAX_DEPTH = 32  # of references in a schema


def read_xml_call(body: str, tools: Sequence[Mapping[str, Any]] = ()) -> ToolCall | None:
    """The call that stands between <tool_call> and </tool_call>, or None if the text is not a call in this form.

    tools: in OpenAI's form; the one that is called gives the arguments their types.
    """
    body = body.strip()
    opened = _FUNCTION.match(body)
    if opened is None:
        return None
    name, position = opened[1].strip(), opened.end()
    schema = parameters_of(name, tools)
    properties = resolved(schema, schema).get("properties")
    arguments: dict[str, Any] = {}
    while (parameter := _PARAMETER.match(body, position)) is not None:
        end = _END.search(body, parameter.end())
        key = parameter[1].strip()
        if end is None or key in arguments:
            return None
        text = body[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
        own = properties.get(key) if isinstance(properties, Mapping) else None
        arguments[key] = typed(text, own, schema)
        position = end.end()
    rest = body[position:].strip()
    if rest != "</function>" and not (rest == "" and arguments):
        return None
    return ToolCall(f"call_{uuid.uuid4().hex}", name, json.dumps(arguments, ensure_ascii=False))


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
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def typed(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """The value that a text stands for under a schema; the text itself if it is no value of the schema's types.

    root: the schema in which references are looked up.
    """
    types = types_of(schema, root)
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


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema names, through references, alternatives, constants and enumerations."""
    schema = resolved(schema, root)
    if depth > _MAX_DEPTH:
        return set()
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {each for each in named if isinstance(each, str)}
    if "const" in schema:
        return {_type(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return {_type(value) for value in schema["enum"]}
    if "properties" in schema:
        return {"object"}
    if "items" in schema or "prefixItems" in schema:
        return {"array"}
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key) or ()]
    return set().union(*(types_of(part, root, depth + 1) for part in parts))


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a local reference (`#/$defs/Address`) points to; empty if there is no such schema."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        schema = root
        for key in reference[1:].split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            schema = schema.get(key) if isinstance(schema, Mapping) else None
    return {}


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


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
