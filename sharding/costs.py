"""What a compiled program does on each device: arithmetic, memory traffic and collectives, loops multiplied out.

    >>> program = costs.count(hlo.parse(compiled.as_text()))
    >>> program.flops, program.hbm_bytes, sum(c.bytes * c.count for c in program.collectives)

`compiled.cost_analysis()` counts the body of a loop once, and knows no collectives. Here every instruction is taken times the
trip counts of the loops around it.

- FLOPs: two for each multiply-add of dots and convolutions (a TPU's dots are convolutions, inside fusions); of a Pallas kernel
  what the caller says, else what its cost estimate says. Element-wise arithmetic is left out.
- HBM bytes: operands and results of fusions and other top-level instructions, as far as they live in HBM (VMEM does not
  count). A slice of a stack counts as the slice; an update in place counts as the update; padding of tiles does not count.
- Of a conditional, the cheapest branch that computes anything.
- Collectives: bytes that one device sends, by the ring algorithm (see `_wire`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sharding.hlo import Computation, Instruction, Module, Shape, replica_groups

Price = Callable[[Instruction, list[Shape]], float | None]

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "domain",
    "opt-barrier", "add-dependency", "while", "conditional", "call",
}  # fmt: skip
# Custom calls that move nothing: marks for the compiler, and the ends of asynchronous collectives.
_MARKS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone", "ConcatBitcast",
    "GatherScatterIndicesBitpacked", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "X64Combine",
}  # fmt: skip
_LOOKED_THROUGH = ("bitcast", "reshape", "get-tuple-element")
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One instruction on one device: FLOPs and HBM bytes of one execution, and how often it is executed."""

    name: str
    flops: float
    bytes: float
    count: float


@dataclass(frozen=True)
class Collective:
    """One collective on one device.

    Attributes:
        kind: "all-gather", ...; "send" is traffic between slices.
        bytes: what one device sends in one execution.
        count: executions.
        groups: int [groups, devices], numbers of partitions; None between slices.
        overlapped: the compiler starts it and goes on with other work.
        source: JAX's name stack.
    """

    kind: str
    bytes: float
    count: float
    groups: np.ndarray | None
    overlapped: bool
    source: str


@dataclass
class Program:
    """Everything that one step does on one device.

    Attributes:
        work: instructions that compute or move data.
        collectives: in no order.
        unknown_loops: loops whose trip count is not a constant; their bodies are counted once.
        unpriced: Pallas kernels without a cost estimate, with how often they are executed; their FLOPs are counted as 0.
    """

    work: list[Work] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    unknown_loops: list[str] = field(default_factory=list)
    unpriced: dict[str, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        return sum(work.flops * work.count for work in self.work)

    @property
    def hbm_bytes(self) -> float:
        return sum(work.bytes * work.count for work in self.work)

    def add(self, other: Program) -> None:
        """Take over what another part of the program does."""
        self.work += other.work
        self.collectives += other.collectives
        self.unknown_loops += other.unknown_loops
        for name, count in other.unpriced.items():
            self.unpriced[name] = self.unpriced.get(name, 0) + count


def count(module: Module, price: Price | None = None) -> Program:
    """Return what the program does on each device.

    Args:
        module: the parsed program.
        price: FLOPs of one execution of a custom call, from the instruction and its operands; for kernels that carry no
            cost estimate, or a wrong one. None leaves a call to its estimate.
    """
    return _Walk(module, price or (lambda call, operands: None)).computation(module.entry, 1.0)


class _Walk:
    def __init__(self, module: Module, price: Price):
        self.module = module
        self.price = price

    def computation(self, computation: Computation, times: float) -> Program:
        out = Program()
        for i in computation:
            if i.opcode == "while":
                trips = self.module.trip_count(computation, i)
                if trips is None:
                    out.unknown_loops.append(i.source or i.name)
                body = (i.attribute("body") or "").lstrip("%")
                out.add(self.computation(self.module.computations[body], times * (1 if trips is None else trips)))
            elif i.opcode == "conditional":
                branches = [self.computation(self.module.computations[name], times) for name in i.called]
                computing = [branch for branch in branches if branch.flops]
                out.add(
                    min(computing, key=lambda b: b.flops) if computing else max(branches, key=lambda b: b.hbm_bytes)
                )
            elif i.opcode in ("call", "async-start") and i.called:
                part = self.computation(self.module.computations[i.called[0]], times)
                if i.opcode == "async-start":  # a copy, or a collective that the chip's sparse cores run
                    part.collectives = [dataclasses.replace(one, overlapped=True) for one in part.collectives]
                out.add(part)
            elif i.opcode == "send":
                self._send(i, times, out)
            elif _collective(i):
                out.collectives.append(self._collective(computation, i, times))
                out.work.append(Work(i.name, 0.0, self._moved(computation, i), times))
            elif i.opcode == "fusion":
                inner = self.module.computations[i.called[0]]
                for found in inner:
                    if _collective(found) and not _continued(inner, found):
                        out.collectives.append(self._collective(inner, found, times, i))
                out.work.append(Work(i.name, self._flops(inner, times, out), self._fusion_bytes(inner), times))
            elif i.opcode not in _FREE and not i.opcode.endswith(("-done", "-update")) and i.opcode != "recv":
                flops = self._own_flops(computation, i, times, out)
                moved = 0.0 if i.target in _MARKS else self._moved(computation, i)
                out.work.append(Work(i.name, flops, moved, times))
        return out

    # ---- arithmetic

    def _flops(self, computation: Computation, times: float, out: Program) -> float:
        total = 0.0
        for i in computation:
            if i.opcode in ("fusion", "call"):
                total += self._flops(self.module.computations[i.called[0]], times, out)
            else:
                total += self._own_flops(computation, i, times, out)
        return total

    def _own_flops(self, computation: Computation, i: Instruction, times: float, out: Program) -> float:
        if i.opcode == "dot":
            lhs = computation.inputs(i)[0].shapes[0]
            contracted = re.findall(r"\d+", i.attribute("lhs_contracting_dims") or "")
            return 2.0 * i.shapes[0].elements * float(np.prod([lhs.dims[int(d)] for d in contracted] or [1]))
        if i.opcode == "convolution":
            lhs, rhs = (source.shapes[0] for source in computation.inputs(i)[:2])
            return convolution_flops(lhs.dims, rhs.dims, i.shapes[0].dims, i.attributes.split(", metadata=")[0])
        if i.opcode == "custom-call" and i.target not in _MARKS:
            told = self.price(i, [shape for source in computation.inputs(i) for shape in source.shapes])
            if told is not None:
                return told
            guess = estimate(i)
            if guess is None and i.target != "tpu_custom_call":
                return 0.0  # the compiler's own: sorts, look-ups
            if guess is None:
                name = i.source.rsplit("/", 1)[-1] or i.target or i.name
                out.unpriced[name] = out.unpriced.get(name, 0) + times
                return 0.0
            return guess.get("flops", 0.0)
        return 0.0

    # ---- memory

    def _moved(self, computation: Computation, i: Instruction) -> float:
        """HBM bytes of one top-level instruction that is no fusion."""
        inputs = computation.inputs(i)
        base = i.opcode.removesuffix("-start")
        if base == "copy" and i.opcode != base:  # (destination, source, context)
            return i.shapes[0].hbm + i.shapes[1].hbm
        if base in ("slice", "dynamic-slice", "gather") and inputs:
            result = i.shapes[-2 if i.opcode != base else 0]
            read = result.bytes if inputs[0].shapes[0].space == 0 else 0.0
            return read + result.hbm
        if base == "dynamic-update-slice":
            update = inputs[1].shapes[0]
            return update.hbm + (update.bytes if i.shapes[0].space == 0 else 0.0)
        guess = estimate(i) if i.opcode == "custom-call" else None
        if guess and "bytes_accessed" in guess:
            told = self.price(i, [shape for source in inputs for shape in source.shapes])
            share = told / guess["flops"] if told is not None and guess.get("flops") else 1.0
            return guess["bytes_accessed"] * share
        read = sum(shape.hbm for source in inputs for shape in source.shapes)
        # An asynchronous start's result holds its operands too.
        written = sum(shape.hbm for shape in i.shapes) - (read if i.opcode != base else 0.0)
        return read + max(written, 0.0)

    def _fusion_bytes(self, inner: Computation) -> float:
        read = sum(self._read(inner, parameter) for parameter in inner.parameters.values())
        return read + (self._written(inner, inner.root) if inner.root is not None else 0.0)

    def _read(self, inner: Computation, value: Instruction) -> float:
        """HBM bytes that a fusion reads of one parameter: only slices of it, if that is all that is used."""
        whole, sliced = value.shapes[0].hbm if value.shapes else 0.0, 0.0
        if whole == 0.0:
            return 0.0
        for user in inner.users(value.name):
            first = user.operands[0] == value.name
            if user.opcode in ("dynamic-slice", "slice", "gather") and first:
                sliced += user.shapes[0].bytes
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # updated in place
            elif user.opcode == "tuple" or _collective(user) or user.target in _MARKS:
                continue  # handed on, or counted as a collective
            elif user.opcode in _LOOKED_THROUGH:
                sliced += self._read(inner, user)
            elif user.opcode == "fusion":
                nested = self.module.computations[user.called[0]]
                for number, name in enumerate(user.operands):
                    if name == value.name and number in nested.parameters:
                        sliced += self._read(nested, nested.parameters[number])
            else:
                return whole
        return min(whole, sliced)

    def _written(self, inner: Computation, value: Instruction) -> float:
        """HBM bytes that a fusion writes for (a part of) its result."""
        if value.opcode == "tuple":
            return sum(self._written(inner, source) for source in inner.inputs(value))
        if value.opcode == "parameter" or value.target in _MARKS or _collective(value):
            return 0.0
        if value.opcode == "dynamic-update-slice":
            return inner.inputs(value)[1].shapes[0].bytes if value.shapes[0].space == 0 else 0.0
        if value.opcode in _LOOKED_THROUGH and value.opcode != "get-tuple-element":
            return (
                min(self._written(inner, inner.inputs(value)[0]), value.shapes[0].bytes) if value.shapes[0].hbm else 0.0
            )
        if value.opcode == "fusion":
            nested = self.module.computations[value.called[0]]
            return self._written(nested, nested.root) if nested.root is not None else 0.0
        return sum(shape.hbm for shape in value.shapes)

    # ---- networks

    def _collective(
        self, computation: Computation, i: Instruction, times: float, fusion: Instruction | None = None
    ) -> Collective:
        kind, starts = i.opcode.removesuffix("-start"), i.opcode.endswith("-start")
        operands = [shape.bytes for source in computation.inputs(i) for shape in source.shapes]
        size = operands[0] if kind in ("ragged-all-to-all", "collective-permute") and operands else sum(operands)
        if kind == "ragged-all-to-all":
            size = min(size, i.shapes[0].bytes)  # one side is a buffer with room to spare
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", i.attribute("source_target_pairs") or "")
            groups = np.asarray([(int(a), int(b)) for a, b in pairs if a != b], int).reshape(-1, 2)
            sent = size if len(groups) else 0.0
        else:
            groups = replica_groups(i.attributes, self.module.partitions)
            if fusion is not None and kind == "all-reduce":
                result = sum(shape.bytes for shape in fusion.shapes)
                if result * groups.shape[1] <= size * 1.01:
                    kind = "reduce-scatter"  # a TPU's is a fusion of all-reduce and slice
            sent = _wire(kind, size, groups.shape[1])
        starts |= any(user.target == "AsyncCollectiveStart" for user in computation.users(i.name))
        return Collective(kind, sent, times, groups, starts, i.source)

    def _send(self, i: Instruction, times: float, out: Program) -> None:
        """Traffic between slices: XLA splits a collective into parts within a slice and transfers between hosts."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
        if kind is None:
            return
        slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', i.attributes)
        members = len(slices[1].split(",")) if slices else 2
        size = i.shapes[0].bytes
        sent = size if kind[1] == "ONE_TO_ONE" else _wire(kind[1].lower().replace("_", "-"), size, members)
        out.collectives.append(Collective("send", sent, times, None, True, i.source or kind[1]))


def _collective(i: Instruction) -> bool:
    return i.opcode.removesuffix("-start") in COLLECTIVES


def _continued(fused: Computation, i: Instruction) -> bool:
    """Whether a collective in a fusion began in an earlier one: a TPU spreads it over the fusions that run meanwhile."""
    targets = {user.target for user in fused.users(i.name)}
    if "AsyncCollectiveStart" in targets:
        return False
    return "AsyncCollectiveDone" in targets or "async_collective" in fused.name


def _wire(kind: str, size: float, members: int) -> float:
    """Bytes that each of `members` devices sends, with `size` bytes of operands each (ring algorithm)."""
    share = (members - 1) / members
    return {
        "all-gather": size * (members - 1),
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * share,
        "all-to-all": size * share,
        "ragged-all-to-all": size * share,  # at most: the operand's rows, not the padded result's
        "collective-broadcast": size,
    }[kind]


def estimate(i: Instruction) -> dict[str, float] | None:
    """A Pallas kernel's cost estimate, {"flops": ..., "bytes_accessed": ...}, or None."""
    found = re.search(r'"cost_estimate":(\{[^{}]*\})', i.attributes)
    return {name: float(value) for name, value in json.loads(found[1]).items()} if found else None


@functools.lru_cache(maxsize=65536)
def convolution_flops(lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...], attributes: str) -> float:
    """Return the FLOPs of a convolution; positions that meet only padding or dilation holes cost nothing.

    Args:
        lhs, rhs, out: dimensions of the operands and of the result.
        attributes: the instruction's, with `dim_labels=`, `window=` and group counts.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None, attributes
    spatial = sorted(c for c in labels[1] if c.isdigit())  # the window's fields are in this order
    sides = [dict(zip(text, dims, strict=True)) for text, dims in zip(labels.groups(), (lhs, rhs, out), strict=True)]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window and window[1] else {}

    def per_dimension(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    batch_groups = re.search(r"batch_group_count=(\d+)", attributes)
    positions = 1.0
    for d, stride, pad, lhs_dilate, rhs_dilate in zip(
        spatial, per_dimension("stride", "1"), per_dimension("pad", "0_0"), per_dimension("lhs_dilate", "1"),
        per_dimension("rhs_dilate", "1"), strict=True,
    ):  # fmt: skip
        o = np.arange(sides[2][d])[:, None] * int(stride)
        k = np.arange(sides[1][d])[None] * int(rhs_dilate)
        at = o + k - int(pad.split("_")[0])
        hole = int(lhs_dilate)
        positions *= int(((at >= 0) & (at % hole == 0) & (at // hole < sides[0][d])).sum())
    # The kernel's input features are those of one feature group already.
    multiply_adds = sides[1]["i"] * sides[2]["f"] * sides[0]["b"] * positions
    return 2.0 * multiply_adds / (int(batch_groups[1]) if batch_groups else 1)
