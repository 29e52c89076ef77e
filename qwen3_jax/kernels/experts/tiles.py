"""The experts on CPU: a loop over tiles of rows that computes all products of one tile while it is in cache.

XLA:CPU runs `lax.ragged_dot` at 2-3 GFLOP/s, but a plain product of a few dozen rows at full speed. So the rows are sorted
by expert, and each expert's rows are processed in tiles: gather the tokens, multiply by gate and up (one product), SwiGLU,
multiply by down. Trip counts depend on the routing, so the gradient is written by hand.

A tile that extends past its expert's last row writes zeros over rows of later experts, which are overwritten when their own
tiles run: no row is padded, and no output is masked.

Where there are fewer rows than experts, as in decode steps, each row is multiplied by itself (`_one_by_one`).

Products take the tokens' type and give float32, as do all sums: SwiGLU, the sum over a token's experts, and the gradients of
the weights over tiles.

Shapes: n tokens, d width, e experts, f expert width, g = 2 f (gate and up side by side), k experts per token, m = n k rows
sorted by expert (plus `margin`, so that no tile extends past the end), r rows of a tile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from qwen3_jax.kernels.experts.rows import sort_by_expert, sum_rows, take_weights
from qwen3_jax.kernels.quantized import is_quantized, primal_values, refuse_gradient, zeros_of
from qwen3_jax.kernels.tiled_cpu import expert_product, floats, in_loop, scaled

_TILES = (256, 128, 64, 32, 16)  # measured: larger tiles are no faster, and an expert's last tile is half empty


class _SortedRows(NamedTuple):
    """The sorted rows and the start of each expert's; see `_over_tiles`."""

    rows: Any
    token_m: jax.Array
    weight_m: jax.Array
    start_e: jax.Array
    active_e: jax.Array  # all experts: those with rows first, ascending


@jax.custom_vjp
def tiles_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd):
    """Return the weighted sum of the chosen experts' outputs, [N, D]; arguments as in `grouped.grouped_mlp`."""
    if index_nk.size <= gate_edf.shape[0]:
        return _one_by_one(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd)
    return _forward(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd, keep=False)[0]


def _tiles(rows: int, experts: int) -> tuple[int, ...]:
    """Return the tile heights to use, descending: about the rows of an average expert, and two smaller ones for the rest."""
    fitting = [tile for tile in _TILES if tile * experts <= 2 * rows]
    return tuple(fitting[:3]) or _TILES[-1:]


def _sorted_rows(index_nk, weight_nk, experts: int, margin: int) -> _SortedRows:
    rows = sort_by_expert(index_nk, experts)
    pad = functools.partial(jnp.pad, pad_width=(0, margin))
    token_m = pad(rows.order_m // index_nk.shape[1])
    start_e = jnp.cumsum(rows.sizes_e) - rows.sizes_e
    active_e = jnp.argsort(rows.sizes_e == 0, stable=True)
    return _SortedRows(rows, token_m, pad(take_weights(weight_nk.astype(jnp.float32), rows)), start_e, active_e)


def _over_experts(sorted_rows: _SortedRows, body: Callable, carry):
    """Fold `body(expert, carry)` over the experts that have rows, ascending."""
    count = (sorted_rows.rows.sizes_e > 0).sum()
    return lax.fori_loop(0, count, lambda i, carry: body(sorted_rows.active_e[i], carry), carry)


def _over_tiles(sorted_rows: _SortedRows, expert, tiles: tuple[int, ...], body: Callable, carry):
    """Fold `body(take, put, inside_r, carry)` over one expert's tiles: the largest while they are full, then one for the rest.

    `take(array)` and `put(array, tile)` read and write the tile's rows of an array [M + margin, ...]; `inside_r` marks
    those that are the expert's.
    """
    start, size = sorted_rows.start_e[expert], sorted_rows.rows.sizes_e[expert]
    whole = size // tiles[0]
    rest = size - whole * tiles[0]

    def one(tile: int, done, j, carry):
        first = start + done + j * tile

        def take(array):
            return lax.dynamic_slice_in_dim(array, first, tile)

        def put(array, value):
            return lax.dynamic_update_slice_in_dim(array, value, first, 0)

        return body(take, put, jnp.arange(tile) < size - done - j * tile, carry)

    for i, tile in enumerate(tiles):
        finer = tiles[i + 1] if i + 1 < len(tiles) else 0
        last = ((rest > finer) & (rest <= tile)).astype(whole.dtype)
        count, done = (whole + last, 0) if i == 0 else (last, whole * tiles[0])
        carry = lax.fori_loop(0, count, functools.partial(one, tile, done), carry)
    return carry


def _weights(expert, gate_edf, up_edf, down_efd, dtype):
    """Copy out one expert's weights, as `dtype` where they are quantised: gate and up side by side [D, G], down [F, D]."""
    gate_df, up_df, down_fd = (_one(weights, expert, dtype) for weights in (gate_edf, up_edf, down_efd))
    return jnp.concatenate([gate_df, up_df], axis=1), down_fd


def _one(weights, expert, dtype):
    """Return one expert's weights; only these are unpacked."""
    if is_quantized(weights):
        return scaled(floats(_slice(weights.qvalue, expert)), weights.scale[expert]).astype(dtype)
    return _slice(weights, expert)


def _slice(x, index):
    """x[index], floats of 8 and 16 bits as integers.

    XLA:CPU reads and writes slices of bf16 arrays in float32, and converts the whole array to do so: a decode step with 8 of
    64 experts took as long as all 64. Integers are sliced directly.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize > 2:
        return x[index]
    bits = lax.bitcast_convert_type(in_loop(x, index), jnp.uint8 if x.dtype.itemsize == 1 else jnp.uint16)
    return lax.bitcast_convert_type(bits[index], x.dtype)


def _bits(x):
    """Return bf16 as integers, other types unchanged; see `_slice`."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _floats(x):
    """The inverse of `_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _dot(equation: str, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _one_by_one(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd):
    """Fewer rows than experts, as in a decode step: each row's expert is read in place, not copied."""
    k, e = index_nk.shape[1], gate_edf.shape[0]
    # Rows of one expert are consecutive, so that its weights stay in cache.
    order_m = jnp.argsort(index_nk.reshape(-1), stable=True)

    def row(i, y_nd):
        slot = order_m[i]
        expert, token = index_nk.reshape(-1)[slot], slot // k

        def product(x_1d, weights):
            if is_quantized(weights):
                return _dot("rd,df->rf", x_1d, _one(weights, expert, x_nd.dtype))
            return expert_product(x_1d, weights, expert)

        x_1d = lax.dynamic_slice_in_dim(x_nd, token, 1)
        hidden_1f = jax.nn.silu(product(x_1d, gate_edf)) * product(x_1d, up_edf)
        hidden_1f *= weight_nk.reshape(-1)[slot].astype(jnp.float32)
        y_1d = lax.dynamic_slice_in_dim(y_nd, token, 1) + product(hidden_1f.astype(x_nd.dtype), down_efd)
        return lax.dynamic_update_slice_in_dim(y_nd, y_1d, token, 0)

    count = (index_nk < e).sum()  # experts on other devices sort last
    return lax.fori_loop(0, count, row, jnp.zeros(x_nd.shape, jnp.float32)).astype(x_nd.dtype)


def _forward(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd, keep: bool):
    """Return (y, residuals of the gradient); with `keep` they include the products with gate and up."""
    if keep and is_quantized(gate_edf):
        refuse_gradient()
    (e, d, f), m = gate_edf.shape, index_nk.size
    tiles = _tiles(m, e)
    sorted_rows = _sorted_rows(index_nk, weight_nk, e, tiles[0])

    def expert_rows(expert, carry):
        gate_up_dg, down_fd = _weights(expert, gate_edf, up_edf, down_efd, x_nd.dtype)

        def tile_rows(take, put, inside_r, carry):
            y_md, gate_up_mg = carry
            gate_up_rg = _dot("rd,dg->rg", x_nd[take(sorted_rows.token_m)], gate_up_dg)
            weight_r = jnp.where(inside_r, take(sorted_rows.weight_m), 0)
            hidden_rf = jax.nn.silu(gate_up_rg[:, :f]) * gate_up_rg[:, f:] * weight_r[:, None]
            y_md = put(y_md, _dot("rf,fd->rd", hidden_rf.astype(x_nd.dtype), down_fd))
            return y_md, put(gate_up_mg, _bits(gate_up_rg.astype(x_nd.dtype))) if keep else gate_up_mg

        return _over_tiles(sorted_rows, expert, tiles, tile_rows, carry)

    y_md = jnp.zeros((m + tiles[0], d), jnp.float32)
    gate_up_mg = _bits(jnp.zeros((m + tiles[0], 2 * f), x_nd.dtype)) if keep else None
    y_md, gate_up_mg = _over_experts(sorted_rows, expert_rows, (y_md, gate_up_mg))
    residuals = x_nd, weight_nk, gate_edf, up_edf, down_efd, gate_up_mg, sorted_rows
    return sum_rows(y_md, sorted_rows.rows).astype(x_nd.dtype), residuals


def _forward_of_gradient(*arguments):
    """`_forward`, and whether the weights are trained (None where not): frozen ones get no gradient, and no memory for one."""
    weights = jax.tree.leaves(arguments[3:], is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    trained = jnp.zeros(()) if any(leaf.perturbed for leaf in weights) else None
    y_nd, residuals = functools.partial(_forward, keep=True)(*primal_values(arguments))
    return y_nd, (residuals, trained)


def _backward(residuals_trained, dy_nd):
    (x_nd, weight_nk, gate_edf, up_edf, down_efd, gate_up_mg, sorted_rows), trained = residuals_trained
    dy_nd = zeros_of(dy_nd)
    (e, d, f), m = gate_edf.shape, weight_nk.size
    tiles = _tiles(m, e)
    dtype = x_nd.dtype

    def expert_rows(expert, carry):
        dx_md, dweight_m, *dweights = carry
        gate_up_dg, down_fd = _weights(expert, gate_edf, up_edf, down_efd, dtype)

        def tile_rows(take, put, inside_r, carry):
            dx_md, dweight_m, *sums = carry
            token_r = take(sorted_rows.token_m)
            x_rd, dy_rd = x_nd[token_r], dy_nd[token_r]
            gate_up_rg = _floats(take(gate_up_mg)).astype(jnp.float32)
            gate_rf, up_rf = gate_up_rg[:, :f], gate_up_rg[:, f:]
            sigmoid_rf = jax.nn.sigmoid(gate_rf)
            silu_rf = gate_rf * sigmoid_rf
            # The weight multiplies the hidden row, so its gradient needs no output row.
            weight_r1 = jnp.where(inside_r, take(sorted_rows.weight_m), 0)[:, None]
            dhidden_rf = _dot("rd,fd->rf", dy_rd, down_fd)
            dweight_r = (dhidden_rf * silu_rf * up_rf).sum(axis=1)
            dhidden_rf *= weight_r1
            dgate_rf = dhidden_rf * up_rf * (sigmoid_rf + silu_rf * (1 - sigmoid_rf))
            dgate_up_rg = jnp.concatenate([dgate_rf, dhidden_rf * silu_rf], axis=1).astype(dtype)
            dx_md = put(dx_md, _dot("rg,dg->rd", dgate_up_rg, gate_up_dg))
            if trained is not None:
                dgate_up_dg, ddown_fd = sums
                dgate_up_dg += _dot("rd,rg->dg", x_rd, dgate_up_rg)
                ddown_fd += _dot("rf,rd->fd", (silu_rf * up_rf * weight_r1).astype(dtype), dy_rd)
                sums = dgate_up_dg, ddown_fd
            return dx_md, put(dweight_m, dweight_r), *sums

        zeros = (jnp.zeros((d, 2 * f), jnp.float32), jnp.zeros((f, d), jnp.float32)) if trained is not None else ()
        dx_md, dweight_m, *sums = _over_tiles(sorted_rows, expert, tiles, tile_rows, (dx_md, dweight_m, *zeros))
        new = (sums[0][:, :f], sums[0][:, f:], sums[1]) if sums else ()
        dweights = [
            lax.dynamic_update_index_in_dim(old, value, expert, 0) for old, value in zip(dweights, new, strict=True)
        ]
        return dx_md, dweight_m, *dweights

    empty = jnp.zeros((m + tiles[0], d), jnp.float32), jnp.zeros(m + tiles[0], jnp.float32)
    empty_weights = [jnp.zeros_like(w, jnp.float32) for w in (gate_edf, up_edf, down_efd) if trained is not None]
    dx_md, dweight_m, *dweights = _over_experts(sorted_rows, expert_rows, (*empty, *empty_weights))
    # Rows without an expert hold at most zeros of a tile: their weights have no gradient.
    dweight_m = jnp.where(jnp.arange(m) < sorted_rows.rows.sizes_e.sum(), dweight_m[:m], 0)
    dx_nd = sum_rows(dx_md, sorted_rows.rows).astype(x_nd.dtype)
    dweights = [value.astype(gate_edf.dtype) for value in dweights] if dweights else [None, None, None]
    return dx_nd, None, dweight_m[sorted_rows.rows.slot_nk].astype(weight_nk.dtype), *dweights


tiles_mlp.defvjp(_forward_of_gradient, _backward, symbolic_zeros=True)
