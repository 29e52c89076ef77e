"""Attention over pages on TPU: JAX's Pallas kernel `ragged_paged_attention`, for prompts and decode steps alike.

A row's queries are the last tokens of its text. Rows of unequal counts come packed; the kernel wants at least one token in
every row that it is told of, so rows without any are put last and left out.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.paged.pages import Combined

_PAGES = 8  # of a row that are in fast memory at a time
_QUERIES = 32


def why_not(kv_heads: int, head_dim: int) -> str | None:
    """What the kernel would need to run with so many key/value heads on a device, or None where it can."""
    if head_dim % 128:
        return f"a head size that divides by 128; it is {head_dim}"
    if kv_heads not in (1, 2, 4) and kv_heads % 8:
        return f"1, 2, 4 or a multiple of 8 key/value heads on a device; there are {kv_heads}"
    return None


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
        pages.kv[0],
        (lengths_r[order_r] + counts_r).astype(jnp.int32),
        tables_rw[order_r].astype(jnp.int32),
        ends,
        (counts_r > 0).sum(dtype=jnp.int32)[None],
        sm_scale=q_fnh.shape[-1] ** -0.5,
        # Given, because the kernel would otherwise ask the local device for its generation, which a plan has none of. In its
        # own table of tuned sizes most entries for pages of 128 are these.
        num_kv_pages_per_block=min(_PAGES, tables_rw.shape[1]),
        num_queries_per_block=min(_QUERIES, q_fnh.shape[0]),
    )
