"""Causal grouped-query attention over slots.

    softmax(q k^T / sqrt(H) + mask) v        (Vaswani et al. 2017; GQA: Ainslie et al. 2023, arXiv 2305.13245)

Keys and values come as [B, K, S, H]: on CPU a decode step over this layout is several times faster than over
[B, S, K, H], and on accelerators the choice is free.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size.
"""

import jax
import jax.numpy as jnp


def attention(
    q_btnh: jax.Array,
    k_bksh: jax.Array,
    v_bksh: jax.Array,
    q_slots_bt: jax.Array,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Return the attended values [B, T, N, H] in q's dtype; products accumulate and softmax runs in float32.

    Args:
        q_btnh: queries.
        k_bksh, v_bksh: keys and values; K divides N.
        q_slots_bt: int32, the slot (index along S) of each query: it sees slots 0 up to and including its own.
        segment_ids: int32 [B, T] of the queries and [B, S] of the keys; a query sees only keys of its own segment.
    """
    b, t, n, h = q_btnh.shape
    k, s = k_bksh.shape[1], k_bksh.shape[2]
    q_bkgth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    scores_bkgts = jnp.einsum("bkgth,bksh->bkgts", q_bkgth, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    mask_bts = jnp.arange(s)[None, None, :] <= q_slots_bt[:, :, None]
    if segment_ids is not None:
        q_segments_bt, kv_segments_bs = segment_ids
        mask_bts &= q_segments_bt[:, :, None] == kv_segments_bs[:, None, :]
    # A query always sees itself, so no row is fully masked and the softmax is finite.
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, jnp.finfo(jnp.float32).min)
    probs_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bksh.dtype)
    out_btkgh = jnp.einsum("bkgts,bksh->btkgh", probs_bkgts, v_bksh)
    return out_btkgh.reshape(b, t, n, h).astype(q_btnh.dtype)
