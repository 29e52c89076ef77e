"""The experts on a mesh, under `shard_map`: the compiler cannot partition sorted rows and Pallas kernels.

Each device holds some tokens, some experts (`expert`), a part of their width (`tensor`) and, in training, a part of their
input rows (`data`, FSDP). It gathers the input rows of its own experts only, so that their gradient is a reduce-scatter.
Where the expert axis is split, tokens reach their experts in one of three ways:

- all-gather: every device gets all tokens of the axis and computes its own experts' share; the shares are summed on the
  tokens' devices (reduce-scatter). Traffic does not depend on the routing, and grows with the number of devices.
- all-to-all: each token goes to the devices of its k experts, and back (Lepikhin et al. 2020, arXiv 2006.16668, section 3;
  without their capacity limit: no token is dropped). See `_all_to_all`.
- all-tokens: where the tokens do not divide over the axis, as one row over many devices, every device has all of them to begin
  with and computes its own experts' share; the shares are summed.

Shapes: b batch, t length, n tokens of a device, k experts per token, m = n k rows, d width, e experts, f expert width,
p devices along the expert axis, l experts of a device, r rows of the receiving buffer.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from qwen3_jax.kernels.experts import megablox_mlp
from qwen3_jax.kernels.experts.exchange import exchange
from qwen3_jax.kernels.experts.rows import sort_by_expert, sum_rows, take_rows, take_weights
from qwen3_jax.kernels.experts.stack import Stacked, unstacked
from qwen3_jax.kernels.experts.triton_mlp import WidthFirst
from qwen3_jax.kernels.quantized import is_quantized, specs
from sharding import Placement
from sharding.scatter import scatter_sum

Exchange = Literal["all_gather", "all_to_all", "all_tokens"]
# How gathered weights are passed on: as arrays, as `WidthFirst` each, or as `megablox_mlp.Gathered`, gate and up in one.
Form = Literal["arrays", "width_first", "joined"]

# The receiving buffer of the all-to-all holds this many times the rows that a device sends: balanced routing fills half of it.
# If some device would receive more, the tokens are sent in several chunks; none is dropped.
_BUFFER = 2
# A worst case of up to this many rows (a decode step, a small batch) is allocated in full where some device would receive more
# than the buffer holds; off TPUs always, since a branch costs a GPU more than passes over rows that are not used.
_SMALL = 4096
# On TPUs a worst case of up to this many rows is always allocated in full: half of a tile of the grouped products.
_TINY = 256


def token_axes(x_btd: jax.Array, placement: Placement) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the mesh axes over which batch and length are split: none where they do not divide."""
    batch, length = (
        placement.axes(name) if size % placement.parts(name) == 0 else ()
        for name, size in zip(("batch", "length"), x_btd.shape, strict=False)
    )
    return batch, length


def unsplittable(x_btd: jax.Array, gate_edf: jax.Array, placement: Placement, tokens: bool = True) -> str | None:
    """Return why the arrays cannot be split over the mesh as the rules say, or None where they can.

    Without `tokens`, batch and length need not divide: devices that cannot share them do the same work.
    """
    names = {"batch": x_btd.shape[0], "length": x_btd.shape[1]} if tokens else {}
    names |= {
        "hidden": x_btd.shape[2],
        "expert": gate_edf.shape[0],
        "embed": gate_edf.shape[1],
        "mlp": gate_edf.shape[2],
    }
    for name, size in names.items():
        if size % placement.parts(name):
            return f"{name} {size} does not divide by {placement.parts(name)}, the devices that it is split over"
    if placement.parts("hidden") > 1:
        return "the rules split the hidden axis"
    axes = {*placement.axes("batch"), *placement.axes("length")}
    if not set(placement.axes("expert")) <= axes or len(placement.axes("expert")) > 1:
        return "the rules split the experts over a mesh axis that does not split the tokens"
    if set(placement.axes("mlp")) & axes:
        return "the rules split the tokens and the experts' width over the same mesh axis"
    return None


def sharded_mlp(
    x_btd,
    index_btk,
    weight_btk,
    gate_edf,
    up_edf,
    down_efd,
    *,
    mlp: Callable,
    over: Exchange | None,
    placement: Placement,
    form: Form = "arrays",
):
    """Return the weighted sum of the chosen experts' outputs, [B, T, D]; arguments as in `expert_mlp`.

    Args:
        mlp: `grouped_mlp` with its product chosen; runs on each device.
        over: how tokens reach their experts; None where the expert axis is not split.
        placement: mesh and rules for which `unsplittable` is None, of batch and length only if `over` is an exchange.
        form: in which `mlp` takes weights that are gathered over the devices that split D; "joined" where `over` is None.
    """
    mesh = placement.mesh
    assert mesh is not None
    if isinstance(gate_edf, Stacked) and placement.axes("embed"):  # gathered one layer at a time
        gate_edf, up_edf, down_efd = unstacked(gate_edf), unstacked(up_edf), unstacked(down_efd)

    tokens_spec = PartitionSpec(*(axes or None for axes in token_axes(x_btd, placement)), None)
    routing_spec = PartitionSpec(*tokens_spec[:2], None)
    wide_spec, narrow_spec = placement.spec(("expert", "embed", "mlp")), placement.spec(("expert", "mlp", "embed"))
    return jax.shard_map(
        functools.partial(_on_device, mlp=mlp, over=over, placement=placement, form=form),
        mesh=mesh,
        in_specs=(
            tokens_spec,
            routing_spec,
            routing_spec,
            specs(gate_edf, wide_spec),
            specs(up_edf, wide_spec),
            specs(down_efd, narrow_spec),
        ),
        out_specs=tokens_spec,
        check_vma=False,  # Pallas kernels do not declare over which axes their outputs vary
    )(x_btd, index_btk, weight_btk, gate_edf, up_edf, down_efd)


def _on_device(
    x_btd,
    index_btk,
    weight_btk,
    gate_ldf,
    up_ldf,
    down_lfd,
    *,
    mlp: Callable,
    over: Exchange | None,
    placement: Placement,
    form: Form,
):
    """Compute one device's part of `sharded_mlp`."""
    b, t, d = x_btd.shape
    tokens = x_btd.reshape(b * t, d), index_btk.reshape(b * t, -1), weight_btk.reshape(b * t, -1)
    experts, embed, mesh = gate_ldf.shape[0], placement.axes("embed"), placement.mesh
    assert mesh is not None
    if not is_quantized(gate_ldf) and not isinstance(gate_ldf, Stacked):
        gate_ldf, up_ldf, down_lfd = _whole(gate_ldf, up_ldf, down_lfd, embed, x_btd.dtype, mesh, form)
    local = functools.partial(mlp, gate_edf=gate_ldf, up_edf=up_ldf, down_efd=down_lfd)
    if over is None:
        y_nd = local(*tokens)
    else:
        (axis,) = placement.axes("expert")
        if over == "all_gather":
            y_nd = _all_gather(*tokens, local, experts, axis)
        elif over == "all_tokens":
            x_nd, index_nk, weight_nk = tokens
            y_nd = _add_up(local(x_nd, _own(index_nk, experts, axis), weight_nk), (axis,))
        else:
            y_nd = _all_to_all(*tokens, local, experts, axis, mesh)
    return _add_up(y_nd, placement.axes("mlp")).reshape(b, t, d)


def _whole(gate_ldf, up_ldf, down_lfd, axes: tuple[str, ...], dtype, mesh: Mesh, form: Form):
    """Return this device's experts in the compute type, gathered along D over the axes that split it."""
    if form == "joined" and axes:
        gate_up, down = megablox_mlp.gathered(gate_ldf, up_ldf, down_lfd, axes, dtype, mesh)
        return gate_up, None, down

    def gather(w, dimension: int):
        if form == "width_first" and axes:
            return WidthFirst.gathered(w, axes, dimension, dtype)
        return _gathered(w, axes, dimension, dtype, mesh)

    return gather(gate_ldf, 1), gather(up_ldf, 1), gather(down_lfd, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(w: jax.Array, axes: tuple[str, ...], dimension: int, dtype: jnp.dtype, mesh: Mesh) -> jax.Array:
    """Return the weight in the compute type, whole along a dimension that is split over `axes`.

    It is sent in the compute type; its gradient is returned, and summed, in the weight's storage type.
    """
    w = w.astype(dtype)
    return lax.all_gather(w, axes, axis=dimension, tiled=True) if axes else w


def _gathered_forward(w, axes, dimension, dtype, mesh):
    return _gathered(w, axes, dimension, dtype, mesh), jnp.empty((0,), w.dtype)


def _gathered_backward(axes, dimension, dtype, mesh, storage_0, dw):
    dw = dw.astype(storage_0.dtype)
    return (scatter_sum(dw, axes, dimension, mesh) if axes else dw,)


_gathered.defvjp(_gathered_forward, _gathered_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _add_up(y_nd: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Add the partial sums of the down product over `axes`.

    With `check_vma=False`, `shard_map` gives each of the p devices that hold a copy of the output 1 / p of its gradient, and
    the gradient of a `psum` would sum it over them. All parts are equal, so p times one of them is that sum, without traffic.
    """
    return lax.psum(y_nd, axes) if axes else y_nd


def _add_up_backward(axes, _, dy_nd):
    return ((dy_nd * lax.axis_size(axes) if axes else dy_nd),)


_add_up.defvjp(lambda y_nd, axes: (_add_up(y_nd, axes), None), _add_up_backward)


def _all_gather(x_nd, index_nk, weight_nk, local: Callable, experts: int, axis: str):
    """Compute the share of this device's experts for all tokens of the axis; sum the shares."""
    x_nd, index_nk, weight_nk = (lax.all_gather(a, axis, tiled=True) for a in (x_nd, index_nk, weight_nk))
    return lax.psum_scatter(local(x_nd, _own(index_nk, experts, axis), weight_nk), axis, tiled=True)


def _own(index_nk, experts: int, axis: str):
    """Return the experts' numbers on this device; `experts` for those of other devices."""
    index_nk = index_nk - lax.axis_index(axis) * experts
    return jnp.where((index_nk >= 0) & (index_nk < experts), index_nk, experts)


def _all_to_all(x_nd, index_nk, weight_nk, local: Callable, experts: int, axis: str, mesh):
    """Each row goes to its expert's device and back.

    The receiving buffer has a fixed size. In the worst case all rows of the axis go to one device, p times what it sends, but
    that is rare: the buffer is `_BUFFER` times what it sends. Where some device would receive more, the buffer is that of the
    worst case if that is small; else all devices send their tokens in as many chunks as the worst case needs.
    """
    p, (n, k) = lax.axis_size(axis), index_nk.shape
    platform = mesh.devices.flat[0].platform
    native = platform != "cpu"  # XLA:CPU has no ragged all-to-all
    worst = p * n * k
    rows = max(_BUFFER * n * k, min(worst, _always_in_full(platform)))
    send = functools.partial(_send_and_return, local=local, experts=experts, axis=axis, native=native)
    if worst <= rows:
        return send(x_nd, index_nk, weight_nk, rows=worst)

    def at_once(*tokens):
        return send(*tokens, rows=rows)

    def in_full(*tokens):
        return send(*tokens, rows=worst)

    def in_chunks(*tokens):
        chunks = -(-worst // rows)
        size = -(-n // chunks)
        # The padding of the last chunk belongs to no expert.
        fills = 0, p * experts, 0
        parts = [
            jnp.pad(a, ((0, chunks * size - n), (0, 0)), constant_values=fill).reshape(chunks, size, -1)
            for a, fill in zip(tokens, fills, strict=True)
        ]
        # Without the checkpoint the gradient would save the buffers of every chunk, which chunks are there to avoid.
        body = jax.checkpoint(functools.partial(send, rows=p * size * k))
        _, y_cnd = lax.scan(lambda carry, part: (carry, body(*part)), None, tuple(parts))
        return y_cnd.reshape(chunks * size, -1)[:n]

    received_p = _counts(index_nk, p * experts, axis).reshape(p, p, experts).sum(axis=(0, 2))
    # Equal on the whole mesh, so that all devices take the same branch.
    largest = lax.pmax(received_p.max(), mesh.axis_names)
    return lax.cond(largest <= rows, at_once, in_full if worst <= _SMALL else in_chunks, x_nd, index_nk, weight_nk)


def _always_in_full(platform: str) -> int:
    """Rows of a worst case up to which the buffer is always that of the worst case."""
    return _TINY if platform == "tpu" else _SMALL


def _counts(index_nk, experts: int, axis: str):
    """Return the rows that each device of the axis has for each expert, int32 [P, E]."""
    sizes_e = jnp.bincount(index_nk.reshape(-1), length=experts + 1)[:experts].astype(jnp.int32)
    return lax.all_gather(sizes_e, axis)


def _send_and_return(x_nd, index_nk, weight_nk, *, local: Callable, experts: int, axis: str, native: bool, rows: int):
    """Send each row to its expert's device, compute there, and return the results, summed by token."""
    p, me = lax.axis_size(axis), lax.axis_index(axis)
    order = sort_by_expert(index_nk, p * experts)
    counts_ppl = lax.all_gather(order.sizes_e, axis).reshape(p, p, experts)
    counts_pp = counts_ppl.sum(axis=2)
    x_rd = exchange(take_rows(x_nd, order), counts_pp, rows, axis, native)
    weight_r1 = exchange(take_weights(weight_nk, order)[:, None], counts_pp, rows, axis, native)
    # Rows from each device are sorted by expert, so the counts identify their experts and no index is sent.
    received_x = counts_ppl[:, me].reshape(-1)
    expert_x = jnp.tile(jnp.arange(experts, dtype=jnp.int32), p)
    index_r = jnp.repeat(expert_x, received_x, total_repeat_length=rows)
    index_r = jnp.where(jnp.arange(rows) < received_x.sum(), index_r, experts)
    y_rd = local(x_rd, index_r[:, None], weight_r1)
    y_md = exchange(y_rd, counts_pp.T, index_nk.size, axis, native)
    return sum_rows(y_md, order)
