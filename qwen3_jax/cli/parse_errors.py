"""What jsonargparse says of a value that a key does not take, as one sentence about the innermost key.

    Parser key "rl": Does not validate against any of the Union subtypes ... Parser key "rollouts.group_size": Expected a
    <class 'int'>. Got value: x - Expected a <class 'NoneType'> Given value type: ...

becomes "rl.rollouts.group_size is x; it must be a whole number."
"""

from __future__ import annotations

import re

_KEY = re.compile(r'Parser key "([^"]+)":')
_REQUIRED = re.compile(r"the following arguments are required: ([\w., ]*\w)")
_VALUE = re.compile(r"(?:Got|Given) value: (.*?)\.?(?: - Expected | Subclass types expect |$)")
_EXPECTED = re.compile(r"Expected (?:a )?(<class '[\w.]+'>|typing\.Literal\[[^\]]*\]|\w[\w.]*(?:\[[^ ]*\])?)")
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_SWITCH = re.compile(r"argument --(\w+)/\S+ invalid _boolean_type value: '(.*)'$")
_NAMES = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "list": "a list",
    "dict": "keys with values", "NoneType": "null",
}  # fmt: skip
_BLOCK = ("Expected a dot import path string", "Not a valid subclass", "Unable to load config")


def sentence(message: str) -> str:
    """Return a message in one sentence; as it is, where it is about something other than a key's value."""
    text = " ".join(message.split())
    keys, switch = list(_KEY.finditer(text)), _SWITCH.match(text)
    if switch is not None:
        return f"{switch[1]} is {switch[2]}; it must be true or false."
    if not keys:
        return text if text.endswith(".") else text + "."
    name, said = _dotted([match[1] for match in keys]), text[keys[-1].end() :].strip()
    required, unknown, value = (pattern.search(said) for pattern in (_REQUIRED, _UNKNOWN, _VALUE))
    if required is not None:
        return f"{name} has no {required[1]}; add it."
    if unknown is not None:
        return f"there is no key {name}.{unknown[1]}."
    if any(words in said for words in _BLOCK):
        is_value = f" is {value[1]}; it" if value is not None else ""
        return f"{name}{is_value} must be keys with values."
    kinds = _EXPECTED.findall(said[: value.start()] if value is not None else "")
    if value is None or not kinds:
        return f"{name}: {said.rstrip('.')}."
    return f"{name} is {value[1]}; it must be {' or '.join(dict.fromkeys(map(_kind, kinds)))}."


def _dotted(keys: list[str]) -> str:
    """Keys that contain each other as one name; some are written with those that contain them."""
    name = keys[0]
    for key in keys[1:]:
        name = key if f"{key}.".startswith(f"{name}.") else f"{name}.{key}"
    return name


def _kind(expected: str) -> str:
    """A type, as it is called in a configuration file."""
    if expected.startswith("typing.Literal"):
        return " or ".join(re.findall(r"'([^']*)'", expected)) or expected
    name = expected.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
    return _NAMES.get(name, name)
