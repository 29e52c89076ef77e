"""Attention on NVIDIA GPUs as Pallas kernels of our own, compiled with Triton: FlashAttention-2 (Dao 2023, arXiv 2307.08691)
for rows that are packed with documents and for a length that is split.

A query block loops over the range of key blocks that it can see at all, so a packed row costs as much as its documents. Blocks
whose queries see all keys take a loop of their own, which computes no mask. The log-sum-exp is saved under
`partition.SAVE_NAME`, so a policy of `jax.checkpoint` can spare the second forward pass. Queries and keys are read where they
lie: a group's queries share its keys, and no head is repeated. JAX's own kernel
(`jax.experimental.pallas.ops.gpu.attention`, deprecated since 0.12) does neither.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size,
i query blocks, j key blocks, q rows and c columns of a block of scores. A program holds one block of queries (forward, dq) or
of keys (dk and dv) and streams the blocks of the other side.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, local_keys, local_places, per_device
from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.execution import Execution

_HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
_LARGEST_HEAD = 256
_RESERVED = 4096  # bytes of shared memory that Triton needs besides the blocks
_HIDDEN = -1e30  # finite: the difference of two hidden scores is 0
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Tile:
    """How one kernel divides the scores.

    Attributes:
        held: rows of the block that a program holds, a power of two.
        streamed: rows of each block that it streams, a power of two.
        stages: streamed blocks that are in shared memory at a time.
        warps: of 32 threads each.
    """

    held: int
    streamed: int
    stages: int
    warps: int


@dataclass(frozen=True)
class Blocks:
    """The tiles of the three kernels."""

    forward: Tile
    dq: Tile
    dkv: Tile


def why_not(card: Card | None, q: jax.ShapeDtypeStruct | jax.Array) -> str | None:
    """Return what the kernels would need to run on queries [B, T, N, H], or None where they can."""
    if q.dtype not in _HALF:
        return f"a compute type of bfloat16 or float16; it is {q.dtype}"
    if q.shape[3] > _LARGEST_HEAD:
        return f"a head size of at most {_LARGEST_HEAD}; it is {q.shape[3]}"
    return why_no_triton(card, q.dtype)


def choose_blocks(head_size: int, shared_memory: int, itemsize: int = 2) -> Blocks:
    """Return the tiles for heads of this size on a card with this much shared memory (bytes)."""
    row = pl.next_power_of_2(max(head_size, 16)) * itemsize
    large = shared_memory > 128 * 1024
    free = shared_memory - _RESERVED

    def tile(held: int, streamed: int, arrays: int, stages: int) -> Tile:
        # Of the backward pass two blocks of scores lie between products.
        fixed = arrays * held * row + (2 * held * streamed * itemsize if arrays > 1 else 0)
        fitting = (free - fixed) // (2 * streamed * row)
        return Tile(held, streamed, max(1, min(fitting, stages)), 8 if held == 128 else 4)

    side = 128 if row <= 256 and large else 64
    streamed = 64 if row <= 256 else 32
    back = 32 if row > 256 or (not large and row > 128) else 64
    return Blocks(tile(side, streamed, 1, 3), tile(back, back, 2, 2), tile(back, back, 2, 2))


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None,
    execution: Execution,
    split: Split,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H]. The caller has checked `why_not`.

    `interpret` runs the kernels as plain JAX on any platform, for tests, by default with an H100's blocks.
    """
    if blocks is None:
        card = execution.card
        blocks = choose_blocks(q_btnh.shape[3], 232_448 if card is None else card.shared_memory)

    def local(q_btnh, k_bkth, v_bkth, segment_ids_bt):
        k_bksh, v_bksh, segment_ids_bs = local_keys(k_bkth, v_bkth, segment_ids_bt, split, execution.balanced)
        places_t = local_places(q_btnh.shape[1], split, execution.balanced)
        mask = Mask(places_t, segment_ids_bt, segment_ids_bs)
        return flash(q_btnh, k_bksh, v_bksh, mask, blocks, interpret)

    return per_device(local, execution.placement, split, q_btnh, k_bkth, v_bkth, segment_ids_bt)


class Mask(NamedTuple):
    """Which keys a query sees: those at places up to its own, of its own segment.

    Attributes:
        places_t: int32 [T], the place of each query; key number s is at place s.
        q_segments_bt, k_segments_bs: int32, both or neither.
    """

    places_t: jax.Array
    q_segments_bt: jax.Array | None
    k_segments_bs: jax.Array | None


class _Ranges(NamedTuple):
    """The streamed blocks of each held block, int32 [B, I] each.

    Attributes:
        first, stop: those that it can see at all, or be seen by.
        whole_first, whole_stop: a range within, of which every query sees every key.
    """

    first: jax.Array
    whole_first: jax.Array
    whole_stop: jax.Array
    stop: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def flash(q_btnh, k_bksh, v_bksh, mask: Mask, blocks: Blocks, interpret: bool):
    """Return the attention of queries over keys at places 0 to S - 1, [B, T, N, H] in q's dtype.

    Differentiable in q, k and v. Softmax and accumulation run in float32.
    """
    return _forward(q_btnh, k_bksh, v_bksh, mask, blocks, interpret)[0]


def _forward_and_save(q_btnh, k_bksh, v_bksh, mask, blocks, interpret):
    out_btnh, logsumexp_bnt = _forward(q_btnh, k_bksh, v_bksh, mask, blocks, interpret)
    out_btnh, logsumexp_bnt = checkpoint_name(out_btnh, SAVE_NAME), checkpoint_name(logsumexp_bnt, SAVE_NAME)
    return out_btnh, (q_btnh, k_bksh, v_bksh, mask, out_btnh, logsumexp_bnt)


def _ranges(mask: Mask, batch: int, keys: int, block_q: int, block_k: int, of_queries: bool) -> _Ranges:
    """Return the key blocks of each query block (`of_queries`), or the query blocks of each key block.

    A pair of blocks is left out if all of its keys come after its queries, or if the ranges of their segments are disjoint. It
    is whole if all of its keys come before its queries, all of one segment, and neither block ends outside of its array.
    """
    blocks_k = -(-keys // block_k)

    def bounds(x, block):
        missing = -x.shape[-1] % block
        blocks = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, missing)], mode="edge").reshape(*x.shape[:-1], -1, block)
        return blocks.min(axis=-1), blocks.max(axis=-1)

    first_i, last_i = bounds(mask.places_t, block_q)
    start_j, queries = jnp.arange(blocks_k) * block_k, mask.places_t.shape[0]
    seen_bij = (start_j <= last_i[:, None])[None]
    end_i = (jnp.arange(len(first_i)) + 1) * block_q
    whole_bij = ((start_j + block_k <= jnp.minimum(first_i[:, None] + 1, keys)) & (end_i[:, None] <= queries))[None]
    if mask.q_segments_bt is not None and mask.k_segments_bs is not None:
        (q_low, q_high), (k_low, k_high) = bounds(mask.q_segments_bt, block_q), bounds(mask.k_segments_bs, block_k)
        seen_bij &= (q_low[:, :, None] <= k_high[:, None]) & (q_high[:, :, None] >= k_low[:, None])
        whole_bij &= (q_low[:, :, None] == k_high[:, None]) & (q_high[:, :, None] == k_low[:, None])
    seen, whole = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (seen_bij, whole_bij))
    if not of_queries:
        seen, whole = seen.swapaxes(1, 2), whole.swapaxes(1, 2)
    return _ranges_of(seen, whole)


def _ranges_of(seen: jax.Array, whole: jax.Array) -> _Ranges:
    """Return the ranges of each row's streamed blocks: from the first that is seen to the last; its first run of whole ones.

    Args:
        seen, whole: bool [B, held blocks, streamed blocks]; what is whole is seen.
    """
    count = seen.shape[2]
    first, whole_first = jnp.argmax(seen, axis=2), jnp.argmax(whole, axis=2)
    stop = jnp.where(seen.any(axis=2), count - jnp.argmax(jnp.flip(seen, 2), axis=2), 0)
    after = ~whole & (jnp.arange(count) >= whole_first[..., None])
    whole_stop = jnp.where(after.any(axis=2), jnp.argmax(after, axis=2), count)
    whole_first, whole_stop = (jnp.where(whole.any(axis=2), x, first) for x in (whole_first, whole_stop))
    return _Ranges(*(x.astype(jnp.int32) for x in (first, whole_first, whole_stop, stop)))


def _ascending(mask: Mask) -> Mask:
    """Return the mask with segment 0, the padding at the end of a row, as the largest number: ranges are then narrow."""
    last = np.int32(np.iinfo(np.int32).max)
    q, k = (x if x is None else jnp.where(x == 0, last, x) for x in mask[1:])
    return Mask(mask.places_t, q, k)


def _arrays(mask: Mask) -> list[jax.Array]:
    return [x for x in mask if x is not None]


def _call(kernel, grid, out_shape, tile: Tile, interpret: bool):
    return pl.pallas_call(
        functools.partial(kernel, tile=tile),
        grid=grid,
        out_shape=out_shape,
        compiler_params=pltriton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=kernel.__name__.removesuffix("_kernel"),
    )


def _forward(q_btnh, k_bksh, v_bksh, mask: Mask, blocks: Blocks, interpret: bool):
    """Return the output and the log-sum-exp of the scores in base 2, float32 [B, N, T]."""
    (b, t, n, _), s, tile = q_btnh.shape, k_bksh.shape[2], blocks.forward
    mask = _ascending(mask)
    ranges = _ranges(mask, b, s, tile.held, tile.streamed, of_queries=True)
    shapes = jax.ShapeDtypeStruct(q_btnh.shape, q_btnh.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)
    call = _call(attention_forward_kernel, (pl.cdiv(t, tile.held), n, b), shapes, tile, interpret)
    return call(*ranges, q_btnh, k_bksh, v_bksh, *_arrays(mask))


def _backward(blocks: Blocks, interpret, saved, d_out_btnh):
    q_btnh, k_bksh, v_bksh, mask, out_btnh, logsumexp_bnt = saved
    (b, t, n, _), (k, s) = q_btnh.shape, k_bksh.shape[1:3]
    mask = _ascending(mask)
    # sum over keys of probability x its gradient, which is also the output x its gradient.
    mean_bnt = (out_btnh.astype(jnp.float32) * d_out_btnh.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    arrays = q_btnh, k_bksh, v_bksh, d_out_btnh.astype(q_btnh.dtype), logsumexp_bnt, mean_bnt, *_arrays(mask)
    dq, *dkv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_btnh, k_bksh, v_bksh))
    tile = blocks.dq
    ranges = _ranges(mask, b, s, tile.held, tile.streamed, of_queries=True)
    call = _call(attention_dq_kernel, (pl.cdiv(t, tile.held), n, b), dq, tile, interpret)
    dq_btnh = call(*ranges, *arrays)
    tile = blocks.dkv
    ranges = _ranges(mask, b, s, tile.streamed, tile.held, of_queries=False)
    call = _call(attention_dkv_kernel, (pl.cdiv(s, tile.held), k, b), dkv, tile, interpret)
    dk_bksh, dv_bksh = call(*ranges, *arrays)
    return dq_btnh, dk_bksh, dv_bksh, None


flash.defvjp(_forward_and_save, _backward)


# The kernels. A program's block of queries or keys is whole, or masked at the end of the array.


class _Side:
    """One block of rows of queries or keys: where it lies, and which of its rows and columns exist."""

    def __init__(self, block, size: int, rows: int, head_size: int, whole: bool = False):
        """`whole`: all rows are known to exist."""
        self.at = pl.ds(block * size, size)
        self.place = block * size + jnp.arange(size)
        self.inside: Any = None if whole else self.place < rows
        # A computed start: jax 0.12 refuses a constant slice that ends past the array, though the mask does not read there.
        width = pl.next_power_of_2(max(head_size, 16))
        self.columns = pl.ds(block * 0, width)
        in_head = (jnp.arange(width) < head_size)[None]
        if self.inside is not None:
            self.tile = self.inside[:, None] & in_head
        else:
            self.tile = None if width == head_size else jnp.broadcast_to(in_head, (size, width))

    def of_queries(self, ref, b, n) -> Any:
        """Return the block of one head of an array [B, T, N, H], zeros where it ends."""
        return _load(ref.at[b, self.at, n, self.columns], self.tile)

    def of_keys(self, ref, b, k) -> Any:
        """Return the block of one head of an array [B, K, S, H], zeros where it ends."""
        return _load(ref.at[b, k, self.at, self.columns], self.tile)

    def numbers(self, ref, *index) -> Any:
        """Return the block's entries of an array [..., rows], zeros where it ends."""
        return _load(ref.at[(*index, self.at)], self.inside)


def _load(ref, mask) -> Any:
    return pltriton.load(ref) if mask is None else pltriton.load(ref, mask=mask, other=0)


def _stream(refs, b, block, body, start, heads: int = 1) -> Any:
    """Return the carry after body(head, streamed block, whole, carry) for every head and streamed block of a held block.

    The whole ones come first; those that need a mask lie before and after them.
    """
    first, whole_first, whole_stop, stop = (ref[b, block] for ref in refs)
    whole, before = whole_stop - whole_first, whole_first - first
    partly = before + stop - whole_stop

    def whole_block(step, carry):
        head = step // whole if heads > 1 else 0
        return body(head, whole_first + step - head * whole, True, carry)

    def part_block(step, carry):
        head = step // partly if heads > 1 else 0
        step -= head * partly
        return body(head, jnp.where(step < before, first + step, whole_stop + step - before), False, carry)

    return jax.lax.fori_loop(0, heads * partly, part_block, jax.lax.fori_loop(0, heads * whole, whole_block, start))


class _Seen:
    """Places and segments of one block of queries or keys; of keys the place is the number."""

    segments: Any

    def __init__(self, side: _Side, b, places_ref, segments_ref):
        self.places = side.place if places_ref is None else side.numbers(places_ref)
        self.segments = None if segments_ref is None else side.numbers(segments_ref, b)


def _visible(queries: _Seen, keys: _Seen) -> Any:
    """Return which keys of a block a query sees, [Q, C]."""
    visible_qc = keys.places[None] <= queries.places[:, None]
    if queries.segments is not None:
        visible_qc &= queries.segments[:, None] == keys.segments[None]
    return visible_qc


def _mask_refs(refs) -> tuple[Any, Any, Any]:
    """Return the references of the mask: the places of queries, the segments of queries and of keys, or None."""
    return refs if len(refs) == 3 else (*refs, None, None)


def attention_forward_kernel(*refs, tile: Tile):
    *ranges, q_ref, k_ref, v_ref = refs[:7]
    *mask_refs, out_ref, logsumexp_ref = refs[7:]
    places_ref, q_segments_ref, k_segments_ref = _mask_refs(mask_refs)
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    # The last blocks of a row have most keys: they start first.
    i, n, b = pl.num_programs(0) - 1 - pl.program_id(0), pl.program_id(1), pl.program_id(2)
    k = n // (heads // kv_heads)
    queries = _Side(i, tile.held, t, h)
    q_qh, of_queries = queries.of_queries(q_ref, b, n), _Seen(queries, b, places_ref, q_segments_ref)
    scale = h**-0.5 * _LOG2_E

    def key_block(_, j, whole, carry):
        max_q, sum_q, acc_qh = carry
        keys = _Side(j, tile.streamed, s, h, whole)
        k_ch = keys.of_keys(k_ref, b, k)
        scores_qc = jnp.dot(q_qh, k_ch.T, preferred_element_type=jnp.float32)
        if whole:  # scaled after the maximum: the product and the difference are one instruction
            new_max_q = jnp.maximum(max_q, scores_qc.max(axis=1) * scale)
            probs_qc = jnp.exp2(scores_qc * scale - new_max_q[:, None])
        else:
            visible_qc = _visible(of_queries, _Seen(keys, b, None, k_segments_ref))
            scores_qc = jnp.where(visible_qc, scores_qc * scale, _HIDDEN)
            new_max_q = jnp.maximum(max_q, scores_qc.max(axis=1))
            # Of a row that has seen nothing yet this is 1 for hidden keys too; the first key that it sees shrinks that to 0.
            probs_qc = jnp.exp2(scores_qc - new_max_q[:, None])
        shrink_q = jnp.exp2(max_q - new_max_q)
        v_ch = keys.of_keys(v_ref, b, k)
        product_qh = jnp.dot(probs_qc.astype(v_ch.dtype), v_ch, preferred_element_type=jnp.float32)
        return new_max_q, sum_q * shrink_q + probs_qc.sum(axis=1), acc_qh * shrink_q[:, None] + product_qh

    zeros_q = jnp.zeros(tile.held, jnp.float32)
    start = zeros_q + _HIDDEN, zeros_q, jnp.zeros(q_qh.shape, jnp.float32)
    max_q, sum_q, acc_qh = _stream(ranges, b, i, key_block, start)
    out_qh = (acc_qh / sum_q[:, None]).astype(out_ref.dtype)
    pltriton.store(out_ref.at[b, queries.at, n, queries.columns], out_qh, mask=queries.tile)
    pltriton.store(logsumexp_ref.at[b, n, queries.at], max_q + jnp.log2(sum_q), mask=queries.inside)


class _Queries:
    """What the backward pass reads of a block of queries: the block itself, its output's gradient, and a number per row."""

    def __init__(self, side: _Side, b, n, q_ref, d_out_ref, logsumexp_ref, mean_ref):
        self.inside = side.inside
        self.q_qh, self.d_out_qh = side.of_queries(q_ref, b, n), side.of_queries(d_out_ref, b, n)
        self.logsumexp_q, self.mean_q = side.numbers(logsumexp_ref, b, n), side.numbers(mean_ref, b, n)


def _gradients(queries: _Queries, k_ch, v_ch, visible_qc, scale: float):
    """Return a block's probabilities, and the gradients of its scores that are scaled, both [Q, C].

    `visible_qc` is None if every query sees every key.
    """
    scores_qc = jnp.dot(queries.q_qh, k_ch.T, preferred_element_type=jnp.float32)
    probs_qc = jnp.exp2(scores_qc * (scale * _LOG2_E) - queries.logsumexp_q[:, None])
    if visible_qc is not None:
        probs_qc = jnp.where(visible_qc & queries.inside[:, None], probs_qc, 0)
    d_probs_qc = jnp.dot(queries.d_out_qh, v_ch.T, preferred_element_type=jnp.float32)
    d_scores_qc = probs_qc * (d_probs_qc - queries.mean_q[:, None])
    return probs_qc.astype(k_ch.dtype), d_scores_qc.astype(k_ch.dtype)


def attention_dq_kernel(*refs, tile: Tile):
    *ranges, q_ref, k_ref, v_ref = refs[:7]
    rows, (*mask_refs, dq_ref) = refs[7:10], refs[10:]
    places_ref, q_segments_ref, k_segments_ref = _mask_refs(mask_refs)
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    i, n, b = pl.num_programs(0) - 1 - pl.program_id(0), pl.program_id(1), pl.program_id(2)
    k = n // (heads // kv_heads)
    side = _Side(i, tile.held, t, h)
    queries, of_queries = _Queries(side, b, n, q_ref, *rows), _Seen(side, b, places_ref, q_segments_ref)

    def key_block(_, j, whole, dq_qh):
        keys = _Side(j, tile.streamed, s, h, whole)
        k_ch, v_ch = keys.of_keys(k_ref, b, k), keys.of_keys(v_ref, b, k)
        visible_qc = None if whole else _visible(of_queries, _Seen(keys, b, None, k_segments_ref))
        _, d_scores_qc = _gradients(queries, k_ch, v_ch, visible_qc, h**-0.5)
        return dq_qh + jnp.dot(d_scores_qc, k_ch, preferred_element_type=jnp.float32)

    dq_qh = _stream(ranges, b, i, key_block, jnp.zeros(queries.q_qh.shape, jnp.float32))
    pltriton.store(dq_ref.at[b, side.at, n, side.columns], (dq_qh * h**-0.5).astype(dq_ref.dtype), mask=side.tile)


def attention_dkv_kernel(*refs, tile: Tile):
    *ranges, q_ref, k_ref, v_ref = refs[:7]
    rows, (*mask_refs, dk_ref, dv_ref) = refs[7:10], refs[10:]
    places_ref, q_segments_ref, k_segments_ref = _mask_refs(mask_refs)
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    j, k, b = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    group = heads // kv_heads
    keys = _Side(j, tile.held, s, h)
    k_ch, v_ch = keys.of_keys(k_ref, b, k), keys.of_keys(v_ref, b, k)
    of_keys = _Seen(keys, b, None, k_segments_ref)

    def query_block(head, i, whole, carry):
        dk_ch, dv_ch = carry
        side = _Side(i, tile.streamed, t, h, whole)
        queries = _Queries(side, b, k * group + head, q_ref, *rows)
        visible_qc = None if whole else _visible(_Seen(side, b, places_ref, q_segments_ref), of_keys)
        probs_qc, d_scores_qc = _gradients(queries, k_ch, v_ch, visible_qc, h**-0.5)
        dv_ch += jnp.dot(probs_qc.T, queries.d_out_qh, preferred_element_type=jnp.float32)
        dk_ch += jnp.dot(d_scores_qc.T, queries.q_qh, preferred_element_type=jnp.float32)
        return dk_ch, dv_ch

    zeros_ch = jnp.zeros(k_ch.shape, jnp.float32)
    dk_ch, dv_ch = _stream(ranges, b, j, query_block, (zeros_ch, zeros_ch), group)
    pltriton.store(dk_ref.at[b, k, keys.at, keys.columns], (dk_ch * h**-0.5).astype(dk_ref.dtype), mask=keys.tile)
    pltriton.store(dv_ref.at[b, k, keys.at, keys.columns], dv_ch.astype(dv_ref.dtype), mask=keys.tile)
