"""Which value of a configuration is not of its type, in one sentence.

    wrong_value(TrainConfig, {"rl": {"rollouts": {"budget": True}}})
    "rl.rollouts.budget is true; it must be a whole number, a list of whole numbers or null."

jsonargparse refuses such a value with a list of every alternative of every type around it. Only what it has refused comes
here, so that what it reads in its own way (a number in quotes) is nothing that this module has to know.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from qwen3_jax.errors import nearest

_NAMES: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null", dict: "keys and values",
}  # fmt: skip
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def wrong_value(kind: Any, value: Any, name: str = "") -> str:
    """Return a sentence on the first value that is not of its type, or on a key that is missing; "" where there is none.

    Args:
        kind: the type: a dataclass, a list, a union, ...
        value: as read from YAML.
        name: of the value, dotted.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return ""
    if origin in (typing.Union, types.UnionType):
        return _of_union(kind, inner, value, name)
    if dataclasses.is_dataclass(kind):
        return _of_fields(kind, value, name) if isinstance(value, dict) else _sentence(name, value, kind)
    if origin is Literal:
        return "" if value in inner else _sentence(name, value, kind)
    if origin is list:
        if not isinstance(value, list):
            return _sentence(name, value, kind)
        each = (wrong_value(inner[0], item, f"{name}[{place}]") for place, item in enumerate(value))
        return next(filter(None, each), "")
    return "" if _is_plain(kind if origin is None else origin, value) else _sentence(name, value, kind)


def _of_union(kind: Any, alternatives: Sequence[Any], value: Any, name: str) -> str:
    said = [wrong_value(each, value, name) for each in alternatives]
    if "" in said:
        return ""
    for each, sentence in zip(alternatives, said, strict=True):
        shape = dict if dataclasses.is_dataclass(each) else typing.get_origin(each)
        if isinstance(shape, type) and isinstance(value, shape):  # it is meant; what is in it is wrong
            return sentence
    return _sentence(name, value, kind)


def _of_fields(kind: Any, value: dict[Any, Any], name: str) -> str:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    unknown = next((key for key in value if key not in names), None)
    if unknown is not None:
        return f"there is no key {f'{name}.' if name else ''}{unknown}.{nearest(str(unknown), names)}"
    for field in dataclasses.fields(kind):
        path = f"{name}.{field.name}" if name else field.name
        if field.name in value:
            if sentence := wrong_value(hints[field.name], value[field.name], path):
                return sentence
        elif field.default is field.default_factory is dataclasses.MISSING:
            return f"{path} is missing; add it."
    return ""


def _is_plain(kind: Any, value: Any) -> bool:
    """Whether a value can be one of a plain type; True of a type that is not known here."""
    if kind is float:
        return _is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in _NAMES else True


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or a text of one, as 1e-3 is in YAML 1.1."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _sentence(name: str, value: Any, kind: Any) -> str:
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)[:100]
    literals = [item for item in typing.get_args(kind) if isinstance(item, str)]
    hint = nearest(value, literals) if isinstance(value, str) and literals else ""
    return f"{name} is {shown}; it must be {_described(kind)}.{hint}"


def _described(kind: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        *first, last = [_described(each) for each in inner]
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is list:
        of = "blocks of keys and values" if dataclasses.is_dataclass(inner[0]) else _PLURALS.get(inner[0])
        return f"a list of {of}" if of else "a list"
    if dataclasses.is_dataclass(kind):
        return "keys and values"
    return _NAMES.get(kind if origin is None else origin, "of another type")
