"""Attention over pages on TPU: JAX's Pallas kernel `ragged_paged_attention`, for prompts and decode steps alike.

A row's queries are the last tokens of its text. Rows of unequal counts are packed; the kernel needs at least one token in
every row that it processes, so rows without tokens are sorted last and excluded.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.paged.pages import Combined

_PAGES_PER_BLOCK = 8  # pages of a row in fast memory at a time
_QUERIES_PER_BLOCK = 32


def why_not(kv_heads: int, head_dim: int) -> str | None:
    """Return what the kernel needs to run with `kv_heads` heads on a device, or None where it can."""
    if head_dim % 128:
        return f"a head size that divides by 128; it is {head_dim}"
    if kv_heads not in (1, 2, 4) and kv_heads % 8:
        return f"1, 2, 4 or a multiple of 8 key/value heads on a device; there are {kv_heads}"
    return None


def attention(
    q_fnh: jax.Array, pages: Combined, tables_rw: jax.Array, lengths_r: jax.Array, counts_r: jax.Array
) -> jax.Array:
    """Return the attention of packed tokens, [F, N, H] in q's dtype; arguments as for `loop.prefill`."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    # Stable: rows with tokens keep their order, which is that of their tokens.
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
        # Explicit, because the kernel otherwise reads the generation of the local device, which does not exist when compiling
        # for a topology. Most entries for pages of 128 in its own table of tuned sizes have these values.
        num_kv_pages_per_block=min(_PAGES_PER_BLOCK, tables_rw.shape[1]),
        num_queries_per_block=min(_QUERIES_PER_BLOCK, q_fnh.shape[0]),
    )
