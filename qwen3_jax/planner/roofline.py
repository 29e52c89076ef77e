"""A lower bound on the step time of a compiled program on a TPU slice or nodes of GPUs, with its assumptions.

Assumptions (`assumptions` states them beside the figures):
- Instructions run one by one in the order that the compiler chose; each takes the longer of its FLOPs at peak and its HBM
  bytes at full bandwidth.
- A collective that the compiler starts asynchronously runs beside them until its result is needed, one at a time on each
  network; any other one stops the chip.
- A ring has the links of every torus dimension that its devices span: both directions where the dimension closes to a
  ring, one where it does not; groups that interleave share them.
- Traffic between slices leaves every chip at its share of the host's network cards.
- On GPUs a ring uses all of a card's NVLinks; over several nodes the network cards of all its devices (see `networks`).
- No latencies, no stragglers, no time on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.planner.networks import Torus, Traffic, network_of
from qwen3_jax.planner.program import SHIFT, Collective, Event, Loop, Program, Wait, Work
from qwen3_jax.planner.topologies import Topology
from sharding.hardware import Gpu

_ORDER = (
    "instructions run one by one in the compiled order, each for the longer of FLOPs / peak and HBM bytes / bandwidth; "
    "asynchronous collectives run beside them until their result is needed, others stop the chip; "
)
_BOUND = "no latency, no host time. A bound, not a forecast: expect less."
_TORUS = "rings use every link along their torus dimensions; "
_NODES = (
    "products run at the card's dense bfloat16 peak, and what an L2 cache might keep counts as HBM traffic; rings use all "
    "NVLinks of a card, and over several nodes the network card of each of their devices; "
)


def assumptions(topology: Topology) -> str:
    """Return what the figures assume, in one line."""
    return _ORDER.replace("the chip", f"the {topology.unit}") + (
        (_NODES.replace("NVLinks", f"{topology.networks[0]} links") if isinstance(topology.chip, Gpu) else _TORUS)
        + _BOUND
    )


@dataclass(frozen=True)
class Roofline:
    """Figures of one execution; bytes and FLOPs are those of one chip.

    Attributes:
        flops: of dots, convolutions and kernels.
        hbm_bytes: to and from memory.
        ici_bytes: sent to other chips of the slice or node, by mesh axis ("data"; "data+tensor" for a group that spans both).
        dcn_axes: sent to other slices or nodes, by mesh axis.
        compute_s: FLOPs at peak.
        memory_s: HBM bytes at full bandwidth.
        chip_s: instructions one by one, each the longer of the two.
        ici_s: collectives within a slice or node, by mesh axis.
        dcn_s: traffic between slices or nodes.
        step_s: instructions and networks together, in the compiled order.
        networks: names of the networks within a slice or node, and between them.
    """

    flops: float
    hbm_bytes: float
    ici_bytes: dict[str, float]
    dcn_axes: dict[str, float]
    compute_s: float
    memory_s: float
    chip_s: float
    ici_s: dict[str, float]
    dcn_s: float
    step_s: float
    networks: tuple[str, str] = ("ICI", "DCN")

    @property
    def dcn_bytes(self) -> float:
        """Sent to other slices or nodes."""
        return sum(self.dcn_axes.values(), 0.0)

    @property
    def waiting_s(self) -> float:
        """Time in which the chip waits for a network."""
        return max(self.step_s - self.chip_s, 0.0)  # sums in another order may differ in the last digit

    @property
    def bound(self) -> str:
        """What takes most of the step: "compute", "HBM" (beyond compute), or the network that the chip waits for most."""
        network = self.networks[1 if self.dcn_s > sum(self.ici_s.values()) else 0]
        parts = {"compute": self.compute_s, "HBM": self.chip_s - self.compute_s, network: self.waiting_s}
        return max(parts, key=lambda name: parts[name])


def bound(program: Program, topology: Topology, mesh: Mesh) -> Roofline:
    """Return the roofline of a program that was compiled for a mesh over the topology."""
    devices = topology.chip.devices
    clock = _Clock(program, topology, mesh)
    sent: tuple[dict[str, float], dict[str, float]] = ({}, {})
    seconds: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for collective, times in program.collectives:
        for network, one in clock.traffic(collective).items():
            if one.bytes:
                axes = clock.network.axes(collective)
                sent[network][axes] = sent[network].get(axes, 0.0) + one.bytes * times * devices
                seconds[network][axes] = seconds[network].get(axes, 0.0) + one.seconds * times
    return Roofline(
        flops=program.flops * devices,
        hbm_bytes=program.hbm_bytes * devices,
        ici_bytes=sent[0],
        dcn_axes=sent[1],
        compute_s=program.flops / clock.peak,
        memory_s=program.hbm_bytes / clock.memory,
        chip_s=sum(clock.busy(work) * times for work, times in program.work),
        ici_s=seconds[0],
        dcn_s=sum(seconds[1].values()),
        step_s=clock.run(program.events),
        networks=topology.networks,
    )


class _Clock:
    """Runs a program's events in order: `now` is the chip's time, `free` the time at which each network becomes idle."""

    def __init__(self, program: Program, topology: Topology, mesh: Mesh):
        chip = topology.chip
        self.peak, self.memory = chip.flops / chip.devices, chip.hbm_bandwidth / chip.devices
        self.network = network_of(topology, mesh)
        # Shifts in opposite directions travel both ways around at once.
        self.shifts = {_pairs(c.groups) for c, _ in program.collectives if c.kind == SHIFT and c.groups is not None}
        self.now = 0.0
        self.free = {0: 0.0, 1: 0.0}  # within a slice or node, between them
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
                traffic = self.traffic(event)
                ended = max(self.now, *(self.free[network] for network in traffic)) if traffic else self.now
                ended += max((one.seconds for one in traffic.values()), default=0.0)
                self.free.update(dict.fromkeys(traffic, ended))
                if event.key is None:
                    self.now = ended
                else:
                    self.ready[event.key] = ended

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

    def traffic(self, collective: Collective) -> dict[int, Traffic]:
        """What one execution sends on each network."""
        traffic = self.network.traffic(collective)
        if collective.kind != SHIFT or collective.groups is None or not isinstance(self.network, Torus):
            return traffic
        both_ways = _pairs(collective.groups[:, ::-1]) in self.shifts
        return {i: Traffic(one.bytes, one.seconds / (2 if both_ways else 1)) for i, one in traffic.items()}


def _pairs(groups: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(source), int(target)) for source, target in groups)
