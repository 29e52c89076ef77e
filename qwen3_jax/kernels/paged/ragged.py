"""Attention over pages on TPU: JAX's Pallas kernel `ragged_paged_attention`, for prompts and decode steps alike.

A row's queries are the last tokens of its text. Rows of unequal counts come packed; the kernel wants at least one token in
every row that it is told of, so rows without any are put last and left out.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.paged.pages import Combined


def attention(
    q_fnh: jax.Array, pages: Combined, tables_rw: jax.Array, lengths_r: jax.Array, counts_r: jax.Array
) -> jax.Array:
    """Return the attention of tokens that lie row after row, [F, N, H] in q's dtype; arguments as of `loop.prefill`."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    # Stable: rows with tokens keep their order, and so their tokens' places.
    order_r = jnp.argsort(counts_r == 0, stable=True)
    counts_r = counts_r[order_r]
    ends = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts_r).astype(jnp.int32)])
    return ragged_paged_attention(
        q_fnh,
        pages.kv,
        (lengths_r[order_r] + counts_r).astype(jnp.int32),
        tables_rw[order_r].astype(jnp.int32),
        ends,
        (counts_r > 0).sum(dtype=jnp.int32)[None],
        sm_scale=q_fnh.shape[-1] ** -0.5,
    )
