"""Read a Hugging Face checkpoint, tensor by tensor, straight onto the devices that own each part.

    >>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-0.6B", dtype="bfloat16")
    >>> model, tokenizer = qwen3_jax.load("DIR", mesh=sharding.make_mesh(tensor=4))

Invariant: host memory beyond the loaded parameters never exceeds a few copies of one layer's largest parameter, and nothing
is returned unless every tensor of the checkpoint was used and every parameter filled.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.checksums import verify_checksums
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.safetensors import SafetensorsFolder
from qwen3_jax.config import GenerationConfig, Qwen3Config, read_json
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import prefers_unrolled_decoding
from qwen3_jax.model import Qwen3, abstract
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer
from sharding import SERVING, Placement

_BAR_FROM_BYTES = 1 << 30  # smaller checkpoints load before a bar could be read


def load(
    path_or_repo_id: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    scan_layers: bool | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> tuple[Qwen3, Tokenizer]:
    """Load a Qwen3 checkpoint for inference.

    Args:
        path_or_repo_id: a folder in Hugging Face's format, a repository on the hub ("Qwen/Qwen3-0.6B"), or a folder that
            `qwen3 convert --to orbax` wrote.
        dtype: storage and compute type, "float32", "bfloat16" or "float16"; None is the checkpoint's own.
        mesh: devices to spread the model over (`sharding.make_mesh`); None is one device.
        scan_layers: stack equal layers; None is what decodes fastest on this platform.
        revision: branch, tag or commit on the hub.
        verify: compare the files with `checksums.sha256` where the folder has one (`qwen3_jax.save` writes it).

    Returns:
        The model, and its tokenizer; None in the tokenizer's place when the folder has no tokenizer files.

    Raises:
        UserError: names the missing, damaged, duplicate, misshapen or unknown tensor, file or field.
        ShardingError: a dimension does not divide over the mesh.
    """
    from qwen3_jax.checkpoint.native import is_native, load_native  # imports Orbax, and this module

    folder = resolve(path_or_repo_id, revision=revision)
    options: dict[str, Any] = dict(
        dtype=dtype,
        param_dtype=dtype,
        placement=Placement(mesh, SERVING),
        scan_layers=not prefers_unrolled_decoding() if scan_layers is None else scan_layers,
        verify=verify,
    )
    tokenizer = load_tokenizer(folder)
    model = load_native(folder, **options)[0] if is_native(folder) else load_model(folder, **options)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but config field 'vocab_size' gives the embedding "
            f"{model.config.vocab_size} rows."
        )
    return model, tokenizer  # type: ignore[return-value]


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer, or None when it has no tokenizer files at all."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    return Tokenizer.from_pretrained(folder)


def load_model(
    folder: Path,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    placement: Placement = Placement(None, SERVING),  # noqa: B008 - frozen
    scan_layers: bool = True,
    verify: bool = True,
    **options: Any,
) -> Qwen3:
    """Load the model of a local folder with separate compute and storage types; `options` go to `Qwen3`."""
    config = Qwen3Config.from_hf(read_json(folder / "config.json"))
    tensors = SafetensorsFolder(folder)
    if verify:
        verify_checksums(folder)
    stored = config.dtype or next(iter(tensors.entries.values())).dtype
    compute, storage = as_dtype(dtype or stored), as_dtype(param_dtype or stored)
    make = functools.partial(
        _make, config, dtype=compute, param_dtype=storage, placement=placement, scan_layers=scan_layers, **options
    )
    graphdef, state = abstract(make)
    slots = keys.slots(state, config, scan_layers)
    _check(slots, tensors, config)

    # Largest first: the transient copies of the largest parameter then meet an empty memory.
    slots.sort(key=lambda slot: -np.prod(slot.shape))
    arrays: dict[keys.Path, jax.Array] = {}
    gigabytes = sum(np.prod(slot.shape) * len(slot.prefixes) for slot in slots) * storage.itemsize / 1e9
    visible = None if gigabytes * 1e9 > _BAR_FROM_BYTES else False
    with progress_bar(f"loading {folder.name}", gigabytes, unit="GB", visible=visible) as bar:
        for slot in slots:
            arrays[slot.path] = _load_slot(slot, tensors, placement, storage)
            bar.advance(arrays[slot.path].nbytes / 1e9)
    flat = nnx.to_flat_state(state)
    filled = [(path, variable.replace(arrays[path])) for path, variable in flat]
    model = nnx.merge(graphdef, nnx.from_flat_state(filled))
    generation = folder / "generation_config.json"
    if generation.exists():
        model.generation_config = GenerationConfig.from_hf(read_json(generation))
    return model


def as_dtype(name: Any) -> jnp.dtype:
    """Return a floating data type from its name; refuse others by name."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise UserError(f"dtype {name!r} is not supported; choose 'float32', 'bfloat16' or 'float16'.")
    return dtype


def _make(config: Qwen3Config, **options: Any) -> Qwen3:
    return Qwen3(config, rngs=nnx.Rngs(0), **options)


def _check(slots: list[Slot], tensors: SafetensorsFolder, config: Qwen3Config) -> None:
    """Every parameter has its tensors, of the right shape, and every tensor has a parameter."""
    used = set()
    for slot in slots:
        for layer, prefix in enumerate(slot.prefixes):
            fused = prefix + slot.row.fused
            if slot.row.fused and fused in tensors.entries:
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


def _check_shape(name: str, tensors: SafetensorsFolder, expected: tuple[int, ...]) -> None:
    shape = tensors.entries[name].shape
    if shape != expected:
        raise UserError(
            f"tensor {name!r} in {tensors.entries[name].file.name} has shape {list(shape)}; config.json means "
            f"{list(expected)}."
        )


def _check_tied(tensors: SafetensorsFolder) -> None:
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
                raise UserError("config.json ties 'lm_head.weight' to the embedding, but their values differ.")


def _fused_shape(slot: Slot) -> tuple[int, ...]:
    e, (rows, columns) = slot.sizes["e"], slot.hf_shape()
    return (e, rows * (1 if slot.row.fused_part is None else 2), columns)


def _load_slot(slot: Slot, tensors: SafetensorsFolder, placement: Placement, dtype: jnp.dtype) -> jax.Array:
    """Read one parameter, layer by layer, each device's part by itself."""
    name = ".".join(map(str, slot.path))
    sharding = placement.sharding(slot.axes, slot.shape, name)
    parts: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, cut in sharding.addressable_devices_indices_map(slot.shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(cut, slot.shape, strict=True))  # type: ignore[arg-type]
        parts.setdefault(bounds, []).append(device)

    buffers: dict[jax.Device, jax.Array] = {}
    for layer in range(len(slot.prefixes)):
        for bounds, devices in parts.items():
            index = {d: slice(*b) for d, b in zip(slot.row.dims, bounds, strict=True)}
            sizes = tuple((d, s.stop - s.start) for d, s in index.items())
            raw = _read(slot, layer, index, tensors)
            for device in devices:
                local = _convert(jax.device_put(raw, device), slot.row, sizes, dtype)
                if slot.stacked:
                    if layer == 0:
                        buffers[device] = jnp.zeros((len(slot.prefixes), *local.shape), dtype, device=device)
                    local = _insert(buffers[device], local, layer)
                buffers[device] = jax.block_until_ready(local)  # before the next part is read: bounds the memory
            del raw
    shape: tuple[int, ...] = slot.shape
    if slot.stacked:
        shape = (len(slot.prefixes), *shape)
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    if isinstance(sharding, SingleDeviceSharding):
        return next(iter(buffers.values()))
    return jax.make_array_from_single_device_arrays(shape, sharding, list(buffers.values()))


def _read(slot: Slot, layer: int, index: dict[str, slice], tensors: SafetensorsFolder) -> np.ndarray:
    """Read the part `index` of one layer's parameter in HF's layout, experts leading."""
    cut = keys.hf_index(slot.row, slot.sizes, index)
    with tensors.open() as reader:
        if not slot.per_expert:
            return reader.read(slot.names(layer)[0], cut)
        experts = range(index["e"].start, index["e"].stop)
        fused = slot.prefixes[layer] + slot.row.fused
        if fused in tensors.entries:
            offset = (slot.row.fused_part or 0) * slot.hf_shape()[0]
            rows = slice(cut[0].start + offset, cut[0].stop + offset)
            return reader.read(fused, (slice(experts.start, experts.stop), rows, *cut[1:]))
        names = slot.names(layer)
        first = reader.read(names[experts.start], cut)
        out = np.empty((len(experts), *first.shape), first.dtype)
        out[0] = first
        for place, expert in enumerate(experts[1:], start=1):
            out[place] = reader.read(names[expert], cut)
        return out


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _convert(raw: jax.Array, row: keys.Row, sizes: tuple[tuple[str, int], ...], dtype: jnp.dtype) -> jax.Array:
    return keys.from_hf(raw, row, dict(sizes)).astype(dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(stack: jax.Array, layer_value: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer_value, layer, 0)
