"""The grouped product on NVIDIA GPUs: Pallas kernels of our own, compiled with Triton.

`jax.lax.ragged_dot` is no choice there: XLA multiplies every row with every expert. A tile here is up to 128 rows of one group;
the last tile of a group is masked, so groups may have any size. Rows without a group are neither read nor written.

    y[r] = x[r] w[g(r)]        dx[r] = dy[r] w[g(r)]^T        dw[g] = x[rows of g]^T dy[rows of g]

The weights may be those of all layers (`Stacked`), or quantised: a program reads its own group in place, and unpacks what it
multiplies.

Shapes: m rows sorted by group, d and f the sides of a weight, g groups of the weights, e groups that have rows, t tiles.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.quantized import Weight, is_quantized, refuse_gradient

_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float16"), jnp.dtype("float32"))
_MOST_STAGES = 4  # of loads that are under way while a tile is multiplied
_RESERVED = 2048  # bytes of shared memory that Triton needs besides the tiles


@dataclass(frozen=True)
class Blocks:
    """Sides of the tiles, powers of two.

    Attributes:
        rows: of a tile.
        inner: summed at a time.
        columns: of a tile.
        stages: tiles of both operands in shared memory at a time.
        warps: of 32 threads each.
    """

    rows: int
    inner: int
    columns: int
    stages: int
    warps: int


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


def choose_blocks(rows: int, groups: int, dtype: Any, shared_memory: int) -> Blocks:
    """Return the tiles for a product of this many rows.

    Args:
        rows: of all groups.
        groups: that share the rows.
        dtype: of rows and weights.
        shared_memory: of the card, in bytes.
    """
    itemsize = jnp.dtype(dtype).itemsize
    height = min(max(pl.next_power_of_2(-(-rows // groups)), 16), 128 if itemsize == 2 else 64)
    inner, columns = (64, 128) if itemsize == 2 else (32, 64)
    if height == 16:  # a decode step: more programs, each of which reads fewer columns of the weights
        inner, columns = 2 * inner, columns // 2
    fitting = (shared_memory - _RESERVED) // ((height + columns) * inner * itemsize)
    return Blocks(height, inner, columns, max(1, min(fitting, _MOST_STAGES)), 8 if height * columns > 8192 else 4)


def triton_dot(
    x_md: jax.Array,
    w_gdf: Weight,
    sizes_e: jax.Array,
    first: jax.Array | int,
    card: Card | None,
    interpret: bool = False,
) -> jax.Array:
    """Return the product of each row with its group's weights, [M, F] in x's dtype; rows without a group are zero.

    Args:
        x_md: rows; the first sizes_e[0] belong to group `first`, the next to the group after it, and so on.
        w_gdf: weights in x's dtype, or quantised without a zero point.
        sizes_e: int32.
        first: number of the first group.
        card: the caller has checked `why_not`; None only with `interpret`.
        interpret: run the kernel as plain JAX, for tests without a GPU.
    """
    shared = 232_448 if card is None else card.shared_memory
    blocks = choose_blocks(x_md.shape[0], sizes_e.shape[0], x_md.dtype, shared)
    first = jnp.asarray(first, jnp.int32)
    if not is_quantized(w_gdf):
        return _dot(x_md, w_gdf, sizes_e, first, blocks, interpret)
    groups = w_gdf.scale.shape[1]
    if groups > 1:  # numbers that are summed at a time have one scale
        blocks = replace(blocks, inner=min(blocks.inner, w_gdf.shape[1] // groups))
    return _quantized_dot(x_md, w_gdf, sizes_e, first, blocks, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _dot(x_md, w_gdf, sizes_e, first, blocks: Blocks, interpret: bool):
    return _product(x_md, w_gdf, sizes_e, first, False, blocks, interpret)


def _forward(x_md, w_gdf, sizes_e, first, blocks, interpret):
    return _dot(x_md, w_gdf, sizes_e, first, blocks, interpret), (x_md, w_gdf, sizes_e, first)


def _backward(blocks, interpret, residuals, dy_mf):
    x_md, w_gdf, sizes_e, first = residuals
    dx_md = _product(dy_mf, w_gdf, sizes_e, first, True, blocks, interpret)
    sizes_g = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(w_gdf.shape[0], sizes_e.dtype), sizes_e, first, 0)
    dw_gdf = _weight_gradient(x_md, dy_mf, sizes_g, w_gdf.dtype, blocks, interpret)
    return dx_md, dw_gdf, None, None


_dot.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _quantized_dot(x_md, w, sizes_e, first, blocks: Blocks, interpret: bool):
    return _product(x_md, w.qvalue, sizes_e, first, False, blocks, interpret, w.scale)


def _refuse(*_):
    refuse_gradient()


_quantized_dot.defvjp(_refuse, _refuse)


def _tiles(sizes_e: jax.Array, rows: int, height: int) -> tuple[jax.Array, jax.Array, jax.Array]:
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


def _product(x_mk, w_gdf, sizes_e, first, transposed: bool, blocks: Blocks, interpret: bool, scale_gsf=None):
    """Return the rows times their weights, or the weights' transposes; rows without a group are zero.

    Of quantised weights, scale_gsf has S groups of summed numbers.
    """
    m, k = x_mk.shape
    n = w_gdf.shape[1 if transposed else 2]
    group_t, start_t, stop_t = _tiles(sizes_e, m, blocks.rows)
    kernel = functools.partial(grouped_product_kernel, transposed=transposed, blocks=blocks)
    y_mn = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, blocks.columns), group_t.shape[0]),
        out_shape=jax.ShapeDtypeStruct((m, n), x_mk.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=f"grouped_product_{m}x{k}x{n}",
    )(group_t + first, start_t, stop_t, x_mk, w_gdf, *(() if scale_gsf is None else (scale_gsf,)))
    return jnp.where((jnp.arange(m) < sizes_e.sum())[:, None], y_mn, 0)


def grouped_product_kernel(group_ref, start_ref, stop_ref, x_ref, w_ref, *refs, transposed: bool, blocks: Blocks):
    *scale_ref, y_ref = refs
    column, tile = pl.program_id(0) * blocks.columns, pl.program_id(1)
    group, start, stop = group_ref[tile], start_ref[tile], stop_ref[tile]
    inner, columns = x_ref.shape[1], y_ref.shape[1]
    per_block = bool(scale_ref) and scale_ref[0].shape[1] > 1

    @pl.when(start < stop)
    def _():
        inside_r = start + jnp.arange(blocks.rows) < stop
        inside_c = column + jnp.arange(blocks.columns) < columns

        def scale(place):
            (ref,) = scale_ref
            at = ref.at[group, place * ref.shape[1] // inner, pl.ds(column, blocks.columns)]
            return pltriton.load(at, mask=inside_c, other=0)[None]

        def add(i, sum_rc):
            place = i * blocks.inner
            inside_i = place + jnp.arange(blocks.inner) < inner
            x_ri = _load(x_ref.at[pl.ds(start, blocks.rows), pl.ds(place, blocks.inner)], inside_r, inside_i)
            if transposed:
                at = w_ref.at[group, pl.ds(column, blocks.columns), pl.ds(place, blocks.inner)]
                w_ic = _load(at, inside_c, inside_i).T
            else:
                at = w_ref.at[group, pl.ds(place, blocks.inner), pl.ds(column, blocks.columns)]
                w_ic = _load(at, inside_i, inside_c)
            product_rc = jnp.dot(x_ri, w_ic.astype(x_ri.dtype), preferred_element_type=jnp.float32)
            return sum_rc + (product_rc * scale(place) if per_block else product_rc)

        zeros_rc = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
        sum_rc = jax.lax.fori_loop(0, pl.cdiv(inner, blocks.inner), add, zeros_rc)
        if scale_ref and not per_block:
            sum_rc *= scale(group * 0)  # interpret mode takes no constant beside a slice
        at = y_ref.at[pl.ds(start, blocks.rows), pl.ds(column, blocks.columns)]
        pltriton.store(at, sum_rc.astype(y_ref.dtype), mask=inside_r[:, None] & inside_c[None])


def _weight_gradient(x_md, dy_mf, sizes_g, dtype, blocks: Blocks, interpret: bool):
    """Return the gradient of every group's weights, [G, D, F]; zero for a group without rows."""
    d, f = x_md.shape[1], dy_mf.shape[1]
    g = sizes_g.shape[0]
    stop_g = jnp.cumsum(sizes_g).astype(jnp.int32)
    side = 128 if x_md.dtype.itemsize == 2 else 64
    # As many rows at a time as a tile of the product has, and at least what a tensor core multiplies.
    blocks = Blocks(rows=side, inner=min(max(blocks.rows, 16), 32), columns=side, stages=blocks.stages, warps=8)
    return pl.pallas_call(
        functools.partial(grouped_gradient_kernel, blocks=blocks),
        grid=(pl.cdiv(f, blocks.columns), pl.cdiv(d, blocks.rows), g),
        out_shape=jax.ShapeDtypeStruct((g, d, f), dtype),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=f"grouped_gradient_{d}x{f}",
    )(stop_g - sizes_g, stop_g, x_md, dy_mf)


def grouped_gradient_kernel(start_ref, stop_ref, x_ref, dy_ref, dw_ref, *, blocks: Blocks):
    column, row, group = pl.program_id(0) * blocks.columns, pl.program_id(1) * blocks.rows, pl.program_id(2)
    start, stop = start_ref[group], stop_ref[group]
    inside_d = row + jnp.arange(blocks.rows) < x_ref.shape[1]
    inside_f = column + jnp.arange(blocks.columns) < dy_ref.shape[1]

    def add(i, sum_df):
        place = start + i * blocks.inner
        inside_i = place + jnp.arange(blocks.inner) < stop
        x_id = _load(x_ref.at[pl.ds(place, blocks.inner), pl.ds(row, blocks.rows)], inside_i, inside_d)
        dy_if = _load(dy_ref.at[pl.ds(place, blocks.inner), pl.ds(column, blocks.columns)], inside_i, inside_f)
        return sum_df + jnp.dot(x_id.T, dy_if, preferred_element_type=jnp.float32)

    zeros_df = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
    sum_df = jax.lax.fori_loop(0, (stop - start + blocks.inner - 1) // blocks.inner, add, zeros_df)
    at = dw_ref.at[group, pl.ds(row, blocks.rows), pl.ds(column, blocks.columns)]
    pltriton.store(at, sum_df.astype(dw_ref.dtype), mask=inside_d[:, None] & inside_f[None])


def _load(ref, inside_a, inside_b):
    zero = 0.0 if jnp.issubdtype(ref.dtype, jnp.floating) else 0  # Triton casts no integer to fp8
    return pltriton.load(ref, mask=inside_a[:, None] & inside_b[None], other=zero)
