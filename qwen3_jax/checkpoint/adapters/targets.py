"""Which weights an adapter's targets name: PEFT's rules over Hugging Face's module names.

    lora = targets(AdapterConfig(rank=16, alpha=32, target_modules=("q_proj", "v_proj")), model_config)

A name stands for every module whose name ends in it, a string for every module whose whole name it matches as a regular
expression, "all-linear" for all linear modules but the output projection. Experts and routers are parameters in transformers 5
("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"); their older module names (gate_proj, up_proj,
down_proj, gate) stand for them, as in PEFT, which joins the two adapters of gate and up in one of twice the rank.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.adapters.config import AdapterConfig, check_pattern
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.model import Addition, Lora

ALL_LINEAR = "all-linear"
GATE_UP, DOWN, ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"
# Modules of transformers 4 that are parameters in transformers 5: last part of the name -> end of the parameter's.
_OLDER = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
_FUSED = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Place:
    """A weight that may have an adapter.

    Attributes:
        name: of the module ("model.layers.0.self_attn.q_proj") or, where `parameter`, of the parameter.
        weight: the name of `qwen3_jax.model.lora`.
        layer: None outside of the layers.
        key: its row of the key table; for gate and up together that of gate.
        parameter: whether transformers 5 holds it as a parameter and not in a linear module.
        linear: whether "all-linear" names it.
    """

    name: str
    weight: str
    layer: int | None
    key: keys.ParameterKey
    parameter: bool = False
    linear: bool = True

    @property
    def module(self) -> str:
        """The name below which PEFT stores the tensors of a linear module or of a router."""
        return self.name.removesuffix(".weight")


def places(config: Qwen3Config) -> list[Place]:
    """Return every weight of a model that may have an adapter."""
    embed, head = (next(key for key in keys.MODEL_KEYS if key.ours == name) for name in ("embed", "lm_head"))
    found = [
        Place("model.embed_tokens", "embed", None, embed, linear=False),
        Place("lm_head", "lm_head", None, head, linear=False),
    ]
    dense = [key for key in (*keys.BLOCK_KEYS, *keys.DENSE_KEYS) if key.summed]
    router, gate, _, down = keys.MOE_KEYS
    for layer in range(config.num_hidden_layers):
        start, moe = f"model.layers.{layer}.", config.is_moe_layer(layer)
        for key in dense:
            if not (moe and key.ours.startswith("mlp.")):
                found.append(Place(start + key.hf.removesuffix(".weight"), key.ours, layer, key))
        if moe:
            found += [
                Place(start + GATE_UP, "mlp.experts.gate_up", layer, gate, parameter=True),
                Place(start + DOWN, "mlp.experts.down", layer, down, parameter=True),
                Place(start + ROUTER, "mlp.router", layer, router, parameter=True),
            ]
    return found


def targets(config: AdapterConfig, model: Qwen3Config) -> Lora:
    """Return the weights that an adapter's configuration names, with their ranks and scalings.

    Raises:
        UserError: a target names nothing; with the nearest name that does.
    """
    config = converted(config, model)
    chosen = []
    for place in places(model):
        if _named(place, config):
            rank = config.rank_of(place.name)
            chosen.append(Addition(place.layer, place.weight, rank, config.scaling_of(place.name, rank)))
    _check_used(config, model)
    if not chosen:
        raise UserError("the adapter's targets name no weight of the model.")
    return Lora(tuple(chosen))


def converted(config: AdapterConfig, model: Qwen3Config) -> AdapterConfig:
    """Return the configuration with the parameters that its modules stand for in a model with experts, as PEFT does it.

    Raises:
        UserError: gate_proj without up_proj, or the reverse.
    """
    if not model.num_experts or not config.target_modules:
        return config
    modules, parameters = config.target_modules, list(config.target_parameters)
    if isinstance(modules, str):
        modules = tuple(sorted(_leaves(config, model)))
    older = {name for target in modules for name in _OLDER if target == name or target.endswith(f".{name}")}
    fused = older & {*_FUSED}
    if len(fused) == 1:
        (one,) = fused
        other = next(name for name in _FUSED if name != one)
        raise UserError(
            f"the adapter's targets name {one!r} without {other!r}: the experts hold both in one; name both or none."
        )
    kept = tuple(t for t in modules if not any(t == name or t.endswith(f".{name}") for name in _OLDER))
    parameters += [
        name for name in dict.fromkeys(_OLDER[old] for old in _OLDER if old in older) if name not in parameters
    ]
    config = dataclasses.replace(config, target_modules=kept, target_parameters=tuple(parameters))
    if not fused:
        return config
    pattern = r".*\.gate_up_proj"
    return dataclasses.replace(
        config,
        rank_pattern={**config.rank_pattern, pattern: 2 * config.rank},
        alpha_pattern={**config.alpha_pattern, pattern: 2 * config.alpha},
    )


def _leaves(config: AdapterConfig, model: Qwen3Config) -> set[str]:
    """The last parts of the module names that a pattern or "all-linear" matches, those of transformers 4 included."""
    names = [place.name for place in places(model) if not place.parameter and _named(place, config)]
    if config.target_modules == ALL_LINEAR:
        return {name.rpartition(".")[2] for name in names} | {*_OLDER}
    moe = [layer for layer in range(model.num_hidden_layers) if model.is_moe_layer(layer)]
    older = [f"model.layers.{layer}.mlp.experts.{name}" for layer in moe for name in (*_FUSED, "down_proj")]
    older += [f"model.layers.{layer}.mlp.experts.0.{name}" for layer in moe for name in (*_FUSED, "down_proj")]
    older += [f"model.layers.{layer}.mlp.gate" for layer in moe]
    names += [name for name in older if re.fullmatch(str(config.target_modules), name)]
    return {name.rpartition(".")[2] for name in names}


def _named(place: Place, config: AdapterConfig) -> bool:
    if place.parameter:
        return _ends_in(place.name, config.target_parameters)
    exclude, modules = config.exclude_modules, config.target_modules
    if exclude and (re.fullmatch(exclude, place.name) if isinstance(exclude, str) else _ends_in(place.name, exclude)):
        return False
    if isinstance(modules, str):
        return place.linear if modules.lower() == ALL_LINEAR else bool(_fullmatch(modules, place.name))
    if place.name in modules:
        return True
    if not _ends_in(place.name, modules):
        return False
    if config.layers is None:
        return True
    listed = not config.layers_pattern or "layers" in config.layers_pattern
    return listed and place.layer in config.layers


def _fullmatch(pattern: str, name: str) -> bool:
    check_pattern(pattern, "the adapter's target_modules")
    return re.fullmatch(pattern, name) is not None


def _ends_in(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _check_used(config: AdapterConfig, model: Qwen3Config) -> None:
    """Refuse a name that stands for nothing."""
    every = places(model)
    for parameter, names in ((False, config.target_modules), (True, config.target_parameters)):
        known = sorted({place.name.rpartition(".")[2] for place in every if place.parameter == parameter})
        for name in () if isinstance(names, str) else names:
            if not any(place.parameter == parameter and _ends_in(place.name, (name,)) for place in every):
                raise UserError(f"the adapter's target {name!r} names no weight of the model.{nearest(name, known)}")
