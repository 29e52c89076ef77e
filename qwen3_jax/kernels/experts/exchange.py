"""A ragged all-to-all: rows go to the devices that hold their experts, and back.

Every device holds rows sorted by destination; `counts_pp[i, j]` rows go from device i to device j. Received rows are in the
order of their senders, without gaps. The inverse is the same exchange with transposed counts, and so is the gradient.

Shapes: p devices along the axis, m rows to send, r rows of the receiving buffer, d width, c rows of a slot.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def exchange(x_md: jax.Array, counts_pp: jax.Array, rows: int, axis: str, native: bool) -> jax.Array:
    """Return the rows sent to this device, [rows, D], with zeros after the last; call inside `shard_map`.

    Args:
        x_md: rows sorted by destination; rows past the last that is sent may hold any finite values.
        counts_pp: int32, the same on all devices of the axis.
        rows: size of the buffer; the caller guarantees that no device receives more.
        axis: mesh axis to exchange over.
        native: use `lax.ragged_all_to_all`, which TPU and GPU support; else `_exchange_slots`, with the same result.
    """
    if not native:
        return _exchange_slots(x_md, counts_pp, rows, axis)
    me = lax.axis_index(axis)
    before_pp = jnp.cumsum(counts_pp, axis=0) - counts_pp  # where the rows from i start on j
    from_pp = jnp.cumsum(counts_pp, axis=1) - counts_pp  # where the rows for j start on i
    empty_rd = jnp.zeros((rows, *x_md.shape[1:]), x_md.dtype)
    return lax.ragged_all_to_all(
        x_md, empty_rd, from_pp[me], counts_pp[me], before_pp[me], counts_pp[:, me], axis_name=axis
    )


def _forward(x_md, counts_pp, rows, axis, native):
    # An array without elements records the number of rows.
    return exchange(x_md, counts_pp, rows, axis, native), (counts_pp, jnp.empty((x_md.shape[0], 0)))


def _backward(rows, axis, native, residuals, dy_rd):
    counts_pp, shape_m0 = residuals
    return exchange(dy_rd, counts_pp.T, shape_m0.shape[0], axis, native), None


exchange.defvjp(_forward, _backward)


def _exchange_slots(x_md, counts_pp, rows, axis):
    """`exchange` by a dense all-to-all with one slot per pair of devices, each as large as the worst case."""
    me = lax.axis_index(axis)
    slot = min(x_md.shape[0], rows)
    from_p = jnp.cumsum(counts_pp[me]) - counts_pp[me]
    sent_pcd = x_md.at[from_p[:, None] + jnp.arange(slot)].get(mode="clip")
    received_pcd = lax.all_to_all(sent_pcd, axis, 0, 0)
    ends_p = jnp.cumsum(counts_pp[:, me])
    place_r = jnp.arange(rows)
    sender_r = jnp.minimum(jnp.searchsorted(ends_p, place_r, side="right"), ends_p.size - 1)
    within_r = place_r - (ends_p - counts_pp[:, me])[sender_r]
    y_rd = received_pcd.at[sender_r, within_r].get(mode="clip")
    return jnp.where((place_r < ends_p[-1]).reshape(-1, *(1,) * (y_rd.ndim - 1)), y_rd, 0)
