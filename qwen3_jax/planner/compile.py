"""Compile a lowered program for TPUs or GPUs that are not present, and measure it.

    compiled = compile_for(jax.jit(step).lower(*abstract_arguments), topology, mesh)
    compiled.memory.peak, compiled.roofline.step_s

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

from qwen3_jax.errors import UserError
from qwen3_jax.planner import costs, gpu_nodes, hlo, roofline
from qwen3_jax.planner.program import Program
from qwen3_jax.planner.topologies import Topology
from sharding.hardware import Gpu

# Of a GPU program: 1 and 2 mark buffers for collectives and scratch, which lie in HBM like others (xla/service/gpu,
# MemorySpaceColor).
GPU_HBM_SPACES = (0, 1, 2)
_OUT_OF_HBM = re.compile(
    r"memory space hbm|exceeds available hbm|of [\d.]+[KMGT] hbm|out of memory (?:while )?(?:trying to )?allocat",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Memory:
    """HBM of one chip in bytes, by the compiler's own account.

    Attributes:
        arguments: the program's inputs: weights, optimizer state, batch, cache.
        results: outputs that are not written over an argument.
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
        seconds: time that lowering and compiling took on this machine.
        memory: None where the program does not fit.
        needed: HBM bytes of one chip that the compiler asked for, fitting or not; None where its error has no figure.
        roofline: None where it does not fit.
        text: the optimized HLO, or "".
        program: costs by instruction, or None.
        refused: the compiler's reason where it does not fit.
    """

    seconds: float
    memory: Memory | None
    needed: float | None
    roofline: roofline.Roofline | None
    text: str
    program: Program | None
    refused: str | None = None

    @functools.cached_property
    def module(self) -> hlo.Module:
        """The parsed program."""
        return hlo.parse(self.text)


class DoesNotCompile(UserError):
    """The compiler refuses a program for another reason than its HBM."""


def compile_for(
    lowered: jax.stages.Lowered,
    topology: Topology,
    mesh: Mesh,
    price: costs.Price | None = None,
    lowering_seconds: float = 0.0,
) -> Compiled:
    """Compile a lowered program and measure it.

    Args:
        lowered: `jax.jit(...).lower(...)` of abstract arguments with shardings on `mesh`.
        topology: the slice(s) that the mesh covers.
        mesh: from `topology_mesh`.
        price: see `costs.count`.
        lowering_seconds: added to the time of compiling.

    Raises:
        DoesNotCompile: the compiler refuses the program, for any reason but its HBM: a program that does not fit is a result.
        UnreadableProgram: the compiled program holds something that would be counted wrongly.
    """
    started = time.perf_counter()
    try:
        executable, text = _compile(lowered, topology)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if not out_of_hbm(reason):
            raise DoesNotCompile(_refusal(reason, topology)) from error
        asked = _requested_bytes(reason)
        needed = None if asked is None else asked * topology.chip.devices
        return Compiled(lowering_seconds + time.perf_counter() - started, None, needed, None, "", None, reason)
    seconds = lowering_seconds + time.perf_counter() - started
    memory = memory_of(executable.memory_analysis(), topology.chip.devices)
    module = hlo.parse(text, hbm_spaces=GPU_HBM_SPACES if isinstance(topology.chip, Gpu) else (0,))
    program = costs.count(module, price)
    compiled = Compiled(seconds, memory, memory.peak, roofline.bound(program, topology, mesh), text, program)
    compiled.__dict__["module"] = module  # fills the cached property: the text is parsed once
    return compiled


def _compile(lowered: jax.stages.Lowered, topology: Topology) -> tuple[jax.stages.Compiled, str]:
    """Return the compiled program and its optimized HLO.

    Of a TPU program the text is taken from XLA's dump: `Compiled.as_text()` cannot read back every program (libtpu 0.0.52 hands
    work to v5p's sparse cores in a form that JAX's copy of XLA refuses).
    """
    if isinstance(topology.chip, Gpu):
        with uncached():
            compiled = lowered.compile(compiler_options=gpu_nodes.COMPILER_OPTIONS)
        return compiled, compiled.as_text() or ""
    with tempfile.TemporaryDirectory() as folder, uncached():
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        dumps = sorted(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        text = dumps[-1].read_text(encoding="utf-8") if dumps else compiled.as_text()
    assert text is not None
    return compiled, text


def out_of_hbm(reason: str) -> bool:
    """Whether an error of the compiler says that a program needs more HBM than there is.

    RESOURCE_EXHAUSTED also stands for the memory of a core: a TPU's VMEM and SMEM, the shared memory and registers of a GPU.
    """
    return "RESOURCE_EXHAUSTED" in reason and _OUT_OF_HBM.search(reason) is not None


def _refusal(reason: str, topology: Topology) -> str:
    what = "does not compile"
    if "RESOURCE_EXHAUSTED" in reason or "hared memory" in reason:
        core = (
            "shared memory or registers than a block has"
            if isinstance(topology.chip, Gpu)
            else "of a core's own memory"
        )
        what = f"has a kernel that needs more {core} (this is not HBM)"
    return f"the program {what} on {topology.title}: {reason[:400]}"


@contextlib.contextmanager
def lowering_for(topology: Topology) -> Iterator[None]:
    """Lower for the described devices: kernels ask JAX's default device for its compute capability, and there may be no GPU."""
    with jax.default_device(topology.devices[0]) if isinstance(topology.chip, Gpu) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Keep programs out of JAX's compilation cache: those for absent devices can be written to it, but not read from it."""
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def memory_of(stats: Any, devices: int) -> Memory:
    return Memory(
        arguments=devices * stats.argument_size_in_bytes,
        results=devices * (stats.output_size_in_bytes - stats.alias_size_in_bytes),
        temporary=devices * stats.temp_size_in_bytes,
        code=devices * stats.generated_code_size_in_bytes,
    )


def _requested_bytes(message: str) -> float | None:
    """Bytes in XLA's error "... (440.00G) exceeds available HBM (15.75G)" or "Used 17.12G of 15.75G hbm"."""
    match = re.search(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT])", message)
    if match is None:
        return None
    number, unit = match[1] or match[3], match[2] or match[4]
    return float(number) * 1024 ** ("KMGT".index(unit) + 1)


def bytes_per_device(tree: Any) -> float:
    """Return the bytes that one device holds of a tree of ShapeDtypeStructs with shardings, without padding."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += leaf.dtype.itemsize * math.prod(shape)
    return total
