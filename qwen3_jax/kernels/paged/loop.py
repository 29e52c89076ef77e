"""Attention over pages in plain JAX, for any platform: work and traffic grow with the slots in use, not with the size of the
pool or the length of the tables.

A decode step makes one list of (row, page) of all rows and processes `ITEMS` of them at a time, so short rows do not wait for
long ones. A prefill loops over blocks of queries, and for each over groups of its row's pages. Both keep a running softmax
(FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 1) in float32.

The pages are carried through the loops and returned: XLA copies a value that a loop only reads and that is written later (by
the next token's keys), which here would be the whole pool in every layer.

Shapes: r rows, m queries of a row times query heads per key/value head, k key/value heads, h head size, c slots, i items.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.kernels.paged.pages import HeadMajor
from qwen3_jax.kernels.paged.rows import places

ITEMS = 8, 64  # pages that a decode step reads together: of few rows, and of many
BLOCK = 128  # queries, and slots, that a prefill multiplies together
SHORT_BLOCK = 32  # queries, where prompts are short and the platform computes one product after the other
_HIDDEN = float(np.finfo(np.float32).min)
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def decode(
    q_crtnh: jax.Array, pages: HeadMajor, tables_rw: jax.Array, lengths_r: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, HeadMajor]:
    """Return the attention of each row's T newest tokens, [R, T, N, H] in q's dtype, and the pages, to be used from then on.

    The tokens' keys and values are already in their pages.

    Args:
        q_crtnh: queries at positions lengths_r to lengths_r + T - 1; with `chunk` three of each, see `Chunks`, else one.
        pages: of one shard (D = 1).
        tables_rw: int32, numbers of pages.
        lengths_r: int32.
        chunk: tokens of a chunk, or None.
    """
    _, r, t, n, h = q_crtnh.shape
    k, c = pages.kv_heads, pages.page_size
    q_crkmh = jax.vmap(functools.partial(_group, k=k))(q_crtnh)
    position_rm = jnp.tile(lengths_r[:, None] + jnp.arange(t), n // k)
    items = min(max(r // 2, ITEMS[0]), ITEMS[1])
    used_r = jnp.minimum((lengths_r + t - 1) // c + 1, tables_rw.shape[1])
    ends_r = jnp.cumsum(used_r)
    window = min(items, r)  # each row has an item, so the rows of consecutive items are no more than these

    def page_block(step, carry):
        max_rkm, sum_rkm, acc_rkmh, pages = carry
        pages = jax.lax.optimization_barrier(pages)  # or JAX would hoist them out of the carry
        item_i = step * items + jnp.arange(items)
        row_i = jnp.searchsorted(ends_r, item_i, side="right", method="compare_all")
        in_row_iw = row_i[:, None] == row_i[0] + jnp.arange(window)  # all False for an item past the last
        in_row_iw &= (row_i < r)[:, None]
        row_i = jnp.minimum(row_i, r - 1)
        place_i = jnp.clip(item_i - (ends_r - used_r)[row_i], 0, tables_rw.shape[1] - 1)
        slot_ic = place_i[:, None] * c + jnp.arange(c)
        k_ikch, v_ikch = pages.read(tables_rw[row_i, place_i])
        # Unwritten slots hold values of an earlier row, and 0 times infinity is not 0.
        v_ikch = jnp.where((slot_ic < lengths_r[row_i][:, None] + t)[:, None, :, None], v_ikch, 0)
        seen_imc = slot_ic[:, None, :] <= position_rm[row_i][:, :, None]
        seen_ikmc = (seen_imc & in_row_iw.any(axis=1)[:, None, None])[:, None]
        q_ikmh = _select_rotation(q_crkmh[:, row_i], position_rm[row_i][:, None], (place_i * c)[:, None, None], chunk)
        scores_ikmc = jnp.where(seen_ikmc, _product("ikmh,ikch->ikmc", q_ikmh, k_ikch), _HIDDEN)
        max_ikm = scores_ikmc.max(axis=-1)
        probs_ikmc = jnp.where(seen_ikmc, jnp.exp(scores_ikmc - max_ikm[..., None]), 0)
        acc_ikmh = _product("ikmc,ikch->ikmh", probs_ikmc, v_ikch)

        return *_merged(
            (max_rkm, sum_rkm, acc_rkmh), (max_ikm, probs_ikmc.sum(axis=-1), acc_ikmh), row_i, in_row_iw
        ), pages

    # `window` rows more: a slice that ends past the last row would begin at an earlier one.
    zeros_rkm = jnp.zeros((r + window, *q_crkmh.shape[2:4]), jnp.float32)
    start = zeros_rkm + _HIDDEN, zeros_rkm, jnp.zeros((*zeros_rkm.shape, h), jnp.float32), pages
    _, sum_rkm, acc_rkmh, pages = jax.lax.fori_loop(0, -(-ends_r[-1] // items), page_block, start)
    out_rkmh = acc_rkmh[:r] / sum_rkm[:r, ..., None]
    out_rtnh = out_rkmh.reshape(r, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(r, t, n, h)
    return out_rtnh.astype(q_crtnh.dtype), pages


def _merged(carry, block, row_i: jax.Array, in_row_iw: jax.Array):
    """Return the running maximum, sum and result of all rows with those of a block of items.

    The items are of consecutive rows from row_i[0] on, so only these W rows are read and written.
    """
    max_ikm, sum_ikm, acc_ikmh = block
    first, window = row_i[0], in_row_iw.shape[1]
    max_wkm, sum_wkm, acc_wkmh = (jax.lax.dynamic_slice_in_dim(x, first, window) for x in carry)
    # Rescale the items' results from their own maximum to their row's, and sum them by row.
    in_block_wkm = jnp.where(in_row_iw[:, :, None, None], max_ikm[:, None], _HIDDEN).max(axis=0)
    new_max_wkm = jnp.maximum(max_wkm, in_block_wkm)
    factor_ikm = jnp.exp(max_ikm - new_max_wkm[jnp.minimum(row_i - first, window - 1)])
    shrink_wkm = jnp.exp(max_wkm - new_max_wkm)
    to_row_iw = in_row_iw.astype(jnp.float32)
    sum_wkm = sum_wkm * shrink_wkm + _einsum("iw,ikm->wkm", to_row_iw, sum_ikm * factor_ikm)
    parts_wkmh = _einsum("iw,ikmh->wkmh", to_row_iw, acc_ikmh * factor_ikm[..., None])
    after = new_max_wkm, sum_wkm, acc_wkmh * shrink_wkm[..., None] + parts_wkmh
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new, first, axis=0) for old, new in zip(carry, after, strict=True)
    )


def prefill(
    q_cfnh: jax.Array,
    pages: HeadMajor,
    tables_rw: jax.Array,
    lengths_r: jax.Array,
    counts_r: jax.Array,
    chunk: int | None = None,
    *,
    serial: bool = False,
) -> tuple[jax.Array, HeadMajor]:
    """Return the attention of tokens packed row after row, [F, N, H] in q's dtype, and the pages, to be used from then on.

    The tokens' keys and values are already in their pages.

    Args:
        q_cfnh: queries; the first counts_r[0] are of row 0, at positions from lengths_r[0] on. With `chunk` three of each.
        pages: of one shard (D = 1).
        tables_rw: int32, numbers of pages.
        lengths_r, counts_r: int32, slots in use before these tokens, and tokens.
        chunk: tokens of a chunk, or None.
        serial: the platform computes one product after the other, so padding takes time: smaller blocks for short prompts.
    """
    _, f, n, h = q_cfnh.shape
    k, c = pages.kv_heads, pages.page_size
    block, group = min(BLOCK, f), max(BLOCK // c, 1)
    if serial:
        block = min(block, max(SHORT_BLOCK, f // len(counts_r)))
    if chunk is not None:
        group = math.gcd(group, chunk // c)  # pages that are read together belong to one chunk
    token_places = places(lengths_r, counts_r, f)
    blocks_r = -(-counts_r // block)
    ends_r = jnp.cumsum(blocks_r)
    starts_r = jnp.cumsum(counts_r) - counts_r
    tables_rw = jnp.pad(tables_rw, ((0, 0), (0, -tables_rw.shape[1] % group)))
    # Padding for a block that starts at the last token.
    q_cfnh = jnp.pad(q_cfnh, ((0, 0), (0, block), (0, 0), (0, 0)))
    position_f = jnp.pad(token_places.position_f, (0, block))

    def query_block(i, carry):
        out_fnh, pages = carry
        row = jnp.searchsorted(ends_r, i, side="right", method="compare_all")
        first = (i - ends_r[row] + blocks_r[row]) * block
        count, start = counts_r[row] - first, starts_r[row] + first  # count may exceed the block
        q_ckmh = _group(jax.lax.dynamic_slice_in_dim(q_cfnh, start, block, axis=1), k)
        position_m = jnp.tile(jax.lax.dynamic_slice_in_dim(position_f, start, block), n // k)
        last = lengths_r[row] + first + jnp.minimum(count, block) - 1
        out_kmh, pages = _attend_to_pages(q_ckmh, position_m, last, pages, tables_rw[row], group, chunk)
        out_kgth = out_kmh.reshape(k, n // k, block, h)
        out_tnh = out_kgth.transpose(2, 0, 1, 3).reshape(block, n, h).astype(out_fnh.dtype)
        # Rows are in order: the next block overwrites what this one writes past its own tokens.
        return jax.lax.dynamic_update_slice_in_dim(out_fnh, out_tnh, start, axis=0), pages

    out_fnh, pages = jax.lax.fori_loop(0, ends_r[-1], query_block, (jnp.zeros_like(q_cfnh[0]), pages))
    return out_fnh[:f], pages


def _attend_to_pages(
    q_ckmh: jax.Array, position_m: jax.Array, last: jax.Array, pages: HeadMajor, table_w: jax.Array, group: int, chunk
) -> tuple[jax.Array, HeadMajor]:
    """Return a query block's attention over slots 0 to `last` of its row, float32 [K, M, H]; reads `group` pages at a time."""
    k, c, h = pages.kv_heads, pages.page_size, q_ckmh.shape[-1]

    def page_group(j, carry):
        max_km, sum_km, acc_kmh, pages = carry
        pages = jax.lax.optimization_barrier(pages)
        k_ikch, v_ikch = pages.read(jax.lax.dynamic_slice_in_dim(table_w, j * group, group))
        slot_c = j * group * c + jnp.arange(group * c)
        seen_mc = slot_c <= position_m[:, None]
        k_kch, v_kch = (x.swapaxes(0, 1).reshape(k, group * c, h) for x in (k_ikch, v_ikch))
        v_kch = jnp.where((slot_c <= last)[:, None], v_kch, 0)  # as in `decode`
        q_kmh = _select_rotation(q_ckmh, position_m, j * group * c, chunk)
        scores_kmc = jnp.where(seen_mc, _product("kmh,kch->kmc", q_kmh, k_kch), _HIDDEN)
        new_max_km = jnp.maximum(max_km, scores_kmc.max(axis=-1))
        probs_kmc = jnp.exp(scores_kmc - new_max_km[..., None])
        shrink_km = jnp.exp(max_km - new_max_km)
        acc_kmh = acc_kmh * shrink_km[..., None] + _product("kmc,kch->kmh", probs_kmc, v_kch)
        return new_max_km, sum_km * shrink_km + probs_kmc.sum(axis=-1), acc_kmh, pages

    zeros_km = jnp.zeros(q_ckmh.shape[1:3], jnp.float32)
    start = zeros_km + _HIDDEN, zeros_km, jnp.zeros(q_ckmh.shape[1:], jnp.float32), pages
    _, sum_km, acc_kmh, pages = jax.lax.fori_loop(0, last // (group * c) + 1, page_group, start)
    return acc_kmh / sum_km[..., None], pages


def _select_rotation(q_ckmh: jax.Array, position_km: jax.Array, first_slot: jax.Array, chunk: int | None) -> jax.Array:
    """Select, of the three rotations of each query (first axis), the one for the distance in chunks to the slots."""
    if chunk is None:
        return q_ckmh[0]
    chunks_km = (position_km // chunk - first_slot // chunk)[..., None]
    return jnp.where(chunks_km <= 0, q_ckmh[0], jnp.where(chunks_km == 1, q_ckmh[1], q_ckmh[2]))


def _group(q_rtnh: jax.Array, k: int) -> jax.Array:
    """[R, T, N, H] -> scaled [R, K, M, H], rows ordered by query head within the group, then by query."""
    r, t, n, h = q_rtnh.shape
    q_rtnh = q_rtnh * jnp.asarray(h**-0.5, q_rtnh.dtype)
    return q_rtnh.reshape(r, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(r, k, -1, h)


def _product(equation: str, x: jax.Array, pages: jax.Array) -> jax.Array:
    """Return a float32 product with values that were read from pages."""
    return _einsum(equation, x.astype(jnp.float32), pages.astype(jnp.float32))
