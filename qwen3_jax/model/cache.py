"""The key/value cache: for each layer group a pool of pages, and the rows whose texts lie in them.

Invariant: a query sees only slots of its own row up to its own position, so rows need no padding token and no mask.
"""

from __future__ import annotations

from flax import struct

from qwen3_jax.kernels import Pages, Rows


class KVCache(struct.PyTreeNode):
    """A paged cache.

    Attributes:
        groups: the pages of each layer group of the model. The layers of a stack share one array, one after another.
        rows: where the rows' pages are, and how many of their slots are in use.
    """

    groups: tuple[Pages, ...]
    rows: Rows
