"""Attention on NVIDIA GPUs by cuDNN's flash attention, as JAX exposes it: rows of one document each.

`jax.nn.dot_product_attention` supports causal order, but documents only as a [T, T] bias, and no split length: those are for
`triton`.

Shapes: b batch, t length, n query heads, k key/value heads, h head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, per_device
from qwen3_jax.kernels.card import Card, why_no_triton
from qwen3_jax.kernels.execution import Execution

_HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))


def why_not(card: Card | None, q: jax.ShapeDtypeStruct | jax.Array, packed: bool, split: Split) -> str | None:
    """Return what the implementation would need to run on queries [B, T, N, H], or None where it can."""
    if packed:
        return "rows of one document each; choose 'triton' for packed rows"
    if split.parts > 1:
        return f"a length that is not split; the mesh splits it into {split.parts} parts (choose 'triton')"
    if q.dtype not in _HALF:
        return f"a compute type of bfloat16 or float16; it is {q.dtype}"
    if q.shape[3] > 128 or q.shape[3] % 8:
        return f"a head size that divides by 8 and is at most 128; it is {q.shape[3]}"
    if q.shape[1] % 2:
        return f"an even length, for the gradient; it is {q.shape[1]}"
    needs = why_no_triton(card, q.dtype)  # cuDNN's flash attention asks for the same cards
    return (
        "cuDNN, which is not installed: pip install 'qwen3-jax[cuda]'" if needs is None and not installed() else needs
    )


@functools.cache
def installed() -> bool:
    """Whether JAX finds cuDNN, which it needs to compile too."""
    try:
        from jax._src.lib import cuda_versions  # in no public module

        return cuda_versions is not None and cuda_versions.cudnn_get_version() > 0
    except (ImportError, RuntimeError):
        return False


def attention(q_btnh: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, execution: Execution, split: Split) -> jax.Array:
    """Return the causal self-attention of rows of one document each, [B, T, N, H]. The caller has checked `why_not`."""

    def local(q_btnh, k_bkth, v_bkth, _):
        k_btkh, v_btkh = k_bkth.swapaxes(1, 2), v_bkth.swapaxes(1, 2)
        return jax.nn.dot_product_attention(q_btnh, k_btkh, v_btkh, is_causal=True, implementation="cudnn")

    out_btnh = per_device(local, execution.placement, split, q_btnh, k_bkth, v_bkth, None)
    # cuDNN's log-sum-exp is out of reach, so the backward pass runs the forward kernel again.
    return checkpoint_name(out_btnh, SAVE_NAME)
