"""Products with quantised weights on one CPU: unpacked a few hundred rows at a time, which stay in the core's cache.

XLA:CPU does not fuse the conversion into a product, and unpacking a whole matrix first writes and reads four bytes for each
that was saved: 28 products of one row with int8 [1024, 3072] take 165 ms, with float32 weights 11 ms, and in this way 7 ms
(2 cores; e4m3 37 ms, int4 50 ms). A loop also keeps XLA from unpacking the weights once and for all.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_ROWS = 256  # summed rows that are unpacked at a time; fewer cost dispatch, more leave the cache
_OUTPUTS = 2048  # output rows of a table that are unpacked at a time


def floats(q: jax.Array) -> jax.Array:
    """Return quantised numbers as float32.

    e4m3 goes through float16, which has one exponent bit more and the same order of fields: shifted into place, a finite
    number is 2^-8 of itself. XLA:CPU's own conversion, one bit test after the other, is five times slower.
    """
    if q.dtype != jnp.float8_e4m3fn:
        return q.astype(jnp.float32)
    bits = lax.bitcast_convert_type(q, jnp.uint8).astype(jnp.uint16)
    half = ((bits & 0x7F) << 7) | ((bits & 0x80) << 8)
    return lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256


def scaled(numbers: jax.Array, scale: jax.Array) -> jax.Array:
    """Return numbers times a scale with as many axes, each number of which is for a group along each axis."""
    sizes = [n for have, of in zip(scale.shape, numbers.shape, strict=True) for n in (have, of // have)]
    spread = scale.reshape([n for have in scale.shape for n in (have, 1)])
    return (numbers.reshape(sizes) * spread).reshape(numbers.shape)


def tile_size(shape: tuple[int, ...], scales: tuple[int, ...], summed: list[int]) -> int | None:
    """Return how many rows of a weight's first axis to unpack at a time, or None where no number suits.

    Args:
        shape: the weight's.
        scales: its scale's; groups along the first axis are not cut.
        summed: the axes that are summed over.
    """
    rows, group = shape[0], shape[0] // scales[0] if scales[0] > 1 else 1
    most = max(1, _ROWS // math.prod(shape[axis] for axis in summed if axis)) if 0 in summed else _OUTPUTS
    fitting = [n for n in range(group, min(max(most, group), rows) + 1, group) if rows % n == 0]
    # An odd number of rows would be walked one by one.
    return fitting[-1] if fitting and 8 * fitting[-1] >= min(most, rows) else None


def tiled_einsum(equation: str, x: jax.Array, w: Any, tile: int) -> jax.Array:
    """Return einsum(equation, x, w) in float32; arguments as in `quantized.quantized_einsum`, `tile` as from `tile_size`.

    The first axis of w is summed over (a matrix, [in, out]), or it is the last of the result (a table, [out, in]).
    """
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    rows, scales = w.shape[0], w.scale.shape[0]
    per_tile = tile // (rows // scales) if scales > 1 else 1
    axis = a.split("...")[-1].find(b[0]) - len(a.split("...")[-1])  # from the end, as of an ellipsis nothing is known
    shared = all(w.scale.shape[i] == 1 for i, letter in enumerate(b) if letter not in c)

    def cut(i: jax.Array) -> jax.Array:
        """One tile of the weight, scaled where its scale cannot wait for the product."""
        q = w.qvalue
        if q.dtype == jnp.float8_e4m3fn:  # XLA:CPU would convert all of it to slice it
            bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(q, jnp.uint8), i * tile, tile)
            part = floats(lax.bitcast_convert_type(bits, q.dtype))
        else:
            part = floats(lax.dynamic_slice_in_dim(q, i * tile, tile))
        if shared:
            return part.astype(x.dtype)
        scale = lax.dynamic_slice_in_dim(w.scale, i * per_tile, per_tile) if scales > 1 else w.scale
        return scaled(part, scale).astype(x.dtype)

    def product(x: jax.Array, part: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, part, preferred_element_type=jnp.float32)

    like = jax.eval_shape(product, x, jax.ShapeDtypeStruct(w.shape, x.dtype))
    empty = jnp.zeros(like.shape, like.dtype)
    if b[0] not in c:

        def add(i, y):
            return y + product(lax.dynamic_slice_in_dim(x, i * tile, tile, x.ndim + axis), cut(i))

        return lax.fori_loop(0, rows // tile, add, empty)

    def put(i, y):
        return lax.dynamic_update_slice_in_dim(y, product(x, cut(i)), i * tile, y.ndim - 1)

    return lax.fori_loop(0, rows // tile, put, empty)
