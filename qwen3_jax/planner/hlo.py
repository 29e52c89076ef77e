"""Compiled programs as data: the text of an optimized HLO module, parsed.

    >>> module = hlo.parse(compiled.as_text())
    >>> [i.name for i in module.entry if i.opcode == "while"]
    ['while.3']

Only what a cost model asks for is kept: shapes, operands, attributes, called computations. Trip counts of loops are in
`trip_counts`, device groups of collectives in `replica_groups`.
Source of the format: XLA's HLO printer (openxla.org/xla/operation_semantics; xla/hlo/ir/hlo_instruction.cc).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

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
        """Bytes without the padding of tiled layouts; 0 for tokens and opaque types."""
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
        match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if match is None else _balanced(self.attributes, match.end())

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it refers to, in order."""
        names: list[str] = []
        for match in _CALLED.finditer(self.attributes):
            names += re.findall(r"%?([\w.\-]+)", _balanced(self.attributes, match.end()))
        return tuple(names)

    @property
    def target(self) -> str:
        """A custom call's target, or ""."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def source(self) -> str:
        """Its place in the source program (JAX's name stack), or ""."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclass
class Computation:
    """A named list of instructions in execution order; `root`, the last one marked ROOT, is the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def inputs(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that compute the operands."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read the one of this name."""
        return self._users.get(name, [])

    @functools.cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in set(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.argument): i for i in self if i.opcode == "parameter"}


@dataclass
class Module:
    """A parsed program.

    Attributes:
        computations: by name.
        entry: the computation that runs first.
        partitions: devices of one execution; with several slices, those of one slice.
    """

    computations: dict[str, Computation]
    entry: Computation
    partitions: int

    def instructions(self) -> Iterator[Instruction]:
        """All instructions of all computations."""
        for computation in self.computations.values():
            yield from computation


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
    shapes = tuple(_shape(*groups) for groups in _ARRAY.findall(shape))
    return Instruction(name.lstrip("%"), opcode, shapes, tuple(operands), argument, rest[close + 1 :].lstrip(", "))


@functools.lru_cache(maxsize=65536)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
    space = _LAYOUT_SPACE.search(layout)
    return Shape(dtype, tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d), int(space[1]) if space else 0)


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.start()
    raise ValueError(f"unbalanced parentheses in HLO: {text[start : start + 80]!r}")


def _balanced(text: str, start: int) -> str:
    """Text from `start` to the next comma or closing bracket that is not inside brackets."""
    depth = 0
    for mark in re.compile(r"[(){}\[\],]").finditer(text, start):
        if mark[0] in "({[":
            depth += 1
        elif mark[0] in ")}]":
            depth -= 1
            if depth < 0:
                return text[start : mark.start()]
        elif depth == 0:
            return text[start : mark.start()]
    return text[start:]
