"""Decode attention on GPU: JAX's Pallas kernel `paged_attention`, compiled with Triton. It is flash decoding: the pages of a
row are divided over blocks, whose results are combined at the end.

The kernel needs a separate pool for each key/value head. `HeadMajor` pages [P, K, C, H] are the same array as P K pages of one
head, so each pair of row and head is passed as a row with its own list of pages. The kernel multiplies unwritten slots by 0, so
values left there by earlier rows must be finite.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.paged.pages import HeadMajor

_SPLITS = 16  # parts of a table that are processed in parallel
_MOST_PAGES = 4  # pages of a part that are read together
_QUERIES = 16  # rows of a block of queries: the fewest that a tensor core multiplies


def why_not(
    card: Card | None, head_dim: int, page_size: int, dtype: Any, stored: Any = None, slots: int = 0
) -> str | None:
    """Return what the kernel needs to run with these heads and pages, or None where it can.

    Args:
        card: the GPU.
        head_dim: size of a head.
        page_size: slots of a page.
        dtype: of the queries.
        stored: type of the cache, if it is another.
        slots: of all heads in a device's pool.
    """
    stored = dtype if stored is None else stored
    if head_dim & (head_dim - 1) or head_dim < 16:
        return f"a head size that is a power of two, 16 or more; it is {head_dim}"
    if page_size & (page_size - 1) or page_size < 16:
        return f"pages of a power of two tokens, 16 or more; they have {page_size}"
    needs = why_no_triton(card, dtype, stored)
    if card is None or needs is not None:
        return needs
    if pages_per_block(card.shared_memory, head_dim, page_size, dtype, stored) == 0:
        least = _shared_memory(page_size, head_dim, dtype, stored)
        return (
            f"{least:,} bytes of shared memory for pages of {page_size} tokens in {jnp.dtype(stored)}, and a block of the "
            f"{card.name} has {card.shared_memory:,}; choose smaller pages"
        )
    size = slots * head_dim * jnp.dtype(stored).itemsize
    if slots * head_dim > 2**31 and size <= 2**32:
        # Pallas numbers the elements of an array of up to 2^32 bytes with 32 bits, of which Triton reads one as the sign.
        return f"a pool of at most 2^31 numbers, or of more than 2^32 bytes; it has {slots * head_dim:,} in {size:,}"
    return None


def pages_per_block(shared_memory: int, head_dim: int, page_size: int, dtype: Any, stored: Any) -> int:
    """Return how many pages to read together: a power of two whose keys and values fit into shared memory, 0 if none does."""
    pages = _MOST_PAGES
    while pages and _shared_memory(pages * page_size, head_dim, dtype, stored) > shared_memory:
        pages //= 2
    return pages


def _shared_memory(keys: int, head_dim: int, dtype: Any, stored: Any) -> int:
    """Return the bytes of a block: queries, keys, values and probabilities, in the types in which they are multiplied."""
    narrow = jnp.dtype(dtype).itemsize
    # The kernel multiplies keys of 8 bits in the queries' type, and values in that of the probabilities, float32.
    wide = narrow if jnp.dtype(stored).itemsize > 1 else 4
    return (keys + _QUERIES) * head_dim * narrow + keys * (head_dim + _QUERIES) * wide


def decode(
    q_rtnh: jax.Array,
    pages: HeadMajor,
    tables_rw: jax.Array,
    lengths_r: jax.Array,
    card: Card | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Return the attention of each row's T newest tokens, [R, T, N, H] in q's dtype; arguments as for `loop.decode`.

    The caller has checked `why_not` for the card. `interpret` runs the kernel as plain JAX, for tests without a GPU, where an
    H100 stands for no card.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jax 0.12 recommends another package
        from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    r, t, n, h = q_rtnh.shape
    _, p, k, *_ = pages.k.shape
    # Each of the T tokens is passed as a row, which sees one token more than the one before.
    q_xgh = (q_rtnh * jnp.asarray(h**-0.5, q_rtnh.dtype)).reshape(r * t * k, n // k, h)
    shared = 232_448 if card is None else card.shared_memory
    together = pages_per_block(shared, h, pages.page_size, q_rtnh.dtype, pages.k.dtype)
    tables_rw = jnp.pad(tables_rw, ((0, 0), (0, -tables_rw.shape[1] % (_SPLITS * together))))
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
        pages_per_compute_block=together,
        interpret=interpret,
    )
    return out_xgh.reshape(r, t, n, h)
