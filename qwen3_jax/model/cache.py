"""The key/value cache: for each layer group, keys and values [B, K, S, H] (a stack of layers leads with L).

Invariant: slot s of row b holds position s of that row; slots at or past `lengths[b]` hold nothing that is ever read, since
a query at slot q sees only slots up to q. So rows need no padding token and no mask of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


class KVCache(struct.PyTreeNode):
    """A static cache of `capacity` slots per row.

    Attributes:
        layers: one (keys, values) pair per layer group of the model.
        lengths: int32 [B], slots in use in each row.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.layers[0][0].shape[-2]

    def grow(self, capacity: int) -> KVCache:
        """Return the same contents with room for `capacity` slots per row."""
        extra = capacity - self.capacity

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, extra), (0, 0)])

        return self.replace(layers=jax.tree.map(pad, self.layers))
