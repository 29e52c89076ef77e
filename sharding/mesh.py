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
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sharding.rules import ShardingError

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

    def sizes(self, device_count: int, devices: str | None = None) -> tuple[int, ...]:
        """Return the axis sizes in the order of `AXES`, with -1 filled in; `devices` names them in errors.

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
            others = math.prod(size for size in sizes if size != -1)
            if device_count % others:
                raise ShardingError(
                    f"mesh axis {AXES[sizes.index(-1)]!r} cannot be filled in: {device_count} devices do not divide "
                    f"by {others}, the product of the other axes."
                )
            sizes[sizes.index(-1)] = device_count // others
        if math.prod(sizes) > device_count:
            raise ShardingError(
                f"the mesh {describe(sizes)} needs {math.prod(sizes)} devices; there are {device_count} "
                f"({devices or jax.default_backend()})."
            )
        return tuple(sizes)


def describe(sizes: Sequence[int]) -> str:
    """Return "data=2, tensor=4": the axes that are not 1."""
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True) if size != 1) or "of one device"


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
    all of them. Placement follows the hardware's topology; TPU slices are joined along `replica` (see `arrange`).

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
    return Mesh(arrange(sizes, devices[:used]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Return the devices as an array with these axis sizes, in an order that keeps the devices of each axis close.

    On a TPU torus an axis gets whole physical dimensions if possible, else part of one. Several TPU slices are laid along
    `replica`, the outermost axis, whose traffic is one gradient sum a step, the only one to cross the data-centre network.

    Raises:
        ShardingError: `replica` is not a multiple of the number of slices.
    """
    slices = {getattr(device, "slice_index", 0) or 0 for device in devices}
    if devices[0].platform != "tpu" or len(slices) == 1:
        return _within_slice(sizes, devices)
    if sizes[0] % len(slices):
        raise ShardingError(
            f"the {len(devices)} devices are in {len(slices)} slices, joined by the data-centre network, which only the "
            f"replica axis may cross: it is {sizes[0]} and must be a multiple of {len(slices)}."
        )
    inner = (sizes[0] // len(slices), *sizes[1:])
    parts = [[device for device in devices if device.slice_index == index] for index in sorted(slices)]
    return np.concatenate([_within_slice(inner, part) for part in parts])


def _within_slice(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(tuple(sizes), devices)
    except NotImplementedError:  # no assignment of whole dimensions of the torus to axes
        return mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
