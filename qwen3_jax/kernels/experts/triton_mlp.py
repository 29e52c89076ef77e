"""The experts of a layer on NVIDIA GPUs, forward and backward, with few passes over memory.

    y[n] = sum over the rows r of token n of  c[r] (silu(x[n] gate[e(r)]) * x[n] up[e(r)]) down[e(r)]

A row is a token for one of its experts. The products read tokens and gradients of tokens where they lie, so that no array of
sorted rows [M, D] is written for them. Gate and up are one kernel, which writes the activation, and the gradients of both with
respect to the rows one sum. The products themselves are those of `experts.triton`.

Shapes: n tokens, k experts of a token, m = n k rows sorted by expert, d width, e experts, f expert width, g experts of all
layers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from qwen3_jax.kernels.card import Card
from qwen3_jax.kernels.experts import triton
from qwen3_jax.kernels.experts.rows import ExpertRows, sum_rows, take_weights
from qwen3_jax.kernels.experts.stack import Stacked
from qwen3_jax.kernels.experts.triton import Blocks, Layout, Operand, product, weight_gradient


@struct.dataclass
class WidthFirst:
    """Experts [D, E, F] (gate, up and down alike), gathered over devices that split D: no other order comes without a copy.

    Their gradient is that of `shard`: computed in its type, summed over the devices and split among them.

    Attributes:
        array: in the compute type.
        shard: this device's part, [E, D / p, F] or [E, F, D / p], in the storage type.
        axes: the mesh axes of the p devices.
        dimension: of `shard` that is split.
    """

    array: jax.Array
    shard: jax.Array
    axes: tuple[str, ...] = struct.field(pytree_node=False)
    dimension: int = struct.field(pytree_node=False)

    @classmethod
    def gathered(cls, shard: jax.Array, axes: tuple[str, ...], dimension: int, dtype: Any) -> WidthFirst:
        """Gather the weights in the compute type."""
        own = jnp.moveaxis(jax.lax.stop_gradient(shard).astype(dtype), dimension, 0)
        return cls(jax.lax.all_gather(own, axes, axis=0, tiled=True), shard, axes, dimension)

    @property
    def experts(self) -> int:
        return self.array.shape[1]

    def gradient(self, own: jax.Array) -> WidthFirst:
        """Return the gradient, given this device's of `array`, [D, E, F]."""
        part = jax.lax.psum_scatter(own, self.axes, scatter_dimension=0, tiled=True)
        return self.replace(array=None, shard=jnp.moveaxis(part, 0, self.dimension))  # type: ignore[attr-defined]


class _Sizes(NamedTuple):
    """What the kernels need to know when they are compiled.

    Attributes:
        wide: tiles of gate and up together.
        narrow: tiles of the other products.
        complete: every row has its expert here.
        interpret: run the kernels as plain JAX.
    """

    wide: Blocks
    narrow: Blocks
    complete: bool
    interpret: bool


def triton_mlp(
    x_nd: jax.Array,
    weight_nk: jax.Array,
    rows: ExpertRows,
    gate: Any,
    up: Any,
    down: Any,
    card: Card | None,
    complete: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Return the weighted sum of the chosen experts' outputs, [N, D] in x's dtype.

    Args:
        x_nd: tokens.
        weight_nk: of the outputs, in x's dtype.
        rows: from `sort_by_expert`.
        gate, up, down: in x's dtype, as arrays [E, D, F], [E, D, F] and [E, F, D], `Stacked` or `WidthFirst`.
        card: the caller has checked `triton.why_not`; None only with `interpret`.
        complete: every row has its expert here.
        interpret: run the kernels as plain JAX, for tests without a GPU.
    """
    shared = triton.LARGEST_SHARED_MEMORY if card is None else card.shared_memory
    of = rows.order_m.shape[0], rows.sizes_e.shape[0], x_nd.dtype, shared
    first = jnp.zeros((), jnp.int32)
    if isinstance(gate, Stacked):
        first = (gate.layer * gate.shape[0]).astype(jnp.int32)
        gate, up, down = gate.flat, up.flat, down.flat
    sizes = _Sizes(triton.choose_blocks(*of, products=2), triton.choose_blocks(*of), complete, interpret)
    return _mlp(x_nd, take_weights(weight_nk, rows), gate, up, down, rows, first, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _mlp(x_nd, weight_m, gate, up, down, rows: ExpertRows, first, sizes: _Sizes):
    hidden_mf = _hidden(x_nd, weight_m, gate, up, rows, first, sizes, save=False)[0]
    return _down(hidden_mf, down, x_nd.shape[1], rows, first, sizes)


def _forward(x_nd, weight_m, gate, up, down, rows: ExpertRows, first, sizes: _Sizes):
    saved = _hidden(x_nd, weight_m, gate, up, rows, first, sizes, save=True)
    y_nd = _down(saved[0], down, x_nd.shape[1], rows, first, sizes)
    return y_nd, (x_nd, weight_m, gate, up, down, rows, first, *saved)


def _backward(sizes: _Sizes, residuals, dy_nd):
    x_nd, weight_m, gate, up, down, rows, first, hidden_mf, gate_mf, up_mf = residuals
    token_m, wide = _tokens(rows), isinstance(gate, WidthFirst)
    dy, x, hidden = Operand(dy_nd, token_m), Operand(x_nd, token_m), Operand(hidden_mf)
    multiply = functools.partial(
        product, sizes_e=rows.sizes_e, first=first, blocks=sizes.narrow, interpret=sizes.interpret
    )
    dhidden_mf = multiply([dy], [_array(down)], gate_mf.shape[1], layout=Layout(int(wide), transposed=not wide))
    dgate_mf, dup_mf, dweight_m = _activation_gradients(gate_mf, up_mf, dhidden_mf, weight_m)
    dgate, dup = Operand(dgate_mf), Operand(dup_mf)
    dx_md = multiply([dgate, dup], [_array(gate), _array(up)], x_nd.shape[1], layout=Layout(int(wide), transposed=True))
    of_weight = functools.partial(_of_weight, rows=rows, first=first, sizes=sizes)
    return (
        sum_rows(_inside(dx_md, rows, sizes), rows),
        _inside(dweight_m, rows, sizes).astype(weight_m.dtype),
        of_weight(gate, x, dgate),
        of_weight(up, x, dup),
        of_weight(down, dy, hidden) if wide else of_weight(down, hidden, dy),
        None,
        None,
    )


_mlp.defvjp(_forward, _backward)


def _array(weight) -> jax.Array:
    return weight.array if isinstance(weight, WidthFirst) else weight


def _of_weight(weight, left: Operand, right: Operand, rows: ExpertRows, first, sizes: _Sizes):
    """Return the gradient of a weight, left^T right of each expert's rows."""
    if isinstance(weight, WidthFirst):
        dtype = weight.shard.dtype
        return weight.gradient(weight_gradient(left, right, rows.sizes_e, dtype, 1, sizes.narrow, sizes.interpret))
    sizes_g = rows.sizes_e
    if weight.shape[0] > sizes_g.shape[0]:  # experts of all layers
        sizes_g = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(weight.shape[0], sizes_g.dtype), sizes_g, first, 0)
    return weight_gradient(left, right, sizes_g, weight.dtype, 0, sizes.narrow, sizes.interpret)


def _tokens(rows: ExpertRows) -> jax.Array:
    """The token of each row, int32 [M]."""
    return rows.order_m // rows.slot_nk.shape[1]


def _inside(a_m, rows: ExpertRows, sizes: _Sizes):
    """Zero where a row belongs to no expert of this device: kernels leave it undefined.

    Not where there is no such row: a scan over layers keeps the zeros in memory, an array of that size.
    """
    if sizes.complete:
        return a_m
    inside_m = jnp.arange(a_m.shape[0]) < rows.sizes_e.sum()
    return jnp.where(inside_m.reshape(-1, *[1] * (a_m.ndim - 1)), a_m, 0)


def _down(hidden_mf, down, d: int, rows: ExpertRows, first, sizes: _Sizes):
    layout = Layout(1, transposed=True) if isinstance(down, WidthFirst) else Layout()
    y_md = product([Operand(hidden_mf)], [_array(down)], d, rows.sizes_e, first, layout, sizes.narrow, sizes.interpret)
    return sum_rows(_inside(y_md, rows, sizes), rows)


def _activation_gradients(gate_mf, up_mf, dhidden_mf, weight_m):
    """Return the gradients of both products, [M, F], and of the rows' weights, float32 [M]."""
    gate, up, dhidden = (a.astype(jnp.float32) for a in (gate_mf, up_mf, dhidden_mf))
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    scaled = dhidden * weight_m.astype(jnp.float32)[:, None]
    gradients = scaled * up * sigmoid * (1 + gate * (1 - sigmoid)), scaled * silu
    return *(a.astype(gate_mf.dtype) for a in gradients), (dhidden * silu * up).sum(axis=1)


def _hidden(x_nd, weight_m, gate, up, rows: ExpertRows, first, sizes: _Sizes, save: bool) -> list[jax.Array]:
    """Return the activation times the rows' weights, [M, F]; with `save` also both products, for the backward pass."""
    layout, gate, up = Layout(int(isinstance(gate, WidthFirst))), _array(gate), _array(up)
    blocks, (m, d, f) = sizes.wide, (weight_m.shape[0], x_nd.shape[1], gate.shape[2])
    group_t, start_t, stop_t = triton.tiles(rows.sizes_e, m, blocks.rows)
    return pl.pallas_call(
        functools.partial(grouped_gate_up_kernel, layout=layout, blocks=blocks),
        grid=(pl.cdiv(f, blocks.columns), group_t.shape[0]),
        out_shape=[jax.ShapeDtypeStruct((m, f), x_nd.dtype)] * (3 if save else 1),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=sizes.interpret,
        name=f"grouped_product_gate_up_{m}x{d}x{f}",
    )(group_t + first, start_t, stop_t, weight_m, x_nd, _tokens(rows), gate, up)


def grouped_gate_up_kernel(
    group_ref, start_ref, stop_ref, weight_ref, x_ref, token_ref, gate_ref, up_ref, *out_refs, layout, blocks
):
    column, tile = pl.program_id(0) * blocks.columns, pl.program_id(1)
    group, start, stop = group_ref[tile], start_ref[tile], stop_ref[tile]
    inner, columns = x_ref.shape[1], out_refs[0].shape[1]

    @pl.when(start < stop)
    def _():
        inside_r = start + jnp.arange(blocks.rows) < stop
        inside_c = column + jnp.arange(blocks.columns) < columns
        rows = triton.tokens_of((x_ref, token_ref), start, blocks.rows, inside_r)

        def add(i, sums):
            place = i * blocks.inner
            inside_i = place + jnp.arange(blocks.inner) < inner
            x_ri = triton.load_rows(rows, start, blocks.rows, place, blocks.inner, inside_r, inside_i)
            tiles = [
                triton.load_weight(ref, group, place, blocks.inner, inside_i, column, blocks.columns, inside_c, layout)
                for ref in (gate_ref, up_ref)
            ]
            terms = (jnp.dot(x_ri, w_ic, preferred_element_type=jnp.float32) for w_ic in tiles)
            return tuple(total + term for total, term in zip(sums, terms, strict=True))

        zeros_rc = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
        gate_rc, up_rc = jax.lax.fori_loop(0, pl.cdiv(inner, blocks.inner), add, (zeros_rc, zeros_rc))
        weight_r = pltriton.load(weight_ref.at[pl.ds(start, blocks.rows)], mask=inside_r, other=0).astype(jnp.float32)
        hidden_rc = gate_rc * jax.nn.sigmoid(gate_rc) * up_rc * weight_r[:, None]
        for ref, value_rc in zip(out_refs, (hidden_rc, gate_rc, up_rc), strict=False):
            at = ref.at[pl.ds(start, blocks.rows), pl.ds(column, blocks.columns)]
            pltriton.store(at, value_rc.astype(ref.dtype), mask=inside_r[:, None] & inside_c[None])
