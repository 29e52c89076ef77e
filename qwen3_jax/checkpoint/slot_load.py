"""Read one parameter, layer by layer, onto the devices that own its parts; quantised on the way if requested.

Invariant: beyond the finished parts, memory holds a few copies of one layer's parameter. A scale is that of the whole
channel on any mesh: a device whose part is cut along a summed axis takes its numbers out of the quantised whole.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.source import TensorSource
from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import WeightType, quantize_weight
from qwen3_jax.kernels.quantized import GROUP
from sharding import Placement, ShardingError

_PIECE = 1 << 22  # numbers that are packed at a time
Bounds = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def weight_type(slot: Slot, config: Qwen3Config, quantize: WeightType | None) -> WeightType | None:
    """Return how a parameter is stored when the model is loaded with `quantize`.

    Attention projections, dense MLPs and experts are stored as asked. The output projection (the embedding, where it is
    tied) is int8 in any case: a decode step reads all of it, but it is the most sensitive matrix, which int4 and e4m3 (3
    binary digits) would hurt most. An untied embedding is only looked up; it, the router, norms and biases stay.
    """
    if quantize is None or not slot.key.summed or slot.key.ours == "mlp.router":
        return None
    if slot.key in keys.MODEL_KEYS:
        return "int8" if slot.key.ours == ("embed" if config.tie_word_embeddings else "lm_head") else None
    return quantize


def load_slot(
    slot: Slot, tensors: TensorSource, placement: Placement, dtype: jnp.dtype, kind: WeightType | None = None
) -> Any:
    """Return one parameter, each device's part read by itself: an array of `dtype`, or a `qwix.QArray` of this kind.

    Raises:
        ShardingError: a dimension, or the groups of int4 along it, do not divide over the mesh.
    """
    name = ".".join(map(str, slot.path))
    sharding = placement.sharding(slot.axes, slot.shape, name)
    parts: dict[Bounds, list[jax.Device]] = {}
    for device, cut in sharding.addressable_devices_indices_map(slot.shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(cut, slot.shape, strict=True))  # type: ignore[arg-type]
        parts.setdefault(bounds, []).append(device)
    summed = tuple(slot.key.dims.index(letter) for letter in slot.key.summed) if kind else ()
    reads: dict[Bounds, list[Bounds]] = {}  # what is read -> the parts that are cut out of it
    for bounds in parts:
        whole = tuple((0, slot.shape[i]) if i in summed else pair for i, pair in enumerate(bounds))
        reads.setdefault(whole, []).append(bounds)

    buffers: dict[jax.Device, Any] = {}
    shared: Any = (False,) * len(slot.shape)  # of a quantised weight, one such tuple for each of its arrays
    for layer in range(len(slot.prefixes)):
        for whole, wanted in reads.items():
            index = {d: slice(*b) for d, b in zip(slot.key.dims, whole, strict=True)}
            sizes = tuple((d, s.stop - s.start) for d, s in index.items())
            raw = _read(slot, layer, index, tensors)
            if kind:
                quantized = pack(jax.device_put(raw, parts[wanted[0]][0]), slot.key, sizes, kind)
                shared = jax.tree.map(lambda part, n=sizes: shares_scale(part.shape, n), quantized)
            for bounds in wanted:
                if kind:
                    inside = [
                        (low - start, high - start) for (low, high), (start, _) in zip(bounds, whole, strict=True)
                    ]
                    cut = jax.tree.map(lambda part, at=inside, n=sizes: _cut(part, at, n, name), quantized)
                for device in parts[bounds]:
                    local = (
                        jax.device_put(cut, device)
                        if kind
                        else _convert(jax.device_put(raw, device), slot.key, sizes, dtype)
                    )
                    if slot.stacked:
                        if layer == 0:
                            buffers[device] = _empty_stack(local, len(slot.prefixes), device)
                        local = _insert(buffers[device], local, layer)
                    buffers[device] = jax.block_until_ready(local)  # before the next part is read: bounds the memory
            del raw
    if not isinstance(sharding, NamedSharding):
        return next(iter(buffers.values()))
    lead = (len(slot.prefixes),) if slot.stacked else ()
    return _assemble(list(buffers.values()), shared, sharding, slot.shape, lead)


def _cut(part: jax.Array, inside: list[tuple[int, int]], sizes: tuple[tuple[str, int], ...], name: str) -> jax.Array:
    """Cut a part of a weight, or of its scale, which has one number for `tile` of the weight's along each axis."""
    slices = []
    for (low, high), (letter, size), count in zip(inside, sizes, part.shape, strict=True):
        tile = size // count
        if count == 1:
            slices.append(slice(0, 1))
        elif low % tile or high % tile:
            raise refuse_cut_groups(name, tile, letter, high - low)
        else:
            slices.append(slice(low // tile, high // tile))
    return part[tuple(slices)]


def shares_scale(shape: tuple[int, ...], sizes: tuple[tuple[str, int], ...]) -> tuple[bool, ...]:
    """Along which axes of a quantised weight (`sizes`) one number of an array of this shape stands for the whole axis."""
    return tuple(count == 1 < size for count, (_, size) in zip(shape, sizes, strict=True))


def refuse_cut_groups(name: str, group: int, letter: str, part: int) -> ShardingError:
    """Return the error for int4 groups that a mesh would cut into parts of this size."""
    return ShardingError(
        f"{name}: its int4 groups of {group} along {letter!r} do not divide over the mesh, which cuts it into parts of {part}; "
        "use a smaller tensor axis, or quantize='int8'."
    )


def _empty_stack(like: Any, layers: int, device: jax.Device) -> Any:
    return jax.tree.map(lambda part: jnp.zeros((layers, *part.shape), part.dtype, device=device), like)


def _assemble(
    buffers: list[Any], shared: Any, sharding: NamedSharding, shape: tuple[int, ...], lead: tuple[int, ...]
) -> Any:
    """Make one global array of the devices' parts; of a quantised weight, one of its numbers and one of its scales.

    `shared` says along which axes one number stands for the whole axis, however that is split.
    """
    spec = tuple(sharding.spec) + (None,) * (len(shape) - len(sharding.spec))
    parts = [n // part for n, part in zip(shape, sharding.shard_shape(shape), strict=True)]

    def one(along: tuple[bool, ...], *locals_: jax.Array) -> jax.Array:
        sizes = locals_[0].shape[len(lead) :]
        total = [n if own else n * count for n, count, own in zip(sizes, parts, along, strict=True)]
        placed = PartitionSpec(*[None] * len(lead), *(None if own else s for s, own in zip(spec, along, strict=True)))
        placement = NamedSharding(sharding.mesh, placed)
        return jax.make_array_from_single_device_arrays((*lead, *total), placement, list(locals_))

    return jax.tree.map(one, shared, *buffers, is_leaf=lambda node: isinstance(node, tuple))


def _read(slot: Slot, layer: int, index: dict[str, slice], tensors: TensorSource) -> np.ndarray:
    """Read the part `index` of one layer's parameter in HF's layout, experts leading."""
    cut = keys.hf_index(slot.key, slot.sizes, index)
    with tensors.open() as reader:
        if not slot.per_expert:
            return reader.read(slot.names(layer)[0], cut)
        experts = range(index["e"].start, index["e"].stop)
        fused = slot.prefixes[layer] + slot.key.fused
        if fused in tensors.entries:
            offset = (slot.key.fused_part or 0) * slot.hf_shape()[0]
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
def _convert(raw: jax.Array, key: keys.ParameterKey, sizes: tuple[tuple[str, int], ...], dtype: jnp.dtype) -> jax.Array:
    return keys.from_hf(raw, key, dict(sizes)).astype(dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def pack(raw: jax.Array, key: keys.ParameterKey, sizes: tuple[tuple[str, int], ...], kind: WeightType) -> Any:
    """Quantise a weight (or a part of it, whole along the axes that are summed) in HF's layout, some rows at a time.

    All at once XLA keeps a float32 copy, two to four times what is read.
    """
    ours = dict(sizes)
    *lead, size = raw.shape
    group = math.gcd(GROUP, ours[key.summed[-1]])  # a group never holds inputs of two heads
    rows = math.prod(lead)
    piece = next(n for n in range(max(1, min(rows, _PIECE // size)), 0, -1) if rows % n == 0)
    # As integers: XLA:CPU would convert all of a bf16 array to slice it.
    bits = jax.lax.bitcast_convert_type(raw, f"uint{8 * raw.dtype.itemsize}").reshape(-1, piece, size)
    packed = jax.lax.map(lambda w: quantize_weight(jax.lax.bitcast_convert_type(w, raw.dtype), kind, (1,), group), bits)
    count = packed.scale.shape[-1]
    scales = ours | dict.fromkeys(key.summed, 1)
    if kind == "int4":
        scales = ours | {key.summed[-1]: ours[key.summed[-1]] // group}
    return packed.replace(
        qvalue=keys.from_hf(packed.qvalue.reshape(raw.shape), key, ours),
        scale=keys.from_hf(packed.scale.reshape(*lead, count), key, scales),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _insert(stack: Any, layer_value: Any, layer: int) -> Any:
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, layer, 0), stack, layer_value
    )
