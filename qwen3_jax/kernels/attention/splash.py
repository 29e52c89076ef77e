"""Attention on TPU: the splash kernel that ships with JAX (`jax.experimental.pallas.ops.tpu.splash_attention`).

A Pallas flash kernel, forward and backward, that skips blocks which are masked by causal order and supports rows packed with
several documents. Where the length is split, each device runs it on its own queries and all keys, with the mask of its part.

Shapes: b batch, t this device's queries, s all keys, n query heads, k key/value heads, h head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, local_keys, per_device
from qwen3_jax.kernels.execution import Execution
from sharding import balanced_order

# The kernel's tiles are this wide.
LANES = 128
# Queries and keys per block. Their fp32 scores (512 keys at a time) and the operands stay within the 16 MiB of VMEM that a
# kernel gets on v5e, with a head size up to 256. Smaller blocks skip more masked scores, larger blocks load less: 512, and
# 1,024 where there are at least four of them. MaxText's default is 512.
_BLOCK = 512
_LARGE_BLOCK = 1024
# The fused backward pass reads everything once instead of twice but writes one dq per key block: only for a few of them.
_FUSED_UP_TO = 4


def why_not(q_shape: tuple[int, ...], split: Split) -> str | None:
    """Return what the kernel would need to run on queries of this whole shape, or None where it can."""
    t = q_shape[1]
    if split.parts > 1 and t // split.parts % LANES:
        return (
            f"parts of the length that divide by {LANES}; {t} tokens in {split.parts} parts are {t // split.parts} each"
        )
    return None


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None,
    execution: Execution,
    split: Split,
    interpret: bool = False,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H]; arguments as for `dispatch.attention`.

    `interpret` runs the kernel step by step on any platform, for tests. The caller has checked `why_not`.
    """
    placement, balanced = execution.placement, execution.balanced
    _, t, n, h = q_btnh.shape
    if split.parts == 1 and (missing := -t % (LANES if t <= _BLOCK else _BLOCK)):
        # Padding after the last token is masked by causal order.
        q_btnh = _padded(q_btnh, 1, missing)
        k_bkth, v_bkth = _padded(k_bkth, 2, missing), _padded(v_bkth, 2, missing)
        segment_ids_bt = None if segment_ids_bt is None else _padded(segment_ids_bt, 1, missing)
    local_heads = n // (placement.parts("heads") if split.heads else 1)
    kernel = _kernel(q_btnh.shape[1], split.parts, balanced and split.parts > 1, local_heads, interpret)
    if placement.mesh is None:
        specs = None
    else:
        sharding = NamedSharding(placement.mesh, PartitionSpec(None, split.length or None))
        specs = kernel.manual_sharding_spec(sharding)

    def local(q_btnh, k_bkth, v_bkth, segment_ids_bt, kernel):
        k_bksh, v_bksh, segment_ids_bs = local_keys(k_bkth, v_bkth, segment_ids_bt, split, balanced)
        # The kernel does not scale scores.
        q_bnth = (q_btnh * h**-0.5).swapaxes(1, 2)
        if segment_ids_bt is None:
            out_bnth = jax.vmap(kernel)(q_bnth, k_bksh, v_bksh)
        else:
            out_bnth = jax.vmap(kernel)(q_bnth, k_bksh, v_bksh, SegmentIds(segment_ids_bt, segment_ids_bs))
        return out_bnth.swapaxes(1, 2)

    return per_device(local, placement, split, q_btnh, k_bkth, v_bkth, segment_ids_bt, (kernel, specs))[:, :t]


def _padded(x: jax.Array, axis: int, by: int) -> jax.Array:
    return jnp.pad(x, [(0, by if dimension == axis else 0) for dimension in range(x.ndim)])


def _block(t: int, parts: int, balanced: bool) -> int:
    """Return the number of queries, and of keys, per block."""
    run = t // parts
    if balanced and run % (2 * LANES) == 0:
        run //= 2  # A part is two distant runs of tokens: a block across both would skip no key blocks.
    if run <= _BLOCK:
        return run
    sizes = (_LARGE_BLOCK, _BLOCK, 256, LANES) if run >= 4 * _LARGE_BLOCK else (_BLOCK, 256, LANES)
    return next(size for size in sizes if run % size == 0)


@functools.lru_cache(maxsize=32)
def _kernel(t: int, parts: int, balanced: bool, heads: int, interpret: bool):
    """Return the kernel for whole rows of t tokens; its arrays (which blocks to visit) are NumPy's, valid in any trace."""
    block = _block(t, parts, balanced)
    compute = min(block, _BLOCK)
    fused = t // block <= _FUSED_UP_TO
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    mask = CausalMask((t, t))
    if balanced:
        mask.q_sequence = balanced_order(t, parts)
    with jax.ensure_compile_time_eval():
        kernel = make_splash_mha(
            MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=parts,
            residual_checkpoint_name=SAVE_NAME,
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)
