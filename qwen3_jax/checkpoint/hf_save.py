"""Write a Hugging Face checkpoint folder that transformers, vLLM and the rest load as one of their own.

Invariant: the target either does not exist (or is what it was) or is complete (`publish`).
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.checksums import write_checksums
from qwen3_jax.checkpoint.publish import publishing
from qwen3_jax.checkpoint.safetensors import INDEX, SINGLE
from qwen3_jax.checkpoint.small_files import write_json, write_small_files
from qwen3_jax.checkpoint.storage import as_dtype, refuse_adapter, refuse_quantized
from qwen3_jax.model import Qwen3
from qwen3_jax.paths import as_path
from qwen3_jax.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000  # the hub's convention

Encode = Callable[[str, np.ndarray], dict[str, np.ndarray]]  # one tensor by HF's name -> the tensors that stand for it


def save(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write config.json, generation_config.json, safetensors (with an index when sharded), tokenizer and chat template.

    Host memory: one shard. In a run of several processes all must call this; the first one writes.

    Args:
        model: any placement, stacked or not.
        tokenizer: None leaves the tokenizer files out.
        path: the folder to make, local or gs://.
        dtype: storage type of the weights; None keeps the model's.
        overwrite: replace a folder that exists; without it a non-empty one is refused.
        max_shard_bytes: largest safetensors file.

    Returns:
        The folder.

    Raises:
        UserError: the target exists, or cannot be written; it is left as it was. Or the model's weights are quantised.
    """
    storage = as_dtype(model.param_dtype if dtype is None else dtype)
    return write_folder(model, tokenizer, path, storage, overwrite=overwrite, max_shard_bytes=max_shard_bytes)


def write_folder(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    path: str | os.PathLike,
    storage: jnp.dtype,
    *,
    overwrite: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    encode: Encode | None = None,
    quantization: dict[str, Any] | None = None,
) -> Path:
    """What `save` does; `encode` may put other tensors in a tensor's place, which `quantization` then describes."""
    refuse_quantized(model)
    refuse_adapter(model)
    target = as_path(path)
    shards = _plan(model, storage, max_shard_bytes)
    with publishing(target, overwrite) as work:
        writes = jax.process_index() == 0
        _write_tensors(model, storage, shards, work if writes else None, encode)
        if writes:
            write_small_files(model, tokenizer, storage, work, quantization)
            for file in work.glob("*.safetensors"):  # its library lets only the owner read them
                file.chmod((work / "config.json").stat().st_mode)
            # config.json, generation_config.json and the template are for people to edit; the rest must never change.
            write_checksums(
                work, [*work.glob("*.safetensors"), *work.glob("*.index.json"), *work.glob("tokenizer.json")]
            )
    return target


def _plan(model: Qwen3, dtype: jnp.dtype, limit: int) -> list[list[tuple[keys.Slot, int]]]:
    """Split (parameter, layer) pairs, in layer order, into files of at most `limit` bytes."""
    slots = keys.slots(nnx.state(model), model.config, model.scan_layers)
    parts = [(slot, layer) for slot in slots for layer in range(len(slot.prefixes))]
    parts.sort(key=lambda part: _layer_number(part[0].prefixes[part[1]]))
    shards: list[list[tuple[keys.Slot, int]]] = [[]]
    filled = 0
    for slot, layer in parts:
        size = int(np.prod(slot.shape)) * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((slot, layer))
        filled += size
    return shards


def _layer_number(prefix: str) -> int:
    return int(prefix.split(".")[2]) if prefix else -1


def _write_tensors(
    model: Qwen3,
    dtype: jnp.dtype,
    shards: list[list[tuple[keys.Slot, int]]],
    folder: Path | None,
    encode: Encode | None,
) -> None:
    """Write the shards and their index; with folder None only take part in gathering."""
    values = {path: variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}
    weight_map: dict[str, str] = {}
    total = 0
    for number, parts in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, np.ndarray] = {}
        for slot, layer in parts:
            for name, array in _tensors(values[slot.path], slot, layer, dtype):
                if folder is not None:
                    tensors |= {name: array} if encode is None else encode(name, array)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(array.nbytes for array in tensors.values())
        if folder is not None:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if folder is not None and len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX, index)


def _tensors(value: jax.Array, slot: keys.Slot, layer: int, dtype: jnp.dtype) -> Iterator[tuple[str, np.ndarray]]:
    if slot.stacked:
        value = value[layer]
    hf = keys.to_hf(value, slot.key).astype(dtype)
    if not hf.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        hf = process_allgather(hf, tiled=True)
    host = np.asarray(hf)
    names = slot.names(layer)
    yield from zip(names, host if slot.per_expert else [host], strict=True)
