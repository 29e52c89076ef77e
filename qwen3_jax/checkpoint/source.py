"""The interface through which tensors of any checkpoint format are read: names, shapes, and slices in HF's layout."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: file, shape, and the name of its data type in NumPy's spelling."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorReader(Protocol):
    """Reads slices of tensors; keeps files open between reads."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return one part of a tensor, copied out of the file."""
        ...


class TensorSource(Protocol):
    """The tensors of one checkpoint by HF's names.

    Attributes:
        folder: where it lies, for messages.
        entries: every tensor.
    """

    folder: Path
    entries: dict[str, Entry]

    def open(self) -> AbstractContextManager[TensorReader]:
        """Return a reader whose files stay open until the block ends."""
        ...
