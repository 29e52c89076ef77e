"""Small architectures and a packed batch for tests of training."""

import dataclasses

import numpy as np

from qwen3_jax.config import Qwen3Config

TINY = dataclasses.replace(
    Qwen3Config(),
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
TINY_MOE = dataclasses.replace(TINY, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24)


def packed_batch(rows: int = 8, length: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Two documents and some padding in every row, lengths differing by row; padding holds real-looking tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TINY.vocab_size, (rows, length + 1)).astype(np.int32)
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        first, end = 4 + row % 5, length - row % 7
        segments[row, :first], segments[row, first:end] = 1, 2
        positions[row, :first], positions[row, first:end] = np.arange(first), np.arange(end - first)
    mask = (segments > 0) & (rng.random((rows, length)) < 0.8)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": positions,
        "loss_mask": mask.astype(np.float32),
    }
