"""Attention on NVIDIA GPUs as Pallas kernels of our own, compiled with Triton: FlashAttention-2 (Dao 2023, arXiv 2307.08691)
for rows that are packed with documents and for a length that is split.

A query block loops over the range of key blocks that it can see at all, so a packed row costs as much as its documents. The
log-sum-exp is saved under `partition.SAVE_NAME`, so a policy of `jax.checkpoint` can spare the second forward pass. Queries and
keys are read where they lie: a group's queries share its keys, and no head is repeated. JAX's own kernel
(`jax.experimental.pallas.ops.gpu.attention`, deprecated since 0.12) does neither.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size,
i query blocks, j key blocks, q rows and c columns of a block of scores.
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
class Blocks:
    """Sides of the blocks of scores, powers of two.

    Attributes:
        queries, keys: of the forward pass.
        back: queries and keys of the backward pass.
        stages, back_stages: blocks that are in shared memory at a time.
        warps: of 32 threads each.
    """

    queries: int
    keys: int
    back: int
    stages: int
    back_stages: int
    warps: int


def why_not(card: Card | None, q: jax.ShapeDtypeStruct | jax.Array) -> str | None:
    """Return what the kernels would need to run on queries [B, T, N, H], or None where they can."""
    if q.dtype not in _HALF:
        return f"a compute type of bfloat16 or float16; it is {q.dtype}"
    if q.shape[3] > _LARGEST_HEAD:
        return f"a head size of at most {_LARGEST_HEAD}; it is {q.shape[3]}"
    return why_no_triton(card, q.dtype)


def choose_blocks(head_size: int, shared_memory: int, itemsize: int = 2) -> Blocks:
    """Return the blocks for heads of this size on a card with this much shared memory (bytes)."""
    row = pl.next_power_of_2(max(head_size, 16)) * itemsize
    large = shared_memory > 128 * 1024
    queries = 128 if row <= 256 and large else 64
    keys = back = 64 if row <= 256 else 32
    if not large and row > 128:
        back = 32
    free = shared_memory - _RESERVED
    stages = (free - queries * row) // (2 * keys * row)
    # Keys and values stay; queries and gradients of the output come in; two blocks of scores are between products.
    back_stages = (free - 2 * back * row - 2 * back * back * itemsize) // (2 * back * row)
    return Blocks(queries, keys, back, max(1, min(stages, 3)), max(1, min(back_stages, 2)), 8 if queries == 128 else 4)


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
    """The key blocks [first, stop) that each query block loops over, int32 [B, I], or the query blocks of each key block."""

    first: jax.Array
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


def _ranges(mask: Mask, batch: int, keys: int, block_q: int, block_k: int) -> tuple[_Ranges, _Ranges]:
    """Return the key blocks of each query block, and the query blocks of each key block.

    A pair of blocks is left out if all of its keys come after its queries, or if the ranges of their segments are disjoint.
    """
    blocks_k = -(-keys // block_k)

    def bounds(x, block):
        missing = -x.shape[-1] % block
        blocks = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, missing)], mode="edge").reshape(*x.shape[:-1], -1, block)
        return blocks.min(axis=-1), blocks.max(axis=-1)

    last_i = bounds(mask.places_t, block_q)[1]
    seen_bij = (jnp.arange(blocks_k) * block_k <= last_i[:, None])[None]
    if mask.q_segments_bt is not None and mask.k_segments_bs is not None:
        (q_low, q_high), (k_low, k_high) = bounds(mask.q_segments_bt, block_q), bounds(mask.k_segments_bs, block_k)
        seen_bij &= (q_low[:, :, None] <= k_high[:, None]) & (q_high[:, :, None] >= k_low[:, None])
    seen_bij = jnp.broadcast_to(seen_bij, (batch, *seen_bij.shape[1:]))

    def along(axis: int) -> _Ranges:
        first = jnp.argmax(seen_bij, axis=axis)
        stop = seen_bij.shape[axis] - jnp.argmax(jnp.flip(seen_bij, axis), axis=axis)
        return _Ranges(first.astype(jnp.int32), jnp.where(seen_bij.any(axis), stop, 0).astype(jnp.int32))

    return along(2), along(1)


def _ascending(mask: Mask) -> Mask:
    """Return the mask with segment 0, the padding at the end of a row, as the largest number: ranges are then narrow."""
    last = np.int32(np.iinfo(np.int32).max)
    q, k = (x if x is None else jnp.where(x == 0, last, x) for x in mask[1:])
    return Mask(mask.places_t, q, k)


def _arrays(mask: Mask) -> list[jax.Array]:
    return [x for x in mask if x is not None]


def _call(kernel, grid, out_shape, stages: int, warps: int, interpret: bool, name: str):
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=pltriton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=name,
    )


def _forward(q_btnh, k_bksh, v_bksh, mask: Mask, blocks: Blocks, interpret: bool):
    """Return the output and the log-sum-exp of the scores in base 2, float32 [B, N, T]."""
    (b, t, n, _), s = q_btnh.shape, k_bksh.shape[2]
    mask = _ascending(mask)
    ranges, _ = _ranges(mask, b, s, blocks.queries, blocks.keys)
    shapes = jax.ShapeDtypeStruct(q_btnh.shape, q_btnh.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)
    kernel = functools.partial(attention_forward_kernel, block_q=blocks.queries, block_k=blocks.keys)
    grid = (pl.cdiv(t, blocks.queries), n, b)
    call = _call(kernel, grid, shapes, blocks.stages, blocks.warps, interpret, "attention_forward")
    return call(*ranges, q_btnh, k_bksh, v_bksh, *_arrays(mask))


def _backward(blocks, interpret, saved, d_out_btnh):
    q_btnh, k_bksh, v_bksh, mask, out_btnh, logsumexp_bnt = saved
    (b, t, n, _), (k, s) = q_btnh.shape, k_bksh.shape[1:3]
    mask = _ascending(mask)
    block = blocks.back
    of_queries, of_keys = _ranges(mask, b, s, block, block)
    # sum over keys of probability x its gradient, which is also the output x its gradient.
    mean_bnt = (out_btnh.astype(jnp.float32) * d_out_btnh.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    arrays = q_btnh, k_bksh, v_bksh, d_out_btnh.astype(q_btnh.dtype), logsumexp_bnt, mean_bnt, *_arrays(mask)
    dq = jax.ShapeDtypeStruct(q_btnh.shape, q_btnh.dtype)
    dkv = jax.ShapeDtypeStruct(k_bksh.shape, k_bksh.dtype), jax.ShapeDtypeStruct(v_bksh.shape, v_bksh.dtype)
    of_q, of_kv = (functools.partial(f, block=block) for f in (attention_dq_kernel, attention_dkv_kernel))
    options = (blocks.back_stages, 4, interpret)
    dq_btnh = _call(of_q, (pl.cdiv(t, block), n, b), dq, *options, "attention_dq")(*of_queries, *arrays)
    dk_bksh, dv_bksh = _call(of_kv, (pl.cdiv(s, block), k, b), dkv, *options, "attention_dkv")(*of_keys, *arrays)
    return dq_btnh, dk_bksh, dv_bksh, None


flash.defvjp(_forward_and_save, _backward)


# The kernels. A program's block of queries or keys is whole, or masked at the end of the array.


class _Side:
    """One block of rows of queries or keys: where it lies, and which of its rows and columns exist."""

    def __init__(self, block, size: int, rows: int, head_size: int):
        self.at = pl.ds(block * size, size)
        self.place = block * size + jnp.arange(size)
        self.inside = self.place < rows
        # A computed start: jax 0.12 refuses a constant slice that ends past the array, though the mask does not read there.
        width = pl.next_power_of_2(max(head_size, 16))
        self.columns = pl.ds(block * 0, width)
        self.tile = self.inside[:, None] & (jnp.arange(width) < head_size)[None]

    def of_queries(self, ref, b, n) -> Any:
        """Return the block of one head of an array [B, T, N, H], zeros where it ends."""
        return pltriton.load(ref.at[b, self.at, n, self.columns], mask=self.tile, other=0)

    def of_keys(self, ref, b, k) -> Any:
        """Return the block of one head of an array [B, K, S, H], zeros where it ends."""
        return pltriton.load(ref.at[b, k, self.at, self.columns], mask=self.tile, other=0)

    def numbers(self, ref, *index) -> Any:
        """Return the block's entries of an array [..., rows], zeros where it ends."""
        return pltriton.load(ref.at[(*index, self.at)], mask=self.inside, other=0)


def _scores(q_qh, k_ch, queries: _Side, keys: _Side, b, mask_refs):
    """Return the scores of one block in base 2, and which of them count, [Q, C]."""
    places_ref, *segments = mask_refs
    scores_qc = jnp.dot(q_qh, k_ch.T, preferred_element_type=jnp.float32)
    visible_qc = keys.place[None] <= queries.numbers(places_ref)[:, None]
    if segments:
        q_ref, k_ref = segments
        visible_qc &= queries.numbers(q_ref, b)[:, None] == keys.numbers(k_ref, b)[None]
    return scores_qc, visible_qc


def attention_forward_kernel(first_ref, stop_ref, q_ref, k_ref, v_ref, *refs, block_q: int, block_k: int):
    *mask_refs, out_ref, logsumexp_ref = refs
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    # The last blocks of a row have most keys: they start first.
    i, n, b = pl.num_programs(0) - 1 - pl.program_id(0), pl.program_id(1), pl.program_id(2)
    k = n // (heads // kv_heads)
    queries = _Side(i, block_q, t, h)
    q_qh = queries.of_queries(q_ref, b, n)

    def key_block(j, carry):
        max_q, sum_q, acc_qh = carry
        keys = _Side(j, block_k, s, h)
        scores_qc, visible_qc = _scores(q_qh, keys.of_keys(k_ref, b, k), queries, keys, b, mask_refs)
        scores_qc = jnp.where(visible_qc, scores_qc * (h**-0.5 * _LOG2_E), _HIDDEN)
        new_max_q = jnp.maximum(max_q, scores_qc.max(axis=1))
        # Of a row that has seen nothing yet this is 1 for hidden keys too; the first key that it sees shrinks that to 0.
        probs_qc = jnp.exp2(scores_qc - new_max_q[:, None])
        shrink_q = jnp.exp2(max_q - new_max_q)
        v_ch = keys.of_keys(v_ref, b, k)
        product_qh = jnp.dot(probs_qc.astype(v_ch.dtype), v_ch, preferred_element_type=jnp.float32)
        return new_max_q, sum_q * shrink_q + probs_qc.sum(axis=1), acc_qh * shrink_q[:, None] + product_qh

    zeros_q = jnp.zeros(block_q, jnp.float32)
    start = zeros_q + _HIDDEN, zeros_q, jnp.zeros(q_qh.shape, jnp.float32)
    max_q, sum_q, acc_qh = jax.lax.fori_loop(first_ref[b, i], stop_ref[b, i], key_block, start)
    out_qh = (acc_qh / sum_q[:, None]).astype(out_ref.dtype)
    pltriton.store(out_ref.at[b, queries.at, n, queries.columns], out_qh, mask=queries.tile)
    pltriton.store(logsumexp_ref.at[b, n, queries.at], max_q + jnp.log2(sum_q), mask=queries.inside)


def _gradients(q_qh, k_ch, v_ch, queries: _Side, keys: _Side, refs, b, n, scale: float):
    """Return the block's probabilities and the gradients of its scores, [Q, C], and the output's gradient, [Q, H]."""
    d_out_ref, logsumexp_ref, mean_ref, *mask_refs = refs
    scores_qc, visible_qc = _scores(q_qh, k_ch, queries, keys, b, mask_refs)
    probs_qc = jnp.exp2(scores_qc * (scale * _LOG2_E) - queries.numbers(logsumexp_ref, b, n)[:, None])
    probs_qc = jnp.where(visible_qc & queries.inside[:, None], probs_qc, 0)
    d_out_qh = queries.of_queries(d_out_ref, b, n)
    d_probs_qc = jnp.dot(d_out_qh, v_ch.T, preferred_element_type=jnp.float32)
    d_scores_qc = probs_qc * (d_probs_qc - queries.numbers(mean_ref, b, n)[:, None]) * scale
    return probs_qc.astype(q_qh.dtype), d_scores_qc.astype(q_qh.dtype), d_out_qh


def attention_dq_kernel(first_ref, stop_ref, q_ref, k_ref, v_ref, *others, block: int):
    *refs, dq_ref = others
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    i, n, b = pl.num_programs(0) - 1 - pl.program_id(0), pl.program_id(1), pl.program_id(2)
    k = n // (heads // kv_heads)
    queries = _Side(i, block, t, h)
    q_qh = queries.of_queries(q_ref, b, n)

    def key_block(j, dq_qh):
        keys = _Side(j, block, s, h)
        k_ch = keys.of_keys(k_ref, b, k)
        _, d_scores_qc, _ = _gradients(q_qh, k_ch, keys.of_keys(v_ref, b, k), queries, keys, refs, b, n, h**-0.5)
        return dq_qh + jnp.dot(d_scores_qc, k_ch, preferred_element_type=jnp.float32)

    dq_qh = jax.lax.fori_loop(first_ref[b, i], stop_ref[b, i], key_block, jnp.zeros(q_qh.shape, jnp.float32))
    pltriton.store(dq_ref.at[b, queries.at, n, queries.columns], dq_qh.astype(dq_ref.dtype), mask=queries.tile)


def attention_dkv_kernel(first_ref, stop_ref, q_ref, k_ref, v_ref, *others, block: int):
    *refs, dk_ref, dv_ref = others
    _, t, heads, h = q_ref.shape
    kv_heads, s = k_ref.shape[1:3]
    j, k, b = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    group = heads // kv_heads
    keys = _Side(j, block, s, h)
    k_ch, v_ch = keys.of_keys(k_ref, b, k), keys.of_keys(v_ref, b, k)
    first, count = first_ref[b, j], stop_ref[b, j] - first_ref[b, j]

    def query_block(step, carry):
        dk_ch, dv_ch = carry
        n, i = k * group + step // count, first + step % count
        queries = _Side(i, block, t, h)
        q_qh = queries.of_queries(q_ref, b, n)
        probs_qc, d_scores_qc, d_out_qh = _gradients(q_qh, k_ch, v_ch, queries, keys, refs, b, n, h**-0.5)
        dv_ch += jnp.dot(probs_qc.T, d_out_qh, preferred_element_type=jnp.float32)
        dk_ch += jnp.dot(d_scores_qc.T, q_qh, preferred_element_type=jnp.float32)
        return dk_ch, dv_ch

    zeros_ch = jnp.zeros(k_ch.shape, jnp.float32)
    dk_ch, dv_ch = jax.lax.fori_loop(0, group * count, query_block, (zeros_ch, zeros_ch))
    pltriton.store(dk_ref.at[b, k, keys.at, keys.columns], dk_ch.astype(dk_ref.dtype), mask=keys.tile)
    pltriton.store(dv_ref.at[b, k, keys.at, keys.columns], dv_ch.astype(dv_ref.dtype), mask=keys.tile)
