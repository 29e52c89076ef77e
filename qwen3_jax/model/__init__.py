"""The decoder in Flax NNX. Single-device maths: names logical axes, never mesh axes; no file I/O, no platform checks."""

from qwen3_jax.model.cache import KVCache
from qwen3_jax.model.decoder import Hidden, Qwen3, abstract, layer_groups, parameter_count
from qwen3_jax.model.flat import Structure, flatten
from qwen3_jax.model.moe import RouterStats

__all__ = [
    "Hidden",
    "KVCache",
    "Qwen3",
    "RouterStats",
    "Structure",
    "abstract",
    "flatten",
    "layer_groups",
    "parameter_count",
]
