"""`adapter_config.json` of PEFT: every field that changes what is computed is honoured, or refused by name.

Source: peft 0.21, `LoraConfig`. Fields of initialisation, dropout and bookkeeping change nothing that a trained adapter
computes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.errors import UserError, warn
from qwen3_jax.json_fields import read_json

FILE = "adapter_config.json"
_MERGE = "merge it with peft (`merge_and_unload`) and load the merged folder"
# Fields that would change the result -> what to do. They may be null, false or empty.
_REFUSED = {
    "use_dora": _MERGE,
    "use_qalora": "train the adapter without it",
    "use_bdlora": _MERGE,
    "lora_bias": _MERGE,
    "modules_to_save": _MERGE,
    "trainable_token_indices": _MERGE,
    "layer_replication": "replicate the layers of the base model first",
    "alora_invocation_tokens": "train the adapter without it",
    "arrow_config": "load one of its adapters",
    "kasa_config": _MERGE,
    "monteclora_config": _MERGE,
    "ensure_weight_tying": _MERGE,
}
# Initialisations that leave the base weight as it is.
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
# Fields that a trained adapter's result does not depend on.
_HARMLESS = frozenset(
    {"auto_mapping", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "inference_mode", "lora_dropout"}
    | {"megatron_config", "megatron_core", "peft_version", "qalora_group_size", "runtime_config", "task_type"}
    | {"velora_config", "fan_in_fan_out", "bias"}
)


@dataclass(frozen=True)
class AdapterConfig:
    """The rank, scaling and targets of an adapter.

    Attributes:
        rank: PEFT's `r`.
        alpha: PEFT's `lora_alpha`.
        target_modules: names, each of which stands for the modules that end in it; or one pattern (a regular expression for
            whole module names), or "all-linear".
        target_parameters: the same of parameters that are no linear module: the experts and the router of transformers 5.
        exclude_modules: names or a pattern of what is left out.
        rslora: scaling by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732) instead of alpha / rank.
        rank_pattern: other ranks by name or regular expression.
        alpha_pattern: other values of alpha likewise.
        layers: the layers that have adapters; None is all.
        layers_pattern: names of the list of layers.
        base: the base model, a folder or hub id; None if the file has none.
        revision: of the base model on the hub.
    """

    rank: int = 8
    alpha: float = 8.0
    target_modules: tuple[str, ...] | str = ()
    target_parameters: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] | str = ()
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    base: str | None = None
    revision: str | None = None

    def rank_of(self, name: str) -> int:
        """Return the rank of a module or parameter."""
        return int(_by_pattern(self.rank_pattern, name, self.rank))

    def scaling_of(self, name: str, rank: int) -> float:
        """Return the factor of the product A B of a module or parameter."""
        alpha = float(_by_pattern(self.alpha_pattern, name, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`.

    Raises:
        UserError: the file is missing or broken, or a field has a value that is not supported; names it.
    """
    file = folder / FILE
    if not file.exists():
        raise UserError(f"{folder} holds no adapter: it has no {FILE}.")
    raw = read_json(file)
    kind = raw.pop("peft_type", "LORA")
    if str(kind).rpartition(".")[2].upper() != "LORA":
        raise UserError(f"{file}: 'peft_type' is {kind!r}; only LORA is read: {_MERGE}.")
    for name, advice in _REFUSED.items():
        if raw.pop(name, None):
            raise UserError(f"{file}: {name!r} is set, which is not supported; {advice}.")
    initial = raw.pop("init_lora_weights", True)
    if initial not in _INITIAL:
        raise UserError(
            f"{file}: 'init_lora_weights' is {initial!r}, which changes the base model's weights; save the adapter with peft's "
            "`path_initial_model_for_weight_conversion`, or merge it there."
        )
    try:
        config = _config(raw, file)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: a field has a value of the wrong type ({error}).") from None
    unknown = sorted(
        name for name, value in raw.items() if name not in _HARMLESS and value not in (None, False, [], {}, "")
    )
    if unknown:
        warn(f"{file}: the fields {unknown} are not known and have no effect here.")
    return config


def refuse_biases(folder: Path, attention_bias: bool) -> None:
    """Refuse an adapter with trained biases, where the model has any.

    Raises:
        UserError: 'bias' is not "none".
    """
    bias = read_json(folder / FILE).get("bias", "none")
    if attention_bias and bias != "none":
        raise UserError(f"{folder / FILE}: 'bias' is {bias!r}: it trained biases of the model; {_MERGE}.")


def _config(raw: dict[str, Any], file: Path) -> AdapterConfig:
    layers = raw.pop("layers_to_transform", None)
    values: dict[str, Any] = dict(
        rank=raw.pop("r", 8),
        alpha=raw.pop("lora_alpha", 8),
        target_modules=_names(raw.pop("target_modules", None)),
        target_parameters=tuple(raw.pop("target_parameters", None) or ()),
        exclude_modules=_names(raw.pop("exclude_modules", None)),
        rslora=bool(raw.pop("use_rslora", False)),
        rank_pattern=dict(raw.pop("rank_pattern", None) or {}),
        alpha_pattern=dict(raw.pop("alpha_pattern", None) or {}),
        layers=(layers,) if isinstance(layers, int) else tuple(layers) if layers else None,
        layers_pattern=_as_tuple(raw.pop("layers_pattern", None)),
        base=raw.pop("base_model_name_or_path", None) or None,
        revision=raw.pop("revision", None) or None,
    )
    shown = {
        "r": values["rank"], "lora_alpha": values["alpha"], "layers_to_transform": values["layers"],
        "rank_pattern": list(values["rank_pattern"].values()), "alpha_pattern": list(values["alpha_pattern"].values()),
    }  # fmt: skip
    check_bounds(
        shown, f"{file}: ", r=whole(1), lora_alpha=above(0), layers_to_transform=whole(0), rank_pattern=whole(1),
        alpha_pattern=above(0),
    )  # fmt: skip
    for name in ("target_modules", "target_parameters", "exclude_modules"):
        if not all(isinstance(one, str) for one in values[name]):
            raise UserError(f"{file}: {name!r} must be names, or one pattern.")
    for pattern in (*values["rank_pattern"], *values["alpha_pattern"]):
        check_pattern(pattern, str(file))
    return AdapterConfig(**values)


def write_adapter_config(config: AdapterConfig) -> dict[str, Any]:
    """Return the contents of an `adapter_config.json` that PEFT reads."""
    return {
        "alpha_pattern": dict(config.alpha_pattern),
        "base_model_name_or_path": config.base,
        "bias": "none",
        "exclude_modules": _listed(config.exclude_modules) or None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": list(config.layers_pattern) or None,
        "layers_to_transform": None if config.layers is None else list(config.layers),
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": dict(config.rank_pattern),
        "revision": config.revision,
        "target_modules": _listed(config.target_modules),
        "target_parameters": list(config.target_parameters) or None,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rslora,
    }


def check_pattern(pattern: str, source: str) -> None:
    """Refuse what is no regular expression; `source` is named."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{source}: {pattern!r} is no regular expression ({error}).") from None


def with_base(config: AdapterConfig, base: str) -> AdapterConfig:
    """Return the configuration with another base model."""
    return dataclasses.replace(config, base=base)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """As PEFT: the first pattern that matches the end of a name."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


def _names(value: Any) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(value or ())


def _as_tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _listed(value: tuple[str, ...] | str) -> list[str] | str:
    return value if isinstance(value, str) else list(value)
