"""The JSON of one Hermes tool call: {"name": "f", "arguments": {"x": 1}}.

Models write arguments as an object or as a string that holds one, under several names, and raw line breaks inside
strings. All of that is read. What cannot be one call with a name and an object of arguments gives None: the caller keeps
the text.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# In a JSON string: an escape (perhaps cut off by the end), a quote, or a line break, which strict JSON forbids.
_MARKS = re.compile(r'\\(?:.|\Z)|["\n\r]', re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"\s*,?\s*")
_JSON_NAMES: dict[type, str] = {
    list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
}  # fmt: skip


# Names of a call's arguments: OpenAI's and Qwen's, and those of other models and APIs.
ARGUMENTS = ("arguments", "parameters", "args", "input", "params", "kwargs")
_LABELS = frozenset({"name", "id", "type", "index"})


@dataclass(frozen=True)
class ToolCall:
    """One call. `id` is unique ("call_" and 32 hex digits); `arguments` is the JSON text of an object, as written."""

    id: str
    name: str
    arguments: str

    def arguments_dict(self) -> dict[str, Any]:
        """The arguments with JSON's types."""
        return json.loads(self.arguments)


def read_call(body: str) -> ToolCall | None:
    """The call that stands between <tool_call> and </tool_call>, or None if the text is not a call."""
    try:
        fields = _object_fields(body.strip())
        name, _ = fields["name"]
        key = next((key for key in ARGUMENTS if key in fields), None)
        if key is None and fields.keys() - _LABELS:
            return None  # its arguments stand beside the name
        value, text = ({}, "{}") if key is None else fields[key]
        if isinstance(value, str):
            text = value.strip() or "{}"
            value = _DECODER.decode(text)
        if value is None:
            value, text = {}, "{}"
    except (ValueError, KeyError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(value, dict):
        return None
    return ToolCall(
        f"call_{uuid.uuid4().hex}", name, text if _is_strict(text) else json.dumps(value, ensure_ascii=False)
    )


def read_calls(body: str) -> list[ToolCall]:
    """The calls that stand between <tool_call> and </tool_call>: one, several in a row, or a list of them.

    Empty if any part is no call.
    """
    if (call := read_call(body)) is not None:
        return [call]
    text = body.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    calls: list[ToolCall] = []
    position = 0
    while position < len(text):
        try:
            _, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return []
        if (call := read_call(text[position:end])) is None:
            return []
        calls.append(call)
        position = _BETWEEN.match(text, end).end()  # type: ignore[union-attr] # matches anywhere
    return calls


def given_arguments(function: Mapping[str, Any], call: Mapping[str, Any]) -> Any:
    """The arguments of a call in a history, decoded, under any of the names ARGUMENTS in the function or beside it.

    Raises:
        ValueError: they are no object, differ under two names, or something else stands in their place; says what.
    """
    found = {key: at[key] for at in (call, function) for key in ARGUMENTS if at.get(key) not in (None, "", {})}
    if not found:
        others = sorted(function.keys() - _LABELS - {"arguments"})
        if others and "arguments" not in function:
            raise ValueError(f"there are none, but {others[0]!r}")
        return decode_arguments(function.get("arguments"))
    decoded = [decode_arguments(value) for value in found.values()]
    objects = [json.loads(each, strict=False) if isinstance(each, str) else each for each in decoded]
    if any(each != objects[0] for each in objects):
        raise ValueError(f"there are different ones under {' and '.join(map(repr, found))}")
    return decoded[-1]


def decode_arguments(value: Any) -> Any:
    """The arguments of a call in a history: an object, or the JSON text of one, which stays as it is written.

    Nothing, null and blank text are the empty object. A text that is encoded twice is decoded once.

    Raises:
        ValueError: the value is no object; says what it is.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise ValueError(f"it is {_JSON_NAMES.get(type(value), type(value).__name__)}")
    text = value
    for _ in range(2):
        if not text.strip():
            return {}
        try:
            decoded = _DECODER.decode(text.strip())
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{shortened(text)} is not valid JSON ({error})") from None
        if decoded is None:
            return {}
        if isinstance(decoded, dict):
            return text if _is_strict(text) else json.dumps(decoded, ensure_ascii=False)
        if not isinstance(decoded, str):
            break
        text = decoded
    raise ValueError(f"{shortened(value)} is {_JSON_NAMES[type(decoded)]}")


def shortened(text: str, most: int = 60) -> str:
    """A text in quotation marks, for messages; its end is left out if it is long."""
    return repr(text if len(text) <= most else text[:most] + "...")


class StringState:
    """Whether a JSON text read so far stops inside a string, where a closing tag is only text.

    A line break inside a string breaks JSON's rules, and then the quotes cannot be trusted: `open` stays False.
    """

    def __init__(self) -> None:
        self._open = False
        self._escaped = False
        self._broken = False

    @property
    def open(self) -> bool:
        return self._open and not self._broken

    def feed(self, text: str) -> None:
        """Read on, in time linear in `text`."""
        if self._broken or not text:
            return
        skip = int(self._escaped)
        self._escaped = False
        for mark in _MARKS.finditer(text, skip):
            character = mark.group()
            if character == '"':
                self._open = not self._open
            elif character[0] == "\\":
                self._escaped = len(character) == 1
            elif self._open:
                self._broken = True
                return


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)


def _object_fields(text: str) -> dict[str, tuple[Any, str]]:
    """The top-level fields of a JSON object, each value beside its own text: 1.0 and 1e2 are to stay as written."""
    fields: dict[str, tuple[Any, str]] = {}
    position = _expect(text, 0, "{")
    while True:
        key, position = _DECODER.raw_decode(text, position)
        if not isinstance(key, str):
            raise ValueError("a key must be a string")
        start = _expect(text, _SPACE.match(text, position).end(), ":")  # type: ignore[union-attr] # matches anywhere
        value, end = _DECODER.raw_decode(text, start)
        fields[key] = value, text[start:end]
        position = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[position:] == "}":
            return fields
        position = _expect(text, position, ",")


def _expect(text: str, position: int, character: str) -> int:
    """Step over one character and the space after it."""
    if not text.startswith(character, position):
        raise ValueError(f"expected {character} at {position}")
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def _is_strict(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
