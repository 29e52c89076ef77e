"""What a program would take on a slice: a report for people (`text`) and for programs (`json`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3_jax.planner.compile import Compiled
from qwen3_jax.planner.gpu_nodes import CARD_NOTES, NOT_COUNTED
from qwen3_jax.planner.roofline import Roofline, assumptions
from qwen3_jax.planner.topologies import Topology
from sharding.hardware import Gpu

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What one program would take on one topology.

    Attributes:
        title: what runs ("Qwen3-32B, training").
        topology: the slice(s) or nodes.
        mesh: axis sizes by name.
        compiled: the program.
        holds: HBM bytes of one chip by name ("weights", "optimizer"), part of the program's arguments.
        tokens: tokens of one step over all chips.
        model_flops: FLOPs of one step over all chips that the model itself needs, without recomputation.
        notes: lines for the reader.
    """

    title: str
    topology: Topology
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
        return memory is not None and memory.peak <= self.topology.capacity_gib * GIB

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over peak FLOPs in the roofline's step time."""
        bound = self.compiled.roofline
        if bound is None:
            return None
        return self.model_flops / (self.topology.chips * self.topology.chip.flops * bound.step_s)

    def json(self) -> dict[str, Any]:
        """Plain values; None where the program does not fit."""
        bound, needed = self.compiled.roofline, self.compiled.needed
        return {
            "topology": self.topology.title,
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "hbm_capacity_gib": self.topology.capacity_gib,
            "hbm_peak_gib": None if needed is None else needed / GIB,
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
        per = " (a chip is two JAX devices; figures are per chip)" if self.topology.chip.devices > 1 else ""
        unit = self.topology.unit
        lines = [f"{self.title}, on {self.topology.title}: {self.topology.chips} {unit}s, mesh {axes}{per}"]
        platform = "GPU" if self._on_gpus else "TPU"
        lines += [self._memory_line(), f"  compiled     in {self.compiled.seconds:.0f} s, without a {platform}"]
        bound = self.compiled.roofline
        if bound is None:
            lines.append(f"  does not fit: {self.compiled.refused}")
        else:
            lines += self._speed_lines(bound)
        lines += [f"  not counted  {text}" for text in self._not_counted()]
        lines += [f"  note         {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def _on_gpus(self) -> bool:
        return isinstance(self.topology.chip, Gpu)

    def _not_counted(self) -> list[str]:
        """What the figures leave out, by name."""
        program = self.compiled.program
        lines = []
        if program is not None and program.unpriced:
            lines.append(f"the FLOPs of kernels and operations without a known cost: {_listed(program.unpriced)}")
        if program is not None and program.unread:
            lines.append(_listed(program.unread))
        if program is not None and program.unknown_loops:
            lines.append(f"loops whose length only the data decides, taken once: {program.unknown_loops}")
        if self._on_gpus:
            lines += [*NOT_COUNTED, *CARD_NOTES.get(self.topology.chip.name, "").splitlines()]
        return lines

    def _memory_line(self) -> str:
        capacity, memory, unit = self.topology.capacity_gib, self.compiled.memory, self.topology.unit
        of = f"{capacity:.4g} GiB per {unit}"
        if self._on_gpus:
            of += f" ({self.topology.memory_share:.0%} of its {self.topology.chip.hbm_gib:.1f}, JAX's allocator)"
        parts = [f"{name} {size / GIB:.2f}" for name, size in self.holds.items()]
        if memory is None:
            needed = self.compiled.needed
            peak = "more" if needed is None else f"{needed / GIB:.1f}"
            return f"  HBM          {peak} of {of}: does not fit; of it {', '.join(parts)}"
        rest = memory.arguments - sum(self.holds.values())
        parts += [
            f"other arguments {max(rest, 0) / GIB:.2f}",
            f"activations and temporary {memory.temporary / GIB:.2f}",
            f"results {memory.results / GIB:.2f}",
            f"code {memory.code / GIB:.2f}",
        ]
        share = memory.peak / GIB / capacity
        fits = "fits" if self.fits else "does not fit"
        return f"  HBM          {memory.peak / GIB:.2f} of {of} ({share:.0%}), {fits}: {', '.join(parts)}"

    def _speed_lines(self, bound: Roofline) -> list[str]:
        chip, unit = self.topology.chip, self.topology.unit
        model = self.model_flops / self.topology.chips
        return [
            f"  arithmetic   {bound.flops:.3e} FLOPs per {unit} and step ({_duration(bound.compute_s)} at "
            f"{chip.flops / 1e12:.0f} TFLOP/s); the model itself is {model:.3e}",
            f"  HBM traffic  {bound.hbm_bytes / 1e9:.1f} GB per {unit} ({_duration(bound.memory_s)} at "
            f"{chip.hbm_bandwidth / 1e9:.0f} GB/s)",
            *self._network_lines(bound),
            f"  step         at least {_duration(bound.step_s)}, mostly {bound.bound}: compute {_duration(bound.compute_s)}, "
            f"HBM beyond it {_duration(bound.chip_s - bound.compute_s)}, networks {_duration(bound.waiting_s)}",
            f"  tokens       {self.tokens:,} per step, at most {self.tokens / bound.step_s:,.0f} per second",
            f"  MFU          at most {self.mfu:.1%}",
            f"  assumptions  {assumptions(self.topology)}",
        ]

    def _network_lines(self, bound: Roofline) -> list[str]:
        chip, unit = self.topology.chip, self.topology.unit
        inner, outer = self.topology.networks
        ici = [f"{axes} {sent / 1e9:.2f} GB ({_duration(bound.ici_s[axes])})" for axes, sent in bound.ici_bytes.items()]
        waits = f"the {unit} waits {_duration(bound.waiting_s)} for networks"
        if not isinstance(chip, Gpu):
            return [
                f"  {inner:<12} sent per chip: {', '.join(ici) or 'nothing'}; {waits} "
                f"(links of {chip.ici_link / 1e9:.0f} GB/s one way)",
                f"  {outer:<12} sent per chip: {bound.dcn_bytes / 1e9:.2f} GB ({_duration(bound.dcn_s)} at "
                f"{chip.dcn / 1e9:.1f} GB/s)",
            ]
        lines = [
            f"  {inner:<12} sent per GPU: {', '.join(ici) or 'nothing'}; {waits} ({chip.link / 1e9:.0f} GB/s per GPU one way)"
        ]
        if self.topology.nodes > 1:
            sent = ", ".join(f"{axes} {size / 1e9:.2f} GB" for axes, size in bound.dcn_axes.items()) or "nothing"
            lines.append(
                f"  {outer:<12} sent per GPU: {sent} ({_duration(bound.dcn_s)} at {chip.nic / 1e9:.3g} GB/s per GPU one way)"
            )
        return lines


def _listed(counts: dict[str, float]) -> str:
    return ", ".join(f"{name} ({times:.0f} times)" for name, times in sorted(counts.items()))


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"
