"""The grouped products on NVIDIA GPUs: Pallas kernels of our own, compiled with Triton.

`jax.lax.ragged_dot` is no choice there: XLA multiplies every row with every expert. A tile here is up to 128 rows of one group;
the last tile of a group is masked, so groups may have any size. Rows without a group are neither read nor written: what lies
there afterwards is undefined.

    y[r] = x[r] w[g(r)]        dx[r] = dy[r] w[g(r)]^T        dw[g] = x[rows of g]^T dy[rows of g]

Rows may be read where the tokens lie, without an array of sorted rows (`Operand.token_m`). The weights may be those of all
layers (`Stacked`), quantised, or have the group in their second dimension (`Layout`): a program reads its own group in place,
and unpacks what it multiplies.

Shapes: m rows sorted by group, n tokens, d and f the sides of a weight, g groups of the weights, e groups that have rows, t
tiles.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.quantized import refuse_gradient

_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float16"), jnp.dtype("float32"))
_MOST_STAGES = 4  # of loads that are under way while a tile is multiplied
_RESERVED = 2048  # bytes of shared memory that Triton needs besides the tiles
LARGEST_SHARED_MEMORY = 232_448  # of a block, an H100's; for interpret mode, where there is no card


@dataclass(frozen=True)
class Blocks:
    """Sides of the tiles, powers of two.

    Attributes:
        rows: of a tile.
        inner: summed at a time.
        columns: of a tile.
        stages: tiles of all operands in shared memory at a time.
        warps: of 32 threads each.
    """

    rows: int
    inner: int
    columns: int
    stages: int
    warps: int


class Layout(NamedTuple):
    """How the weights of a product lie in memory.

    Attributes:
        group_axis: 0 for [G, a, b], 1 for [a, G, b].
        transposed: a is the columns of the product and b what is summed, and not the other way round.
    """

    group_axis: int = 0
    transposed: bool = False


class Operand(NamedTuple):
    """Rows sorted by group, [M, K]; with token_m, int32, row r is x[token_m[r]] of x [N, K]."""

    x: jax.Array
    token_m: jax.Array | None = None

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        return (self.x,) if self.token_m is None else (self.x, self.token_m)

    @property
    def rows(self) -> int:
        return (self.x if self.token_m is None else self.token_m).shape[0]


def why_not(card: Card | None, dtype: Any, stored: Any = None) -> str | None:
    """Return what the kernel would need to run on rows of this type, or None where it can.

    Args:
        card: the GPU.
        dtype: of the rows.
        stored: of the weights, if it is another.
    """
    if jnp.dtype(dtype) not in _DTYPES:
        return f"a compute type of bfloat16, float16 or float32; it is {jnp.dtype(dtype)}"
    return why_no_triton(card, dtype, dtype if stored is None else stored)


def unpacks(w_gdf: Any, dtype: Any, card: Card | None) -> bool:
    """Whether the kernel multiplies quantised weights as they are: scales of whole columns, or of groups of a power of two."""
    (g, d, f), (scales_g, scales_d, scales_f) = w_gdf.shape, w_gdf.scale.shape
    group = d // scales_d
    if w_gdf.zero_point is not None or (scales_g, scales_f) != (g, f):
        return False
    if scales_d > 1 and (group < 16 or group & (group - 1)):
        return False
    if 2**31 < g * d * f <= 2**32:  # see `paged.triton.why_not`
        return False
    return card is None or why_not(card, dtype, w_gdf.qvalue.dtype) is None


def choose_blocks(rows: int, groups: int, dtype: Any, shared_memory: int, products: int = 1) -> Blocks:
    """Return the tiles for a product of this many rows.

    Args:
        rows: of all groups.
        groups: that share the rows.
        dtype: of rows and weights.
        shared_memory: of the card, in bytes.
        products: that a program computes at a time with the same rows, 1 or 2.
    """
    itemsize = jnp.dtype(dtype).itemsize
    height = min(max(pl.next_power_of_2(-(-rows // groups)), 16), 128 if itemsize == 2 else 64)
    inner, columns = (64, 128 // products) if itemsize == 2 else (32, 64 // products)
    if height == 16:  # a decode step: more programs, each of which reads fewer columns of the weights
        inner, columns = 2 * inner, max(columns // 2, 32)
    fitting = (shared_memory - _RESERVED) // ((height + products * columns) * inner * itemsize)
    warps = 8 if height * columns * products > 8192 else 4
    return Blocks(height, inner, columns, max(1, min(fitting, _MOST_STAGES)), warps)


def quantized_dot(
    x_md: jax.Array, w_gdf: Any, sizes_e: jax.Array, card: Card | None, interpret: bool = False
) -> jax.Array:
    """Return the product of each row with its group's weights, [M, F] in x's dtype; rows without a group are zero.

    Args:
        x_md: rows; the first sizes_e[0] belong to the first group, the next to the second, and so on.
        w_gdf: quantised weights that the kernel `unpacks`.
        sizes_e: int32.
        card: the caller has checked `why_not`; None only with `interpret`.
        interpret: run the kernel as plain JAX, for tests without a GPU.

    Raises:
        UserError: a gradient was asked for.
    """
    shared = LARGEST_SHARED_MEMORY if card is None else card.shared_memory
    blocks = choose_blocks(x_md.shape[0], sizes_e.shape[0], x_md.dtype, shared)
    groups = w_gdf.scale.shape[1]
    if groups > 1:  # numbers that are summed at a time have one scale
        blocks = replace(blocks, inner=min(blocks.inner, w_gdf.shape[1] // groups))
    return _quantized_dot(x_md, w_gdf, sizes_e, blocks, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _quantized_dot(x_md, w, sizes_e, blocks: Blocks, interpret: bool):
    first = jnp.zeros((), jnp.int32)
    y_mf = product([Operand(x_md)], [w.qvalue], w.shape[2], sizes_e, first, Layout(), blocks, interpret, w.scale)
    return jnp.where((jnp.arange(x_md.shape[0]) < sizes_e.sum())[:, None], y_mf, 0)


def _refuse(*_):
    refuse_gradient()


_quantized_dot.defvjp(_refuse, _refuse)


def tiles(sizes_e: jax.Array, rows: int, height: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return each tile's group, its first row and the row after its group's last, int32 [T]; an unused tile is empty."""
    groups = sizes_e.shape[0]
    # A group of n rows has (n + height - 1) // height tiles; the bound is of their sum, over groups that have rows.
    count = (rows + min(groups, rows) * (height - 1)) // height
    tiles_e = (sizes_e + height - 1) // height
    last_e = jnp.cumsum(tiles_e)
    tile_t = jnp.arange(count, dtype=jnp.int32)
    group_t = jnp.searchsorted(last_e, tile_t, side="right", method="compare_all").astype(jnp.int32)
    used_t = group_t < groups
    group_t = jnp.minimum(group_t, groups - 1)
    stop_e = jnp.cumsum(sizes_e)
    start_t = (stop_e - sizes_e)[group_t] + (tile_t - (last_e - tiles_e)[group_t]) * height
    stop_t = jnp.where(used_t, stop_e[group_t], 0)
    return group_t, start_t.astype(jnp.int32), stop_t.astype(jnp.int32)


def product(
    operands: Sequence[Operand],
    weights: Sequence[jax.Array],
    columns: int,
    sizes_e: jax.Array,
    first: jax.Array,
    layout: Layout,
    blocks: Blocks,
    interpret: bool,
    scale_gsf: jax.Array | None = None,
) -> jax.Array:
    """Return the sum of the products of each operand's rows with its weights, [M, columns]; undefined for rows without a group.

    Args:
        operands: with equal numbers of rows and columns.
        weights: one array for each operand.
        columns: of the result.
        sizes_e: int32, the rows of each group.
        first: int32 scalar, the number of the first group.
        layout: of the weights.
        blocks: the tiles.
        interpret: see `quantized_dot`.
        scale_gsf: of quantised weights, of S groups of summed numbers.
    """
    m, k = operands[0].rows, operands[0].x.shape[1]
    group_t, start_t, stop_t = tiles(sizes_e, m, blocks.rows)
    taken = operands[0].token_m is not None
    kernel = functools.partial(grouped_product_kernel, count=len(operands), taken=taken, layout=layout, blocks=blocks)
    scales = () if scale_gsf is None else (scale_gsf,)
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(columns, blocks.columns), group_t.shape[0]),
        out_shape=jax.ShapeDtypeStruct((m, columns), operands[0].x.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=f"grouped_product_{m}x{k}x{columns}",
    )(group_t + first, start_t, stop_t, *(a for one in operands for a in one.arrays), *weights, *scales)


def grouped_product_kernel(
    group_ref, start_ref, stop_ref, *refs, count: int, taken: bool, layout: Layout, blocks: Blocks
):
    refs, y_ref = refs[:-1], refs[-1]
    each = 1 + taken
    x_refs, w_refs, scale_ref = (
        refs[: count * each],
        refs[count * each : count * (each + 1)],
        refs[count * (each + 1) :],
    )
    column, tile = pl.program_id(0) * blocks.columns, pl.program_id(1)
    group, start, stop = group_ref[tile], start_ref[tile], stop_ref[tile]
    inner, columns = x_refs[0].shape[1], y_ref.shape[1]
    per_block = bool(scale_ref) and scale_ref[0].shape[1] > 1

    @pl.when(start < stop)
    def _():
        inside_r = start + jnp.arange(blocks.rows) < stop
        inside_c = column + jnp.arange(blocks.columns) < columns

        def scale(place):
            (ref,) = scale_ref
            at = ref.at[group, place * ref.shape[1] // inner, pl.ds(column, blocks.columns)]
            return pltriton.load(at, mask=inside_c, other=0)[None]

        def add(i, sum_rc, rows, w_ref):
            place = i * blocks.inner
            inside_i = place + jnp.arange(blocks.inner) < inner
            x_ri = load_rows(rows, start, blocks.rows, place, blocks.inner, inside_r, inside_i)
            w_ic = load_weight(w_ref, group, place, blocks.inner, inside_i, column, blocks.columns, inside_c, layout)
            product_rc = jnp.dot(x_ri, w_ic.astype(x_ri.dtype), preferred_element_type=jnp.float32)
            return sum_rc + (product_rc * scale(place) if per_block else product_rc)

        sum_rc = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
        for index in range(count):
            rows = x_refs[index * each : (index + 1) * each]
            step = functools.partial(add, rows=tokens_of(rows, start, blocks.rows, inside_r), w_ref=w_refs[index])
            sum_rc = jax.lax.fori_loop(0, pl.cdiv(inner, blocks.inner), step, sum_rc)
        if scale_ref and not per_block:
            sum_rc *= scale(group * 0)  # interpret mode takes no constant beside a slice
        at = y_ref.at[pl.ds(start, blocks.rows), pl.ds(column, blocks.columns)]
        pltriton.store(at, sum_rc.astype(y_ref.dtype), mask=inside_r[:, None] & inside_c[None])


def weight_gradient(
    left: Operand, right: Operand, sizes_g: jax.Array, dtype: Any, group_axis: int, blocks: Blocks, interpret: bool
) -> jax.Array:
    """Return left^T right of each group's rows, [G, D, F] or with `group_axis` 1 [D, G, F]; zero for a group without rows.

    Args:
        left, right: [M, D] and [M, F].
        sizes_g: int32, the rows of each group.
        dtype: of the result.
        group_axis: 0 or 1.
        blocks: of the product whose gradient this is.
        interpret: see `quantized_dot`.
    """
    d, f, g = left.x.shape[1], right.x.shape[1], sizes_g.shape[0]
    stop_g = jnp.cumsum(sizes_g).astype(jnp.int32)
    side = 128 if left.x.dtype.itemsize == 2 else 64
    # As many rows at a time as a tile of the product has, and at least what a tensor core multiplies.
    blocks = Blocks(rows=side, inner=min(max(blocks.rows, 16), 32), columns=side, stages=blocks.stages, warps=8)
    taken = left.token_m is not None, right.token_m is not None
    return pl.pallas_call(
        functools.partial(grouped_gradient_kernel, taken=taken, group_axis=group_axis, blocks=blocks),
        grid=(pl.cdiv(f, blocks.columns), pl.cdiv(d, blocks.rows), g),
        out_shape=jax.ShapeDtypeStruct((d, g, f) if group_axis else (g, d, f), dtype),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=f"grouped_gradient_{left.rows}x{d}x{f}",
    )(stop_g - sizes_g, stop_g, *left.arrays, *right.arrays)


def grouped_gradient_kernel(start_ref, stop_ref, *refs, taken: tuple[bool, bool], group_axis: int, blocks: Blocks):
    refs, dw_ref = refs[:-1], refs[-1]
    left, right = refs[: 1 + taken[0]], refs[1 + taken[0] :]
    column, row, group = pl.program_id(0) * blocks.columns, pl.program_id(1) * blocks.rows, pl.program_id(2)
    start, stop = start_ref[group], stop_ref[group]
    inside_d = row + jnp.arange(blocks.rows) < left[0].shape[1]
    inside_f = column + jnp.arange(blocks.columns) < right[0].shape[1]

    def add(i, sum_df):
        place = start + i * blocks.inner
        inside_i = place + jnp.arange(blocks.inner) < stop

        def load(refs, column, columns, inside):
            rows = tokens_of(refs, place, blocks.inner, inside_i)
            return load_rows(rows, place, blocks.inner, column, columns, inside_i, inside)

        left_id, right_if = load(left, row, blocks.rows, inside_d), load(right, column, blocks.columns, inside_f)
        return sum_df + jnp.dot(left_id.T, right_if, preferred_element_type=jnp.float32)

    zeros_df = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
    sum_df = jax.lax.fori_loop(0, (stop - start + blocks.inner - 1) // blocks.inner, add, zeros_df)
    sides = pl.ds(row, blocks.rows), pl.ds(column, blocks.columns)
    at = dw_ref.at[sides[0], group, sides[1]] if group_axis else dw_ref.at[group, *sides]
    pltriton.store(at, sum_df.astype(dw_ref.dtype), mask=inside_d[:, None] & inside_f[None])


def tokens_of(refs, start, count: int, inside_r):
    """The array of an operand and the tokens of `count` of its rows, or None where the rows lie in order."""
    if len(refs) == 1:
        return refs[0], None
    return refs[0], pltriton.load(refs[1].at[pl.ds(start, count)], mask=inside_r, other=0)


def load_rows(rows, start, count: int, place, width: int, inside_r, inside_i):
    """Load a tile of an operand's rows; `rows` from `tokens_of`."""
    ref, token_r = rows
    if token_r is None:
        return _load(ref.at[pl.ds(start, count), pl.ds(place, width)], inside_r, inside_i)
    shape = (count, width)  # both as arrays: interpret mode takes no array beside a slice
    column_i = place + jnp.arange(width, dtype=jnp.int32)
    at = ref.at[jnp.broadcast_to(token_r[:, None], shape), jnp.broadcast_to(column_i[None], shape)]
    return _load(at, inside_r, inside_i)


def load_weight(ref, group, place, inner: int, inside_i, column, columns: int, inside_c, layout: Layout):
    """Load a tile of a group's weights, [inner, columns]."""
    sides = (pl.ds(place, inner), inside_i), (pl.ds(column, columns), inside_c)
    (a, inside_a), (b, inside_b) = sides[::-1] if layout.transposed else sides
    tile = _load(ref.at[a, group, b] if layout.group_axis else ref.at[group, a, b], inside_a, inside_b)
    return tile.T if layout.transposed else tile


def _load(ref, inside_a, inside_b):
    zero = 0.0 if jnp.issubdtype(ref.dtype, jnp.floating) else 0  # Triton casts no integer to fp8
    return pltriton.load(ref, mask=inside_a[:, None] & inside_b[None], other=zero)
