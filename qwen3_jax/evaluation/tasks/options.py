"""A task's options: a mapping of fields, whose values may be texts of a command line, to an instance of its dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.task import Task


def options_of(task: Task, values: Mapping[str, Any]) -> Any:
    """An instance of `task.options` with these fields; None for a task without options.

    Args:
        values: fields by name. A text is read as its field's type: "3", "true", "null", "a,b" for several.

    Raises:
        UserError: an unknown field, a value of another type or out of bounds.
    """
    if task.options is None:
        if values:
            raise UserError(f"the task {task.name} has no options; remove {', '.join(map(str, values))}.")
        return None
    hints = typing.get_type_hints(task.options)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(task.options) if field.init}
    known = ", ".join(fields)
    chosen = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(
                f"the task {task.name} has no option {name!r}; it has {known}.{nearest(str(name), [*fields])}"
            )
        chosen[name] = _converted(f"{task.name}.{name}", value, fields[name])
    try:
        made = task.options(**chosen)
        if hasattr(made, "validate"):  # the configurations of reasoning_gym
            made.validate()
        return made
    except UserError as error:
        raise UserError(f"the task {task.name}: {error}") from None
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"the task {task.name} refuses its options: {' '.join(str(error).split()) or chosen}."
        ) from None


def _converted(name: str, value: Any, kind: Any) -> Any:
    """The value as the type asks for it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none")):
            if type(None) in arguments:
                return None
        elif len(inner := [argument for argument in arguments if argument is not type(None)]) == 1:
            return _converted(name, value, inner[0])
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"the option {name} is {value!r}; it must be one of {', '.join(map(str, arguments))}.")
        return value
    if origin in (tuple, list):
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"the option {name} is {value!r}; it must be a list.")
        of = arguments[0] if arguments else Any
        return origin(_converted(name, item, of) for item in items)
    return _scalar(name, value, kind)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _scalar(name: str, value: Any, kind: Any) -> Any:
    if kind not in _WORDS:
        return value
    given = value
    if kind is bool and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    elif kind in (int, float) and isinstance(value, str):
        try:
            value = kind(value.replace("_", ""))
        except ValueError:
            raise UserError(f"the option {name} is {given!r}; it must be {_WORDS[kind]}.") from None
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"the option {name} is {given!r}; it must be {_WORDS[kind]}.")
    return value
