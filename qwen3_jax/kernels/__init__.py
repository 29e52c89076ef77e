"""Attention, expert matmuls and products with weights: one function each, one implementation per platform.

The only room that asks which platform it is on.
"""

from qwen3_jax.kernels.attention import attention
from qwen3_jax.kernels.choice import Kernels, target
from qwen3_jax.kernels.experts import expert_mlp
from qwen3_jax.kernels.linear import Quantization, linear
from qwen3_jax.kernels.linear import check as check_quantization
from qwen3_jax.kernels.paged import CacheType, Pages, Rows, new_pages, page_size, paged_attention
from qwen3_jax.kernels.platform import free_memory, prefers_unrolled_decoding

__all__ = [
    "CacheType",
    "Kernels",
    "Pages",
    "Quantization",
    "Rows",
    "attention",
    "check_quantization",
    "expert_mlp",
    "free_memory",
    "linear",
    "new_pages",
    "page_size",
    "paged_attention",
    "prefers_unrolled_decoding",
    "target",
]
