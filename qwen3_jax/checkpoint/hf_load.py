"""Read a Hugging Face folder or GGUF file, tensor by tensor, straight onto the devices that own each part.

The quantised forms that are read are listed in `checkpoint.formats.opening`.

Invariant: host memory beyond the loaded parameters never exceeds a few copies of one layer's largest parameter, and nothing
is returned unless every tensor of the checkpoint was used and every parameter filled.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.checksums import verify_checksums
from qwen3_jax.checkpoint.formats.opening import HEAD, SCORE, Checkpoint, open_checkpoint
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.slot_load import load_slot, weight_type
from qwen3_jax.checkpoint.source import TensorSource
from qwen3_jax.checkpoint.storage import as_dtype
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError, warn
from qwen3_jax.kernels import ONE_DEVICE, Execution, WeightType, check_weight_type
from qwen3_jax.model import EmbeddingModel, Qwen3, RewardModel, abstract
from qwen3_jax.progress import progress_bar

_BAR_FROM_BYTES = 1 << 30  # smaller checkpoints load before a bar could be read


def load_model(
    folder: Path,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    execution: Execution = ONE_DEVICE,
    scan_layers: bool = True,
    quantize: WeightType | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    verify: bool = True,
    **options: Any,
) -> Qwen3:
    """Load the model of a local folder or GGUF file with separate compute and storage types; `options` go to `Qwen3`.

    Of an adapter's folder, the base model with the adapter added to its weights.
    """
    check_weight_type(quantize)
    checkpoint = open_checkpoint(folder)
    config, tensors = checkpoint.config, checkpoint.tensors
    if hf_overrides:
        config = Qwen3Config.from_hf(config.to_hf() | dict(hf_overrides))
    if verify and folder.is_dir():
        verify_checksums(folder)
    stored = config.dtype or next(iter(tensors.entries.values())).dtype
    compute, storage = as_dtype(dtype or stored), as_dtype(param_dtype or stored)
    make = functools.partial(
        _make,
        _class(checkpoint, config),
        config,
        dtype=compute,
        param_dtype=storage,
        execution=execution,
        scan_layers=scan_layers,
        **options,
    )
    graphdef, state = abstract(make)
    slots = keys.slots(state, config, scan_layers)
    _check(slots, tensors, config)

    # Largest first: the transient copies of the largest parameter then meet an empty memory.
    slots.sort(key=lambda slot: -np.prod(slot.shape))
    arrays: dict[keys.Path, Any] = {}
    gigabytes = sum(np.prod(slot.shape) * len(slot.prefixes) for slot in slots) * storage.itemsize / 1e9
    visible = None if gigabytes * 1e9 > _BAR_FROM_BYTES else False
    with progress_bar(f"loading {folder.name}", gigabytes, unit="GB", visible=visible) as bar:
        for slot in slots:
            packed = weight_type(slot, config, quantize)
            arrays[slot.path] = load_slot(slot, tensors, execution.placement, storage, packed)
            bar.advance(float(np.prod(slot.shape)) * len(slot.prefixes) * storage.itemsize / 1e9)
    flat = nnx.to_flat_state(state)
    filled = [(path, variable.replace(arrays[path])) for path, variable in flat]
    model = nnx.merge(graphdef, nnx.from_flat_state(filled))
    if checkpoint.generation is not None:
        model.generation_config = checkpoint.generation
    model.embedding_config = checkpoint.embedding
    return model


def _class(checkpoint: Checkpoint, config: Qwen3Config) -> type[Qwen3]:
    """The class of the model that a checkpoint holds: one with an output projection, or with the head that its files show."""
    tensors = checkpoint.tensors
    if SCORE in tensors.entries:
        return RewardModel
    if HEAD in tensors.entries or (config.tie_word_embeddings and checkpoint.embedding is None):
        return Qwen3
    if checkpoint.embedding is None:
        warn(
            f"{tensors.folder} has no {HEAD!r}, and config.json does not tie it to the embedding: an embedding model, which "
            "cannot generate. If the embedding is the head, set tie_word_embeddings to true; else the folder may be incomplete."
        )
    return EmbeddingModel


def _make(kind: type[Qwen3], config: Qwen3Config, **options: Any) -> Qwen3:
    return kind(config, rngs=nnx.Rngs(0), **options)


def _check(slots: list[Slot], tensors: TensorSource, config: Qwen3Config) -> None:
    """Every parameter has its tensors, of the right shape, and every tensor has a parameter."""
    inserted = next((name for name in tensors.entries if ".lora_A." in name or ".base_layer." in name), None)
    if inserted is not None:
        raise UserError(
            f"{tensors.folder} was saved with a PEFT adapter in its layers ({inserted!r}); merge it first, "
            "`model.merge_and_unload().save_pretrained(FOLDER)`, and load FOLDER."
        )
    if SCORE in tensors.entries and tensors.entries[SCORE].shape[0] != 1:
        raise UserError(
            f"{tensors.folder} is a classifier of {tensors.entries[SCORE].shape[0]} labels; a reward model has one "
            "(num_labels=1)."
        )
    used = set()
    for slot in slots:
        for layer, prefix in enumerate(slot.prefixes):
            fused = prefix + slot.key.fused
            if slot.key.fused and fused in tensors.entries:
                used.add(fused)
                _check_shape(fused, tensors, _fused_shape(slot))
                continue
            for name in slot.names(layer):
                if name not in tensors.entries:
                    raise UserError(f"tensor {name!r} is missing from {tensors.folder}.")
                used.add(name)
                _check_shape(name, tensors, slot.hf_shape())
    unknown = sorted(set(tensors.entries) - used)
    if config.tie_word_embeddings and unknown == ["lm_head.weight"]:
        _check_tied(tensors)  # the hub's small checkpoints store the tied matrix twice
    elif unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"tensor {unknown[0]!r}{more} in {tensors.entries[unknown[0]].file.name} is no parameter of the model that "
            "config.json describes."
        )


def _check_shape(name: str, tensors: TensorSource, expected: tuple[int, ...]) -> None:
    shape = tensors.entries[name].shape
    if shape != expected:
        raise UserError(
            f"tensor {name!r} in {tensors.entries[name].file.name} has shape {list(shape)}; config.json means "
            f"{list(expected)}."
        )


def _check_tied(tensors: TensorSource) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    rows, columns = tensors.entries[names[0]].shape
    if tensors.entries[names[1]].shape != (rows, columns):
        raise UserError("config.json ties 'lm_head.weight' to the embedding, but their shapes differ.")
    step = max(1, (1 << 26) // columns)
    with tensors.open() as reader:
        for start in range(0, rows, step):
            index = (slice(start, min(start + step, rows)), slice(0, columns))
            left, right = (reader.read(name, index) for name in names)
            if not np.array_equal(left, right):
                raise UserError(
                    "config.json ties 'lm_head.weight' to the embedding, but their values differ; set tie_word_embeddings to "
                    "false if the model has a head of its own."
                )


def _fused_shape(slot: Slot) -> tuple[int, ...]:
    e, (rows, columns) = slot.sizes["e"], slot.hf_shape()
    return (e, rows * (1 if slot.key.fused_part is None else 2), columns)
