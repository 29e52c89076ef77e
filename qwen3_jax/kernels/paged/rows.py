"""The page tables of a batch: for each row, the pages of a pool that hold its keys and values.

Invariant: slot s of row r, which holds position s of its text, is at offset s % page_size of page tables[r, s // page_size].
Page 0 is reserved as a write sink: it takes writes that must not be stored, and unused table entries point to it.

Shapes: d shards of the batch, r rows of a shard, w pages of a row, f tokens of a shard (row after row), k
key/value heads, h head size, p pages of one layer times its layers, c slots per page.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Rows(struct.PyTreeNode):
    """The rows of one call. Each shard of the batch has its own pool, and page numbers refer to it.

    Attributes:
        tables_drw: int32, the pages of each row in order; 0 for none.
        lengths_dr: int32, slots in use before the call.
        counts_dr: int32, new tokens of each row; the shard's f tokens are packed row after row. None if every row has the
            same number.
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
        """Return the positions of a call's tokens, int32 [B, T]: B rows of T tokens, or B shards of T tokens."""
        if self.counts_dr is None:
            return self.lengths_dr.reshape(b, 1) + jnp.arange(t)
        return jax.vmap(lambda lengths_r, counts_r: places(lengths_r, counts_r, t).position_f)(
            self.lengths_dr, self.counts_dr
        )

    def of_tokens(self, values_dr: jax.Array, b: int, t: int) -> jax.Array:
        """Return the value of each token's row, [B, T] as in `positions`; that of the first row at padding."""
        if self.counts_dr is None:
            return jnp.broadcast_to(values_dr.reshape(b, 1), (b, t))
        return jax.vmap(lambda values_r, lengths_r, counts_r: values_r[places(lengths_r, counts_r, t).row_f])(
            values_dr, self.lengths_dr, self.counts_dr
        )

    def after(self, t: int) -> Rows:
        """Return the rows after a call of T tokens."""
        return self.replace(lengths_dr=self.lengths_dr + (t if self.counts_dr is None else self.counts_dr))


class TokenPlaces(NamedTuple):
    """For each token of a shard: its row, its position, and whether it is valid (False: padding)."""

    row_f: jax.Array
    position_f: jax.Array
    valid_f: jax.Array


def places(lengths_r: jax.Array, counts_r: jax.Array, f: int) -> TokenPlaces:
    """Return the rows and positions of F tokens packed row after row."""
    ends_r = jnp.cumsum(counts_r)
    token_f = jnp.arange(f)
    row_f = jnp.searchsorted(ends_r, token_f, side="right", method="compare_all")
    valid_f = row_f < counts_r.shape[0]
    row_f = jnp.where(valid_f, row_f, 0)
    position_f = jnp.where(valid_f, lengths_r[row_f] + token_f - (ends_r - counts_r)[row_f], 0)
    return TokenPlaces(row_f, position_f, valid_f)


def slots(tables_rw: jax.Array, places: TokenPlaces, page_size: int) -> tuple[jax.Array, jax.Array]:
    """Return (page, offset in it) of each token, int32 [F]; page 0 for padding and for tokens without a page."""
    index_f = places.position_f // page_size
    has_page_f = places.valid_f & (index_f < tables_rw.shape[1])
    page_f = jnp.where(has_page_f, tables_rw[places.row_f, jnp.minimum(index_f, tables_rw.shape[1] - 1)], 0)
    return page_f, places.position_f % page_size
