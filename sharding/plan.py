"""Compile a program for TPUs that are not here, and report what it would take.

    plan = sharding.plan.compile_for(jax.jit(step).lower(*abstract_arguments), where, mesh)
    plan.memory.peak, plan.roofline.step_s

Bytes and FLOPs are those of one chip: where a chip is two JAX devices (tpu7x), twice a device's.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sharding import costs, hlo, roofline
from sharding.program import Program
from sharding.roofline import Roofline
from sharding.topology import Topology

_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """HBM of one chip in bytes, by the compiler's own account.

    Attributes:
        arguments: what the program is given: weights, optimizer state, batch, cache.
        results: what it returns that does not take the place of an argument.
        temporary: activations, gradients, communication buffers, with the gaps between them.
        code: the program.
    """

    arguments: float
    results: float
    temporary: float
    code: float

    @property
    def peak(self) -> float:
        return self.arguments + self.results + self.temporary + self.code


@dataclass(frozen=True)
class Compiled:
    """A program for a slice.

    Attributes:
        seconds: time that lowering and compiling took here.
        memory: None where the program does not fit.
        needed: HBM bytes of one chip that the compiler asked for, as far as it says so, fitting or not.
        roofline: None where it does not fit.
        text: the optimized HLO, or "".
        program: costs by instruction, or None.
        refused: the compiler's reason where it does not fit.
    """

    seconds: float
    memory: Memory | None
    needed: float | None
    roofline: Roofline | None
    text: str
    program: Program | None
    refused: str | None = None

    @functools.cached_property
    def module(self) -> hlo.Module:
        """The parsed program."""
        return hlo.parse(self.text)


def compile_for(
    lowered: jax.stages.Lowered,
    where: Topology,
    mesh: Mesh,
    price: costs.Price | None = None,
) -> Compiled:
    """Compile a lowered program and measure it.

    Args:
        lowered: `jax.jit(...).lower(...)` of abstract arguments with shardings on `mesh`.
        where: the slice(s) that the mesh covers.
        mesh: from `topology_mesh`.
        price: see `costs.count`.

    Raises:
        Whatever the compiler raises, except that memory does not suffice: that is a result.
    """
    started = time.perf_counter()
    try:
        compiled, text = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())
        needed = _asked_for(reason)
        return Compiled(
            time.perf_counter() - started,
            None,
            None if needed is None else needed * where.chip.devices,
            None,
            "",
            None,
            reason,
        )
    seconds = time.perf_counter() - started
    memory = _memory(compiled.memory_analysis(), where.chip.devices)
    module = hlo.parse(text)
    program = costs.count(module, price)
    found = Compiled(seconds, memory, memory.peak, roofline.bound(program, where, mesh), text, program)
    found.__dict__["module"] = module  # parsed already
    return found


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its optimized HLO.

    The text is taken from XLA's dump: `Compiled.as_text()` cannot read back every program (libtpu 0.0.52 hands work to v5p's
    sparse cores in a form that JAX's copy of XLA refuses).
    """
    with tempfile.TemporaryDirectory() as folder, uncached():
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        dumped = sorted(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        text = dumped[-1].read_text(encoding="utf-8") if dumped else compiled.as_text()
    assert text is not None
    return compiled, text


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Programs for devices that are not here can be written to JAX's compilation cache, but not read from it."""
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def _memory(stats: Any, devices: int) -> Memory:
    return Memory(
        arguments=devices * stats.argument_size_in_bytes,
        results=devices * (stats.output_size_in_bytes - stats.alias_size_in_bytes),
        temporary=devices * stats.temp_size_in_bytes,
        code=devices * stats.generated_code_size_in_bytes,
    )


def _asked_for(message: str) -> float | None:
    """Bytes in XLA's complaint "... (440.00G) exceeds available HBM (15.75G)" or "Used 17.12G of 15.75G hbm"."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT])", message)
    if found is None:
        return None
    number, unit = found[1] or found[3], found[2] or found[4]
    return float(number) * 1024 ** ("KMGT".index(unit) + 1)


def bytes_per_device(tree: Any) -> float:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings, without padding."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += leaf.dtype.itemsize * math.prod(shape)
    return total


@dataclass(frozen=True)
class Plan:
    """What one program would take on one topology.

    Attributes:
        title: what runs ("Qwen3-32B, training").
        where: the slice(s).
        mesh: axis sizes by name.
        compiled: the program.
        holds: HBM bytes of one chip by name ("weights", "optimizer"), part of the program's arguments.
        tokens: tokens of one step.
        model_flops: FLOPs of one step over all chips that the model itself needs, without recomputation.
        notes: lines for the reader.
    """

    title: str
    where: Topology
    mesh: dict[str, int]
    compiled: Compiled
    holds: dict[str, float]
    tokens: int
    model_flops: float
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the peak is within the chip's memory (and the compiler agrees)."""
        memory = self.compiled.memory
        return memory is not None and memory.peak <= self.where.chip.hbm_gib * _GIB

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over peak FLOPs in the roofline's step time."""
        bound = self.compiled.roofline
        if bound is None:
            return None
        return self.model_flops / (self.where.chips * self.where.chip.flops * bound.step_s)

    def json(self) -> dict[str, Any]:
        """Plain values; None where the program does not fit."""
        bound, needed = self.compiled.roofline, self.compiled.needed
        return {
            "topology": self.where.title,
            "chips": self.where.chips,
            "mesh": self.mesh,
            "hbm_capacity_gib": self.where.chip.hbm_gib,
            "hbm_peak_gib": None if needed is None else needed / _GIB,
            "fits": self.fits,
            "compile_s": self.compiled.seconds,
            "flops_per_chip": bound and bound.flops,
            "hbm_bytes_per_chip": bound and bound.hbm_bytes,
            "ici_bytes_per_chip": bound and sum(bound.ici_bytes.values()),
            "dcn_bytes_per_chip": bound and bound.dcn_bytes,
            "roofline_step_s": bound and bound.step_s,
            "roofline_mfu": self.mfu,
            "tokens_per_step": self.tokens,
        }

    def text(self) -> str:
        """The report."""
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "one device"
        per = " (a chip is two JAX devices; figures are per chip)" if self.where.chip.devices > 1 else ""
        lines = [f"{self.title}, on {self.where.title}: {self.where.chips} chips, mesh {axes}{per}"]
        lines += [self._memory_line(), f"  compiled     in {self.compiled.seconds:.0f} s, without a TPU"]
        bound = self.compiled.roofline
        if bound is None:
            lines.append(f"  does not fit: {self.compiled.refused}")
        else:
            lines += self._speed_lines(bound)
        program = self.compiled.program
        if program is not None and program.unpriced:
            listed = ", ".join(f"{name} ({times:.0f} times)" for name, times in sorted(program.unpriced.items()))
            lines.append(f"  not counted  kernels without a cost estimate: {listed}")
        if program is not None and program.unknown_loops:
            lines.append(
                f"  not counted  loops whose length only the data decides, taken once: {program.unknown_loops}"
            )
        lines += [f"  note         {note}" for note in self.notes]
        return "\n".join(lines)

    def _memory_line(self) -> str:
        capacity, memory = self.where.chip.hbm_gib, self.compiled.memory
        parts = [f"{name} {size / _GIB:.2f}" for name, size in self.holds.items()]
        if memory is None:
            needed = self.compiled.needed
            peak = "more" if needed is None else f"{needed / _GIB:.1f}"
            return f"  HBM          {peak} of {capacity:g} GiB per chip: does not fit; of it {', '.join(parts)}"
        rest = memory.arguments - sum(self.holds.values())
        parts += [
            f"other arguments {max(rest, 0) / _GIB:.2f}",
            f"activations and temporary {memory.temporary / _GIB:.2f}",
            f"results {memory.results / _GIB:.2f}",
            f"code {memory.code / _GIB:.2f}",
        ]
        share = memory.peak / _GIB / capacity
        fits = "fits" if self.fits else "does not fit"
        return f"  HBM          {memory.peak / _GIB:.2f} of {capacity:g} GiB per chip ({share:.0%}), {fits}: {', '.join(parts)}"

    def _speed_lines(self, bound: Roofline) -> list[str]:
        chip = self.where.chip
        ici = [f"{axes} {sent / 1e9:.2f} GB ({_duration(bound.ici_s[axes])})" for axes, sent in bound.ici_bytes.items()]
        model = self.model_flops / self.where.chips
        return [
            f"  arithmetic   {bound.flops:.3e} FLOPs per chip and step ({_duration(bound.compute_s)} at "
            f"{chip.flops / 1e12:.0f} TFLOP/s); the model itself is {model:.3e}",
            f"  HBM traffic  {bound.hbm_bytes / 1e9:.1f} GB per chip ({_duration(bound.memory_s)} at "
            f"{chip.hbm_bandwidth / 1e9:.0f} GB/s)",
            f"  ICI          sent per chip: {', '.join(ici) or 'nothing'}; the chip waits {_duration(bound.waiting_s)} for "
            f"networks (links of {chip.ici_link / 1e9:.0f} GB/s one way)",
            f"  DCN          sent per chip: {bound.dcn_bytes / 1e9:.2f} GB ({_duration(bound.dcn_s)} at "
            f"{chip.dcn / 1e9:.1f} GB/s)",
            f"  step         at least {_duration(bound.step_s)}, mostly {bound.bound}: compute {_duration(bound.compute_s)}, "
            f"HBM beyond it {_duration(bound.chip_s - bound.compute_s)}, networks {_duration(bound.waiting_s)}",
            f"  tokens       {self.tokens:,} per step, at most {self.tokens / bound.step_s:,.0f} per second",
            f"  MFU          at most {self.mfu:.1%}",
            f"  assumptions  {roofline.ASSUMPTIONS}",
        ]


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"
