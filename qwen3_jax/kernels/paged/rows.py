"""Where the rows of a batch keep their keys and values: pages of a pool, listed row by row.

Invariant: slot s of row r, which holds position s of its text, lies in page tables[r, s // page_size] at s % page_size. Page 0
belongs to nobody: what must not be kept is written there, and entries of a table that are not in use name it.

Shapes: d shards of the batch, r rows of a shard, w pages of a row, f tokens of a shard (all rows' one after another), k
key/value heads, h head size, p pages of one layer times its layers, c slots per page.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Rows(struct.PyTreeNode):
    """The rows of one call. Each shard of the batch has a pool of its own, and page numbers count within it.

    Attributes:
        tables_drw: int32, the pages of each row in order; 0 where there is none.
        lengths_dr: int32, slots in use before the call.
        counts_dr: int32, new tokens of each row, which lie one row after another in the shard's f tokens; None where every
            row brings equally many.
    """

    tables_drw: jax.Array
    lengths_dr: jax.Array
    counts_dr: jax.Array | None = None

    @classmethod
    def consecutive(cls, shards: int, rows: int, width: int) -> Rows:
        """Return empty rows that own `width` pages each, one row after another from page 1 on."""
        table_rw = 1 + np.arange(rows * width, dtype=np.int32).reshape(1, rows, width)
        tables_drw = jnp.broadcast_to(jnp.asarray(table_rw), (shards, rows, width))
        return cls(tables_drw, jnp.zeros((shards, rows), jnp.int32))

    def positions(self, b: int, t: int) -> jax.Array:
        """Positions of the tokens of a call, int32 [B, T]: B rows of T tokens, or B shards of T tokens."""
        if self.counts_dr is None:
            return self.lengths_dr.reshape(b, 1) + jnp.arange(t)
        return jax.vmap(lambda lengths_r, counts_r: places(lengths_r, counts_r, t).position_f)(
            self.lengths_dr, self.counts_dr
        )

    def after(self, t: int) -> Rows:
        """The rows when the call's tokens are in their pages."""
        return self.replace(lengths_dr=self.lengths_dr + (t if self.counts_dr is None else self.counts_dr))


class Places(NamedTuple):
    """Of each of a shard's tokens: its row, its position, and whether it is one at all (the rest fills up)."""

    row_f: jax.Array
    position_f: jax.Array
    valid_f: jax.Array


def places(lengths_r: jax.Array, counts_r: jax.Array, f: int) -> Places:
    """Find the rows of F tokens that lie row after row."""
    ends_r = jnp.cumsum(counts_r)
    token_f = jnp.arange(f)
    row_f = jnp.searchsorted(ends_r, token_f, side="right", method="compare_all")
    valid_f = row_f < counts_r.shape[0]
    row_f = jnp.where(valid_f, row_f, 0)
    position_f = jnp.where(valid_f, lengths_r[row_f] + token_f - (ends_r - counts_r)[row_f], 0)
    return Places(row_f, position_f, valid_f)


def slots(tables_rw: jax.Array, where: Places, page_size: int) -> tuple[jax.Array, jax.Array]:
    """Return (page, offset in it) of each token, int32 [F]; page 0 for what is no token or has no page."""
    index_f = where.position_f // page_size
    has_page_f = where.valid_f & (index_f < tables_rw.shape[1])
    page_f = jnp.where(has_page_f, tables_rw[where.row_f, jnp.minimum(index_f, tables_rw.shape[1] - 1)], 0)
    return page_f, where.position_f % page_size
