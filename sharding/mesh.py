"""The device mesh: five named axes, of which most are 1 on most machines.

| axis      | splits                                                    | traffic                         |
|-----------|-----------------------------------------------------------|---------------------------------|
| `replica` | the batch, with whole copies of the parameters            | one gradient sum a step (DCN)   |
| `data`    | the batch, and parameters and optimizer state (FSDP)      | parameter gathers, every layer  |
| `expert`  | the batch, and the experts of an MoE layer                | tokens to experts and back      |
| `context` | the sequence                                              | keys and values                 |
| `tensor`  | heads, MLP width and vocabulary                           | activations, twice a layer      |

The order is outermost first: the last axes lie on neighbouring devices, where the traffic is heaviest.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

from sharding.placement import ShardingError

AXES = ("replica", "data", "expert", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices used.

    Attributes:
        replica: whole copies of the parameters, for slices joined by a slow network.
        data: data parallel, parameters split (FSDP). -1 on any one axis means "all devices that are left".
        expert: expert parallel.
        context: sequence parallel.
        tensor: tensor parallel.
    """

    replica: int = 1
    data: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, device_count: int) -> tuple[int, ...]:
        """Return the axis sizes in the order of `AXES`, with -1 filled in.

        Raises:
            ShardingError: a size is not positive, or the product does not fit `device_count`.
        """
        sizes = list(dataclasses.astuple(self))
        for axis, size in zip(AXES, sizes, strict=True):
            if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
                raise ShardingError(f"mesh axis {axis!r} must be a positive integer, or -1 for the rest; got {size!r}.")
        if sizes.count(-1) > 1:
            raise ShardingError("only one mesh axis may be -1 (all devices that are left).")
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            if device_count % known:
                raise ShardingError(
                    f"mesh axis {AXES[sizes.index(-1)]!r} cannot be filled in: {device_count} devices do not divide "
                    f"by {known}, the product of the other axes."
                )
            sizes[sizes.index(-1)] = device_count // known
        if math.prod(sizes) > device_count:
            shape = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True) if size > 1)
            raise ShardingError(
                f"the mesh {shape} needs {math.prod(sizes)} devices; there are {device_count} "
                f"({jax.default_backend()})."
            )
        return tuple(sizes)


def make_mesh(
    *,
    replica: int = 1,
    data: int = 1,
    expert: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh with all five axes; an axis left out is 1, and -1 on one axis takes all devices that are left.

    Fewer devices than there are may be used by a single process (the first ones are taken); several processes must use
    all of them. Placement follows the hardware's topology (`jax.make_mesh`).

    Raises:
        ShardingError: the sizes do not fit the devices.
    """
    config = MeshConfig(replica, data, expert, context, tensor)
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    used = math.prod(sizes)
    if used != len(devices) and jax.process_count() > 1:
        raise ShardingError(f"the mesh uses {used} of {len(devices)} devices; with several processes it must use all.")
    # Auto: the compiler propagates shardings from parameters, inputs and the constraints of a Placement.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:used])
