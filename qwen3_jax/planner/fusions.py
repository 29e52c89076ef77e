"""HBM bytes that a fusion reads and writes.

A fusion computes its result element by element, and nothing inside of it is stored. So of a parameter it reads what the result
needs: where only a slice of it is used, the slice, also behind copies, conversions, views and nested fusions. A parameter that
is updated in place costs the update; one that becomes a result as it is costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen3_jax.planner.hlo import Computation, Instruction, Module, UnreadableProgram
from qwen3_jax.planner.operations import COLLECTIVES, ELEMENTWISE, MARKS, VIEWS

_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")

# The share of a fusion's result that is needed, 0 to 1, of one element of a tuple or (None) of all. False: the result is a
# parameter as it is, maybe with another shape.
_Result = Callable[[int | None, bool], float]
_Operand = Callable[[int], float]  # bytes that a fusion writes for a result that is its parameter of this number


def fusion_bytes(module: Module, fusion: Instruction) -> float:
    """Return the HBM bytes of one execution of a fusion, without those of collectives inside of it."""
    inner = _computation(module, fusion)
    result = _Needed(module, inner, lambda index, computed: float(computed))
    read = sum(p.shapes[0].hbm * result.share(p.name) for p in inner.parameters.values() if p.shapes)
    return read + _written(module, fusion, inner)


def _computation(module: Module, fusion: Instruction) -> Computation:
    name = fusion.called[0]
    if name not in module.computations:
        raise UnreadableProgram(f"{fusion.name} (fusion) calls the computation {name!r}, which is not there")
    return module.computations[name]


class _Needed:
    """The share of each value of a computation that its result needs."""

    def __init__(self, module: Module, computation: Computation, result: _Result):
        self.module, self.computation, self.result = module, computation, result
        self.known: dict[tuple[str, bool], float] = {}

    def share(self, name: str, computed: bool = False) -> float:
        """Return the share, 0 to 1; `computed`: something was computed between the fusion's parameter and this value."""
        if not self.known:
            # The last first, so that what users need is known: a chain may be longer than Python's stack.
            for value in reversed(self.computation.instructions.values()):
                self.known[value.name, True] = self._share(value, True)
                self.known[value.name, False] = self._share(value, False)
        return self.known[name, computed]

    def _share(self, value: Instruction, computed: bool) -> float:
        root = self.computation.root
        total = self.result(None, computed) if root is not None and root.name == value.name else 0.0
        return min(total + sum(self._by(user, value, computed) for user in self.computation.users(value.name)), 1.0)

    def _by(self, user: Instruction, value: Instruction, computed: bool) -> float:
        """The share of a value that one of its users needs."""
        first = user.operands[0] == value.name
        if user.opcode in _SLICES and first:
            return self.share(user.name, True) * user.shapes[0].elements / max(value.shapes[0].elements, 1)
        if user.opcode in _UPDATES and first:
            return 0.0 if not computed else 1.0  # in place
        if user.opcode == "tuple":
            if user is self.computation.root:
                return sum(self.result(k, computed) for k, name in enumerate(user.operands) if name == value.name)
            return self.share(user.name, computed)
        if user.opcode.removesuffix("-start") in COLLECTIVES or user.target in MARKS:
            return 0.0  # counted as a collective, or passed on
        if user.opcode in VIEWS:
            return self.share(user.name, computed)
        if user.opcode in ELEMENTWISE:
            return self.share(user.name, True) if user.shapes[0].elements == value.shapes[0].elements else 1.0
        if user.opcode == "fusion":
            nested = _computation(self.module, user)
            inside = _Needed(self.module, nested, lambda index, now: self._of_fusion(user, index, now or computed))
            numbers = [k for k, name in enumerate(user.operands) if name == value.name and k in nested.parameters]
            return sum(inside.share(nested.parameters[k].name) for k in numbers)
        return 1.0

    def _of_fusion(self, fusion: Instruction, index: int | None, computed: bool) -> float:
        """The share of a nested fusion's result that is needed."""
        if index is None:
            return self.share(fusion.name, computed)
        elements = [u for u in self.computation.users(fusion.name) if u.attribute("index") == str(index)]
        return min(sum(self.share(element.name, computed) for element in elements), 1.0)


def _written(module: Module, fusion: Instruction, inner: Computation) -> float:
    root = inner.root
    if root is None:
        return 0.0
    # Where the result lies stands at the fusion; an asynchronous one's result holds its operands too.
    parts = fusion.parts if fusion.opcode == "fusion" else root.parts
    values, sizes = [root], [sum(shape.hbm for part in parts for shape in part)]
    if root.opcode == "tuple":
        values, sizes = inner.inputs(root), [sum(shape.hbm for shape in part) for part in parts]
    if len(values) != len(sizes):
        raise UnreadableProgram(f"{fusion.name} has {len(sizes)} results, and its computation {len(values)}")
    stored = (
        _stored(module, inner, value, lambda number: 0.0) if size else 0.0
        for value, size in zip(values, sizes, strict=True)
    )
    return sum(map(min, sizes, stored))


def _stored(module: Module, inner: Computation, value: Instruction, operand: _Operand) -> float:
    """Bytes that are written for a result, in whichever memory it lies."""
    sources = inner.inputs(value)
    if value.opcode == "tuple":
        return sum(_stored(module, inner, source, operand) for source in sources)
    if value.opcode == "parameter":
        return operand(int(value.argument))
    if value.target in MARKS or value.opcode.removesuffix("-start") in COLLECTIVES:
        return 0.0
    if value.opcode in _UPDATES:
        updates = sources[1:2] if value.opcode == "dynamic-update-slice" else sources[len(sources) // 2 + 1 :]
        return sum(update.shapes[0].bytes for update in updates) + _stored(module, inner, sources[0], operand)
    if value.opcode == "get-tuple-element":
        source, index = sources[0], int(value.attribute("index") or 0)
        if source.opcode != "fusion":
            return sum(shape.bytes for shape in value.shapes)
        return _stored_by_fusion(module, inner, source, operand, index)
    if value.opcode in VIEWS:
        return _stored(module, inner, sources[0], operand)
    if value.opcode == "fusion":
        return _stored_by_fusion(module, inner, value, operand, None)
    return sum(shape.bytes for shape in value.shapes)


def _stored_by_fusion(
    module: Module, inner: Computation, fusion: Instruction, operand: _Operand, index: int | None
) -> float:
    nested = _computation(module, fusion)
    sources = inner.inputs(fusion)
    root = nested.root
    if root is None:
        return 0.0
    if index is not None and root.opcode == "tuple":
        root = nested.inputs(root)[index]
    return _stored(module, nested, root, lambda number: _stored(module, inner, sources[number], operand))
