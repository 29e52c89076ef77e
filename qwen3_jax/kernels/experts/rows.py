"""Sort the rows of a batch by expert and sum them by token again, with gradients that are gathers too.

A token with k experts is k rows. Autodiff would turn each gather into a scatter-add, which is slow on every platform; since
the rows are a permutation, the transpose of one gather is the other.

Shapes: n tokens, k experts per token, m = n k rows in the order of their experts, d width, e experts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ExpertRows(NamedTuple):
    """The rows in the order of their experts.

    Attributes:
        order_m: int32, the (token, choice) of each row, as token * k + choice.
        slot_nk: int32, the row of each (token, choice).
        sizes_e: int32, rows of each expert. Rows past their sum belong to no expert.
    """

    order_m: jax.Array
    slot_nk: jax.Array
    sizes_e: jax.Array


def sort_by_expert(index_nk: jax.Array, experts: int) -> ExpertRows:
    """Sort the rows by expert, ties by token; index `experts` stands for an expert on another device and sorts last."""
    n, k = index_nk.shape
    m = n * k
    index_m = index_nk.reshape(m)
    place_m = jnp.arange(m, dtype=jnp.int32)
    if (experts + 1) * m < 2**31:
        # One integer per row: a sort of plain keys is five times faster on CPU than a stable argsort.
        order_m = jnp.sort(index_m * m + place_m) % m
    else:
        order_m = jnp.argsort(index_m, stable=True).astype(jnp.int32)
    slot_m = jnp.zeros(m, jnp.int32).at[order_m].set(place_m, unique_indices=True)
    sizes_e = jnp.bincount(index_m, length=experts + 1)[:experts].astype(jnp.int32)
    return ExpertRows(order_m, slot_m.reshape(n, k), sizes_e)


@jax.custom_vjp
def take_rows(x_nd: jax.Array, rows: ExpertRows) -> jax.Array:
    """Return the tokens in the order of the rows, [M, D]."""
    return x_nd[rows.order_m // rows.slot_nk.shape[1]]


@jax.custom_vjp
def sum_rows(y_md: jax.Array, rows: ExpertRows) -> jax.Array:
    """Return the sum of each token's k rows, [N, D]; the transpose of `take_rows`."""
    # k gathers and adds fuse into one loop; a gather of [N, k, D] followed by a sum does not.
    total_nd = y_md[rows.slot_nk[:, 0]]
    for choice in range(1, rows.slot_nk.shape[1]):
        total_nd += y_md[rows.slot_nk[:, choice]]
    return total_nd


@jax.custom_vjp
def take_weights(weight_nk: jax.Array, rows: ExpertRows) -> jax.Array:
    """Return one weight per row, [M]."""
    return weight_nk.reshape(-1)[rows.order_m]


take_rows.defvjp(lambda x_nd, rows: (take_rows(x_nd, rows), rows), lambda rows, dx_md: (sum_rows(dx_md, rows), None))
sum_rows.defvjp(lambda y_md, rows: (sum_rows(y_md, rows), rows), lambda rows, dy_nd: (take_rows(dy_nd, rows), None))
take_weights.defvjp(
    lambda weight_nk, rows: (take_weights(weight_nk, rows), rows), lambda rows, dw_m: (dw_m[rows.slot_nk], None)
)
