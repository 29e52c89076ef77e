"""Attention on NVIDIA GPUs: cuDNN's flash attention, and JAX's Triton kernel for rows packed with several documents.

cuDNN as JAX exposes it (`jax.nn.dot_product_attention`) supports causal order, but segments only as a [T, T] bias; the kernel
in `jax.experimental.pallas.ops.gpu.attention` supports both. Neither supports places, so a split length needs `chunked`.

Shapes: b batch, t length, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size.
"""

import warnings

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, per_device
from qwen3_jax.kernels.execution import Execution

# Blocks of 64 keys keep both passes within the shared memory of an A100 at head size 128.
_BLOCK_Q, _BLOCK_K = 128, 64
_HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))


def why_not_cudnn(q: jax.ShapeDtypeStruct | jax.Array, packed: bool, split: Split) -> str | None:
    """Return what the implementation would need to run on these queries, or None where it can."""
    if packed:
        return "rows of one document each; choose 'triton' for packed rows"
    return _why_not(q, split)


def why_not_triton(q: jax.ShapeDtypeStruct | jax.Array, split: Split) -> str | None:
    """Return what the implementation would need to run on these queries, or None where it can."""
    return _why_not(q, split)


def _why_not(q, split: Split) -> str | None:
    if q.dtype not in _HALF:
        return f"a compute type of bfloat16 or float16; it is {q.dtype}"
    if q.shape[3] > 128 or q.shape[3] % 16:
        return f"a head size that divides by 16 and is at most 128; it is {q.shape[3]}"
    if split.parts > 1:
        return f"a length that is not split; the mesh splits it into {split.parts} parts (choose 'chunked')"
    return None


def cudnn_attention(
    q_btnh: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, execution: Execution, split: Split
) -> jax.Array:
    """Return the causal self-attention of rows of one document each, [B, T, N, H]. The caller has checked `why_not_cudnn`."""

    def local(q_btnh, k_bkth, v_bkth, _):
        k_btkh, v_btkh = k_bkth.swapaxes(1, 2), v_bkth.swapaxes(1, 2)
        return jax.nn.dot_product_attention(q_btnh, k_btkh, v_btkh, is_causal=True, implementation="cudnn")

    return _named(per_device(local, execution.placement, split, q_btnh, k_bkth, v_bkth, None))


def triton_attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None,
    execution: Execution,
    split: Split,
    interpret: bool = False,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H]. The caller has checked `why_not_triton`.

    `interpret` runs the kernel step by step on any platform, for tests.
    """
    with warnings.catch_warnings():
        # jax 0.12 recommends tokamax, which is not on every platform that jax is on.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    sizes = BlockSizes(
        block_q=_BLOCK_Q,
        block_k=_BLOCK_K,
        block_q_dkv=_BLOCK_K,
        block_kv_dkv=_BLOCK_K,
        block_q_dq=_BLOCK_K,
        block_kv_dq=_BLOCK_K,
    )

    def local(q_btnh, k_bkth, v_bkth, segment_ids_bt):
        b, t, n, h = q_btnh.shape
        k = k_bkth.shape[1]
        missing = -t % _BLOCK_Q  # Padding after the last token is masked by causal order.
        q_btkgh = jnp.pad(q_btnh, [(0, 0), (0, missing), (0, 0), (0, 0)]).reshape(b, -1, k, n // k, h)
        k_btkh, v_btkh = (jnp.pad(x.swapaxes(1, 2), [(0, 0), (0, missing), (0, 0), (0, 0)]) for x in (k_bkth, v_bkth))
        if segment_ids_bt is not None:
            segment_ids_bt = jnp.pad(segment_ids_bt, [(0, 0), (0, missing)])

        def one_query_per_group(q_btkh):
            return mha(
                q_btkh,
                k_btkh,
                v_btkh,
                segment_ids_bt,
                sm_scale=h**-0.5,
                causal=True,
                block_sizes=sizes,
                interpret=interpret,
            )

        # Mapped over the group, so that keys are read in place instead of repeated.
        out_btkgh = jax.vmap(one_query_per_group, in_axes=3, out_axes=3)(q_btkgh)
        return out_btkgh.reshape(b, t + missing, n, h)[:, :t]

    return _named(per_device(local, execution.placement, split, q_btnh, k_bkth, v_bkth, segment_ids_bt))


def _named(out_btnh: jax.Array) -> jax.Array:
    """Name the output. Both kernels hide their log-sum-exp, so the backward pass runs the forward kernel again."""
    return checkpoint_name(out_btnh, SAVE_NAME)
