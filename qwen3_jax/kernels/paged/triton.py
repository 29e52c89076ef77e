"""Decode attention on NVIDIA GPUs as a Pallas kernel of our own, compiled with Triton.

It is flash decoding: the slots that a row uses are divided over programs, whose results are combined at the end. Each program
reads one key/value head for all of its query heads, page by page where the pages lie; slots that are not written are not read.
JAX's kernel (`jax.experimental.pallas.ops.gpu.paged_attention`, deprecated since 0.12) divides the whole table instead of its
used part, and multiplies values of 8 bits in float32.

Shapes: r rows, t new tokens of a row, n query heads, k key/value heads, m queries of a row and head (t n / k), h head size,
p pages, c slots of a page, s parts of a row, b slots that are multiplied at a time.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.paged.pages import HeadMajor

_LARGEST_HEAD = 256
_PROGRAMS = 512  # a few for each multiprocessor of a large card
_MOST_PARTS = 64
_RESERVED = 4096  # bytes of shared memory that Triton needs besides the blocks
_HIDDEN = -1e30  # finite: the difference of two hidden scores is 0
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Blocks:
    """Sides of the blocks of scores, powers of two, and how many blocks of keys and values are in shared memory at a time."""

    queries: int
    slots: int
    stages: int


def why_not(card: Card | None, head_dim: int, dtype: Any, stored: Any = None, slots: int = 0) -> str | None:
    """Return what the kernel needs to run on these heads and types, or None where it can.

    Args:
        card: the GPU.
        head_dim: size of a head.
        dtype: of the queries.
        stored: type of the cache, if it is another.
        slots: of all heads in a device's pool.
    """
    stored = jnp.dtype(dtype if stored is None else stored)
    if head_dim > _LARGEST_HEAD:
        return f"a head size of at most {_LARGEST_HEAD}; it is {head_dim}"
    count = slots * head_dim
    if count > 2**31 and count * stored.itemsize <= 2**32:
        # Pallas numbers the elements of an array of up to 2^32 bytes with 32 bits, of which Triton reads one as the sign.
        return f"a pool of at most 2^31 numbers or of more than 2^32 bytes on a device; it has {count:,} in {stored}"
    return why_no_triton(card, dtype, stored)


def choose_blocks(queries: int, head_dim: int, dtype: Any, shared_memory: int) -> Blocks:
    """Return the blocks for so many queries of a row and key/value head, on a card with so much shared memory (bytes)."""
    row = pl.next_power_of_2(max(head_dim, 16)) * jnp.dtype(dtype).itemsize
    height = min(max(pl.next_power_of_2(queries), 16), 64 if row <= 256 else 16)
    slots = 128 if row <= 256 else 64
    while True:
        # Queries and probabilities stay; keys and values come in.
        free = shared_memory - _RESERVED - height * row - height * slots * 4
        stages = free // (2 * slots * row)
        if stages >= 2 or slots == 16:
            return Blocks(height, slots, max(1, min(stages, 3)))
        slots //= 2


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
    r, t, n, h = q_rtnh.shape
    k = pages.kv_heads
    m = t * n // k
    blocks = choose_blocks(m, h, q_rtnh.dtype, 232_448 if card is None else card.shared_memory)
    high = pl.cdiv(m, blocks.queries)
    parts = min(max(pl.next_power_of_2(_PROGRAMS // (r * k * high)), 1), _MOST_PARTS)
    q_rkmh = q_rtnh.reshape(r, t, k, n // k, h).swapaxes(1, 2).reshape(r, k, m, h)
    scales = [x[0] for x in (pages.k_scale, pages.v_scale) if x is not None]
    kernel = functools.partial(paged_decode_kernel, tokens=t, high=high, blocks=blocks)
    one = jax.ShapeDtypeStruct((parts, r, k, m), jnp.float32)
    out_srkmh, max_srkm, sum_srkm = pl.pallas_call(
        kernel,
        grid=(parts, k * high, r),
        out_shape=(jax.ShapeDtypeStruct((*one.shape, h), jnp.float32), one, one),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=blocks.stages),
        interpret=interpret,
        name=f"paged_decode_{m}x{h}",
    )(tables_rw.astype(jnp.int32), lengths_r.astype(jnp.int32), q_rkmh, pages.k[0], pages.v[0], *scales)
    factor_srkm = jnp.exp2(max_srkm - max_srkm.max(axis=0))
    out_rkmh = (out_srkmh * factor_srkm[..., None]).sum(axis=0) / (sum_srkm * factor_srkm).sum(axis=0)[..., None]
    out_rtnh = out_rkmh.reshape(r, k, t, n // k, h).swapaxes(1, 2).reshape(r, t, n, h)
    return out_rtnh.astype(q_rtnh.dtype)


def paged_decode_kernel(tables_ref, lengths_ref, q_ref, k_ref, v_ref, *refs, tokens: int, high: int, blocks: Blocks):
    *scale_refs, out_ref, max_ref, sum_ref = refs
    part, r = pl.program_id(0), pl.program_id(2)
    k, first = pl.program_id(1) // high, pl.program_id(1) % high * blocks.queries
    m, h = q_ref.shape[2:]
    c, width = k_ref.shape[2], tables_ref.shape[1]
    place_m = first + jnp.arange(blocks.queries)
    column_h = jnp.arange(pl.next_power_of_2(max(h, 16)))
    tile_mh = (place_m < m)[:, None] & (column_h < h)[None]
    # A computed start: jax 0.12 refuses a constant slice that ends past the array, though the mask does not read there.
    rows, columns = pl.ds(first, blocks.queries), pl.ds(first * 0, column_h.size)
    q_mh = pltriton.load(q_ref.at[r, k, rows, columns], mask=tile_mh, other=0)
    length = lengths_ref[r]
    position_m = length + place_m // (m // tokens)  # a row's queries lie token by token
    used = jnp.minimum(length + tokens, width * c)
    # The parts are equal, and whole blocks.
    blocks_of_part = pl.cdiv(pl.cdiv(used, blocks.slots), pl.num_programs(0))
    last = jnp.minimum((part + 1) * blocks_of_part, pl.cdiv(used, blocks.slots))

    def slots(i, carry):
        max_m, sum_m, acc_mh = carry
        slot_b = i * blocks.slots + jnp.arange(blocks.slots)
        written_b = slot_b < used
        page_b = pltriton.load(tables_ref.at[r, slot_b // c], mask=written_b, other=0)
        at = page_b[:, None], k, (slot_b % c)[:, None], column_h[None]
        tile_bh = written_b[:, None] & (column_h < h)[None]
        zero = 0.0 if jnp.issubdtype(k_ref.dtype, jnp.floating) else 0  # Triton casts no integer to fp8
        k_bh, v_bh = (pltriton.load(ref.at[at], mask=tile_bh, other=zero).astype(q_mh.dtype) for ref in (k_ref, v_ref))
        scores_mb = jnp.dot(q_mh, k_bh.T, preferred_element_type=jnp.float32) * (h**-0.5 * _LOG2_E)
        if scale_refs:
            scale_b = [pltriton.load(ref.at[page_b, k, slot_b % c], mask=written_b, other=0) for ref in scale_refs]
            scores_mb *= scale_b[0][None]
        visible_mb = (slot_b[None] <= position_m[:, None]) & written_b[None]
        scores_mb = jnp.where(visible_mb, scores_mb, _HIDDEN)
        new_max_m = jnp.maximum(max_m, scores_mb.max(axis=1))
        probs_mb = jnp.where(visible_mb, jnp.exp2(scores_mb - new_max_m[:, None]), 0)
        shrink_m = jnp.exp2(max_m - new_max_m)
        sum_m = sum_m * shrink_m + probs_mb.sum(axis=1)
        if scale_refs:
            probs_mb *= scale_b[1][None]
        product_mh = jnp.dot(probs_mb.astype(v_bh.dtype), v_bh, preferred_element_type=jnp.float32)
        return new_max_m, sum_m, acc_mh * shrink_m[:, None] + product_mh

    zeros_m = jnp.zeros(blocks.queries, jnp.float32)
    start = zeros_m + _HIDDEN, zeros_m, jnp.zeros(q_mh.shape, jnp.float32)
    max_m, sum_m, acc_mh = jax.lax.fori_loop(part * blocks_of_part, last, slots, start)
    pltriton.store(out_ref.at[part, r, k, rows, columns], acc_mh, mask=tile_mh)
    pltriton.store(max_ref.at[part, r, k, rows], max_m, mask=place_m < m)
    pltriton.store(sum_ref.at[part, r, k, rows], sum_m, mask=place_m < m)
