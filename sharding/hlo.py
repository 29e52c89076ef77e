"""Compiled programs as data: the text of an optimized HLO module, parsed.

    >>> module = hlo.parse(compiled.as_text())
    >>> [i.name for i in module.entry if i.opcode == "while"]
    ['while.3']

Only what a cost model asks for is kept: shapes, operands, called computations, trip counts of loops, groups of collectives.
Source of the format: XLA's HLO printer (openxla.org/xla/operation_semantics; xla/hlo/ir/hlo_instruction.cc, replica_group.cc).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_LAYOUT_SPACE = re.compile(r"S\((\d+)\)")
_STARTS = re.compile(r"  (?:ROOT )?%?[\w.\-]+ = ")
_ENDS = re.compile(r"\}(?:, execution_thread=.*)?$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation|called_computations)="
)


@dataclass(frozen=True)
class Shape:
    """One array: data type, dimensions, and memory space (0 is HBM; TPU: 1 is VMEM, on the chip)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without the padding of tiled layouts; tokens and opaque types have none."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 4 if self.dtype.startswith("f4") else 0)
        return self.elements * bits / 8

    @property
    def hbm(self) -> float:
        """Bytes if it lives in HBM, else 0."""
        return self.bytes if self.space == 0 else 0.0


@dataclass(frozen=True)
class Instruction:
    """One operation.

    Attributes:
        name: unique in its computation.
        opcode: "fusion", "all-gather", ...
        shapes: arrays of the result; a tuple is flattened.
        operands: names of instructions of the same computation.
        argument: text between the parentheses (a constant's value, a parameter's number).
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """Return the text of `name=...` up to the next comma outside brackets, or None."""
        found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if found is None else _balanced(self.attributes, found.end())

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it refers to, in order."""
        names: list[str] = []
        for found in _CALLED.finditer(self.attributes):
            names += re.findall(r"%?([\w.\-]+)", _balanced(self.attributes, found.end()))
        return tuple(names)

    @property
    def target(self) -> str:
        """A custom call's target, or ""."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """Where in the program it comes from (JAX's name stack), or ""."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    """A named list of instructions in execution order; the last to be marked ROOT is the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def inputs(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that compute the operands."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read one."""
        return self._users.get(name, [])

    @functools.cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in set(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.argument): i for i in self if i.opcode == "parameter"}


@dataclass
class Module:
    """A parsed program.

    Attributes:
        computations: by name.
        entry: where it starts.
        partitions: devices that it runs on together (one slice's, where there are several).
    """

    computations: dict[str, Computation]
    entry: Computation
    partitions: int

    def instructions(self) -> Iterator[Instruction]:
        """All instructions of all computations."""
        for computation in self.computations.values():
            yield from computation

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """How often the body of a `while` runs, or None where that is not a constant of the program."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        return int(known[1]) if known else _Counter(self).trips(computation, loop)


def parse(text: str) -> Module:
    """Parse the text of an HLO module.

    Raises:
        ValueError: there is no entry computation: this is not HLO.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in _logical_lines(text):
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            current = computations[name] = Computation(name)
            entry = current if line.startswith("ENTRY") else entry
        elif current is not None and _STARTS.match(line):
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
            if line.startswith("  ROOT "):
                current.root = instruction
        elif _ENDS.match(line):
            current = None
    if entry is None:
        raise ValueError("this is not the text of an HLO module: there is no ENTRY computation.")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.index("\n") + 1])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with an instruction whose metadata holds line breaks (a Pallas kernel's) in one piece."""
    pending = ""
    for line in text.splitlines():
        if _ENDS.match(line) or _STARTS.match(line) or line.startswith(("%", "ENTRY", "HloModule")):
            if pending:
                yield pending
            pending = line
        else:
            pending += line
    yield pending


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _ = rest.split("(", 1)
    close = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", argument)
    shapes = tuple(_shape(*found) for found in _ARRAY.findall(shape))
    return Instruction(name.lstrip("%"), opcode, shapes, tuple(operands), argument, rest[close + 1 :].lstrip(", "))


@functools.lru_cache(maxsize=65536)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
    space = _LAYOUT_SPACE.search(layout)
    return Shape(dtype, tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d), int(space[1]) if space else 0)


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced parentheses in HLO: {text[start : start + 80]!r}")


def _balanced(text: str, start: int) -> str:
    depth = 0
    for found in re.compile(r"[(){}\[\],]").finditer(text, start):
        if found[0] in "({[":
            depth += 1
        elif found[0] in ")}]":
            depth -= 1
            if depth < 0:
                return text[start : found.start()]
        elif depth == 0:
            return text[start : found.start()]
    return text[start:]


class _Counter:
    """Reads `i < n` off a loop's condition, `i + step` off its body and the first i off its initial tuple."""

    def __init__(self, module: Module):
        self.module = module

    def trips(self, computation: Computation, loop: Instruction) -> int | None:
        condition, body = self._part(loop, "condition"), self._part(loop, "body")
        if condition is None or body is None or condition.root is None or body.root is None:
            return None
        compared = self._compare(condition, condition.root, {})
        if compared is None:
            return None
        direction, left, right = compared
        if left[0] != "element":
            direction, left, right = _MIRRORED.get(direction, ""), right, left
        if left[0] != "element":
            return None
        first, bound = self._initial(computation, loop, left[1]), right[1] if right[0] == "constant" else None
        if right[0] == "element":  # a bound that the loop carries along
            bound = self._initial(computation, loop, right[1])
            bound = None if bound is None else bound + right[2]
        step = self._step(body, left[1])
        if first is None or bound is None or not step:
            return None
        distance = bound - (first + left[2]) + (direction in ("LE", "GE")) * (1 if step > 0 else -1)
        wanted = ("LT", "LE", "NE") if step > 0 else ("GT", "GE", "NE")
        return max(math.ceil(distance / step), 0) if direction in wanted else None

    def _part(self, loop: Instruction, name: str) -> Computation | None:
        return self.module.computations.get((loop.attribute(name) or "").lstrip("%"))

    def _initial(self, computation: Computation, loop: Instruction, index: int) -> int | None:
        start = computation.instructions.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        traced = self._trace(computation, start.operands[index], {})
        return traced[1] if traced[0] == "constant" else None

    def _step(self, body: Computation, index: int) -> int | None:
        assert body.root is not None
        if body.root.opcode != "tuple":
            return None
        kind, element, offset = self._trace(body, body.root.operands[index], {})
        return offset if kind == "element" and element == index else None

    def _compare(self, computation: Computation, instruction: Instruction, bound: dict) -> tuple | None:
        if instruction.opcode == "compare":
            left, right = (self._trace(computation, name, bound) for name in instruction.operands)
            return instruction.attribute("direction"), left, right
        if instruction.opcode in ("copy", "bitcast", "convert"):
            return self._compare(computation, computation.inputs(instruction)[0], bound)
        if instruction.opcode in ("fusion", "call"):
            inner = self.module.computations[instruction.called[0]]
            values = {i: self._trace(computation, name, bound) for i, name in enumerate(instruction.operands)}
            return None if inner.root is None else self._compare(inner, inner.root, values)
        return None

    def _trace(self, computation: Computation, name: str, bound: dict) -> tuple[str, int, int]:
        """What a scalar is: ("constant", value, 0), ("element", index into the loop's tuple, offset) or ("unknown", 0, 0)."""
        unknown = ("unknown", 0, 0)
        instruction = computation.instructions.get(name)
        if instruction is None:
            return unknown
        if instruction.opcode == "constant":
            whole = re.fullmatch(r"-?\d+", instruction.argument.strip())
            return ("constant", int(whole[0]), 0) if whole else unknown
        if instruction.opcode == "parameter":
            return bound.get(int(instruction.argument), unknown)
        if instruction.opcode == "get-tuple-element":
            source = computation.instructions.get(instruction.operands[0])
            index = int(instruction.attribute("index") or 0)
            if source is not None and source.opcode == "parameter":
                return ("element", index, 0)
            if source is not None and source.opcode == "tuple":
                return self._trace(computation, source.operands[index], bound)
            return unknown
        if instruction.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
            return self._trace(computation, instruction.operands[0], bound)
        if instruction.opcode in ("add", "subtract"):
            left, right = (self._trace(computation, operand, bound) for operand in instruction.operands)
            sign = 1 if instruction.opcode == "add" else -1
            if right[0] == "constant" and left[0] != "unknown":
                kind, value, offset = left
                change = sign * right[1]
                return (kind, value + change, 0) if kind == "constant" else (kind, value, offset + change)
            if left[0] == "constant" and right[0] == "element" and sign == 1:
                return ("element", right[1], right[2] + left[1])
            return unknown
        if instruction.opcode in ("fusion", "call") and instruction.called:
            inner = self.module.computations[instruction.called[0]]
            values = {i: self._trace(computation, operand, bound) for i, operand in enumerate(instruction.operands)}
            if inner.root is not None and inner.root.opcode != "tuple":
                return self._trace(inner, inner.root.name, values)
        return unknown


_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


@functools.lru_cache(maxsize=4096)
def replica_groups(attributes: str, partitions: int) -> np.ndarray:
    """Return the device groups of a collective, int [groups, devices], as numbers of partitions.

    Four spellings: `{{0,1},{2,3}}`; `{}`, all in one; `[4,2]<=[2,4]T(1,0)`, an iota reshaped and transposed; and
    `mesh['a'=2,'b'=4], device_ids=([8]T(0)) {'b','a':(1)2}`, axes (or parts of axes, `:(before)size`) of a mesh.

    Raises:
        ValueError: another spelling.
    """
    found = re.search(
        r"replica_groups=(\{[\d,{} ]*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|mesh\[[^\]]*\][^{]*\{[^}]*\})",
        attributes,
    )
    if found is None:
        raise ValueError(f"no replica groups in {attributes[:120]!r}")
    text = found[1]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape = text[1 : text.index("]")]
        return _iota(text[text.index("<=") + 2 :]).reshape([int(n) for n in shape.split(",")])
    groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    return np.asarray(groups) if groups else np.arange(partitions)[None]


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0..7 as [2, 4], transposed and flattened."""
    dims = [int(n) for n in text[1 : text.index("]")].split(",")]
    order = re.search(r"T\(([\d,]+)\)", text)
    array = np.arange(math.prod(dims)).reshape(dims)
    return (array.transpose([int(n) for n in order[1].split(",")]) if order else array).reshape(-1)


def _mesh_groups(text: str) -> np.ndarray:
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", text[: text.index("]")])]
    ids = np.arange(math.prod(size for _, size in axes))
    given = re.search(r"device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\)", text)
    if given:
        ids = _iota(given[1]) if given[1].startswith("[") else np.asarray([int(n) for n in given[1].split(",")])
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text[text.rindex("{") :])
    # Cut every axis into the parts that are named, so that each part is a dimension of its own.
    dims: list[int] = []
    place: dict[tuple[str, int], int] = {}
    for name, size in axes:
        parts = sorted((int(before or 1), int(part or size)) for n, before, part in wanted if n == name)
        reached = 1
        for before, part in parts:
            if before > reached:
                dims.append(before // reached)
            place[name, before] = len(dims)
            dims.append(part)
            reached = before * part
        if reached < size:
            dims.append(size // reached)
    grouped = [place[name, int(before or 1)] for name, before, _ in wanted]
    rest = [d for d in range(len(dims)) if d not in grouped]
    members = math.prod(dims[d] for d in grouped)
    return ids.reshape(dims).transpose(rest + grouped).reshape(-1, members)
