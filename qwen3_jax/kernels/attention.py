"""Causal grouped-query attention.

    softmax(q k^T / sqrt(H) + mask) v        (Vaswani et al. 2017; GQA: Ainslie et al. 2023, arXiv 2305.13245)

Keys and values come as [B, K, S, H]: on CPU a decode step over this layout is several times faster than over
[B, S, K, H], and on accelerators the choice is free.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.choice import Attention
from sharding import Placement, balanced_order


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None = None,
    *,
    balanced: bool = False,
    implementation: Attention = "auto",
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H] in q's dtype.

    Products accumulate and softmax runs in float32.

    Args:
        q_btnh: queries.
        k_bkth, v_bkth: keys and values; K divides N.
        segment_ids_bt: int32, a token sees only tokens of its own segment.
        balanced: tokens come in the order of `sharding.balanced_order` over the parts of the length.
        implementation: "auto" or a name.
        placement: where the arrays live.
    """
    t = q_btnh.shape[1]
    slots_t = jnp.asarray(balanced_order(t, placement.parts("length") if balanced else 1))
    mask_bts = (slots_t[None, :] <= slots_t[:, None])[None]
    if segment_ids_bt is not None:
        mask_bts &= segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    return _reference(q_btnh, k_bkth, v_bkth, mask_bts)


def cached_attention(q_btnh: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, q_slots_bt: jax.Array) -> jax.Array:
    """Return the attention of new queries over a cache, [B, T, N, H] in q's dtype.

    Args:
        q_btnh: queries.
        k_bksh, v_bksh: keys and values of S slots; K divides N.
        q_slots_bt: int32, the slot of each query: it sees slots 0 up to and including its own.
    """
    mask_bts = jnp.arange(k_bksh.shape[2])[None, None, :] <= q_slots_bt[:, :, None]
    return _reference(q_btnh, k_bksh, v_bksh, mask_bts)


def _reference(q_btnh, k_bksh, v_bksh, mask_bts):
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    q_bkgth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    scores_bkgts = jnp.einsum("bkgth,bksh->bkgts", q_bkgth, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    # A query always sees itself, so no row is fully masked and the softmax is finite.
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, jnp.finfo(jnp.float32).min)
    probs_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bksh.dtype)
    out_btkgh = jnp.einsum("bkgts,bksh->btkgh", probs_bkgts, v_bksh)
    return out_btkgh.reshape(b, t, n, h).astype(q_btnh.dtype)
