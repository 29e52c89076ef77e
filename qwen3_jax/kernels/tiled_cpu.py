"""Products of a few rows with narrow weights (quantised, bfloat16) on one CPU: a few hundred rows of the weights are converted
to float32 at a time, and stay in the core's cache.

XLA:CPU does not fuse the conversion into a product, and unpacking a whole matrix first writes and reads four bytes for each
byte saved: 28 products of one row with int8 [1024, 3072] take 165 ms, with float32 weights 11 ms, and in tiles 7 ms (2 cores;
e4m3 37 ms, int4 50 ms). The loop also prevents XLA from unpacking the weights ahead of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_ROWS = 256  # summed rows that are unpacked at a time; fewer cost dispatch, more do not fit the cache
_OUTPUTS = 2048  # output rows of a table that are unpacked at a time
FEW_ROWS = 16  # of x, up to which a bfloat16 product is faster in tiles


def in_loop(x: jax.Array, i: jax.Array) -> jax.Array:
    """Return x, made dependent on a loop's counter i.

    XLA:CPU hoists loop invariants: the bits of a whole matrix would be copied before the first tile is read.
    """
    return lax.optimization_barrier((x, i))[0]


def floats(q: jax.Array) -> jax.Array:
    """Return 8-bit and 4-bit numbers as float32.

    e4m3 is converted by way of float16, which has the same order of fields and one exponent bit more: shifted into place, a
    finite number is 2^-8 of its value. XLA:CPU's own conversion, a sequence of bit tests, is five times slower.
    """
    if q.dtype != jnp.float8_e4m3fn:
        return q.astype(jnp.float32)
    bits = lax.bitcast_convert_type(q, jnp.uint8).astype(jnp.uint16)
    half = ((bits & 0x7F) << 7) | ((bits & 0x80) << 8)
    return lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256


def scaled(numbers: jax.Array, scale: jax.Array) -> jax.Array:
    """Return numbers times a scale with as many axes, each entry of which applies to a group along each axis."""
    sizes = [n for groups, size in zip(scale.shape, numbers.shape, strict=True) for n in (groups, size // groups)]
    scale = scale.reshape([n for groups in scale.shape for n in (groups, 1)])
    return (numbers.reshape(sizes) * scale).reshape(numbers.shape)


def tile_size(shape: tuple[int, ...], scales: tuple[int, ...], summed: list[int]) -> int | None:
    """Return how many rows of a weight's first axis to unpack at a time, or None where no number fits.

    Args:
        shape: of the weight.
        scales: shape of its scale; a tile holds whole groups of the first axis.
        summed: the axes that are summed over.
    """
    rows, group = shape[0], shape[0] // scales[0] if scales[0] > 1 else 1
    largest = max(1, _ROWS // math.prod(shape[axis] for axis in summed if axis)) if 0 in summed else _OUTPUTS
    fitting = [n for n in range(group, min(max(largest, group), rows) + 1, group) if rows % n == 0]
    # Of a prime number of rows only tiles of one row would fit.
    return fitting[-1] if fitting and 8 * fitting[-1] >= min(largest, rows) else None


def quantized_tiles(q: jax.Array, tile: int) -> Callable[[jax.Array], jax.Array]:
    """Return a function from i to the i-th tile of 8-bit or 4-bit numbers, float32."""

    def cut(i: jax.Array) -> jax.Array:
        if q.dtype == jnp.float8_e4m3fn:  # XLA:CPU would convert the whole array to slice it
            bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(in_loop(q, i), jnp.uint8), i * tile, tile)
            return floats(lax.bitcast_convert_type(bits, q.dtype))
        return floats(lax.dynamic_slice_in_dim(q, i * tile, tile))

    return cut


def scaled_tiles(w: Any, tile: int) -> Callable[[jax.Array], jax.Array]:
    """Return a function from i to the i-th tile of a quantised weight, float32; for scales that differ along a summed axis."""
    rows, scales = w.shape[0], w.scale.shape[0]
    per_tile = tile // (rows // scales) if scales > 1 else 1
    numbers = quantized_tiles(w.qvalue, tile)

    def cut(i: jax.Array) -> jax.Array:
        part = numbers(i)
        return scaled(part, lax.dynamic_slice_in_dim(w.scale, i * per_tile, per_tile) if scales > 1 else w.scale)

    return cut


def bfloat16_tiles(w: jax.Array, tile: int) -> Callable[[jax.Array], jax.Array]:
    """Return a function from i to the i-th tile of bfloat16 weights, float32.

    Sliced and shifted as integers, because XLA:CPU would convert the whole array to slice it.
    """

    def cut(i: jax.Array) -> jax.Array:
        bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(in_loop(w, i), jnp.uint16), i * tile, tile)
        return lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)

    return cut


class Matrices:
    """An einsum of rows with a weight as one product of two matrices.

    XLA:CPU would transpose weights of three axes in every step to match the order of the result's axes (k, v and o of
    Qwen3-0.6B: half of a decode step's time).

    Args:
        equation: x's last letters are w's first, or (a table) w's last.
        x: the rows.
        shape: of the weight.

    Attributes:
        equation: "rd,df->rf", or of a table "rd,fd->rf".
        x: [R, D].
        shape: of the weight's matrix.
        summed: its axis that is summed over.
    """

    def __init__(self, equation: str, x: jax.Array, shape: tuple[int, ...]):
        inputs, self._result = equation.split("->")
        a, b = inputs.split(",")
        summed = "".join(letter for letter in b if letter not in self._result)
        columns = "".join(letter for letter in b if letter in self._result)
        table = b.endswith(summed)
        assert a.endswith(summed), equation
        assert table or b.startswith(summed), equation
        sizes = dict(zip(b, shape, strict=True))
        inner = math.prod(sizes[letter] for letter in summed)
        lead = x.shape[: x.ndim - len(summed)]
        self.equation = "rd,fd->rf" if table else "rd,df->rf"
        self.x = x.reshape(math.prod(lead), -1)
        outer = math.prod(shape) // inner
        self.shape = (outer, inner) if table else (inner, outer)
        self.summed = int(table)
        self._order = a.removesuffix(summed) + columns
        self._shape = (*lead, *(sizes[letter] for letter in columns))

    def result(self, y_rf: jax.Array) -> jax.Array:
        """Return the product with the axes of the einsum."""
        y = y_rf.reshape(self._shape)
        if self._order == self._result:
            return y
        return y.transpose([self._order.index(letter) for letter in self._result])


def few_rows_einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array | None:
    """Return einsum(equation, x, w) in float32 if x has few rows, as in a decode step; else None. For one CPU device.

    bfloat16 weights are multiplied in tiles, with half of float32's traffic; XLA:CPU's own product of one row takes ten times
    as long as with float32.

    Args:
        equation: see `Matrices`.
    """
    flat = Matrices(equation, x, w.shape)
    if len(flat.x) > FEW_ROWS:
        return None
    matrix = w.reshape(flat.shape)
    tile = tile_size(flat.shape, (1, 1), [flat.summed]) if w.dtype == jnp.bfloat16 else None
    if tile is None:
        return flat.result(
            jnp.einsum(flat.equation, flat.x, matrix.astype(x.dtype), preferred_element_type=jnp.float32)
        )
    return flat.result(tiled_einsum(flat.equation, flat.x, flat.shape, tile, bfloat16_tiles(matrix, tile)))


def expert_product(x_rd: jax.Array, w_edf: jax.Array, expert: jax.Array) -> jax.Array:
    """Return x times one expert's matrix, float32 [R, F]; a few hundred rows of the weights are read at a time."""
    d, f = w_edf.shape[1:]
    tile = tile_size((d, f), (1, 1), [0]) or d

    def cut(i: jax.Array) -> jax.Array:
        start, size = (expert, i * tile, 0), (1, tile, f)
        if w_edf.dtype != jnp.bfloat16:
            return lax.dynamic_slice(w_edf, start, size)[0].astype(jnp.float32)
        part = lax.dynamic_slice(lax.bitcast_convert_type(in_loop(w_edf, i), jnp.uint16), start, size)[0]
        return lax.bitcast_convert_type(part.astype(jnp.uint32) << 16, jnp.float32)

    return tiled_einsum("rd,df->rf", x_rd, (d, f), tile, cut)


def tiled_einsum(
    equation: str, x: jax.Array, shape: tuple[int, ...], tile: int, cut: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return einsum(equation, x, w) in float32, where `cut(i)` is the i-th tile of w, `tile` rows.

    The first axis of w is summed over (a matrix, [in, out]), or it is the last of the result (a table, [out, in]).
    """
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    rows = shape[0]
    axis = a.split("...")[-1].find(b[0]) - len(
        a.split("...")[-1]
    )  # from the end: an ellipsis stands for any number of axes
    x = x.astype(jnp.float32)  # a product of narrow types is slower and less exact

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
