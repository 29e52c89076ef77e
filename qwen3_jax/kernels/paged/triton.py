"""Decode attention on GPU: JAX's Pallas kernel `paged_attention`, compiled with Triton. It is flash decoding: the pages of a
row are divided over blocks, whose results are combined at the end.

The kernel needs a separate pool for each key/value head. `HeadMajor` pages [P, K, C, H] are the same array as P K pages of one
head, so each pair of row and head is passed as a row with its own list of pages. The kernel multiplies unwritten slots by 0, so
values left there by earlier rows must be finite.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.paged.pages import HeadMajor

_SPLITS = 16  # parts of a table that are processed in parallel
_PAGES_PER_BLOCK = 4  # pages of a part that are read together


def why_not(head_dim: int, page_size: int) -> str | None:
    """Return what the kernel needs to run with these heads and pages, or None where it can."""
    if head_dim & (head_dim - 1) or head_dim < 16:
        return f"a head size that is a power of two, 16 or more; it is {head_dim}"
    if page_size & (page_size - 1) or page_size < 16:
        return f"pages of a power of two tokens, 16 or more; they have {page_size}"
    return None


def decode(
    q_rtnh: jax.Array, pages: HeadMajor, tables_rw: jax.Array, lengths_r: jax.Array, interpret: bool = False
) -> jax.Array:
    """Return the attention of each row's T newest tokens, [R, T, N, H] in q's dtype; arguments as for `loop.decode`.

    `interpret` runs the kernel as plain JAX, for tests without a GPU.
    """
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    r, t, n, h = q_rtnh.shape
    _, p, k, *_ = pages.k.shape
    # Each of the T tokens is passed as a row, which sees one token more than the one before.
    q_xgh = (q_rtnh * jnp.asarray(h**-0.5, q_rtnh.dtype)).reshape(r * t * k, n // k, h)
    tables_rw = jnp.pad(tables_rw, ((0, 0), (0, -tables_rw.shape[1] % (_SPLITS * _PAGES_PER_BLOCK))))
    tables_rtkw = jnp.broadcast_to(
        (tables_rw[:, None] * k + jnp.arange(k)[:, None])[:, None], (r, t, k, tables_rw.shape[1])
    )
    lengths_rtk = jnp.broadcast_to((lengths_r[:, None] + 1 + jnp.arange(t))[:, :, None], (r, t, k))

    def one_head(x):
        return None if x is None else x[0].reshape(1, p * k, *x.shape[3:])

    out_xgh = paged_attention(
        q_xgh,
        one_head(pages.k),
        one_head(pages.v),
        tables_rtkw.reshape(r * t * k, -1).astype(jnp.int32),
        lengths_rtk.reshape(-1).astype(jnp.int32),
        one_head(pages.k_scale),
        one_head(pages.v_scale),
        k_splits=_SPLITS,
        pages_per_compute_block=_PAGES_PER_BLOCK,
        interpret=interpret,
    )
    return out_xgh.reshape(r, t, n, h)
