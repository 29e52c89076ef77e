"""Attention, expert matmuls and products with weights: one function each, one implementation per platform.

The only package that asks which platform it is on.
"""

from qwen3_jax.kernels.attention import attention
from qwen3_jax.kernels.execution import ONE_DEVICE, Execution, Kernels
from qwen3_jax.kernels.experts import expert_mlp
from qwen3_jax.kernels.experts.stack import Stacked, takes_stacks
from qwen3_jax.kernels.linear import linear, project
from qwen3_jax.kernels.low_rank import LowRank, folded, take_rows
from qwen3_jax.kernels.paged import CacheType, Chunks, Pages, Rows, new_pages, page_size, paged_attention
from qwen3_jax.kernels.platform import (
    default_compute_dtype,
    early_cache_bytes,
    free_memory,
    is_one_cpu,
    prefers_unrolled_decoding,
    return_freed_memory,
)
from qwen3_jax.kernels.quantized import (
    Weight,
    WeightType,
    check_weight_type,
    dequantize,
    is_quantized,
    quantize_weight,
)

__all__ = [
    "ONE_DEVICE",
    "CacheType",
    "Chunks",
    "Execution",
    "Kernels",
    "LowRank",
    "Pages",
    "Rows",
    "Stacked",
    "Weight",
    "WeightType",
    "attention",
    "check_weight_type",
    "default_compute_dtype",
    "dequantize",
    "early_cache_bytes",
    "expert_mlp",
    "folded",
    "free_memory",
    "is_one_cpu",
    "is_quantized",
    "linear",
    "new_pages",
    "page_size",
    "paged_attention",
    "prefers_unrolled_decoding",
    "project",
    "quantize_weight",
    "return_freed_memory",
    "take_rows",
    "takes_stacks",
]
