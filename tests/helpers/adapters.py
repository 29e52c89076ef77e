"""Random adapters of tiny models, without torch."""

from pathlib import Path

import numpy as np

from qwen3_jax.checkpoint.adapters.attach import save_adapter, with_adapter
from qwen3_jax.checkpoint.adapters.config import AdapterConfig
from qwen3_jax.checkpoint.adapters.files import AdapterTensors, adapters_of, sizes_of, to_ours
from qwen3_jax.checkpoint.adapters.targets import places, targets
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Qwen3, flatten

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


def sums(whole: Qwen3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The weights of a model with its adapter added in float64, and how far float32 may be from each.

    A product over the rank R, the scaling and the addition round R + 2 times: within gamma(R + 2), about (R + 3) 2^-24, of the
    sum of the magnitudes (Higham 2002, section 3.1).

    Args:
        whole: with an adapter beside its weights; layers not stacked.
    """
    named = {name: np.asarray(value, np.float64) for name, value in flatten(whole).items()}
    weights = {name: (value, abs(value), 0) for name, value in named.items() if "adapters." not in name}
    if whole.config.tie_word_embeddings and {"adapters.embed.a", "adapters.lm_head.a"} & named.keys():
        weights["lm_head"] = named["embed"].T, abs(named["embed"].T), 0
    for name in (name.removesuffix(".a") for name in named if name.endswith(".a")):
        a, b, scaling = (named[f"{name}.{part}"] for part in ("a", "b", "scaling"))
        parts = {name.replace("adapters.", ""): b}
        if name.endswith("gate_up"):  # [E, R, 2, F]
            parts = {name.replace("adapters.gate_up", half): b[:, :, i] for i, half in enumerate(("gate", "up"))}
        for parameter, half in parts.items():
            base, rank = named[parameter] if parameter in named else weights[parameter][0], a.shape[-1]
            experts = base.shape[:1] if "mlp." in name and half.ndim == 3 else ()
            left, right = a.reshape(*experts, -1, rank), half.reshape(*experts, rank, -1)
            total = base + scaling * (left @ right).reshape(base.shape)
            weights[parameter] = total, abs(base) + scaling * (abs(left) @ abs(right)).reshape(base.shape), rank + 3
    return {name: (value, roundings * 2.0**-24 * size) for name, (value, size, roundings) in weights.items()}


def assert_merged(model: Qwen3, whole: Qwen3) -> None:
    """A model's float32 weights are those of `whole` with its adapter added, to float32 rounding; see `sums`."""
    expected = sums(whole)
    assert flatten(model).keys() == expected.keys()
    for name, value in flatten(model).items():
        exact, bound = expected[name]
        assert (abs(np.asarray(value, np.float64) - exact) <= bound).all(), name


def saved(model: Qwen3, config: AdapterConfig, folder: Path, seed: int = 0) -> tuple[Path, Qwen3]:
    """Write a random adapter of a model; return its folder, and the model with the adapter beside its weights."""
    whole = with_adapter(model, drawn(config, model.config, seed))
    return save_adapter(whole, config, folder, overwrite=True), whole


__all__ = ["AdapterConfig", "assert_merged", "drawn", "names", "saved", "sums"]
