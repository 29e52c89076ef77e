"""JSON files of checkpoints and run folders: what cannot be read is refused by the file's name, a wrong type by the field's."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.paths import as_path


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing, broken or non-object file is a UserError that names it."""
    path = as_path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def check_types(cls: type, values: dict[str, Any], source: str = "config.json") -> None:
    """Refuse strings for numbers and the like, naming the field; integers are accepted for floats."""
    for field in dataclasses.fields(cls):
        if field.name not in values or values[field.name] is None:
            continue
        value, kind = values[field.name], field.type
        if kind in (int, int | None):
            ok = isinstance(value, int) and not isinstance(value, bool)
        elif kind in (float, float | None):
            ok = isinstance(value, (int, float)) and not isinstance(value, bool)
            values[field.name] = float(value) if ok else value
        elif kind is bool:
            ok = isinstance(value, bool)
        elif kind in (tuple[int, ...], int | tuple[int, ...] | None):
            items = value if isinstance(value, (list, tuple)) else (value,)
            ok = all(isinstance(item, int) and not isinstance(item, bool) for item in items)
            ok = ok and (kind != tuple[int, ...] or isinstance(value, (list, tuple)))
        else:
            ok = True
        if not ok:
            raise UserError(f"{source} field {field.name!r} has the value {value!r}; expected {_type_name(kind)}.")


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def as_ids(value: Any) -> tuple[Any, ...]:
    """A field that holds one id, several or none, as a tuple; `check_types` says whether they are ids."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
