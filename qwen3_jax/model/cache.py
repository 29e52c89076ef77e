"""The key/value cache: for each layer group a pool of pages, and the rows whose keys and values lie in them.

Invariant: a query sees only slots of its own row up to its own position, so rows need no padding token and no mask.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import struct

from qwen3_jax.kernels import Pages, Rows


class KVCache(struct.PyTreeNode):
    """A paged cache.

    Attributes:
        groups: the pages of each layer group of the model. The layers of a stack share one array, one after another.
        rows: the pages of each row, and how many of their slots are in use.
    """

    groups: tuple[Pages, ...]
    rows: Rows


class LayerCache(NamedTuple):
    """One layer's part of a cache.

    Attributes:
        pages: the pool of the layer's group.
        rows: the pages of each row.
        first_page: int32 scalar, the number of this layer's first page in the pool.
    """

    pages: Pages
    rows: Rows
    first_page: jax.Array | int
