"""What a compiled program does on each device: arithmetic, memory traffic and collectives, times the loops' trip counts.

    >>> program = costs.count(hlo.parse(compiled.as_text()))
    >>> program.flops, program.hbm_bytes, sum(c.bytes * times for c, times in program.collectives)

`compiled.cost_analysis()` counts the body of a loop once, and knows no collectives. Here every instruction is multiplied
by the trip counts of the loops around it.

- FLOPs: two for each multiply-add of dots, convolutions (a TPU's dots are convolutions, inside fusions) and library calls; of a
  kernel the caller's price, else its cost estimate. Element-wise arithmetic is left out. What may multiply and is not known is
  listed by name (`operations`).
- HBM bytes: operands and results of fusions and other top-level instructions that live in HBM (VMEM does not count). A slice
  of a stack counts as the slice; an update in place counts as the update; padding of tiles does not count.
- Of a conditional, the cheapest branch that computes anything.
- Collectives: bytes that one device sends, by the ring algorithm (see `formulas.ring_bytes`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from qwen3_jax.planner.formulas import estimate, ring_bytes
from qwen3_jax.planner.fusions import fusion_bytes
from qwen3_jax.planner.hlo import Computation, Instruction, Module, Shape, UnreadableProgram
from qwen3_jax.planner.operations import COLLECTIVES, FREE, MARKS, multiplies_nothing, product_flops, results
from qwen3_jax.planner.program import Collective, Cost, Event, Loop, Program, Wait, Work
from qwen3_jax.planner.replica_groups import replica_groups
from qwen3_jax.planner.trip_counts import decided_by_data, trip_count

Price = Callable[[Instruction, list[Shape]], Cost | None]


def count(module: Module, price: Price | None = None) -> Program:
    """Return the program's work and collectives on one device, in execution order.

    Args:
        module: the parsed program.
        price: the cost of one execution of a custom call, from the instruction and its operands; for kernels without a cost
            estimate, or with a wrong one. Where it is or returns None, the call's own estimate counts.
    """
    walk = _Walk(module, price or (lambda call, operands: None))
    program = walk.program
    program.events = walk.computation(module.entry, 1.0)
    return program


class _Walk:
    def __init__(self, module: Module, price: Price):
        self.module = module
        self.price = price
        self.program = Program()

    def computation(self, computation: Computation, times: float) -> list[Event]:
        """The events of one execution of a computation, which is executed `times` times."""
        return [event for i in computation for event in self._events(computation, i, times)]

    def _events(self, computation: Computation, i: Instruction, times: float) -> list[Event]:
        called = [self._called(i, name) for name in i.called]
        if i.opcode == "while":
            trips = trip_count(self.module, computation, i)
            if trips is None and not decided_by_data(self.module, i):
                where = i.source or i.name
                raise UnreadableProgram(f"the loop {where} has a fixed length, and its condition is not understood")
            if trips is None:
                self.program.unknown_loops.append(i.source or i.name)
            body = self._called(i, (i.attribute("body") or "").lstrip("%"))
            count = 1 if trips is None else trips
            return [Loop(self.computation(body, times * count), count)]
        if i.opcode == "conditional":
            branches = [Program(self.computation(branch, times)) for branch in called]
            computing = [branch for branch in branches if branch.flops]
            if computing:
                return min(computing, key=lambda branch: branch.flops).events
            return max(branches, key=lambda branch: branch.hbm_bytes).events
        if i.opcode == "call" or (i.opcode == "custom-call" and called):
            return self.computation(called[0], times)
        if (
            i.opcode in ("async-start", "call-start") and called
        ):  # a copy, or a collective that the chip's sparse cores run
            inner = self.computation(called[0], times)
            return [dataclasses.replace(e, key=i.name) if isinstance(e, Collective) else e for e in inner]
        if i.opcode == "send":
            return self._send(i, times)
        if i.opcode == "recv-done":
            return [Wait(_rendezvous(computation.inputs(i)[0]))]
        if i.opcode.endswith("-done"):
            return [Wait(self._start_of(computation, i))]
        if _is_collective(i):
            moved = Work(i.name, 0.0, self._moved(computation, i))
            return [self._collective(computation, i), moved]
        if i.opcode in ("fusion", "fusion-start"):
            return self._fusion(i, called[0], times)
        if i.opcode in FREE or i.opcode.endswith("-update") or i.target in MARKS:
            return []
        return [Work(i.name, self._own_flops(computation, i, times), self._moved(computation, i))]

    def _called(self, i: Instruction, name: str) -> Computation:
        if name not in self.module.computations:
            raise UnreadableProgram(f"{i.name} ({i.opcode}) calls the computation {name!r}, which is not there")
        return self.module.computations[name]

    def _note(self, what: str, times: float) -> None:
        """List something that is not counted."""
        self.program.unread[what] = self.program.unread.get(what, 0) + times

    def _fusion(self, i: Instruction, inner: Computation, times: float) -> list[Event]:
        events: list[Event] = []
        moved = fusion_bytes(self.module, i)
        for collective in inner:
            if not _is_collective(collective):
                continue
            users = inner.users(collective.name)
            targets = {user.target for user in users}
            key = f"{collective.opcode} {collective.attribute('channel_id')}"
            if "AsyncCollectiveDone" in targets:
                events.append(Wait(key))
            elif "AsyncCollectiveStart" in targets or "async_collective" not in inner.name:
                started = self._collective(inner, collective, i)
                events.append(dataclasses.replace(started, key=key) if "AsyncCollectiveStart" in targets else started)
                # Read, and written where it is a result as it is and not one of what follows in the fusion.
                moved += sum(shape.hbm for source in inner.inputs(collective) for shape in source.shapes)
                if inner.root is collective or any(u.opcode == "tuple" or u.target in MARKS for u in users):
                    moved += sum(shape.hbm for shape in results(collective))
            # else: it was started in an earlier fusion
        return [*events, Work(i.name, self._flops(inner, times), moved)]

    def _start_of(self, computation: Computation, done: Instruction) -> str:
        """The name of the instruction that started what this one ends."""
        start = computation.inputs(done)[0]
        return computation.inputs(start)[0].name if start.opcode.endswith("-update") else start.name

    # ---- arithmetic

    def _flops(self, computation: Computation, times: float) -> float:
        total = 0.0
        for i in computation:
            if i.opcode in ("fusion", "call"):
                total += self._flops(self.module.computations[i.called[0]], times)
            else:
                total += self._own_flops(computation, i, times)
        return total

    def _own_flops(self, computation: Computation, i: Instruction, times: float) -> float:
        if multiplies_nothing(i):
            return 0.0
        operands = _operands(computation, i)
        flops = product_flops(i, operands)
        if flops is not None:
            return flops
        if i.opcode.startswith("custom-call"):
            cost = self.price(i, operands)
            if cost is not None:
                return cost.flops
            estimated = estimate(i)
            if estimated is not None:
                return estimated.get("flops", 0.0)
        name = i.kernel or i.source.rsplit("/", 1)[-1] or i.target or i.opcode
        self.program.unpriced[name] = self.program.unpriced.get(name, 0) + times
        return 0.0

    # ---- memory

    def _moved(self, computation: Computation, i: Instruction) -> float:
        """HBM bytes of one top-level instruction other than a fusion."""
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
        if base == "scatter":
            updates = inputs[len(inputs) // 2 + 1 :]
            return sum(x.shapes[0].hbm + (x.shapes[0].bytes if i.shapes[0].space == 0 else 0.0) for x in updates)
        if i.opcode == "custom-call":
            cost = self.price(i, _operands(computation, i))
            if cost is not None and cost.bytes is not None:
                return cost.bytes
            estimated = estimate(i)
            if estimated and "bytes_accessed" in estimated:
                share = cost.flops / estimated["flops"] if cost is not None and estimated.get("flops") else 1.0
                return estimated["bytes_accessed"] * share
        read = sum(shape.hbm for source in inputs for shape in source.shapes)
        # An asynchronous start's result holds its operands too, except that of an all-reduce.
        held = read if i.opcode != base and len(i.shapes) > len(_operands(computation, i)) else 0.0
        return read + max(sum(shape.hbm for shape in results(i)) - held, 0.0)

    # ---- networks

    def _collective(self, computation: Computation, i: Instruction, fusion: Instruction | None = None) -> Collective:
        kind = i.opcode.removesuffix("-start")
        operands = [shape.bytes for source in computation.inputs(i) for shape in source.shapes]
        size = operands[0] if kind in ("ragged-all-to-all", "collective-permute") and operands else sum(operands)
        if kind in ("all-reduce", "reduce-scatter"):
            size *= _width_of_sums(computation, i)
        if kind == "ragged-all-to-all":
            size = min(size, i.shapes[0].bytes)  # one side is a padded buffer
        if kind == "collective-permute":
            targets = i.attribute("source_target_pairs")
            if targets is None:
                raise UnreadableProgram(f"{i.name} has no source_target_pairs")
            pairs = re.findall(r"\{(\d+),(\d+)\}", targets)
            groups = np.asarray([(int(a), int(b)) for a, b in pairs if a != b], int).reshape(-1, 2)
            sent = size if len(groups) else 0.0
        else:
            groups = replica_groups(i.attributes, self.module.partitions)
            if fusion is not None and kind == "all-reduce":
                result = sum(shape.bytes for shape in fusion.shapes)
                if result * groups.shape[1] <= size * 1.01:
                    kind = "reduce-scatter"  # a TPU's is a fusion of all-reduce and slice
            sent = ring_bytes(kind, size, groups.shape[1])
        return Collective(kind, sent, groups, i.source, i.name if i.opcode.endswith("-start") else None)

    def _send(self, i: Instruction, times: float) -> list[Event]:
        """Traffic between slices: XLA splits a collective into parts within a slice and transfers between hosts."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
        if kind is None:
            self._note(f"a transfer whose other end is not known ({i.source or i.name})", times)
            return []
        slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', i.attributes)
        members = len(slices[1].split(",")) if slices else 2
        size = i.shapes[0].bytes
        sent = size if kind[1] == "ONE_TO_ONE" else ring_bytes(kind[1].lower().replace("_", "-"), size, members)
        return [Collective("send", sent, None, i.source or kind[1], _rendezvous(i))]


def _rendezvous(i: Instruction) -> str:
    rendezvous = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.attributes)
    return rendezvous[1] if rendezvous else i.name


def _is_collective(i: Instruction) -> bool:
    return i.opcode.removesuffix("-start") in COLLECTIVES


def _width_of_sums(computation: Computation, i: Instruction) -> float:
    """How much wider the result's type is than the operands': partial sums travel in the type in which they are added."""
    operands = [shape for shape in _operands(computation, i) if shape.elements]
    widest = max((shape.bytes / shape.elements for shape in operands), default=0.0)
    summed = max((shape.bytes / shape.elements for shape in i.shapes if shape.elements and shape.bytes), default=widest)
    return max(summed / widest, 1.0) if widest else 1.0


def _operands(computation: Computation, i: Instruction) -> list[Shape]:
    return [shape for source in computation.inputs(i) for shape in source.shapes]
