"""JSON of records: as the standard library reads it, but for an object with a key twice, of which one value would be lost."""

from __future__ import annotations

import json
from typing import Any

from qwen3_jax.errors import repeated


def load(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not valid (`json.JSONDecodeError`), is nested too deeply, or has an object with a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"the key {repeated([name for name, _ in pairs])!r} occurs twice in one object")
    return out
