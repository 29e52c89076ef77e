"""Products of a few rows with narrow weights (quantised, bfloat16) on one CPU: a few hundred rows of the weights at a time are
made float32, and stay in the core's cache.

XLA:CPU does not fuse the conversion into a product, and unpacking a whole matrix first writes and reads four bytes for each
that was saved: 28 products of one row with int8 [1024, 3072] take 165 ms, with float32 weights 11 ms, and in this way 7 ms
(2 cores; e4m3 37 ms, int4 50 ms). A loop also keeps XLA from unpacking the weights once and for all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from qwen3_jax.kernels.choice import target
from sharding import Placement

_ROWS = 256  # summed rows that are unpacked at a time; fewer cost dispatch, more leave the cache
_OUTPUTS = 2048  # output rows of a table that are unpacked at a time
FEW_ROWS = 16  # of x, up to which a bfloat16 product is faster in tiles


def floats(q: jax.Array) -> jax.Array:
    """Return 8-bit and 4-bit numbers as float32.

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


def quantized_tiles(w: Any, tile: int, summed: list[int]) -> Callable[[jax.Array], jax.Array]:
    """Return what gives the i-th tile of a quantised weight, float32, scaled where its scale cannot wait for the product."""
    rows, scales = w.shape[0], w.scale.shape[0]
    per_tile = tile // (rows // scales) if scales > 1 else 1
    shared = all(w.scale.shape[axis] == 1 for axis in summed)

    def cut(i: jax.Array) -> jax.Array:
        q = w.qvalue
        if q.dtype == jnp.float8_e4m3fn:  # XLA:CPU would convert all of it to slice it
            bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(q, jnp.uint8), i * tile, tile)
            part = floats(lax.bitcast_convert_type(bits, q.dtype))
        else:
            part = floats(lax.dynamic_slice_in_dim(q, i * tile, tile))
        if shared:
            return part
        return scaled(part, lax.dynamic_slice_in_dim(w.scale, i * per_tile, per_tile) if scales > 1 else w.scale)

    return cut


def bfloat16_tiles(w: jax.Array, tile: int) -> Callable[[jax.Array], jax.Array]:
    """Return what gives the i-th tile of bfloat16 weights as float32.

    They are sliced and shifted as integers, because XLA:CPU would convert all of them to slice them.
    """

    def cut(i: jax.Array) -> jax.Array:
        bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(w, jnp.uint16), i * tile, tile)
        return lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)

    return cut


def bfloat16_einsum(equation: str, x: jax.Array, w: jax.Array, placement: Placement) -> jax.Array | None:
    """Return einsum(equation, x, w) in float32 where this way is the fastest: few rows, bfloat16 weights, one CPU; else None.

    Half of float32's traffic, where XLA:CPU's own product of one row with bfloat16 weights takes longer than with float32.
    """
    inputs, c = equation.split("->")
    b = inputs.split(",")[1]
    alone = placement.mesh is None or placement.mesh.size == 1
    rows = math.prod(x.shape[: x.ndim - sum(letter not in c for letter in b)])
    if w.dtype != jnp.bfloat16 or rows > FEW_ROWS or not alone or target(placement) != "cpu":
        return None
    summed = [i for i, letter in enumerate(b) if letter not in c]
    tile = tile_size(w.shape, (1,) * w.ndim, summed)
    if tile is None or (b[0] in c and c[-1] != b[0]):
        return None
    return tiled_einsum(equation, x, w.shape, tile, bfloat16_tiles(w, tile))


def expert_product(x_rd: jax.Array, w_edf: jax.Array, expert: jax.Array) -> jax.Array:
    """Return x times one expert's matrix, float32 [R, F]; a few hundred rows of the weights are read at a time."""
    d, f = w_edf.shape[1:]
    tile = tile_size((d, f), (1, 1), [0]) or d
    bits = lax.bitcast_convert_type(w_edf, jnp.uint16) if w_edf.dtype == jnp.bfloat16 else w_edf

    def cut(i: jax.Array) -> jax.Array:
        part = lax.dynamic_slice(bits, (expert, i * tile, 0), (1, tile, f))[0]
        if part.dtype == jnp.uint16:
            return lax.bitcast_convert_type(part.astype(jnp.uint32) << 16, jnp.float32)
        return part.astype(jnp.float32)

    return tiled_einsum("rd,df->rf", x_rd, (d, f), tile, cut)


def tiled_einsum(
    equation: str, x: jax.Array, shape: tuple[int, ...], tile: int, cut: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return einsum(equation, x, w) in float32, of weights that `cut` gives `tile` rows at a time.

    The first axis of w is summed over (a matrix, [in, out]), or it is the last of the result (a table, [out, in]).
    """
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    rows = shape[0]
    axis = a.split("...")[-1].find(b[0]) - len(a.split("...")[-1])  # from the end, as of an ellipsis nothing is known
    x = x.astype(jnp.float32)  # a product of narrow numbers is slower, and not as exact

    def product(x: jax.Array, part: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, part, preferred_element_type=jnp.float32)

    like = jax.eval_shape(product, x, jax.ShapeDtypeStruct(shape, x.dtype))
    empty = jnp.zeros(like.shape, like.dtype)
    if b[0] not in c:

        def add(i, y):
            return y + product(lax.dynamic_slice_in_dim(x, i * tile, tile, x.ndim + axis), cut(i))

        return lax.fori_loop(0, rows // tile, add, empty)

    def put(i, y):
        return lax.dynamic_update_slice_in_dim(y, product(x, cut(i)), i * tile, y.ndim - 1)

    return lax.fori_loop(0, rows // tile, put, empty)
