"""Random adapters of tiny models, without torch."""

from pathlib import Path

import numpy as np

from qwen3_jax.checkpoint.adapters.attach import save_adapter, with_adapter
from qwen3_jax.checkpoint.adapters.config import AdapterConfig
from qwen3_jax.checkpoint.adapters.files import AdapterTensors, adapters_of, sizes_of, to_ours
from qwen3_jax.checkpoint.adapters.targets import places, targets
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Qwen3

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate", "lm_head", "embed_tokens")


def names(config: Qwen3Config) -> tuple[str, ...]:
    """Targets for every weight of a model."""
    return tuple(name for name in EVERY if name != "gate" or config.num_experts)


def drawn(config: AdapterConfig, model: Qwen3Config, seed: int = 0) -> AdapterTensors:
    """An adapter with random A and B, at every weight that its configuration names."""
    lora, rng = targets(config, model), np.random.default_rng(seed)
    by_weight = {(place.layer, place.weight): place for place in places(model)}
    values = {}
    for one in lora.additions:
        place = by_weight[one.layer, one.weight]
        (inputs, outputs), count = sizes_of(place, model), adapters_of(place, model)
        pair = (
            rng.normal(size=(one.rank * count, inputs)).astype(np.float32) / 8,
            rng.normal(size=(outputs, one.rank * count)).astype(np.float32) / 8,
        )
        values[one.layer, one.weight] = to_ours(place, pair, model, one.rank)
    return AdapterTensors(config, lora, values)


def saved(model: Qwen3, config: AdapterConfig, folder: Path, seed: int = 0) -> tuple[Path, Qwen3]:
    """Write a random adapter of a model; return its folder, and the model with the adapter beside its weights."""
    whole = with_adapter(model, drawn(config, model.config, seed))
    return save_adapter(whole, config, folder, overwrite=True), whole


__all__ = ["AdapterConfig", "drawn", "names", "saved"]
