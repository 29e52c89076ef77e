"""The decoder in Flax NNX. Single-device maths: names logical axes, never mesh axes; no file I/O, no platform checks."""

from qwen3_jax.model.cache import KVCache
from qwen3_jax.model.decoder import Entered, Hidden, Qwen3, abstract, parameter_count
from qwen3_jax.model.embedding import EmbeddingModel
from qwen3_jax.model.flat import Structure, flatten
from qwen3_jax.model.layer_loop import REMAT, Remat, layer_groups, run_group
from qwen3_jax.model.lora import Addition, Lora, is_adapter
from qwen3_jax.model.moe import RouterStats, Routes
from qwen3_jax.model.reward import RewardModel

__all__ = [
    "REMAT",
    "Addition",
    "EmbeddingModel",
    "Entered",
    "Hidden",
    "KVCache",
    "Lora",
    "Qwen3",
    "Remat",
    "RewardModel",
    "RouterStats",
    "Routes",
    "Structure",
    "abstract",
    "flatten",
    "is_adapter",
    "layer_groups",
    "parameter_count",
    "run_group",
]
