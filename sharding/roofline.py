"""How fast a compiled program could run on a TPU slice: a bound, with its assumptions.

Assumptions (`ASSUMPTIONS` states them beside the figures):
- An instruction takes the longer of its FLOPs at peak and its HBM bytes at full bandwidth; instructions run one by one.
- A collective that the compiler starts asynchronously hides behind them completely; any other one stops the chip.
- A ring has the links of every torus dimension that its devices span: both directions where the dimension closes to a
  ring, one where it does not; groups that interleave share them.
- Traffic between slices leaves every chip at its share of the host's network cards.
- No latencies, no stragglers, nothing on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from sharding.costs import Collective, Program
from sharding.mesh import AXES
from sharding.topology import Topology

ASSUMPTIONS = (
    "Roofline: every instruction takes the longer of FLOPs / peak and HBM bytes / bandwidth, one after the other; "
    "asynchronous collectives hide behind them completely, others stop the chip; rings use every link along their torus "
    "dimensions; no latency, no host time. A bound, not a forecast: expect less."
)


@dataclass(frozen=True)
class Roofline:
    """Figures of one execution; bytes and FLOPs are those of one chip.

    Attributes:
        flops: of dots, convolutions and kernels.
        hbm_bytes: to and from memory.
        ici_bytes: sent to other chips of the slice, by mesh axis ("data", or "data+tensor" for a group that spans both).
        dcn_bytes: sent to other slices.
        compute_s: FLOPs at peak.
        memory_s: HBM bytes at full bandwidth.
        chip_s: instructions one by one, each the longer of the two.
        ici_s: collectives by mesh axis.
        exposed_s: the part of `ici_s` that is not asynchronous.
        dcn_s: traffic between slices.
    """

    flops: float
    hbm_bytes: float
    ici_bytes: dict[str, float]
    dcn_bytes: float
    compute_s: float
    memory_s: float
    chip_s: float
    ici_s: dict[str, float]
    exposed_s: float
    dcn_s: float

    @property
    def step_s(self) -> float:
        """The bound: chip and exposed collectives, or a network that is busy for longer."""
        return max(self.chip_s + self.exposed_s, sum(self.ici_s.values()), self.dcn_s)

    @property
    def serial_s(self) -> float:
        """If nothing overlapped."""
        return self.chip_s + sum(self.ici_s.values()) + self.dcn_s

    @property
    def bound(self) -> str:
        """What the step waits for most: "compute", "HBM", "ICI" or "DCN"."""
        if self.dcn_s >= self.step_s:
            return "DCN"
        if sum(self.ici_s.values()) >= self.step_s or self.exposed_s > self.chip_s:
            return "ICI"
        return "compute" if self.compute_s >= self.chip_s / 2 else "HBM"


def bound(program: Program, where: Topology, mesh: Mesh) -> Roofline:
    """Return the roofline of a program that was compiled for a mesh over the topology."""
    chip, devices = where.chip, where.chip.devices
    peak, memory = chip.flops / devices, chip.hbm_bandwidth / devices
    ici_bytes: dict[str, float] = {}
    ici_s: dict[str, float] = {}
    exposed, dcn = 0.0, 0.0
    network = _Network(where, mesh)
    shifts = {_pairs(c.groups) for c in program.collectives if c.kind == "collective-permute" and c.groups is not None}
    for collective in program.collectives:
        sent = collective.bytes * collective.count
        if collective.groups is None:
            dcn += sent * devices
            continue
        if not sent:
            continue
        axes = network.axes(collective.groups)
        seconds = network.seconds(collective) * collective.count
        if collective.kind == "collective-permute" and _pairs(collective.groups[:, ::-1]) in shifts:
            seconds /= 2  # halves travel both ways around at once
        ici_bytes[axes] = ici_bytes.get(axes, 0.0) + sent * devices
        ici_s[axes] = ici_s.get(axes, 0.0) + seconds
        exposed += 0.0 if collective.overlapped else seconds
    return Roofline(
        flops=program.flops * devices,
        hbm_bytes=program.hbm_bytes * devices,
        ici_bytes=ici_bytes,
        dcn_bytes=dcn,
        compute_s=program.flops / peak,
        memory_s=program.hbm_bytes / memory,
        chip_s=sum(max(work.flops / peak, work.bytes / memory) * work.count for work in program.work),
        ici_s=ici_s,
        exposed_s=exposed,
        dcn_s=dcn / chip.dcn,
    )


def _pairs(groups: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(source), int(target)) for source, target in groups)


class _Network:
    """Which axes and which links a group of devices spans. Numbers of partitions are places in one slice's mesh."""

    def __init__(self, where: Topology, mesh: Mesh):
        sizes = list(mesh.devices.shape)
        sizes[0] //= where.slices
        self.sizes = tuple(sizes)
        first = mesh.devices[: sizes[0]].reshape(-1)
        sides = len(where.shape)
        self.coords = np.asarray([(*device.coords[:sides], device.core_on_chip) for device in first])
        self.wraps = where.chip.wraps(where.shape)
        self.shape = where.shape
        self.link = where.chip.ici_link
        self.devices = where.chip.devices

    def axes(self, groups: np.ndarray) -> str:
        """Names of the mesh axes along which the devices of a group differ, joined by "+"."""
        places = np.stack(np.unravel_index(groups, self.sizes), axis=-1)  # [groups, devices, axes]
        differ = (places != places[:, :1]).any(axis=(0, 1))
        return "+".join(axis for axis, spans in zip(AXES, differ, strict=True) if spans) or "none"

    def seconds(self, collective: Collective) -> float:
        """Time of one execution on the links of the torus."""
        assert collective.groups is not None
        members = self.coords[collective.groups[0]]
        rates, reach = [], 1.0
        for d, side in enumerate(self.shape):
            places = np.unique(members[:, d])
            if len(places) == 1:
                continue
            whole = len(places) == side
            stride = float(places[-1] - places[0]) / (len(places) - 1)
            ring = self.wraps[d] and (whole or math.isclose(stride * len(places), side))
            rates.append((2 if ring else 1) * self.link / stride)
            reach = max(reach, len(places))
        if not rates:  # the two devices of one chip: faster than any link
            return 0.0
        if collective.kind == "collective-permute":
            return collective.bytes / self.link  # to one neighbour, one way
        seconds = collective.bytes / sum(rates)
        if collective.kind in ("all-to-all", "ragged-all-to-all"):
            # A byte travels a quarter of the way around each ring on average; each dimension carries its share.
            n = len(members)
            seconds = max(seconds, collective.bytes * n / (n - 1) * reach / 4 / min(rates))
        return seconds
