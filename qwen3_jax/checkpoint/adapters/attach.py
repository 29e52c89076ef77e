"""Put an adapter on a model, take it off again as PEFT's folder, or add it to the weights.

    model = with_adapter(model, read_adapter(folder, model.config))       # base and adapter side by side
    model = merged(model)                                                  # one weight again
    save_adapter(model, config, "RUN/adapter")

Invariant: values move between a layer and its place in a stack; ranks below the stack's are padded with zeros, which are not
written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from qwen3_jax.checkpoint.adapters.config import FILE, AdapterConfig, write_adapter_config
from qwen3_jax.checkpoint.adapters.files import TENSORS, AdapterTensors, Key, Pair, tensor_names, to_peft
from qwen3_jax.checkpoint.adapters.targets import converted, places
from qwen3_jax.checkpoint.checksums import write_checksums
from qwen3_jax.checkpoint.publish import publishing
from qwen3_jax.checkpoint.small_files import write_json
from qwen3_jax.checkpoint.storage import refuse_quantized, refuse_several
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import LowRank, folded
from qwen3_jax.model import EmbeddingModel, Lora, Qwen3, Structure, flatten, layer_groups
from qwen3_jax.paths import as_path
from qwen3_jax.text import Tokenizer

# weight -> (parameter, adapter), dotted names below a block or the model
_PARAMETERS = {
    **{f"attention.{name}": (f"attention.{name}", f"attention.adapters.{name}") for name in "qkvo"},
    **{f"mlp.{name}": (f"mlp.{name}", f"mlp.adapters.{name}") for name in ("gate", "up", "down", "router")},
    "mlp.experts.gate_up": ("mlp.gate", "mlp.adapters.gate_up"),
    "mlp.experts.down": ("mlp.down", "mlp.adapters.down"),
    "embed": ("embed", "adapters.embed"),
    "lm_head": ("lm_head", "adapters.lm_head"),
}


def structure(model: Qwen3, lora: Lora | None, config: Qwen3Config | None = None) -> Structure:
    """Return the structure of the model with other adapters, or another architecture."""
    return Structure(
        lambda: Qwen3(
            config or model.config,
            rngs=nnx.Rngs(0),
            dtype=model.dtype,
            param_dtype=model.param_dtype,
            scan_layers=model.scan_layers,
            remat=model.remat,
            execution=model.execution,
            lora=lora,
        )
    )


def with_adapter(model: Qwen3, adapter: AdapterTensors) -> Qwen3:
    """Return the model with an adapter on its weights, which are shared with `model`.

    Raises:
        UserError: the model has an adapter already, or no vocabulary.
    """
    return attach(model, adapter.lora, adapter.values)


def attach(model: Qwen3, lora: Lora, values: Mapping[Key, Pair]) -> Qwen3:
    """Return the model with A and B of some weights; see `with_adapter`."""
    if model.lora is not None:
        raise UserError("the model has an adapter already; merge it first.")
    if model.no_text is not None:
        kind = "an embedding model" if isinstance(model, EmbeddingModel) else "a reward model"
        raise UserError(
            f"{kind} takes no adapter; load it alone, or merge the adapter into its weights with PEFT first."
        )
    whole = structure(model, lora)
    arrays = adapter_arrays(whole, model, lora, values)
    out = whole.merge(flatten(model) | arrays)
    out.generation_config, out.embedding_config = model.generation_config, model.embedding_config
    return out


def adapter_arrays(whole: Structure, model: Qwen3, lora: Lora, values: Mapping[Key, Pair]) -> dict[str, jax.Array]:
    """Return the variables of a model's adapters by dotted name, placed by their logical axes.

    Args:
        whole: the structure of the model with `lora`.
        model: gives configuration, layout and placement.
        lora: the weights that have adapters.
        values: A and B of each.
    """
    shapes, shardings = whole.shapes, whole.shardings(model.execution.placement)
    scalings = {(one.layer, one.weight): one.scaling for one in lora.additions}
    host = {name: np.zeros(shapes[name].shape, np.float32) for name in shapes if "adapters." in name}
    for (layer, weight), (a, b) in values.items():
        prefix, place = _place(model.config, model.scan_layers, layer)
        name, rank = prefix + _PARAMETERS[weight][1], a.shape[-1]
        host[f"{name}.a"][place][..., :rank] = a
        host[f"{name}.b"][place][_used(weight, rank)] = b
        host[f"{name}.scaling"][place] = scalings[layer, weight]
    return {name: _placed(value, shardings[name]) for name, value in host.items()}


def adapter_values(model: Qwen3) -> dict[Key, Pair]:
    """Return A and B of every weight that has an adapter, on the host, without padding."""
    assert model.lora is not None
    named = flatten(model)
    gathered: dict[str, np.ndarray] = {}
    values = {}
    for one in model.lora.additions:
        prefix, place = _place(model.config, model.scan_layers, one.layer)
        name = prefix + _PARAMETERS[one.weight][1]
        for half in ("a", "b"):
            if f"{name}.{half}" not in gathered:
                gathered[f"{name}.{half}"] = _on_host(named[f"{name}.{half}"])
        b = gathered[f"{name}.b"][place][_used(one.weight, one.rank)]
        values[one.layer, one.weight] = gathered[f"{name}.a"][place][..., : one.rank], b
    return values


def save_adapter(
    model: Qwen3,
    config: AdapterConfig,
    path: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the adapter of a model as PEFT does; `peft.PeftModel.from_pretrained` and `qwen3_jax.load` read it.

    Args:
        model: with an adapter.
        config: what its weights were chosen by (`targets`, `read_adapter_config`), with the name of the base model.
        path: the folder to make; it appears whole or not at all.
        tokenizer: to be written beside it; None for none.
        overwrite: replace a folder that exists.

    Raises:
        UserError: the model has no adapter, or several, or the target exists or cannot be written.
    """
    if model.lora is None:
        raise UserError("the model has no adapter to save.")
    refuse_several(model, "saved")
    values, named = adapter_values(model), {(one.layer, one.weight) for one in model.lora.additions}
    tensors: dict[str, np.ndarray] = {}
    for place in places(model.config):
        if (place.layer, place.weight) in named:
            pair = to_peft(place, values[place.layer, place.weight], model.config)
            names = tensor_names(place, nested=(place.layer, "mlp.experts.down") in named)
            tensors |= dict(zip(names, map(np.ascontiguousarray, pair), strict=True))
    target = as_path(path)
    with publishing(target, overwrite, last=FILE) as work:
        if jax.process_index() == 0:
            save_file(tensors, work / TENSORS, metadata={"format": "pt"})
            write_json(work / FILE, write_adapter_config(converted(config, model.config)))
            (work / TENSORS).chmod((work / FILE).stat().st_mode)
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            write_checksums(work, [work / TENSORS, *work.glob("tokenizer.json")])
    return target


def merged(model: Qwen3) -> Qwen3:
    """Return the model with its adapter added to its weights, one weight at a time; without an adapter, the model itself.

    The sum is float32 and rounded once to the weights' type. Adapters of a tied embedding or output projection untie them.

    Raises:
        UserError: the weights are quantised, or there are several adapters.
    """
    if model.lora is None:
        return model
    refuse_several(model, "merged")
    refuse_quantized(model)
    config, named = model.config, dict(flatten(model))
    alone = {one.weight for one in model.lora.additions if one.layer is None}
    if config.tie_word_embeddings and alone:
        config = dataclasses.replace(config, tie_word_embeddings=False)
        named["lm_head"] = named["embed"].T
    plain = structure(model, None, config)
    shardings, axes = plain.shardings(model.execution.placement), plain.logical_axes
    done = set()
    for one in model.lora.additions:
        prefix, _ = _place(model.config, model.scan_layers, one.layer)
        base, adapter = (prefix + part for part in _PARAMETERS[one.weight])
        if adapter in done:  # another layer of the same stack
            continue
        done.add(adapter)
        fused = one.weight == "mlp.experts.gate_up"
        for parameter, part in [(base, 0), (f"{prefix}mlp.up", 1)] if fused else [(base, None)]:
            add = jax.jit(_added, static_argnums=(4, 5, 6, 7), out_shardings=shardings[parameter])
            halves = (named[f"{adapter}.{half}"] for half in ("a", "b", "scaling"))
            named[parameter] = add(named[parameter], *halves, part, model.execution, axes[parameter], model.param_dtype)
    out = plain.merge({name: named[name] for name in plain.shapes})
    out.generation_config, out.embedding_config = model.generation_config, model.embedding_config
    return out


def _added(base, a, b, scaling, part, execution, axes, dtype):
    """Return a weight, or a stack of them, with its adapter added."""
    own = axes[1:] if axes[0] == "layers" else axes

    def one(base, a, b, scaling):
        b = b if part is None else b[:, :, part]
        whole = LowRank(base, a, b, scaling)
        return folded(whole, jnp.dtype("float32"), execution, own, experts=own[0] == "expert").astype(dtype)

    if axes[0] != "layers":
        return one(base, a, b, scaling)
    return jax.lax.map(lambda layer: one(*layer), (base, a, b, scaling))


def _place(config: Qwen3Config, scan_layers: bool, layer: int | None) -> tuple[str, Any]:
    """Return the prefix of a layer's variables and the layer's index in their stack (`...` if they are not stacked)."""
    if layer is None:
        return "", ...
    groups = enumerate(layer_groups(config, scan_layers))
    index, layers = next((index, layers) for index, (_, layers) in groups if layer in layers)
    return f"groups.{index}.", layers.index(layer) if scan_layers else ...


def _used(weight: str, rank: int) -> tuple[slice, ...]:
    """The part of B that is no padding: B is [R, F...], or [E, R, F...] for experts."""
    return (*(slice(None),) * weight.startswith("mlp.experts."), slice(rank))


def _placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _on_host(array: jax.Array) -> np.ndarray:
    if not array.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        array = process_allgather(array, tiled=True)
    return np.asarray(array)
