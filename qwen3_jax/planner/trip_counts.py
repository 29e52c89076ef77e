"""How often the body of a `while` runs, read off the program's text, or whether only the data decides it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from qwen3_jax.planner.hlo import Computation, Instruction, Module

_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the body of `loop`, a `while` of `computation`, runs; None where the program fixes no number."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(stated[1]) if stated else _Counter(module).trips(computation, loop)


def decided_by_data(module: Module, loop: Instruction) -> bool:
    """Return whether the length of `loop` depends on the program's arguments, random numbers or the device.

    Where it does not, the program fixes a number, which a reader that does not find it must not replace by another.
    """
    return _Origins(module).any_data(loop.attribute("condition") or "")


class _Scalar(NamedTuple):
    """Origin of a scalar: "constant" of this value, "element" of the loop's tuple (its index) plus an offset, or "unknown"."""

    kind: str = "unknown"
    value: int = 0
    offset: int = 0


_UNKNOWN = _Scalar()
_Arguments = dict[int, _Scalar]  # of a called computation, by parameter number


class _Counter:
    """Reads `i < n` off a loop's condition, `i + step` off its body and the first i off its initial tuple."""

    def __init__(self, module: Module):
        self.module = module

    def trips(self, computation: Computation, loop: Instruction) -> int | None:
        condition, body = self._part(loop, "condition"), self._part(loop, "body")
        if condition is None or body is None or condition.root is None or body.root is None:
            return None
        comparison = self._compare(condition, condition.root, {})
        if comparison is None:
            return None
        direction, left, right = comparison
        if left.kind != "element":
            direction, left, right = _MIRRORED.get(direction, ""), right, left
        if left.kind != "element":
            return None
        first, bound = self._initial(computation, loop, left.value), right.value if right.kind == "constant" else None
        if right.kind == "element":  # a bound that the loop carries along
            bound = self._initial(computation, loop, right.value)
            bound = None if bound is None else bound + right.offset
        step = self._step(body, left.value)
        if first is None or bound is None or not step:
            return None
        distance = bound - (first + left.offset) + (direction in ("LE", "GE")) * (1 if step > 0 else -1)
        expected = ("LT", "LE", "NE") if step > 0 else ("GT", "GE", "NE")
        return max(math.ceil(distance / step), 0) if direction in expected else None

    def _part(self, loop: Instruction, name: str) -> Computation | None:
        return self.module.computations.get((loop.attribute(name) or "").lstrip("%"))

    def _initial(self, computation: Computation, loop: Instruction, index: int) -> int | None:
        start = computation.instructions.get(loop.operands[0])
        while start is not None and start.opcode in ("opt-barrier", "copy"):
            start = computation.instructions.get(start.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        scalar = self._trace(computation, start.operands[index], {})
        return scalar.value if scalar.kind == "constant" else None

    def _step(self, body: Computation, index: int) -> int | None:
        assert body.root is not None
        if body.root.opcode != "tuple":
            return None
        scalar = self._trace(body, body.root.operands[index], {})
        return scalar.offset if scalar.kind == "element" and scalar.value == index else None

    def _compare(
        self, computation: Computation, instruction: Instruction, arguments: _Arguments
    ) -> tuple[str, _Scalar, _Scalar] | None:
        """Direction and both sides of the comparison that an instruction is, or None."""
        if instruction.opcode == "compare":
            left, right = (self._trace(computation, name, arguments) for name in instruction.operands)
            return instruction.attribute("direction") or "", left, right
        if instruction.opcode in ("copy", "bitcast", "convert"):
            return self._compare(computation, computation.inputs(instruction)[0], arguments)
        if instruction.opcode in ("fusion", "call"):
            inner = self.module.computations[instruction.called[0]]
            values = {i: self._trace(computation, name, arguments) for i, name in enumerate(instruction.operands)}
            return None if inner.root is None else self._compare(inner, inner.root, values)
        return None

    def _trace(self, computation: Computation, name: str, arguments: _Arguments) -> _Scalar:
        """The origin of a scalar."""
        instruction = computation.instructions.get(name)
        if instruction is None:
            return _UNKNOWN
        if instruction.opcode == "constant":
            integer = re.fullmatch(r"-?\d+", instruction.argument.strip())
            return _Scalar("constant", int(integer[0])) if integer else _UNKNOWN
        if instruction.opcode == "parameter":
            return arguments.get(int(instruction.argument), _UNKNOWN)
        if instruction.opcode == "get-tuple-element":
            source = computation.instructions.get(instruction.operands[0])
            index = int(instruction.attribute("index") or 0)
            if source is not None and source.opcode == "parameter":
                return _Scalar("element", index)
            if source is not None and source.opcode == "tuple":
                return self._trace(computation, source.operands[index], arguments)
            return _UNKNOWN
        if instruction.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
            return self._trace(computation, instruction.operands[0], arguments)
        if instruction.opcode in ("add", "subtract"):
            left, right = (self._trace(computation, operand, arguments) for operand in instruction.operands)
            return _sum(left, right, 1 if instruction.opcode == "add" else -1)
        if instruction.opcode in ("fusion", "call") and instruction.called:
            inner = self.module.computations[instruction.called[0]]
            values = {i: self._trace(computation, operand, arguments) for i, operand in enumerate(instruction.operands)}
            if inner.root is not None and inner.root.opcode != "tuple":
                return self._trace(inner, inner.root.name, values)
        return _UNKNOWN


def _sum(left: _Scalar, right: _Scalar, sign: int) -> _Scalar:
    """left + sign * right, where one of them is a constant."""
    if right.kind == "constant" and left.kind != "unknown":
        change = sign * right.value
        if left.kind == "constant":
            return _Scalar("constant", left.value + change)
        return left._replace(offset=left.offset + change)
    if left.kind == "constant" and right.kind == "element" and sign == 1:
        return right._replace(offset=right.offset + left.value)
    return _UNKNOWN


_KNOWN_AT_RUN_TIME = {
    "infeed", "recv", "rng", "rng-bit-generator", "rng-get-and-update-state", "partition-id", "replica-id",
}  # fmt: skip


class _Origins:
    """Follows values back through a program, to constants or to what is known only when it runs."""

    def __init__(self, module: Module):
        self.module = module
        self.callers: dict[str, list[tuple[Computation, Instruction]]] = {}
        for computation in module.computations.values():
            for instruction in computation:
                for name in instruction.called:
                    self.callers.setdefault(name, []).append((computation, instruction))

    def any_data(self, condition: str) -> bool:
        """Whether the result of a loop's condition depends on more than constants."""
        called = self.module.computations.get(condition.lstrip("%"))
        if called is None or called.root is None:
            return False
        seen: set[tuple[str, str, int | None]] = set()
        rest: list[tuple[Computation, str, int | None]] = [(called, called.root.name, None)]
        while rest:
            inside, name, element = rest.pop()
            if (inside.name, name, element) in seen:
                continue
            seen.add((inside.name, name, element))
            instruction = inside.instructions[name]
            if instruction.opcode in _KNOWN_AT_RUN_TIME or (
                instruction.opcode == "parameter" and not self._calls(inside)
            ):
                return True
            rest += self._sources(inside, instruction, element)
        return False

    def _calls(self, computation: Computation) -> list[tuple[Computation, Instruction]]:
        return [] if computation is self.module.entry else self.callers.get(computation.name, [])

    def _sources(
        self, inside: Computation, i: Instruction, element: int | None
    ) -> list[tuple[Computation, str, int | None]]:
        """The values that one (of a tuple maybe one element) is computed from."""
        if i.opcode == "parameter":
            return [
                source
                for call in self._calls(inside)
                for source in self._passed(inside, *call, int(i.argument), element)
            ]
        if i.opcode == "get-tuple-element":
            return [(inside, i.operands[0], int(i.attribute("index") or 0))]
        if i.opcode == "tuple" and element is not None:
            return [(inside, i.operands[element], None)]
        if i.opcode in ("copy", "opt-barrier"):
            return [(inside, i.operands[0], element)]
        called = [self.module.computations[name] for name in i.called if name in self.module.computations]
        results = [(inner, inner.root.name, element) for inner in called if inner.root is not None]
        if i.opcode in ("fusion", "call"):
            return results
        if i.opcode == "while":
            return [*results, (inside, i.operands[0], element)]
        return [*results, *((inside, name, None) for name in i.operands)]

    def _passed(
        self, inner: Computation, inside: Computation, call: Instruction, number: int, element: int | None
    ) -> list[tuple[Computation, str, int | None]]:
        """What a call passes as the parameter of this number."""
        if call.opcode == "while":
            body = self.module.computations.get((call.attribute("body") or "").lstrip("%"))
            again = [] if body is None or body.root is None else [(body, body.root.name, element)]
            return [(inside, call.operands[0], element), *again]
        if call.opcode == "conditional":
            return [(inside, call.operands[call.called.index(inner.name) + 1], element)]
        if call.opcode in ("fusion", "call"):
            return [(inside, call.operands[number], element)]
        return [(inside, name, None) for name in call.operands]
