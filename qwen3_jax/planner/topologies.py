"""TPU slices and nodes of GPUs by name, without any: libtpu or a file describes their devices, and XLA compiles for them.

    >>> slice = planner.topology("v5p:8x8x8")
    >>> slice.chips, slice.chip.hbm_gib
    (512, 95)
    >>> planner.topology("h100:8x4").chips      # four nodes of eight; see `gpu_nodes`
    32
    >>> mesh = planner.topology_mesh(slice, MeshConfig(data=64, tensor=8))
    >>> jax.jit(f).lower(ShapeDtypeStructs with shardings on mesh).compile()      # nothing runs

A name is a generation and the sides of the slice in chips, or Google's name of an accelerator type (v5p-128), which counts
TensorCores for v4, v5p and tpu7x and chips for v5e (v5litepod) and v6e. Several slices are joined by the data-centre network.
"""

import contextlib
import difflib
import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

from qwen3_jax.planner import gpu_nodes
from qwen3_jax.planner.meshes import nearest_meshes
from sharding import AXES, MeshConfig, ShardingError
from sharding.hardware import CHIPS, GPUS, Chip, Gpu
from sharding.mesh import arrange, describe

# Slices that Google Cloud's TPU pages list, to suggest from; libtpu describes others too (v5p:4x4x12).
_OFFERED = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: (
        "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    ),
}  # fmt: skip

# Google's names of accelerator types, "v5p-128": what stands for the generation, and where the number is that of TensorCores.
_ACCELERATOR_TYPES = {"v5litepod": "v5e", "v5lite": "v5e"}
_COUNTED_IN_CORES = ("v4", "v5p", "tpu7x")


@dataclass(frozen=True)
class Topology:
    """One or more equal slices, or nodes of GPUs.

    Attributes:
        name: "v5p:8x8x8", "h100:8x4".
        slices: their number; 1 for GPUs.
        shape: sides of one slice, in chips; of GPUs (nodes, cards per node).
        chip: peak rates and memory of each chip or card.
        devices: JAX devices of all slices; a tpu7x chip is two devices, others are one.
        memory_share: the part of a chip's memory that programs get: all of a TPU's, the allocator's share of a GPU's.
    """

    name: str
    slices: int
    shape: tuple[int, ...]
    chip: Chip | Gpu
    devices: tuple[jax.Device, ...]
    memory_share: float = 1.0

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def title(self) -> str:
        """ "2 x v5p:8x8x8"."""
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def capacity_gib(self) -> float:
        """Memory of one chip that programs get, GiB."""
        return self.chip.hbm_gib if self.memory_share == 1 else self.chip.hbm_gib * self.memory_share

    @property
    def nodes(self) -> int:
        """Slices, or nodes of GPUs: parts between which the network is slow."""
        return self.shape[0] if isinstance(self.chip, Gpu) else self.slices

    @property
    def unit(self) -> str:
        """What one chip is called."""
        return "GPU" if isinstance(self.chip, Gpu) else "chip"

    @property
    def networks(self) -> tuple[str, str]:
        """Names of the networks within a slice or node, and between them."""
        return (self.chip.link_name, "network") if isinstance(self.chip, Gpu) else ("ICI", "DCN")

    @property
    def replicas(self) -> tuple[int, ...]:
        """Numbers of whole copies of the weights that are of use: one per slice; of GPUs one in all, or one per node."""
        return (1, self.nodes) if isinstance(self.chip, Gpu) else (self.slices,)


def topology(name: str, slices: int = 1) -> Topology:
    """Return the slice(s) of this name, "v5p:4x4x4" or Google's "v5p-128", or nodes of GPUs, "h100:8" or "h100:8x4".

    Raises:
        ShardingError: the compiler (libtpu, or jax's CUDA plug-in) is not installed, or there is no such slice or node; names
            the nearest ones.
        UserError: the environment's share of a GPU's memory is none.
    """
    if gpu_nodes.is_gpu(name):
        return _of_gpus(name, slices)
    name = _by_sides(name)
    generation, colon, sides = name.partition(":")
    if generation not in CHIPS:
        raise ShardingError(_unknown(name, generation))
    chip = CHIPS[generation]
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise ShardingError(f"the topology {name!r} is not GENERATION:SIDES; {_nearest(chip, 1)}.")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != chip.dimensions:
        raise ShardingError(
            f"the topology {name!r} has {len(shape)} sides; a {generation} slice has {chip.dimensions}: "
            f"{_nearest(chip, math.prod(shape))}."
        )
    if slices < 1:
        raise ShardingError(f"the number of slices is {slices}; it must be 1 or more.")
    return Topology(name, slices, shape, chip, _devices(name, slices))


def _of_gpus(name: str, slices: int) -> Topology:
    gpu, nodes, per_node = gpu_nodes.parse(name)
    if slices != 1:
        raise ShardingError(
            f"{slices} slices of {name!r}: slices are of TPUs; nodes of GPUs stand in the name, {gpu.name}:{per_node}x{slices}."
        )
    share = gpu_nodes.allocator_share()
    name = f"{gpu.name}:{per_node}" + (f"x{nodes}" if nodes > 1 else "")
    return Topology(name, 1, (nodes, per_node), gpu, gpu_nodes.devices(gpu.name, nodes, per_node), share)


def _unknown(name: str, generation: str) -> str:
    known = f"known are {', '.join(CHIPS)}, and of GPUs {', '.join(GPUS)}"
    card = gpu_nodes.nearest_card(name)
    near = difflib.get_close_matches(generation.lower(), CHIPS, n=1, cutoff=0.5)
    if card is not None and not near:
        return f"there is no GPU {generation!r} in the topology {name!r}; {known}: try {card}:{GPUS[card].node}."
    guess = near[0] if near else "v5p"
    return (
        f"there is no TPU generation {generation!r} in the topology {name!r}; {known}: "
        f"try {guess}:{_OFFERED[CHIPS[guess].dimensions][3]}."
    )


def _by_sides(name: str) -> str:
    """Return GENERATION:SIDES for Google's name of an accelerator type, other names unchanged.

    Raises:
        ShardingError: there is no slice of this size.
    """
    match = re.fullmatch(r"([a-z0-9]+)-([1-9]\d*)", name)
    generation = "" if match is None else _ACCELERATOR_TYPES.get(match[1], match[1])
    if match is None or generation not in CHIPS:
        return name
    chip, count = CHIPS[generation], int(match[2])
    cores = 2 if generation in _COUNTED_IN_CORES else 1
    for sides in _OFFERED[chip.dimensions]:
        if _chips(sides) * cores == count:
            return f"{generation}:{sides}"
    unit = f"{count} TensorCores, which are {count / cores:g} chips" if cores == 2 else f"{count} chips"
    raise ShardingError(f"there is no slice {name!r} of {unit}: {_nearest(chip, count / cores)}.")


@functools.cache
def _devices(name: str, slices: int) -> tuple[jax.Device, ...]:
    from jax.experimental import topologies

    chip = CHIPS[name.partition(":")[0]]
    options: dict = {} if slices == 1 else {"num_slices": slices}
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu before 0.0.45 assumes a host of four chips
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores as one device, as on Cloud TPU
    try:
        with _quiet_libtpu():
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # the type differs between versions of JAX
        text = str(error)
        if "TPU support not installed" in text or ("libtpu" in text and "INVALID" not in text):
            raise ShardingError(
                f"describing {name} needs libtpu, which is not installed or cannot be loaded: pip install 'jax[tpu]' "
                f"({' '.join(str(error).split())[:200]})."
            ) from None
        sides = name.partition(":")[2]
        raise ShardingError(
            f"there is no slice {name!r}: {_nearest(chip, math.prod(map(int, sides.split('x'))))} "
            f"(libtpu says: {' '.join(str(error).split())[:200]})."
        ) from None
    return tuple(described.devices)


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[None]:
    """Set what libtpu reads while it loads: no wait for a cloud's metadata server, no lock against other processes."""
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any; silences a warning
    }
    added = [key for key in settings if key not in os.environ]
    os.environ.update({key: settings[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def _nearest(chip: Chip, chips: float) -> str:
    """Name the offered slices with the nearest numbers of chips."""
    offered = sorted(_OFFERED[chip.dimensions], key=lambda sides: abs(math.log(_chips(sides) / chips)))
    return "the nearest are " + ", ".join(f"{chip.name}:{sides} ({_chips(sides)} chips)" for sides in offered[:3])


def _chips(sides: str) -> int:
    return math.prod(map(int, sides.split("x")))


def topology_mesh(topology: Topology, config: MeshConfig) -> Mesh:
    """Return a mesh over all devices of the slice(s), in an order that follows the torus; axes are of type Auto.

    Raises:
        ShardingError: the axes do not use all devices, or `replica` does not divide into the slices; names meshes that fit.
    """
    count = len(topology.devices)
    try:
        sizes = config.sizes(count, topology.title)
        if math.prod(sizes) != count:
            raise ShardingError(
                f"the mesh {describe(sizes)} has {math.prod(sizes)} places; {topology.title} has {count} devices and all are "
                "used."
            )
        return Mesh(arrange(sizes, topology.devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    except ShardingError as error:
        near = nearest_meshes(config, count, lambda sizes: sizes[0] % topology.slices == 0)
        raise ShardingError(f"{error} {near}") from None
