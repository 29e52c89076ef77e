"""TPU slices by name, without a TPU: libtpu describes their devices, and XLA compiles for them.

    >>> slice = planner.topology("v5p:8x8x8")
    >>> slice.chips, slice.chip.hbm_gib
    (512, 95)
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

from qwen3_jax.planner.meshes import nearest_meshes
from sharding import AXES, MeshConfig, ShardingError
from sharding.hardware import CHIPS, Chip
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
    """One or more equal slices.

    Attributes:
        name: "v5p:8x8x8".
        slices: their number.
        shape: sides of one slice, in chips.
        chip: peak rates and memory of each chip.
        devices: JAX devices of all slices; a tpu7x chip is two devices, others are one.
    """

    name: str
    slices: int
    shape: tuple[int, ...]
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def title(self) -> str:
        """ "2 x v5p:8x8x8"."""
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def topology(name: str, slices: int = 1) -> Topology:
    """Return the slice(s) of this name: "v5p:4x4x4", or Google's "v5p-128".

    Raises:
        ShardingError: libtpu is not installed, or there is no such slice; names the nearest ones.
    """
    name = _by_sides(name)
    generation, colon, sides = name.partition(":")
    if generation not in CHIPS:
        near = difflib.get_close_matches(generation.lower(), CHIPS, n=1, cutoff=0.5)
        guess = near[0] if near else "v5p"
        raise ShardingError(
            f"there is no TPU generation {generation!r} in the topology {name!r}; known are {', '.join(CHIPS)}: "
            f"try {guess}:{_OFFERED[CHIPS[guess].dimensions][3]}."
        )
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
