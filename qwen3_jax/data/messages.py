"""Messages and tools as data sets spell them, turned into what chat templates read.

    read_messages([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "conversations")
    read_messages('[{"role": "user", "content": "hi"}]', "messages")        # JSON text, as columnar files hold it
    read_tools('[{"name": "add", "parameters": {}}]')

Read are OpenAI's messages (also its functions of 2023: `function_call` and the role `function`) and ShareGPT's turns; JSON text
in the place of a list or object; columns in the place of rows (`{"role": [...], "content": [...]}`). Null fields count as
absent. A key that is not known stays in its message and is listed: only the template can tell whether it is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from qwen3_jax.data import json_values
from qwen3_jax.errors import nearest
from qwen3_jax.text.messages import REASONING_FIELDS, ROLE_ALIASES, ROLES
from qwen3_jax.text.tool_json import decode_arguments

# ShareGPT's names for who speaks, with those of LLaMA-Factory and Hermes.
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "function_call", "tool_call": "function_call",
}  # fmt: skip
_CONVERSATIONS = ("messages", "conversations", "conversation")
_OPENAI_ROLES = {role: role for role in ROLES} | ROLE_ALIASES | {"function": "tool"}
# Whether a message is learned: OpenAI, axolotl, ms-swift and others; torchtune says the opposite.
_LEARNED = (
    "weight", "loss", "loss_weight", "loss_scale", "loss_mask", "train", "trainable", "training", "learn", "masked",
)  # fmt: skip
# What identifies or dates a message and does not speak.
_METADATA = frozenset(
    ("id", "uuid", "index", "turn", "turn_id", "message_id", "parent_id", "timestamp", "created", "created_at", "date", "time",
     "model", "source", "score", "rank", "lang", "language", "tokens", "usage", "finish_reason", "object", "status")
)  # fmt: skip
# Types of content parts that are text under `text`: OpenAI's of chats and of responses.
_TEXT_PARTS = ("text", "input_text", "output_text")
# Keywords of JSON schema by what they hold: schemas, schemas by name, values to the letter. Of no other is anything known.
_SCHEMAS = frozenset(
    ("items", "prefixItems", "additionalItems", "contains", "additionalProperties", "propertyNames", "unevaluatedItems",
     "unevaluatedProperties", "anyOf", "oneOf", "allOf", "not", "if", "then", "else")
)  # fmt: skip
_NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_PYTHON = re.compile(r"\s*\[?\s*\{\s*'")
_TOOL_RESPONSES = re.compile(r"\s*(?:<tool_response>.*?</tool_response>\s*)+", re.DOTALL)
_TOOL_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


class FormError(ValueError):
    """A record that cannot be read; the reason names the message or key, the caller knows the file and line."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages for a chat template.

    Attributes:
        messages: role, content (text, or absent), reasoning_content, tool_calls, and what else they had.
        weights: for each, whether the record wants it learned; None where it does not say.
        unexplained: (place in `messages`, key) of what only some templates read.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    weights: list[bool | None] = field(default_factory=list)
    unexplained: list[tuple[int, str]] = field(default_factory=list)

    def then(self, other: Messages) -> Messages:
        """These messages, followed by others."""
        start = len(self.messages)
        moved = [(start + place, key) for place, key in other.unexplained]
        return Messages(self.messages + other.messages, self.weights + other.weights, self.unexplained + moved)


def spoken(role: str, text: str, **fields: Any) -> Messages:
    """One message of text."""
    return Messages([{"role": role, "content": text, **fields}], [None])


def read_messages(value: Any, key: str) -> Messages:
    """Return the messages under `key` of a record.

    Raises:
        FormError: names the message that is not an object, has an unknown role, or has a field that is not read.
    """
    value = decoded(value, repr(key))
    if isinstance(value, dict):
        value = _rows(value, key)
    if not isinstance(value, list) or not value:
        raise FormError(f"{key!r} must be a list with at least one message")
    out = Messages()
    for number, given in enumerate(value, 1):
        name = f"message {number}" + ("" if key in _CONVERSATIONS else f" of {key!r}")
        message = decoded(given, name) if isinstance(given, str) and given.lstrip().startswith("{") else given
        if not isinstance(message, dict):
            raise FormError(f"{name} must be an object with a 'role'")
        fields = {field: item for field, item in message.items() if item is not None}
        out = out.then(_sharegpt(fields, name) if "from" in fields or "value" in fields else _openai(fields, name))
    _check_order(out.messages)
    return out


def read_tools(value: Any, key: str = "tools") -> list[dict[str, Any]] | None:
    """Return tools in OpenAI's form, as generation gets them; None if there are none. A bare function is put into that form.

    Raises:
        FormError: it is not a list of functions, or a tool has another form.
    """
    value = decoded(value, repr(key))
    if value is None:
        return None
    if not isinstance(value, list):
        raise FormError(f"{key!r} must be a list")
    return [_tool(decoded(tool, f"tool {number}"), f"tool {number}") for number, tool in enumerate(value, 1)] or None


def without_fill(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    """Take out of the calls' arguments what is null and no parameter of the tool that is called.

    Columnar files give the arguments of every call the names of all calls, null where a call had none; these nulls stay when
    they are written as JSON Lines. Arguments that are JSON text are what was written.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call.get("function", call)
            if isinstance(function["arguments"], dict):
                function["arguments"] = _known(function["arguments"], schemas.get(function["name"], {}))


def _known(value: Any, schema: Any) -> Any:
    """A value without nulls under names that its schema does not have."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_known(item, schema.get("items")) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    return {
        key: _known(item, properties.get(key)) for key, item in value.items() if item is not None or key in properties
    }


def decoded(value: Any, name: str) -> Any:
    """Decode a value that a columnar file stores as JSON text; blank text is None, other values are returned as they are.

    Raises:
        FormError: a string that is no JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json_values.load(value)
    except ValueError as error:  # also a key twice, a number of thousands of digits, and very deep nesting
        python = "; it is written as Python prints it: write json.dumps of it" if _PYTHON.match(value) else ""
        raise FormError(f"{name} is a string and not valid JSON ({error}){python}") from None


def _check_order(messages: list[dict[str, Any]]) -> None:
    """Refuse results that stand in another order than their calls: templates show no ids, only the order."""
    calls: list[Any] = []
    last = 0
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            calls, last = [call.get("id") for call in message.get("tool_calls", ())], 0
        elif message.get("tool_call_id") is not None and calls.count(message["tool_call_id"]) == 1:
            place = calls.index(message["tool_call_id"])
            if place < last:
                raise FormError(
                    f"message {number} answers call {message['tool_call_id']!r} after the answer to a later call; put "
                    "the results in the order of the calls, which is all that the template shows"
                )
            last = place


def _rows(columns: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Messages that a file holds column by column, as `datasets` stores a sequence of objects."""
    present = {name: column for name, column in columns.items() if column is not None}
    lengths = {len(column) if isinstance(column, list) else -1 for column in present.values()}
    if len(lengths) != 1 or -1 in lengths or not present.keys() & {"role", "from"}:
        raise FormError(f"{key!r} must be a list with at least one message")
    return [dict(zip(present, values, strict=True)) for values in zip(*present.values(), strict=True)]


def _openai(fields: dict[str, Any], name: str) -> Messages:
    role = fields.pop("role", None)
    if not isinstance(role, str):
        raise FormError(f"{name} must be an object with a 'role'")
    if role not in _OPENAI_ROLES:
        raise FormError(
            f"{name} has the role {role!r}; the roles are {', '.join(ROLES)}{_hint(role, list(_OPENAI_ROLES))}"
        )
    if "function_call" in fields:
        if fields.get("tool_calls"):
            raise FormError(f"{name} has both 'function_call' and 'tool_calls'; remove one of them")
        fields["tool_calls"] = [
            {"type": "function", "function": decoded(fields.pop("function_call"), f"'function_call' of {name}")}
        ]
    return _message(_OPENAI_ROLES[role], fields.pop("content", None), fields, name)


def _sharegpt(fields: dict[str, Any], name: str) -> Messages:
    if mixed := fields.keys() & {"role", "content"}:
        raise FormError(f"{name} has keys of two forms, 'from'/'value' and {sorted(mixed)}; keep one pair")
    speaker, value = fields.pop("from", None), fields.pop("value", None)
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise FormError(
            f"{name} has the role {speaker!r} under 'from'; ShareGPT's are {', '.join(SHAREGPT_ROLES)}"
            f"{_hint(str(speaker), list(SHAREGPT_ROLES))}"
        )
    if role == "function_call":
        calls = decoded(value, f"the function call in {name}")
        calls = calls if isinstance(calls, list) else [calls]
        return _message("assistant", "", fields | {"tool_calls": calls}, name)
    if role == "tool" and isinstance(value, str) and _TOOL_RESPONSES.fullmatch(value):
        # Hermes writes the tags that the template adds.
        out = Messages()
        for text in _TOOL_RESPONSE.findall(value):
            out = out.then(_message("tool", text, dict(fields), name))
        return out
    return _message(role, value, fields, name)


def _message(role: str, content: Any, fields: dict[str, Any], name: str) -> Messages:
    """One message whose role is known; what is left in `fields` is told apart here."""
    message: dict[str, Any] = {"role": role}
    weight = _weight(fields, name)
    text = text_of(content, f"the content of {name}", f"of {name}")
    if role == "assistant" and isinstance(fields.get("refusal"), str) and fields["refusal"]:
        if text:
            raise FormError(f"{name} has both a content and a 'refusal'; keep one of them, as content")
        text = fields.pop("refusal")
    if text is not None:
        message["content"] = text
    elif role in ("system", "user"):
        raise FormError(f"the content of {name} ({role}) is missing")
    if role == "assistant":
        reasoning = {key: fields.pop(key) for key in REASONING_FIELDS if key in fields}
        if not all(isinstance(value, str) for value in reasoning.values()):
            raise FormError(f"the reasoning of {name} must be text")
        if len({value for value in reasoning.values() if value}) > 1:
            raise FormError(f"{name} has different reasoning under {sorted(reasoning)}; keep one of them")
        if reasoning:
            message["reasoning_content"] = max(reasoning.values(), key=len)
        calls = decoded(fields.pop("tool_calls", None), f"'tool_calls' of {name}")
        if calls:
            message["tool_calls"] = _calls(calls, name)
        elif text is None:
            raise FormError(f"{name} (assistant) has neither content nor tool calls")
    unexplained = []
    for key, value in fields.items():
        if key in ("tool_call_id", "name") and role == "tool":
            message[key] = value
        elif key not in _METADATA and value not in ("", [], {}, False):
            message[key] = value
            unexplained.append((0, key))
    return Messages([message], [weight], unexplained)


def text_of(content: Any, name: str, of: str = "") -> str | None:
    """Return the text of a message: a string, or text parts joined with nothing between; None is None.

    Args:
        content: the value.
        name: of the value, for errors.
        of: whose parts they are, for errors.

    Raises:
        FormError: it is something else, or a part is.
    """
    if content is None or isinstance(content, str):
        return content
    of = of or f"of {name}"
    if not isinstance(content, list):
        raise FormError(f"{name} must be text")
    texts = []
    for number, part in enumerate(content, 1):
        if isinstance(part, dict):
            fields = {key: value for key, value in part.items() if value not in (None, [], {}, "")}
            kind = fields.pop("type", "text")
            if kind not in _TEXT_PARTS:
                raise FormError(f"part {number} {of} is of type {kind!r}; only text is read")
            part = fields.pop("text", "")
            if fields.keys() - {"cache_control"}:
                raise FormError(f"part {number} {of} has {sorted(fields)}, which is not read")
        if not isinstance(part, str):
            raise FormError(f"part {number} {of} must be text")
        texts.append(part)
    return "".join(texts)


def _weight(fields: dict[str, Any], name: str) -> bool | None:
    """Whether a message is learned, where it says so."""
    said: dict[str, bool] = {}
    for key in _LEARNED:
        if key not in fields:
            continue
        value = fields.pop(key)
        if not isinstance(value, int | float) or value not in (0, 1):
            raise FormError(
                f"{key!r} of {name} is {value!r}; a message is learned (1, true) or not (0, false), and nothing between is read"
            )
        said[key] = bool(value) != (key == "masked")
    if len(set(said.values())) > 1:
        raise FormError(f"{name} is learned by one of {sorted(said)} and not by another")
    return next(iter(said.values()), None)


def _calls(calls: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise FormError(f"'tool_calls' of {name} must be a list")
    return [
        _call(decoded(call, f"tool call {i} of {name}"), f"tool call {i} of {name}") for i, call in enumerate(calls, 1)
    ]


def _call(call: Any, name: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise FormError(f"{name} must be an object with a function that has a name")
    call = {key: value for key, value in call.items() if value is not None}
    if call.get("type", "function") != "function":
        raise FormError(f"{name} is of type {call['type']!r}; only functions are read")
    outer = {key: call.pop(key) for key in ("id", "type", "index") if key in call}
    nested = "function" in call
    function = decoded(call.pop("function"), f"the function of {name}") if nested else call
    if not isinstance(function, dict):
        raise FormError(f"{name} must be an object with a function that has a name")
    function = {key: value for key, value in function.items() if value is not None}
    strange = sorted({*function, *(call if nested else ())} - {"name", "arguments"})
    if strange:
        raise FormError(f"{name} has {strange[0]!r}, which is not read; a call has a 'name' and 'arguments'")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise FormError(f"{name} must be an object with a function that has a name")
    function["arguments"] = _arguments(function.get("arguments", {}), name)
    return {**outer, "function": function} if nested else {**outer, **function}


def _arguments(value: Any, name: str) -> dict[str, Any] | str:
    """An object, or the JSON text of one as it was written."""
    try:
        return decode_arguments(value)
    except ValueError as error:
        raise FormError(f"the arguments of {name} must be a JSON object, or the text of one: {error}") from None


def _tool(tool: Any, name: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise FormError(f"{name} must be an object with a function that has a name")
    tool = _present(tool)
    if tool.get("type", "function") != "function":
        raise FormError(f"{name} is of type {tool['type']!r}; only functions are read")
    if "function" not in tool:
        for key, whose in (("input_schema", "Anthropic's"), ("inputSchema", "MCP's")):
            if key in tool:
                raise FormError(f"{name} has {key!r}, {whose} form; rename it to 'parameters'")
        tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    tool = tool if "type" in tool else {"type": "function", **tool}
    function = decoded(tool["function"], f"the function of {name}")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise FormError(f"{name} must be an object with a function that has a name")
    function = _present(function)
    if "parameters" in function:
        parameters = decoded(function["parameters"], f"the parameters of {name}")
        if parameters is not None and not isinstance(parameters, dict):
            raise FormError(f"the parameters of {name} must be a JSON schema (an object)")
        function = _present({**function, "parameters": parameters})
    return {**tool, "function": {key: _schema(value) for key, value in function.items()}}


def _present(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _schema(value: Any) -> Any:
    """A JSON schema without the nulls that stand for what is absent, as columnar files fill them in.

    A keyword is null for no other reason, but `default` and `const`; what `enum`, `examples` and unknown keywords hold is left
    alone. Properties may have any name, those of keywords too.
    """
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, item in value.items():
        if key in _NAMED_SCHEMAS and isinstance(item, dict):
            out[key] = {name: _schema(one) for name, one in _present(item).items()}
        elif item is not None or key in ("default", "const"):
            out[key] = _schema(item) if key in _SCHEMAS else item
    return out


def _hint(name: str, valid: list[str]) -> str:
    return f".{text}" if (text := nearest(name, valid)) else ""
