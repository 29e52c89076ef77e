"""JSON files of checkpoints and run folders: what cannot be read is refused by the file's name, a wrong type by the field's."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.paths import as_path
from qwen3_jax.text_files import decode, read_bytes


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing, broken or non-object file, and another encoding, is a UserError that names it."""
    path = as_path(path)
    try:
        value = json.loads(decode(read_bytes(path), str(path)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the config.json of a checkpoint folder as `read_json` does; a folder with an adapter instead is refused as such."""
    folder = Path(folder) if isinstance(folder, str) else folder
    file = folder / "config.json"
    if not file.exists():
        refuse_adapter(folder)
    return read_json(file)


def adapter_base(folder: Path) -> str | None:
    """Return the name of the base model of an adapter's folder; None for other folders, and where it names none."""
    file = folder / "adapter_config.json"
    return read_json(file).get("base_model_name_or_path") if file.exists() else None


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter_config.json, where a model is needed.

    Raises:
        UserError: names the adapter's base model, and says what to do.
    """
    file = folder / "adapter_config.json"
    if not file.exists():
        return
    adapter = read_json(file)
    kind, base = adapter.get("peft_type") or "LoRA", adapter.get("base_model_name_or_path") or "a base model"
    raise UserError(
        f"{folder} holds a PEFT adapter ({kind}, of {base}) and no model; give its base model as the model and this folder as "
        "the adapter, or write them as one with `qwen3 convert --merge`."
    )


def check_types(cls: type, values: dict[str, Any], source: str = "config.json") -> None:
    """Refuse strings for numbers and the like, naming the field; integers are accepted for floats, and 20.0 for 20."""
    for field in dataclasses.fields(cls):
        if field.name not in values or values[field.name] is None:
            continue
        value, kind = values[field.name], field.type
        if kind in (int, int | None) and isinstance(value, float) and value.is_integer():
            value = values[field.name] = int(value)
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


def canonical_json(value: Any) -> bytes:
    """JSON values as ASCII text in one form, the same whatever the order of keys and on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=_plain)
    return text.encode()


def digest(value: Any) -> str:
    """A digest of JSON values, 32 hexadecimal digits (see `canonical_json`)."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, Sequence) else str(value)
