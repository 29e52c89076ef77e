"""Attention and expert matmuls: one function each, one implementation per platform.

The only room that asks which platform it is on.
"""

from qwen3_jax.kernels.attention import attention, cached_attention
from qwen3_jax.kernels.choice import Kernels, target
from qwen3_jax.kernels.experts import expert_mlp
from qwen3_jax.kernels.platform import prefers_unrolled_decoding

__all__ = ["Kernels", "attention", "cached_attention", "expert_mlp", "prefers_unrolled_decoding", "target"]
