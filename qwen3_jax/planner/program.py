"""The work and collectives of a compiled program on one device, in execution order.

The compiler fixes the order of instructions and which collectives run beside them; a `Program` keeps both, with loops folded.
`planner.roofline` gives it times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

SHIFT = "collective-permute"


class Cost(NamedTuple):
    """Of one execution of a custom call: FLOPs, and HBM bytes; None counts its operands and results."""

    flops: float
    bytes: float | None = None


@dataclass(frozen=True)
class Work:
    """One instruction that computes or moves data: FLOPs and HBM bytes of one execution."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
        kind: "all-gather", ...; "send" is traffic between slices.
        bytes: what one device sends.
        groups: int [groups, devices], numbers of partitions; None between TPU slices.
        source: JAX's name stack.
        key: of an asynchronous collective, which runs until a `Wait` for this key; None: the device waits for it.
    """

    kind: str
    bytes: float
    groups: np.ndarray | None
    source: str
    key: str | None = None


@dataclass(frozen=True)
class Wait:
    """The result of the collective with this key is needed."""

    key: str


@dataclass(frozen=True)
class Loop:
    """Events that are repeated `count` times."""

    events: list[Event]
    count: float


Event: TypeAlias = "Work | Collective | Wait | Loop"


@dataclass
class Program:
    """One execution of a program on one device.

    Attributes:
        events: in order.
        unknown_loops: loops whose trip count is not a constant; their bodies are counted once.
        unpriced: instructions that may multiply and whose FLOPs are not known (kernels, calls of libraries, operations that the
            reader does not know), with how often they are executed; their FLOPs are counted as 0.
        unread: other things of the program that are not counted, with how often they are executed.
    """

    events: list[Event] = field(default_factory=list)
    unknown_loops: list[str] = field(default_factory=list)
    unpriced: dict[str, float] = field(default_factory=dict)
    unread: dict[str, float] = field(default_factory=dict)

    @property
    def work(self) -> Iterator[tuple[Work, float]]:
        """Instructions, and how often each is executed."""
        return ((event, times) for event, times in _flat(self.events, 1.0) if isinstance(event, Work))

    @property
    def collectives(self) -> Iterator[tuple[Collective, float]]:
        """Collectives, and how often each is executed."""
        return ((event, times) for event, times in _flat(self.events, 1.0) if isinstance(event, Collective))

    @property
    def flops(self) -> float:
        return sum(work.flops * times for work, times in self.work)

    @property
    def hbm_bytes(self) -> float:
        return sum(work.bytes * times for work, times in self.work)


def _flat(events: list[Event], times: float) -> Iterator[tuple[Event, float]]:
    for event in events:
        if isinstance(event, Loop):
            yield from _flat(event.events, times * event.count)
        else:
            yield event, times
