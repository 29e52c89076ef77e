"""Sampling under a thinking budget, at three levels: `generate_step` (tokens), `stream` (deltas), `generate` (answers)."""

from qwen3_jax.generation.answer import Delta, Generation, TokenLogprob, Usage
from qwen3_jax.generation.api import Timing, generate, stream
from qwen3_jax.generation.budget import ThinkingTokens
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.generation.steps import Row, Step, generate_step
from qwen3_jax.text import STOP_TEXT

__all__ = [
    "STOP_TEXT",
    "Delta",
    "Generation",
    "Row",
    "Sampling",
    "Step",
    "ThinkingTokens",
    "Timing",
    "TokenLogprob",
    "Usage",
    "generate",
    "generate_step",
    "stream",
]
