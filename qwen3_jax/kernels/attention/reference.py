"""Attention as the formula reads, with every score in memory. The other implementations are tested against it.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.kernels.attention.partition import SAVE_NAME
from qwen3_jax.kernels.execution import Execution


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None,
    execution: Execution,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H]; arguments as for `dispatch.attention`."""
    places_t = jnp.asarray(execution.order(q_btnh.shape[1]))
    mask_bts = (places_t[None, :] <= places_t[:, None])[None]
    if segment_ids_bt is not None:
        mask_bts &= segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    return checkpoint_name(masked_attention(q_btnh, k_bkth, v_bkth, mask_bts), SAVE_NAME)


def masked_attention(q_btnh: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, mask_bts: jax.Array) -> jax.Array:
    """Return attention under any mask ([B or 1, T, S] bool, True: visible), [B, T, N, H] in q's dtype."""
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    q_bkgth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    scores_bkgts = jnp.einsum("bkgth,bksh->bkgts", q_bkgth, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    # A query always sees itself, so no row is fully masked and the softmax is finite.
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, jnp.finfo(jnp.float32).min)
    probs_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bksh.dtype)
    out_btkgh = jnp.einsum("bkgts,bksh->btkgh", probs_bkgts, v_bksh)
    return out_btkgh.reshape(b, t, n, h).astype(q_btnh.dtype)
