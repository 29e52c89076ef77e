"""Compiled programs as data: the text of an optimized HLO module, parsed.

    >>> module = hlo.parse(compiled.as_text())
    >>> [i.name for i in module.entry if i.opcode == "while"]
    ['while.3']

Only what a cost model asks for is kept: shapes, operands, attributes, called computations. What is not understood is an error.
Trip counts of loops are in `trip_counts`, device groups of collectives in `replica_groups`.
Source of the format: XLA's HLO printer (openxla.org/xla/operation_semantics; xla/hlo/ir/hlo_instruction.cc).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen3_jax.errors import UserError

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "s1": 1, "u1": 1,
    "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_LAYOUT_SPACE = re.compile(r"S\((\d+)\)")
_STARTS = re.compile(r"  (?:ROOT )?%?[\w.\-]+ = ")
_COMPUTATION = re.compile(r"(?:ENTRY )?%.*\{$")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# Tables between the module's first line and its first computation: where instructions stand in the source program.
_TABLE = re.compile(r"(?:FileNames|FunctionNames|FileLocations|StackFrames)$|\d+ ")
_ENDS = re.compile(r"\}(?:, execution_thread=.*)?$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation|called_computations)="
)


class UnreadableProgram(UserError):
    """A compiled program holds something that this reader does not know; a figure that leaves it out would be wrong."""

    def __init__(self, what: str):
        super().__init__(
            f"the compiled program cannot be read: {what}. This is a limit of the planner; please report it."
        )


@dataclass(frozen=True)
class Shape:
    """One array: data type, dimensions, and memory space (0 is HBM; TPU: 1 is VMEM, on the chip; 5 is the host's)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without the padding of tiled layouts; 0 for tokens and opaque types."""
        return self.elements * (_bits(self.dtype) or 0) / 8

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
        parts: the same, by element of a tuple; of an array one part.
        operands: names of instructions of the same computation.
        argument: text between the parentheses (a constant's value, a parameter's number).
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    parts: tuple[tuple[Shape, ...], ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(shape for part in self.parts for shape in part)

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
    def kernel(self) -> str:
        """The name of the Triton kernel that a custom call runs, or ""."""
        match = re.search(r'\bname = "([^"]*)"', self.attributes)
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
        return [self.instructions[name] for name in instruction.operands]

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


def parse(text: str, hbm_spaces: tuple[int, ...] = (0,)) -> Module:
    """Parse the text of an HLO module.

    Args:
        text: as `Compiled.as_text()` or XLA's dump gives it.
        hbm_spaces: numbers of the memory spaces that are HBM; they become 0.

    Raises:
        UnreadableProgram: there is no entry computation: this is not HLO; or there is a line, a type or a reference that is not
            understood.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in _logical_lines(text):
        if _COMPUTATION.match(line):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            current = computations[name] = Computation(name)
            entry = current if line.startswith("ENTRY") else entry
        elif _ENDS.match(line):
            current = None
        elif current is None:
            raise UnreadableProgram(f"{line[:120]!r} stands outside of a computation")
        else:
            instruction = _instruction(line, hbm_spaces)
            _add(current, instruction)
            if line.startswith("  ROOT "):
                current.root = instruction
    if entry is None:
        raise UnreadableProgram("this is not the text of an HLO module: there is no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.index("\n") + 1])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _add(computation: Computation, instruction: Instruction) -> None:
    """Add an instruction, and those that it names in short: `%tuple#3` is element 3 of the result of `%tuple`."""
    for operand in instruction.operands:
        if operand in computation.instructions:
            continue
        source, *path = operand.split("#")
        whole = computation.instructions.get(source)
        if whole is None or len(path) != 1 or int(path[0]) >= len(whole.parts):
            raise UnreadableProgram(f"{instruction.name} of {computation.name} reads {operand!r}, which is not there")
        index = int(path[0])
        part = tuple((shape,) for shape in whole.parts[index])
        computation.instructions[operand] = Instruction(
            operand, "get-tuple-element", part, (source,), f"%{source}", f"index={index}"
        )
    computation.instructions[instruction.name] = instruction


def _logical_lines(text: str) -> Iterator[str]:
    """Computations and instructions, one a line: some (a large constant, a Pallas kernel's metadata) stand on several."""
    pending, in_table = "", True
    for line in text.split("\n"):
        if pending:
            pending += line
        elif _COMPUTATION.match(line) or _ENDS.match(line):
            in_table = False
            yield line
            continue
        elif _STARTS.match(line):
            pending = line
        elif line.strip() and not line.startswith("HloModule") and not (in_table and _TABLE.match(line)):
            raise UnreadableProgram(f"the line {line[:120]!r} is no instruction")
        if pending and not _is_open(pending):
            yield pending
            pending = ""
    if pending:
        raise UnreadableProgram(f"the text ends within {pending[:120]!r}")


def _is_open(line: str) -> bool:
    """Whether a bracket or string of an instruction is not closed yet."""
    if line.count("{") == line.count("}") and line.count("(") == line.count(")") and line.count('"') % 2 == 0:
        return False
    code = _STRING.sub("", line)
    return '"' in code or code.count("{") != code.count("}") or code.count("(") != code.count(")")


def _instruction(line: str, hbm_spaces: tuple[int, ...]) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _ = rest.split("(", 1)
    close = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : close]
    operands: list[str] = []
    if opcode not in ("constant", "parameter"):
        operands = re.findall(r"%([\w.\-]+(?:#\d+)*)", argument)
        if argument.strip() and not operands and opcode != "iota":
            raise UnreadableProgram(f"the operands of {line[:120]!r} have no names")
    parts = _parts(shape, hbm_spaces)
    return Instruction(name.lstrip("%"), opcode, parts, tuple(operands), argument, rest[close + 1 :].lstrip(", "))


@functools.lru_cache(maxsize=65536)
def _parts(text: str, hbm_spaces: tuple[int, ...]) -> tuple[tuple[Shape, ...], ...]:
    """The arrays of a type: of a tuple by element, each with its own tuples flattened."""
    text = _COMMENT.sub("", text)
    rest = _ARRAY.sub("", text).strip("() ,").replace("(", "").replace(")", "").replace(",", "").strip()
    if rest:
        raise UnreadableProgram(f"{rest[:60]!r} in the type {text[:120]!r} is not known")
    if not text.startswith("("):
        elements = [text]
    else:
        elements, start = [], 1
        while start < len(text) - 1:
            element = _balanced(text, start)
            elements.append(element)
            start += len(element) + 1
    return tuple(
        tuple(_shape(*groups, hbm_spaces) for groups in _ARRAY.findall(element))  # type: ignore[call-arg]
        for element in elements
    )


def _shape(dtype: str, dims: str, layout: str, hbm_spaces: tuple[int, ...]) -> Shape:
    if _bits(dtype) is None:
        raise UnreadableProgram(f"the data type {dtype!r} is not known")
    found = _LAYOUT_SPACE.search(layout)
    space = int(found[1]) if found else 0
    return Shape(dtype, tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d), 0 if space in hbm_spaces else space)


def _bits(dtype: str) -> int | None:
    """Bits of one element; None where the type is not known."""
    small = 8 if dtype.startswith("f8") else 6 if dtype.startswith("f6") else 4 if dtype.startswith("f4") else None
    return _BITS.get(dtype, small)


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
