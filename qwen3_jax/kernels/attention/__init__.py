"""Causal grouped-query attention.

    softmax(q k^T / sqrt(H) + mask) v        (Vaswani et al. 2017; GQA: Ainslie et al. 2023, arXiv 2305.13245)

Keys and values come as [B, K, S, H]: on CPU a decode step over this layout is several times faster than over
[B, S, K, H], and on accelerators the layouts are equally fast.

| name        | runs on    | what it is                                                     | length split | packed rows |
|-------------|------------|----------------------------------------------------------------|--------------|-------------|
| `reference` | everything | the formula; T^2 memory; the compiler divides it over a mesh   | yes          | yes         |
| `chunked`   | everything | FlashAttention-2 in plain JAX; linear memory                   | yes          | yes         |
| `splash`    | TPU        | the Pallas kernel of JAX                                       | yes          | yes         |
| `cudnn`     | NVIDIA GPU | cuDNN's flash attention, bfloat16 or float16                   | no           | no          |
| `triton`    | NVIDIA GPU | Pallas kernels of our own, bfloat16 or float16                 | yes          | yes         |

All but `reference` run per device under `jax.shard_map`; see `partition`.
"""

from qwen3_jax.kernels.attention.dispatch import attention

__all__ = ["attention"]
