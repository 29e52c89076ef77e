"""Rows of Parquet as the JSON objects that were written.

Arrow gives every object of a column the fields of all of them, null where an object had none: {"a": 1} beside {"b": 2} is
stored as {"a": 1, "b": null}. A null field of a struct is therefore absent here, at every depth. Maps, whose keys are stored
with each object, keep their nulls. Bytes that are UTF-8 are text: some writers mark no column as text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `pyarrow.RecordBatch` as objects, less what is null."""
    types = [field.type for field in batch.schema]
    columns = [
        [_plain(value, kind) for value in column.to_pylist()] if _is_changed(kind) else column.to_pylist()
        for column, kind in zip(batch.columns, types, strict=True)
    ]
    for values in zip(*columns, strict=True):
        yield {name: value for name, value in zip(batch.schema.names, values, strict=True) if value is not None}


def _plain(value: Any, kind: Any) -> Any:
    """A value with the null fields of its structs left out and its maps as objects."""
    from pyarrow import types

    kind = _stored(kind)
    if value is None:
        return None
    if types.is_struct(kind):
        fields = {field.name: _plain(value[field.name], field.type) for field in kind}
        return {name: item for name, item in fields.items() if item is not None}
    if types.is_map(kind):
        return {key: _plain(item, kind.item_type) for key, item in value}
    if _is_nested(kind):  # a list of some sort
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    return value


def _is_changed(kind: Any) -> bool:
    """Whether values of a type may not be what was written: nested ones, and bytes."""
    from pyarrow import types

    stored = _stored(kind)
    bytes_like = types.is_binary(stored) or types.is_large_binary(stored) or types.is_fixed_size_binary(stored)
    return _is_nested(kind) or bytes_like or str(stored) == "binary_view"


def _is_nested(kind: Any) -> bool:
    from pyarrow import types

    kind = _stored(kind)
    return types.is_nested(kind) and not types.is_union(kind)


def _stored(kind: Any) -> Any:
    """The type that an extension is stored as, or a dictionary's values."""
    while hasattr(kind, "storage_type"):
        kind = kind.storage_type
    return kind.value_type if hasattr(kind, "index_type") else kind
