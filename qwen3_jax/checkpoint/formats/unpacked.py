"""A folder of quantised safetensors, seen as the plain float tensors that it stands for.

Invariant: a tensor is unpacked in pieces of a few million numbers, so that reading takes little more memory than what is
asked for. Every quantised tensor has all its companions (scales, zeros), and every tensor is either float or quantised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self

import numpy as np

from qwen3_jax.checkpoint.safetensors import FLOATS, SafetensorsFolder
from qwen3_jax.checkpoint.source import Entry, TensorReader
from qwen3_jax.errors import UserError

PIECE = 1 << 22  # numbers that are unpacked at a time

Entries = dict[str, Entry]


class Scheme(Protocol):
    """How one quantised matrix [rows, columns] is stored in several tensors, `<stem>.<part>`.

    Attributes:
        part: the part that holds the numbers.
        needs: parts without which they mean nothing.
        may_have: parts that may be there as well.
        row_step: rows are unpacked in multiples of this.
    """

    @property
    def part(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def may_have(self) -> tuple[str, ...]: ...
    @property
    def row_step(self) -> int: ...

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read a `quantization_config`; raises UserError naming a setting that is not read."""
        ...

    def is_quantized(self, entry: Entry) -> bool:
        """Whether a tensor named `<stem>.<part>` holds quantised numbers."""
        ...

    def shape(self, entries: Entries, stem: str) -> tuple[int, int]:
        """Return [rows, columns]; raises UserError where the parts do not fit each other."""
        ...

    def unpack(self, reader: TensorReader, entries: Entries, stem: str, rows: slice, columns: slice) -> np.ndarray:
        """Return one piece, float32; `rows` begin at a multiple of `row_step`."""
        ...


class Unpacked:
    """The float tensors of a quantised folder; a `TensorSource`.

    Raises:
        UserError: names the tensor that lacks a companion, does not fit it, or has numbers that no scheme explains.
    """

    def __init__(self, tensors: SafetensorsFolder, scheme: Scheme):
        self.folder = tensors.folder
        self.packed = tensors
        self.scheme = scheme
        self.stems: dict[str, str] = {}  # HF's name of the weight -> the stem of its parts
        entries = dict(tensors.entries)
        for name, entry in tensors.entries.items():
            stem, _, part = name.rpartition(".")
            if part == scheme.part and scheme.is_quantized(entry):
                self._add(stem, entries)
        for name, entry in entries.items():
            if entry.dtype not in FLOATS.values():
                raise UserError(
                    f"tensor {name!r} in {entry.file.name} has data type {entry.dtype}, and none of its companions "
                    f"{[*scheme.needs]} that say what its numbers stand for."
                )
        # Plain tensors first: their data type is the model's where config.json names none.
        self.entries: Entries = dict(sorted(entries.items(), key=lambda item: item[0] in self.stems))

    def _add(self, stem: str, entries: Entries) -> None:
        scheme, packed = self.scheme, self.packed.entries
        for part in scheme.needs:
            if f"{stem}.{part}" not in packed:
                raise UserError(
                    f"tensor '{stem}.{part}' is missing from {self.folder}; '{stem}.{scheme.part}' needs it."
                )
        file = packed[f"{stem}.{scheme.part}"].file
        shape = scheme.shape(packed, stem)
        for part in (scheme.part, *scheme.needs, *scheme.may_have):
            entries.pop(f"{stem}.{part}", None)
        name = f"{stem}.weight"
        if name in entries:
            raise UserError(f"tensor {name!r} occurs both plain and quantised, as '{stem}.{scheme.part}'.")
        entries[name] = Entry(file, shape, "float32")
        self.stems[name] = stem

    @contextmanager
    def open(self) -> Iterator["_Reader"]:
        """Yield a reader whose files stay open until the block ends."""
        with self.packed.open() as reader:
            yield _Reader(self, reader)


class _Reader:
    def __init__(self, source: Unpacked, reader: TensorReader):
        self._source, self._reader = source, reader

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return one part of a tensor; float32 where it was quantised."""
        source = self._source
        if name not in source.stems:
            return self._reader.read(name, index)
        rows, columns = index
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        unit = source.scheme.row_step
        step = max(1, PIECE // max(1, out.shape[1]) // unit) * unit
        first = rows.start - rows.start % unit
        for start in range(first, rows.stop, step):
            stop = min(start + step, rows.stop)
            piece = source.scheme.unpack(
                self._reader, source.packed.entries, source.stems[name], slice(start, stop), columns
            )
            low = max(start, rows.start)
            out[low - rows.start : stop - rows.start] = piece[low - start :]
        return out
