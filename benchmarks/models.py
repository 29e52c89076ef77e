"""Architectures, batches and the training step that the benchmarks share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Qwen3
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer

# 29M parameters with a 16K vocabulary: Qwen3-0.6B's proportions, small enough for two cores.
DENSE = dataclasses.replace(
    Qwen3Config(),
    vocab_size=16384,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
# Eight of 32 experts, each an eighth as wide as the dense MLP: the same active parameters but for the router.
MOE = dataclasses.replace(DENSE, num_experts=32, num_experts_per_tok=8, moe_intermediate_size=192)


def batch(config: Qwen3Config, rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One document per row, loss on every target."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        "loss_mask": np.ones((rows, length), np.float32),
    }


def stepper(config: Qwen3Config, dtype: str, rows: int, length: int) -> tuple[Qwen3, Callable[[], float]]:
    """Return `stepper_on` for rows of one document; also called of earlier commits (`benchmarks/commits.py`)."""
    return stepper_on(config, dtype, batch(config, rows, length))


def stepper_on(
    config: Qwen3Config, dtype: str, data: dict[str, np.ndarray], **optimizer: float
) -> tuple[Qwen3, Callable[[], float]]:
    """Return a fresh model, and a function that trains it by one step (unrolled, one device) and returns the loss.

    Args:
        data: the batch, the same in every step.
        optimizer: fields of `OptimizerConfig` that differ: the learning rate is 1e-4.
    """
    options = OptimizerConfig(**{"warmup_steps": 0, "schedule": "constant", "learning_rate": 1e-4, **optimizer})
    trainer = Trainer(
        config, ModelConfig(dtype=dtype, scan_layers=False), options, schedule(options, 10**6), sharding.Placement()
    )
    state, placed = trainer.init(0), trainer.place(data)
    start = trainer.model(jax.tree.map(jnp.copy, state.params))  # the first step donates the state

    def step() -> float:
        nonlocal state
        state, metrics = trainer.step(state, placed)
        return float(metrics.loss.cross_entropy)

    return start, step
