"""Attention that never holds the [T, S] scores, in plain JAX for any platform.

Queries and keys are cut into blocks; each query block loops over its key blocks with a running softmax, and the backward pass
recomputes each block's scores from the saved log-sum-exp (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithms 1 and 2).
Key blocks that are masked by causal order, or that hold only earlier segments, are skipped: the bounds of the loop over key
blocks are computed at run time, so places may be traced values (one part of a split length).

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size,
i query blocks, j key blocks, c keys per block, m rows of a query block (g times its queries: the group shares one product).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, local_keys, local_places, per_device
from qwen3_jax.kernels.execution import Execution

# On CPU, of 64 to 512, the fastest at T = 512 to 4096 and within a fifth of it elsewhere.
BLOCK = 128
_HIDDEN = float(np.finfo(np.float32).min)
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None,
    execution: Execution,
    split: Split,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H]; arguments as for `dispatch.attention`."""

    def local(q_btnh, k_bkth, v_bkth, segment_ids_bt):
        k_bksh, v_bksh, segment_ids_bs = local_keys(k_bkth, v_bkth, segment_ids_bt, split, execution.balanced)
        places_t = local_places(q_btnh.shape[1], split, execution.balanced)
        return flash(q_btnh, k_bksh, v_bksh, places_t[None], segment_ids_bt, segment_ids_bs)

    return per_device(local, execution.placement, split, q_btnh, k_bkth, v_bkth, segment_ids_bt)


def flash(
    q_btnh: jax.Array,
    k_bksh: jax.Array,
    v_bksh: jax.Array,
    places_bt: jax.Array,
    q_segments_bt: jax.Array | None = None,
    kv_segments_bs: jax.Array | None = None,
    *,
    block: int = BLOCK,
) -> jax.Array:
    """Return the attention of queries over keys at places 0 to S - 1, [B, T, N, H] in q's dtype.

    Differentiable in q, k and v. Softmax and accumulation run in float32; memory grows with T + S.

    Args:
        q_btnh: queries.
        k_bksh, v_bksh: keys and values; K divides N.
        places_bt: int32 [B or 1, T], the place of each query: it sees keys 0 up to and including its own place.
        q_segments_bt, kv_segments_bs: int32, both or neither; a query sees only keys of its own segment.
        block: queries and keys per block.
    """
    t, s = q_btnh.shape[1], k_bksh.shape[2]
    block_q, block_k = min(block, t), min(block, s)
    # Padding of the last block: keys at places after every query's, and queries whose outputs are cut off.
    q_btnh, places_bt = _pad(q_btnh, 1, block_q), _pad(places_bt, 1, block_q)
    k_bksh, v_bksh = _pad(k_bksh, 2, block_k), _pad(v_bksh, 2, block_k)
    if q_segments_bt is not None and kv_segments_bs is not None:
        # `qwen3_jax.data` numbers segments from 1 and pads with 0: as the largest number, 0 keeps the order ascending.
        last = jnp.iinfo(jnp.int32).max
        q_segments_bt, kv_segments_bs = (
            _pad(jnp.where(x == 0, last, x), 1, size, mode="edge")
            for x, size in ((q_segments_bt, block_q), (kv_segments_bs, block_k))
        )
    mask = _Mask(places_bt, q_segments_bt, kv_segments_bs)
    return _flash(q_btnh, k_bksh, v_bksh, mask, block_q, block_k)[:, :t]


class _Mask(NamedTuple):
    """Which keys a query sees: arguments of `flash`, padded to whole blocks."""

    places_bt: jax.Array
    q_segments_bt: jax.Array | None
    kv_segments_bs: jax.Array | None


class _BlockMask(NamedTuple):
    """The mask of each query block, to scan over.

    Attributes:
        first_i, stop_i: the range [first, stop) of key blocks that a query block attends to.
        places_ibm: the place of each query, [I, B or 1, M].
        segments_ibm: the segment of each query.
    """

    first_i: jax.Array
    stop_i: jax.Array
    places_ibm: jax.Array
    segments_ibm: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q_btnh, k_bksh, v_bksh, mask, block_q, block_k):
    return _forward(q_btnh, k_bksh, v_bksh, mask, block_q, block_k)[0]


def _forward(q_btnh, k_bksh, v_bksh, mask, block_q, block_k):
    k, scale = k_bksh.shape[1], q_btnh.shape[3] ** -0.5

    def query_block(_, block):
        q_bkmh, block_mask = block

        def key_block(j, carry):
            max_bkm, sum_bkm, acc_bkmh = carry
            k_bkch, v_bkch = _take(k_bksh, j, block_k), _take(v_bksh, j, block_k)
            scores_bkmc = _scores(q_bkmh, k_bkch, block_mask, mask, j, block_k, scale)
            new_max_bkm = jnp.maximum(max_bkm, scores_bkmc.max(axis=-1))
            probs_bkmc = jnp.exp(scores_bkmc - new_max_bkm[..., None])
            shrink_bkm = jnp.exp(max_bkm - new_max_bkm)
            product_bkmh = _einsum("bkmc,bkch->bkmh", probs_bkmc.astype(v_bkch.dtype), v_bkch)
            sum_bkm = sum_bkm * shrink_bkm + probs_bkmc.sum(axis=-1)
            return new_max_bkm, sum_bkm, acc_bkmh * shrink_bkm[..., None] + product_bkmh

        zeros_bkm = jnp.zeros(q_bkmh.shape[:3], jnp.float32)
        start = zeros_bkm + _HIDDEN, zeros_bkm, jnp.zeros(q_bkmh.shape, jnp.float32)
        max_bkm, sum_bkm, acc_bkmh = jax.lax.fori_loop(block_mask.first_i, block_mask.stop_i, key_block, start)
        return None, ((acc_bkmh / sum_bkm[..., None]).astype(q_bkmh.dtype), max_bkm + jnp.log(sum_bkm))

    blocks = _to_blocks(q_btnh, k, block_q), _block_masks(mask, k_bksh, q_btnh.shape[2] // k, block_q, block_k)
    _, (out_ibkmh, logsumexp_ibkm) = jax.lax.scan(query_block, None, blocks)
    return _from_blocks(out_ibkmh, q_btnh.shape), logsumexp_ibkm


def _forward_and_save(q_btnh, k_bksh, v_bksh, mask, block_q, block_k):
    out_btnh, logsumexp_ibkm = _forward(q_btnh, k_bksh, v_bksh, mask, block_q, block_k)
    # Named so that a policy of jax.checkpoint can save both; the backward pass then needs no second forward pass.
    out_btnh, logsumexp_ibkm = checkpoint_name(out_btnh, SAVE_NAME), checkpoint_name(logsumexp_ibkm, SAVE_NAME)
    return out_btnh, (q_btnh, k_bksh, v_bksh, mask, out_btnh, logsumexp_ibkm)


def _backward(block_q, block_k, saved, d_out_btnh):
    q_btnh, k_bksh, v_bksh, mask, out_btnh, logsumexp_ibkm = saved
    k, scale = k_bksh.shape[1], q_btnh.shape[3] ** -0.5
    # sum over keys of probability x its gradient, which is also the output x its gradient.
    mean_btn1 = (out_btnh.astype(jnp.float32) * d_out_btnh.astype(jnp.float32)).sum(axis=-1, keepdims=True)

    def query_block(carry, block):
        q_bkmh, d_out_bkmh, mean_bkm1, logsumexp_bkm, block_mask = block

        def key_block(j, carry):
            dq_bkmh, dk_bksh, dv_bksh = carry
            k_bkch, v_bkch = _take(k_bksh, j, block_k), _take(v_bksh, j, block_k)
            scores_bkmc = _scores(q_bkmh, k_bkch, block_mask, mask, j, block_k, scale)
            probs_bkmc = jnp.exp(scores_bkmc - logsumexp_bkm[..., None])
            d_probs_bkmc = _einsum("bkmh,bkch->bkmc", d_out_bkmh, v_bkch)
            d_scores_bkmc = (probs_bkmc * (d_probs_bkmc - mean_bkm1) * scale).astype(q_bkmh.dtype)
            dv_bkch = _einsum("bkmc,bkmh->bkch", probs_bkmc.astype(v_bkch.dtype), d_out_bkmh)
            dk_bkch = _einsum("bkmc,bkmh->bkch", d_scores_bkmc, q_bkmh)
            dq_bkmh += _einsum("bkmc,bkch->bkmh", d_scores_bkmc, k_bkch)
            return dq_bkmh, _add(dk_bksh, dk_bkch, j), _add(dv_bksh, dv_bkch, j)

        dq_bkmh = jnp.zeros(q_bkmh.shape, jnp.float32)
        dq_bkmh, *carry = jax.lax.fori_loop(block_mask.first_i, block_mask.stop_i, key_block, (dq_bkmh, *carry))
        return tuple(carry), dq_bkmh.astype(q_bkmh.dtype)

    blocks = (
        _to_blocks(q_btnh, k, block_q),
        _to_blocks(d_out_btnh, k, block_q),
        _to_blocks(mean_btn1, k, block_q),
        logsumexp_ibkm,
        _block_masks(mask, k_bksh, q_btnh.shape[2] // k, block_q, block_k),
    )
    zeros_bksh = jnp.zeros(k_bksh.shape, jnp.float32)
    (dk_bksh, dv_bksh), dq_ibkmh = jax.lax.scan(query_block, (zeros_bksh, zeros_bksh), blocks)
    return _from_blocks(dq_ibkmh, q_btnh.shape), dk_bksh.astype(k_bksh.dtype), dv_bksh.astype(v_bksh.dtype), None


_flash.defvjp(_forward_and_save, _backward)


def _scores(q_bkmh, k_bkch, block_mask: _BlockMask, mask: _Mask, j, block_k, scale):
    """Return the masked scores of one query block and key block j, float32."""
    scores_bkmc = _einsum("bkmh,bkch->bkmc", q_bkmh, k_bkch) * scale
    places_c = j * block_k + jnp.arange(block_k)
    visible_bmc = places_c <= block_mask.places_ibm[..., None]
    if block_mask.segments_ibm is not None and mask.kv_segments_bs is not None:
        segments_bc = jax.lax.dynamic_slice_in_dim(mask.kv_segments_bs, j * block_k, block_k, axis=1)
        visible_bmc &= segments_bc[:, None] == block_mask.segments_ibm[..., None]
    return jnp.where(visible_bmc[:, None], scores_bkmc, _HIDDEN)


def _block_masks(mask: _Mask, k_bksh, g: int, block_q: int, block_k: int) -> _BlockMask:
    """Cut the mask into query blocks and compute the range of key blocks that each attends to."""
    key_blocks = k_bksh.shape[2] // block_k

    def cut(x_bt):
        return x_bt.reshape(x_bt.shape[0], -1, block_q).swapaxes(0, 1)

    places_ibq = cut(mask.places_bt)
    stop_i = jnp.minimum(places_ibq.max(axis=(1, 2)) // block_k + 1, key_blocks)
    if mask.q_segments_bt is None or mask.kv_segments_bs is None:
        return _BlockMask(jnp.zeros_like(stop_i), stop_i, jnp.tile(places_ibq, g), None)
    # A pair of blocks whose ranges of segments are disjoint in every row is fully masked. This holds for any order of segments;
    # where they ascend, it skips every earlier document.
    q_ibq = cut(mask.q_segments_bt)
    kv_bjc = mask.kv_segments_bs.reshape(-1, key_blocks, block_k)
    q_ib1 = q_ibq[..., None]
    overlap_ibj = (q_ib1.min(axis=2) <= kv_bjc.max(axis=2)) & (q_ib1.max(axis=2) >= kv_bjc.min(axis=2))
    first_i = jnp.minimum(jnp.argmax(overlap_ibj.any(axis=1), axis=1), stop_i - 1)
    return _BlockMask(first_i.astype(stop_i.dtype), stop_i, jnp.tile(places_ibq, g), jnp.tile(q_ibq, g))


def _to_blocks(x_btnh, k: int, block_q: int):
    """[B, T, N, H] -> [I, B, K, M, H], rows ordered by query head within the group, then by query."""
    b, t, n, h = x_btnh.shape
    x_biqkgh = x_btnh.reshape(b, t // block_q, block_q, k, n // k, h)
    return x_biqkgh.transpose(1, 0, 3, 4, 2, 5).reshape(t // block_q, b, k, -1, h)


def _from_blocks(x_ibkmh, shape):
    b, t, n, h = shape
    i, _, k = x_ibkmh.shape[:3]
    return x_ibkmh.reshape(i, b, k, n // k, t // i, h).transpose(1, 0, 4, 2, 3, 5).reshape(shape)


def _take(x_bksh, j, size: int):
    return jax.lax.dynamic_slice_in_dim(x_bksh, j * size, size, axis=2)


def _add(x_bksh, y_bkch, j):
    start, size = j * y_bkch.shape[2], y_bkch.shape[2]
    return jax.lax.dynamic_update_slice_in_dim(x_bksh, _take(x_bksh, j, size) + y_bkch, start, axis=2)


def _pad(x, axis: int, multiple: int, mode: str = "constant"):
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, missing if dimension == axis else 0) for dimension in range(x.ndim)]
    return jnp.pad(x, widths, mode=mode)
