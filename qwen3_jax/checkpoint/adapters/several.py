"""Several adapters side by side in one model, of which each request names one or none.

    model = with_adapters(model, {"french": "runs/french/adapter", "poet": "user/poet-lora"})

The weights are those of `model`, also quantised ones or on a mesh; A and B of all adapters are joined along the rank, each as
wide as the largest rank of its weight, with the scaling in B.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qwen3_jax.checkpoint.adapters.attach import attach
from qwen3_jax.checkpoint.adapters.files import AdapterTensors, Key, Pair, read_adapter
from qwen3_jax.checkpoint.adapters.folders import adapter_folder
from qwen3_jax.errors import UserError
from qwen3_jax.model import Addition, Lora, Qwen3


def with_adapters(model: Qwen3, adapters: Mapping[str, str | os.PathLike]) -> Qwen3:
    """Return the model with several adapters beside its weights, which are shared with `model`.

    Args:
        model: without an adapter.
        adapters: name -> folder or hub repository in PEFT's format.

    Raises:
        UserError: an adapter that cannot be read or does not fit the model, by its name; a model with an adapter.
    """
    read = {name: _read(name, path, model) for name, path in adapters.items()}
    return attach(model, *_side_by_side(read)) if read else model


def _read(name: str, path: str | os.PathLike, model: Qwen3) -> AdapterTensors:
    if not name.strip():
        raise UserError(f"the adapter {os.fspath(path)} has an empty name; give it one.")
    try:
        return read_adapter(adapter_folder(Path(path) if isinstance(path, os.PathLike) else path), model.config)
    except UserError as error:
        raise UserError(f"adapter {name!r}: {error}") from None


def _side_by_side(adapters: Mapping[str, AdapterTensors]) -> tuple[Lora, dict[Key, Pair]]:
    """Return all adapters as one whose ranks are theirs, one after another."""
    every = list(adapters.values())
    widths: dict[str, int] = {}  # weight -> its largest rank, in any layer
    for one in (addition for adapter in every for addition in adapter.lora.additions):
        widths[one.weight] = max(widths.get(one.weight, 0), one.rank)
    scalings = [{(one.layer, one.weight): one.scaling for one in adapter.lora.additions} for adapter in every]
    values: dict[Key, Pair] = {}
    for key in dict.fromkeys(key for adapter in every for key in adapter.values):
        weight = key[1]
        experts = int(weight.startswith("mlp.experts."))
        width, total = widths[weight], len(every) * widths[weight]
        like_a, like_b = next(adapter.values[key] for adapter in every if key in adapter.values)
        a = np.zeros((*like_a.shape[:-1], total), np.float32)
        b = np.zeros((*like_b.shape[:experts], total, *like_b.shape[experts + 1 :]), np.float32)
        for index, (adapter, scaling) in enumerate(zip(every, scalings, strict=True)):
            if key in adapter.values:
                own_a, own_b = adapter.values[key]
                place = slice(index * width, index * width + own_a.shape[-1])
                a[..., place] = own_a
                b[(slice(None),) * experts + (place,)] = scaling[key] * own_b
        values[key] = a, b
    additions = [Addition(layer, weight, len(every) * widths[weight], 1.0) for layer, weight in values]
    return Lora(tuple(additions), tuple(adapters)), values
