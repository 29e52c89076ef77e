"""What a collective sends on which network of a topology, and how long that takes.

A TPU slice is a torus of links (ICI); slices are joined by the data-centre network, traffic on which the compiler marks.
Nodes of GPUs have NVLink inside and network cards between them; a collective over several nodes uses both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.planner.program import SHIFT, Collective
from qwen3_jax.planner.topologies import Topology
from sharding.hardware import Chip, Gpu
from sharding.mesh import AXES

_EXCHANGES = ("all-to-all", "ragged-all-to-all")


@dataclass(frozen=True)
class Traffic:
    """One execution of a collective on one network: bytes that a device sends (on average), and seconds."""

    bytes: float
    seconds: float


class Network(Protocol):
    """The networks of a topology."""

    def axes(self, collective: Collective) -> str:
        """Names of the mesh axes along which the devices of a group differ, joined by "+"."""

    def traffic(self, collective: Collective) -> dict[int, Traffic]:
        """What one execution sends on the network within a slice or node (0) and between them (1)."""


def network_of(topology: Topology, mesh: Mesh) -> Network:
    """Return the networks of a topology that a mesh covers."""
    return Nodes(topology, mesh) if isinstance(topology.chip, Gpu) else Torus(topology, mesh)


def spanned_axes(groups: np.ndarray, sizes: tuple[int, ...]) -> str:
    """Return the mesh axes along which the devices of a group differ, joined by "+"; "none" for groups of one.

    Args:
        groups: int [groups, devices], indices into the mesh.
        sizes: of the mesh axes.
    """
    places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, devices, axes]
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return "+".join(axis for axis, spans in zip(AXES, differ, strict=True) if spans) or "none"


class Torus:
    """TPU slices. A partition's number is its index in one slice's mesh."""

    def __init__(self, topology: Topology, mesh: Mesh):
        assert isinstance(topology.chip, Chip)
        sizes = list(mesh.devices.shape)
        sizes[0] //= topology.slices
        self.sizes = tuple(sizes)
        first = mesh.devices[: sizes[0]].reshape(-1)
        sides = len(topology.shape)
        self.coords = np.asarray([(*device.coords[:sides], device.core_on_chip) for device in first])
        self.wraps = topology.chip.wraps(topology.shape)
        self.shape = topology.shape
        self.link = topology.chip.ici_link
        self.dcn = topology.chip.dcn / topology.chip.devices

    def axes(self, collective: Collective) -> str:
        return AXES[0] if collective.groups is None else spanned_axes(collective.groups, self.sizes)

    def traffic(self, collective: Collective) -> dict[int, Traffic]:
        if collective.groups is None:
            return {1: Traffic(collective.bytes, collective.bytes / self.dcn)}
        return {0: Traffic(collective.bytes, self._seconds(collective) if collective.bytes else 0.0)}

    def _seconds(self, collective: Collective) -> float:
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
        if collective.kind == SHIFT:
            return collective.bytes / self.link  # to one neighbour, one way
        seconds = collective.bytes / sum(rates)
        if collective.kind in _EXCHANGES:
            # A byte travels a quarter of the way around each ring on average; each dimension carries its share.
            n = len(members)
            seconds = max(seconds, collective.bytes * n / (n - 1) * reach / 4 / min(rates))
        return seconds


class Nodes:
    """Nodes of GPUs. A partition's number is its index in the mesh.

    A ring over k nodes with m devices in each enters and leaves a node once. With as many rings as devices, each turned by one,
    every device sends 1 / m of its bytes through its own network card and the rest to its neighbour in the node.
    """

    def __init__(self, topology: Topology, mesh: Mesh):
        assert isinstance(topology.chip, Gpu)
        self.sizes = mesh.devices.shape
        number = {device: index for index, device in enumerate(topology.devices)}
        self.node = np.asarray([number[device] // topology.shape[1] for device in mesh.devices.flat])
        self.rates = (topology.chip.link, topology.chip.nic)

    def axes(self, collective: Collective) -> str:
        assert collective.groups is not None, "one program covers all nodes"
        return spanned_axes(collective.groups, self.sizes)

    def traffic(self, collective: Collective) -> dict[int, Traffic]:
        assert collective.groups is not None
        if not collective.bytes:
            return {}
        nodes = self.node[collective.groups]  # [groups, devices]
        outside = self._share_outside(collective.kind, nodes)
        sent = (collective.bytes * (1 - outside), collective.bytes * outside)
        traffic = {i: Traffic(sent[i], sent[i] / self.rates[i]) for i in (0, 1) if sent[i]}
        if collective.kind == SHIFT:  # each device sends to one other, by one network
            traffic = {i: Traffic(one.bytes, collective.bytes / self.rates[i]) for i, one in traffic.items()}
        return traffic

    def _share_outside(self, kind: str, nodes: np.ndarray) -> float:
        """The share of a device's bytes that leaves its node, of the group that spans most nodes."""
        if kind == SHIFT:
            return float((nodes[:, 0] != nodes[:, 1]).mean())
        spans = [len(np.unique(group)) for group in nodes]
        if max(spans) == 1:
            return 0.0
        group = nodes[int(np.argmax(spans))]
        inside = len(group) / max(spans)
        if kind in _EXCHANGES:
            return (len(group) - inside) / (len(group) - 1)
        return 1 / inside
