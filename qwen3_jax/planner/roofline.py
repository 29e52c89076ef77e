"""A lower bound on the step time of a compiled program on a TPU slice, with its assumptions.

Assumptions (`ASSUMPTIONS` states them beside the figures):
- Instructions run one by one in the order that the compiler chose; each takes the longer of its FLOPs at peak and its HBM
  bytes at full bandwidth.
- A collective that the compiler starts asynchronously runs beside them until its result is needed, one at a time on each
  network; any other one stops the chip.
- A ring has the links of every torus dimension that its devices span: both directions where the dimension closes to a
  ring, one where it does not; groups that interleave share them.
- Traffic between slices leaves every chip at its share of the host's network cards.
- No latencies, no stragglers, no time on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.planner.program import Collective, Event, Loop, Program, Wait, Work
from qwen3_jax.planner.topologies import Topology
from sharding.mesh import AXES

ASSUMPTIONS = (
    "instructions run one by one in the compiled order, each for the longer of FLOPs / peak and HBM bytes / bandwidth; "
    "asynchronous collectives run beside them until their result is needed, others stop the chip; rings use every link "
    "along their torus dimensions; no latency, no host time. A bound, not a forecast: expect less."
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
        dcn_s: traffic between slices.
        step_s: instructions and networks together, in the compiled order.
    """

    flops: float
    hbm_bytes: float
    ici_bytes: dict[str, float]
    dcn_bytes: float
    compute_s: float
    memory_s: float
    chip_s: float
    ici_s: dict[str, float]
    dcn_s: float
    step_s: float

    @property
    def waiting_s(self) -> float:
        """Time in which the chip waits for a network."""
        return self.step_s - self.chip_s

    @property
    def bound(self) -> str:
        """What takes most of the step: "compute", "HBM" (beyond compute), "ICI" or "DCN" (waiting for them)."""
        network = "DCN" if self.dcn_s > sum(self.ici_s.values()) else "ICI"
        parts = {"compute": self.compute_s, "HBM": self.chip_s - self.compute_s, network: self.waiting_s}
        return max(parts, key=lambda name: parts[name])


def bound(program: Program, topology: Topology, mesh: Mesh) -> Roofline:
    """Return the roofline of a program that was compiled for a mesh over the topology."""
    chip, devices = topology.chip, topology.chip.devices
    clock = _Clock(program, topology, mesh)
    ici_bytes: dict[str, float] = {}
    ici_s: dict[str, float] = {}
    dcn = 0.0
    for collective, times in program.collectives:
        if collective.groups is None:
            dcn += collective.bytes * times * devices
        elif collective.bytes:
            axes = clock.network.axes(collective.groups)
            ici_bytes[axes] = ici_bytes.get(axes, 0.0) + collective.bytes * times * devices
            ici_s[axes] = ici_s.get(axes, 0.0) + clock.duration(collective) * times
    return Roofline(
        flops=program.flops * devices,
        hbm_bytes=program.hbm_bytes * devices,
        ici_bytes=ici_bytes,
        dcn_bytes=dcn,
        compute_s=program.flops / clock.peak,
        memory_s=program.hbm_bytes / clock.memory,
        chip_s=sum(clock.busy(work) * times for work, times in program.work),
        ici_s=ici_s,
        dcn_s=dcn / chip.dcn,
        step_s=clock.run(program.events),
    )


class _Clock:
    """Runs a program's events in order: `now` is the chip's time, `free` the time at which each network becomes idle."""

    def __init__(self, program: Program, topology: Topology, mesh: Mesh):
        chip = topology.chip
        self.peak, self.memory = chip.flops / chip.devices, chip.hbm_bandwidth / chip.devices
        self.dcn = chip.dcn / chip.devices
        self.network = _Network(topology, mesh)
        # Shifts in opposite directions travel both ways around at once.
        self.shifts = {_pairs(c.groups) for c, _ in program.collectives if c.kind == _SHIFT and c.groups is not None}
        self.now = 0.0
        self.free = {"ICI": 0.0, "DCN": 0.0}
        self.ready: dict[str, float] = {}

    def run(self, events: list[Event]) -> float:
        """Return the time at which all events have ended."""
        self._advance(events)
        return max(self.now, *self.free.values())

    def _advance(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Work):
                self.now += self.busy(event)
            elif isinstance(event, Wait):
                self.now = max(self.now, self.ready.pop(event.key, 0.0))
            elif isinstance(event, Loop):
                self._loop(event)
            else:
                name = "DCN" if event.groups is None else "ICI"
                self.free[name] = max(self.now, self.free[name]) + self.duration(event)
                if event.key is None:
                    self.now = self.free[name]
                else:
                    self.ready[event.key] = self.free[name]

    def _loop(self, loop: Loop) -> None:
        """Simulate two iterations; further ones take as long as the second."""
        for _ in range(min(int(loop.count), 2)):
            started = self.now
            self._advance(loop.events)
        if loop.count > 2:
            rest = (self.now - started) * (loop.count - 2)
            self.now += rest
            self.free = {name: time + rest for name, time in self.free.items()}
            self.ready = {key: time + rest for key, time in self.ready.items()}

    def busy(self, work: Work) -> float:
        return max(work.flops / self.peak, work.bytes / self.memory)

    def duration(self, collective: Collective) -> float:
        if collective.groups is None:
            return collective.bytes / self.dcn
        if not collective.bytes:
            return 0.0
        both_ways = collective.kind == _SHIFT and _pairs(collective.groups[:, ::-1]) in self.shifts
        return self.network.seconds(collective) / (2 if both_ways else 1)


_SHIFT = "collective-permute"


def _pairs(groups: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(source), int(target)) for source, target in groups)


class _Network:
    """The mesh axes and links that a group of devices spans; a partition's number is its index in one slice's mesh."""

    def __init__(self, topology: Topology, mesh: Mesh):
        sizes = list(mesh.devices.shape)
        sizes[0] //= topology.slices
        self.sizes = tuple(sizes)
        first = mesh.devices[: sizes[0]].reshape(-1)
        sides = len(topology.shape)
        self.coords = np.asarray([(*device.coords[:sides], device.core_on_chip) for device in first])
        self.wraps = topology.chip.wraps(topology.shape)
        self.shape = topology.shape
        self.link = topology.chip.ici_link
        self.devices = topology.chip.devices

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
