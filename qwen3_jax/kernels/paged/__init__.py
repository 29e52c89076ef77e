"""Causal grouped-query attention over a paged key/value cache (Kwon et al. 2023, arXiv 2309.06180).

| name     | runs on    | what it is                                               | quantised cache | dual chunks |
|----------|------------|----------------------------------------------------------|-----------------|-------------|
| `loop`   | everything | plain JAX; work grows with the slots in use              | int8, fp8       | yes         |
| `ragged` | TPU        | JAX's Pallas kernel, for prompts and decode steps alike  | no              | no          |
| `triton` | GPU        | a Pallas kernel for decode steps; prompts by `loop`      | int8, fp8       | no          |

All run per device under `jax.shard_map`: each shard of the batch has its own pool, and heads are divided.
"""

from qwen3_jax.kernels.paged.dispatch import Chunks, new_pages, page_size, paged_attention
from qwen3_jax.kernels.paged.pages import CacheType, Pages
from qwen3_jax.kernels.paged.rows import Rows

__all__ = ["CacheType", "Chunks", "Pages", "Rows", "new_pages", "page_size", "paged_attention"]
