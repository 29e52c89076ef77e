"""The tensors of an adapter: `adapter_model.safetensors` of PEFT, read into a model's adapters and written from them.

| weight               | PEFT's tensors below `base_model.model.`                     | A            | B            |
|----------------------|--------------------------------------------------------------|--------------|--------------|
| linear module        | `model.layers.0.self_attn.q_proj.lora_A.weight`, `.lora_B.`  | [r, in]      | [out, r]     |
| embedding            | `model.embed_tokens.lora_embedding_A`, `.lora_embedding_B`   | [r, V]       | [D, r]       |
| router               | `model.layers.0.mlp.gate.lora_A.weight`                      | [r, D]       | [E, r]       |
| experts, gate and up | `model.layers.0.mlp.experts.base_layer.lora_A.weight`;       | [(E r), D]   | [2F, (r E)]  |
|                      | without `base_layer` where down has no adapter               |              |              |
| experts, down        | `model.layers.0.mlp.experts.lora_A.weight`                   | [(E r), F]   | [D, (r E)]   |
| transformers 4: read | `model.layers.0.mlp.experts.3.gate_proj.lora_A.weight`       | [r, D]       | [F, r]       |

Gate and up of transformers 4 become one of twice the rank: A side by side, B on the diagonal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from qwen3_jax.checkpoint.adapters.config import AdapterConfig, read_adapter_config, refuse_biases
from qwen3_jax.checkpoint.adapters.targets import Place, places, targets
from qwen3_jax.checkpoint.safetensors import refuse_pointer
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError, warn
from qwen3_jax.model import Addition, Lora

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# name of the module, A or B; an adapter's own name may stand behind it, as in a model's state dict
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<part>[AB])(?:\.default)?(?:\.weight)?")
_OLDER = re.compile(
    r"(?P<block>model\.layers\.\d+\.mlp\.experts)\.(?P<expert>\d+)\.(?P<leaf>gate_proj|up_proj|down_proj)"
)

Pair = tuple[np.ndarray, np.ndarray]  # A and B in PEFT's layout
Key = tuple[int | None, str]  # layer and weight


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter that was read, in this model's layout.

    Attributes:
        config: as its file has it.
        lora: the weights that have an adapter.
        values: for each (layer, weight), A [E, D..., R] and B [E, R, F...], without E for what is no expert.
    """

    config: AdapterConfig
    lora: Lora
    values: Mapping[Key, Pair]


def read_adapter(folder: Path, model: Qwen3Config) -> AdapterTensors:
    """Read an adapter's folder for a model of this architecture.

    Raises:
        UserError: names the field, tensor or file that is missing, damaged, misshapen or unknown.
    """
    config = read_adapter_config(folder)
    refuse_biases(folder, model.attention_bias)
    file = folder / TENSORS
    by_module = {place.module: place for place in places(model)}
    additions: dict[Key, Addition] = {}
    values: dict[Key, Pair] = {}
    older: dict[str, dict[tuple[str, int], Pair]] = {}
    for module, pair in _pairs(folder, file).items():
        match = _OLDER.fullmatch(module)
        if match:
            older.setdefault(match["block"], {})[match["leaf"], int(match["expert"])] = pair
            continue
        place = by_module.get(module) or _experts(module, pair, by_module, model)
        if place is None:
            raise UserError(
                f"{file} has an adapter for {module!r}, which is no weight of the model that it is loaded into."
            )
        rank = _checked_rank(place, pair, model, config.rank_of(place.name), module, file)
        key = place.layer, place.weight
        additions[key] = Addition(*key, rank, config.scaling_of(place.name, rank))
        values[key] = to_ours(place, pair, model, rank)
    for block, parts in older.items():
        for place, pair, rank, scaling in _joined(block, parts, config, by_module, model, file):
            key = place.layer, place.weight
            additions[key] = Addition(*key, rank, scaling)
            values[key] = to_ours(place, pair, model, rank)
    missing = [place.name for place in _expected(config, model) if (place.layer, place.weight) not in additions]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        warn(f"{file} has no tensors for {missing[0]}{more}, which adapter_config.json names: nothing is added there.")
    ordered = [(place.layer, place.weight) for place in places(model)]
    return AdapterTensors(config, Lora(tuple(additions[key] for key in ordered if key in additions)), values)


def _expected(config: AdapterConfig, model: Qwen3Config) -> list[Place]:
    """The weights that the configuration names; [] where its targets are not those of this model."""
    try:
        named = {(one.layer, one.weight) for one in targets(config, model).additions}
    except UserError:
        return []
    return [place for place in places(model) if (place.layer, place.weight) in named]


def _pairs(folder: Path, file: Path) -> dict[str, Pair]:
    """Read A and B of every module, float32.

    Raises:
        UserError: a file is missing, damaged or pickled, or a tensor is no part of an adapter.
    """
    if not file.exists():
        if (folder / "adapter_model.bin").exists():
            raise UserError(
                f"{folder} has adapter_model.bin, whose pickled weights are not read; load it with peft and save it again with "
                "`save_pretrained`."
            )
        raise UserError(f"{file} is missing; is the adapter complete?")
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(file, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                match = _NAME.fullmatch(name.removeprefix(PREFIX))
                if match is None:
                    _check_other(name, file)
                    continue
                module = match["module"].replace("._orig_mod", "")
                if module.startswith("layers.") or module == "embed_tokens":  # of a model without a head
                    module = f"model.{module}"
                found.setdefault(module, {})[match["part"]] = np.asarray(handle.get_tensor(name)).astype(np.float32)
    except (SafetensorError, OSError) as error:
        refuse_pointer(file)
        raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again.") from None
    for module, parts in found.items():
        if len(parts) < 2:
            raise UserError(f"{file} has lora_{next(iter(parts))} of {module!r} and not its other half.")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _check_other(name: str, file: Path) -> None:
    """Refuse a tensor that is no part of an adapter; the base's embedding, which PEFT stores beside one, is not read."""
    if name.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
        warn(f"{file}: left out {name}, a copy of the base model's; that of the base model is used.")
        return
    raise UserError(
        f"tensor {name!r} in {file} is no low-rank adapter's; merge the adapter with peft (`merge_and_unload`) and load the "
        "merged folder."
    )


def _experts(module: str, pair: Pair, by_module: Mapping[str, Place], model: Qwen3Config) -> Place | None:
    """The experts' parameter that the shapes fit: the name of PEFT's wrapper does not tell gate and up from down."""
    block = module.removesuffix(".base_layer")
    both = [by_module[name] for name in (f"{block}.gate_up_proj", f"{block}.down_proj") if name in by_module]
    fitting = [one for one in both if sizes_of(one, model) == (pair[0].shape[-1], pair[1].shape[0])]
    return next(iter(fitting or both), None)


def _joined(
    block: str,
    parts: dict[tuple[str, int], Pair],
    config: AdapterConfig,
    by_module: Mapping[str, Place],
    model: Qwen3Config,
    file: Path,
) -> list[tuple[Place, Pair, int, float]]:
    """Join the adapters of single experts, as transformers 4 had them, into those of gate and up together and of down."""
    gate_up, down = by_module[f"{block}.gate_up_proj"], by_module[f"{block}.down_proj"]
    leaves = {leaf for leaf, _ in parts}
    stacked = {}
    for leaf in sorted(leaves):
        name = f"{block}.0.{leaf}"
        rank = config.rank_of(name)
        pairs = [parts.get((leaf, expert)) for expert in range(model.num_experts)]
        sizes = sizes_of(down if leaf == "down_proj" else gate_up, model)
        inputs, outputs = sizes[0], sizes[1] if leaf == "down_proj" else sizes[1] // 2
        for expert, pair in enumerate(pairs):
            if pair is not None and (pair[0].shape, pair[1].shape) != ((rank, inputs), (outputs, rank)):
                raise _misshapen(f"{block}.{expert}.{leaf}", pair, ((rank, inputs), (outputs, rank)), file)
        empty = np.zeros((rank, inputs), np.float32), np.zeros((outputs, rank), np.float32)
        chosen = [empty if pair is None else pair for pair in pairs]
        a, b = (np.stack([pair[half] for pair in chosen]) for half in (0, 1))  # [E, r, in], [E, out, r]
        stacked[leaf] = a, b, rank, config.scaling_of(name, rank)
    unknown = [expert for _, expert in parts if expert >= model.num_experts]
    if unknown:
        raise UserError(
            f"{file} has an adapter for expert {unknown[0]} of {block!r}; the model has {model.num_experts}."
        )
    found = []
    if leaves & {"gate_proj", "up_proj"}:
        if not leaves >= {"gate_proj", "up_proj"} or stacked["gate_proj"][3] != stacked["up_proj"][3]:
            raise UserError(
                f"{file}: gate_proj and up_proj of {block!r} need adapters of one scaling both; merge it with peft."
            )
        (gate_a, gate_b, gate_rank, scaling), (up_a, up_b, up_rank, _) = stacked["gate_proj"], stacked["up_proj"]
        rank = gate_rank + up_rank
        b = np.zeros((model.num_experts, 2 * model.moe_intermediate_size, rank), np.float32)
        b[:, : model.moe_intermediate_size, :gate_rank] = gate_b
        b[:, model.moe_intermediate_size :, gate_rank:] = up_b
        found.append((gate_up, _flat(np.concatenate([gate_a, up_a], axis=1), b), rank, scaling))
    if "down_proj" in leaves:
        a, b, rank, scaling = stacked["down_proj"]
        found.append((down, _flat(a, b), rank, scaling))
    return found


def _flat(a_eri: np.ndarray, b_eor: np.ndarray) -> Pair:
    """[E, r, in] and [E, out, r] as PEFT stores them: [(E r), in] and [out, (r E)]."""
    return a_eri.reshape(-1, a_eri.shape[-1]), b_eor.transpose(1, 2, 0).reshape(b_eor.shape[1], -1)


def _letters(place: Place, model: Qwen3Config) -> dict[str, int]:
    """Size of each letter of the key table in a weight."""
    width = model.moe_intermediate_size if place.parameter else model.intermediate_size
    return dict(
        d=model.hidden_size, n=model.num_attention_heads, k=model.num_key_value_heads, h=model.head_dim, f=width,
        e=model.num_experts, v=model.vocab_size,
    )  # fmt: skip


def _axes(place: Place, model: Qwen3Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the axes of inputs and of outputs, as this model has them (without experts)."""
    sizes = _letters(place, model)
    outputs, inputs = (tuple(sizes[letter] for letter in group) for group in place.key.hf_dims.split(","))
    if place.weight == "embed":  # a table: from rows to width
        inputs, outputs = outputs, inputs
    return inputs, (2, *outputs) if place.weight == "mlp.experts.gate_up" else outputs


def sizes_of(place: Place, model: Qwen3Config) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    inputs, outputs = _axes(place, model)
    return math.prod(inputs), math.prod(outputs)


def adapters_of(place: Place, model: Qwen3Config) -> int:
    """How many adapters stand side by side in PEFT's tensors."""
    return model.num_experts if place.weight.startswith("mlp.experts.") else 1


def _checked_rank(place: Place, pair: Pair, model: Qwen3Config, rank: int, module: str, file: Path) -> int:
    """Return the rank, once the shapes fit it."""
    (inputs, outputs), count = sizes_of(place, model), adapters_of(place, model)
    wanted = (rank * count, inputs), (outputs, rank * count)
    if (pair[0].shape, pair[1].shape) != wanted:
        raise _misshapen(module, pair, wanted, file)
    return rank


def _misshapen(module: str, pair: Pair, wanted: Any, file: Path) -> UserError:
    return UserError(
        f"the adapter of {module!r} in {file} has A {list(pair[0].shape)} and B {list(pair[1].shape)}; the model and the "
        f"rank in adapter_config.json mean {list(wanted[0])} and {list(wanted[1])}."
    )


def to_ours(place: Place, pair: Pair, model: Qwen3Config, rank: int) -> Pair:
    """Turn A and B of PEFT into this model's layout: [E, D..., R] and [E, R, F...], without E for what is no expert."""
    a, b = pair
    inputs, outputs = _axes(place, model)
    count = adapters_of(place, model)
    if not place.weight.startswith("mlp.experts."):
        return a.T.reshape(*inputs, rank), b.T.reshape(rank, *outputs)
    a = a.reshape(count, rank, -1).transpose(0, 2, 1)
    return a, b.reshape(-1, rank, count).transpose(2, 1, 0).reshape(count, rank, *outputs)


def to_peft(place: Place, pair: Pair, model: Qwen3Config) -> Pair:
    """The inverse of `to_ours`."""
    a, b = pair
    if not place.weight.startswith("mlp.experts."):
        rank = a.shape[-1]
        return a.reshape(-1, rank).T, b.reshape(rank, -1).T
    count, rank = b.shape[:2]
    return _flat(a.transpose(0, 2, 1), b.reshape(count, rank, -1).transpose(0, 2, 1))


def tensor_names(place: Place, nested: bool) -> tuple[str, str]:
    """Return PEFT's names of A and B; `nested`: gate and up of experts whose down has an adapter too."""
    if place.weight == "embed":
        return f"{PREFIX}{place.name}.lora_embedding_A", f"{PREFIX}{place.name}.lora_embedding_B"
    module = place.module
    if place.weight.startswith("mlp.experts."):
        module = module.rpartition(".")[0] + (".base_layer" if nested and place.weight == "mlp.experts.gate_up" else "")
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
