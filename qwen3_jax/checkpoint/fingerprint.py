"""Fingerprints of arrays: what a checkpoint must give back, bit for bit.

    h = sum_i (2 i + 1) x_i  mod 2^32        over the bits x_i of the elements as integers

Computed on the devices where the arrays lie, at the cost of reading them once; the same on any mesh, since integer sums have no
order. Any change of one element's bits changes h, and so does exchanging two elements that differ.
"""

from typing import Any

import jax
import jax.numpy as jnp

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_fingerprint(leaf) for leaf in leaves]


def fingerprints(tree: Any) -> dict[str, int]:
    """Return {path of the leaf: fingerprint} for every array of a tree; every process of a run must call it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, values, strict=True)}


def _fingerprint(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)
