"""The decoder in Flax NNX. Single-device maths: names logical axes, never mesh axes; no file I/O, no platform checks."""

from qwen3_jax.model.cache import KVCache
from qwen3_jax.model.decoder import Hidden, Qwen3, abstract, layer_groups, parameter_count
from qwen3_jax.model.moe import RouterStats

__all__ = ["Hidden", "KVCache", "Qwen3", "RouterStats", "abstract", "layer_groups", "parameter_count"]
