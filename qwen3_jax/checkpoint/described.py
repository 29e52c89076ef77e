"""What `load` would place on the devices, without a checkpoint: shapes, types and shardings of parameters, quantised too."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.slot_load import pack, refuse_cut_groups, shares_scale, weight_type
from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import WeightType
from qwen3_jax.model.flat import dotted
from sharding import Placement


def described(
    state: nnx.State, config: Qwen3Config, scan_layers: bool, placement: Placement, quantize: WeightType | None = None
) -> dict[str, Any]:
    """Return `jax.ShapeDtypeStruct`s of a model's parameters by dotted name, a `qwix.QArray` of them for a quantised one.

    Args:
        state: of the model, abstract or not; gives shapes and types of what is not quantised.
        config: its architecture.
        scan_layers: whether its layers are stacked.
        placement: a mesh, and the rules of serving.
        quantize: as for `load`.

    Raises:
        ShardingError: a parameter, or the groups of int4 along it, do not divide over the mesh.
    """
    types = {path: variable.get_value().dtype for path, variable in nnx.to_flat_state(state)}
    return {
        dotted(slot.path): _described(slot, placement, types[slot.path], weight_type(slot, config, quantize))
        for slot in keys.slots(state, config, scan_layers)
    }


def _described(slot: Slot, placement: Placement, dtype: Any, kind: WeightType | None) -> Any:
    name = dotted(slot.path)
    sharding = placement.sharding(slot.axes, slot.shape, name)
    lead = (len(slot.prefixes),) if slot.stacked else ()
    assert isinstance(sharding, NamedSharding)
    spec = tuple(sharding.spec) + (None,) * (len(slot.shape) - len(sharding.spec))

    def placed(part: jax.ShapeDtypeStruct, along: tuple[bool, ...]) -> jax.ShapeDtypeStruct:
        split = PartitionSpec(*[None] * len(lead), *(None if own else s for s, own in zip(spec, along, strict=True)))
        return jax.ShapeDtypeStruct((*lead, *part.shape), part.dtype, sharding=NamedSharding(sharding.mesh, split))

    if kind is None:
        return placed(jax.ShapeDtypeStruct(slot.shape, dtype), (False,) * len(slot.shape))
    sizes = tuple(slot.sizes.items())
    experts = (slot.sizes["e"],) if slot.per_expert else ()
    raw = jax.ShapeDtypeStruct((*experts, *slot.hf_shape()), dtype)
    packed = jax.eval_shape(lambda raw: pack(raw, slot.key, sizes, kind), raw)
    parts = sharding.shard_shape(slot.shape)
    for part in jax.tree.leaves(packed):
        for (letter, size), own, count in zip(sizes, parts, part.shape, strict=True):
            if count > 1 and own % (size // count):
                raise refuse_cut_groups(name, size // count, letter, own)
    return jax.tree.map(lambda part: placed(part, shares_scale(part.shape, sizes)), packed)
