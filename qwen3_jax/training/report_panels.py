"""The panels of a run's report, each drawn on one matplotlib axes."""

from __future__ import annotations

import math
from typing import Any

from qwen3_jax.report_page import SHADES
from qwen3_jax.training.loss_plot import nan_for_null, running_mean
from qwen3_jax.training.metrics import held_out_losses
from qwen3_jax.training.run_log import RunLog

PART_NAMES = {
    "step": "training steps",
    "input": "waiting for input",
    "compile": "compilation",
    "eval": "evaluation",
    "checkpoint": "checkpoints",
    "other": "logging",
    "rest": "startup, shutdown, lost steps",
}


def part_name(part: str, run: RunLog) -> str:
    """Return what an activity is called; the input of the method grpo is what it samples."""
    return "rollouts and rewards" if part == "input" and run.config.get("method") == "grpo" else PART_NAMES[part]


def finite_losses(losses: dict[str, float | None]) -> dict[str, float]:
    """Leave out losses that are not finite (null in metrics.jsonl)."""
    return {name: value for name, value in losses.items() if value is not None}


def over_steps(axes: Any, run: RunLog) -> None:
    """Draw what all panels over steps share: shaded stages, lines at restarts, the x axis."""
    last = max(run.steps)
    stages = list(run.stages())
    for number, (name, first, end, _) in enumerate(stages):
        if len(stages) > 1 and first < last:
            axes.axvspan(first, min(end, last), color=SHADES[number % 2], zorder=0, linewidth=0)
            middle = (first + min(end, last)) / 2
            axes.annotate(
                name, (middle, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=7.5, alpha=0.7,
            )  # fmt: skip
    for step in run.starts()[1:]:
        axes.axvline(step, color="C3", linewidth=0.7, linestyle=":")
    axes.grid(alpha=0.25)
    axes.set(xlabel="step", xlim=(0, last))


def loss(axes: Any, run: RunLog) -> None:
    values = nan_for_null(row[run.loss] for row in run.train)
    axes.plot(run.steps, values, color="0.78", linewidth=0.8, label="batches")
    axes.plot(run.steps, running_mean(values), color="C0", label="running mean")
    for step in run.starts()[1:2]:
        axes.plot([], [], color="C3", linewidth=0.7, linestyle=":", label=f"resumed (first at step {step:,})")
    axes.set(ylabel=run.unit, title="training loss")
    over_steps(axes, run)
    axes.legend(fontsize=8)


def held_out(axes: Any, run: RunLog) -> None:
    names = sorted({name for row in run.rows for name in finite_losses(held_out_losses(row))})
    for number, name in enumerate(names):
        points = [(row["step"], row[f"eval.{name}"]) for row in run.rows if row.get(f"eval.{name}") is not None]
        style = "-" if number < 10 else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
    axes.set(ylabel=run.unit, title="held-out loss by source and domain")
    over_steps(axes, run)
    if names:
        axes.legend(fontsize=7.5, ncols=1 + len(names) // 7)


def position(axes: Any, run: RunLog) -> None:
    ends = {last: name for name, _, last, _ in run.stages()}
    for row in run.rows:
        points = {name: value for name, value in row.items() if name.startswith("position.")}
        if points:
            labels = [name.removeprefix("position.").replace("-", " to ") for name in points]
            axes.plot(labels, list(points.values()), marker="o", markersize=4, label=f"after {ends[row['step']]}")
    axes.set(ylabel="nats per token", xlabel="position in document (tokens)", title="held-out loss by position")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def norms(axes: Any, run: RunLog) -> None:
    values = nan_for_null(row["train.gradient_norm"] for row in run.train)
    axes.plot(run.steps, values, color="C1", linewidth=0.9, label="gradient (left)")
    axes.set(ylabel="gradient norm", yscale="log", title="global norms")
    over_steps(axes, run)
    right = axes.twinx()
    right.plot(run.steps, [row["train.parameter_norm"] for row in run.train], color="C4", label="parameters (right)")
    right.set_ylabel("parameter norm")
    right.spines["top"].set_visible(False)
    handles = [*axes.get_lines()[:1], *right.get_lines()]
    axes.legend(handles, [line.get_label() for line in handles], fontsize=8, loc="lower right")


def learning_rate(axes: Any, run: RunLog) -> None:
    axes.plot(run.steps, [row["train.learning_rate"] for row in run.train], color="C2")
    axes.set(title="learning rate", ylim=(0, None))
    over_steps(axes, run)


def throughput(axes: Any, run: RunLog) -> None:
    points = [(row["step"], row["tokens_per_second"]) for row in run.train if "tokens_per_second" in row]
    if points:
        axes.plot(*zip(*points, strict=True), color="C3", linewidth=0.9)
    axes.set(ylabel="tokens per second", title="throughput", ylim=(0, None))
    over_steps(axes, run)
    scaled, unit = [(row["step"], 100 * row["mfu"]) for row in run.train if "mfu" in row], "MFU (%), dashed"
    if not scaled:
        scaled = [(row["step"], 1e3 * row["tflops_per_device"]) for row in run.train if "tflops_per_device" in row]
        unit = "GFLOP/s per device, dashed"
    if scaled:
        right = axes.twinx()
        right.plot(*zip(*scaled, strict=True), color="C7", linewidth=0.8, linestyle="--")
        right.set(ylabel=unit, ylim=(0, None))
        right.spines["top"].set_visible(False)


def time(axes: Any, run: RunLog) -> None:
    spent = run.time_spent()
    total = max(sum(spent.values()), 1e-9)
    names = [part_name(part, run) for part in spent][::-1]
    values = list(spent.values())[::-1]
    axes.barh(names, values, color=["C0" if name == PART_NAMES["step"] else "0.7" for name in names])
    for place, value in enumerate(values):
        axes.annotate(f" {value:,.1f} s, {value / total:.1%}", (value, place), va="center", fontsize=8)
    axes.set(title=f"time by activity (goodput {run.goodput():.0%})", xlabel="seconds", xlim=(0, 1.3 * max(values)))


def busiest(axes: Any, run: RunLog) -> None:
    """Load of the busiest expert by layer over steps."""
    layers = sorted(name for name in run.train[-1] if name.startswith("train.router_max_load."))
    values = [[math.nan if row.get(name) is None else row[name] for row in run.train] for name in layers]
    image = axes.imshow(
        values, aspect="auto", cmap="magma", interpolation="nearest",
        extent=(run.steps[0], run.steps[-1], len(layers) - 0.5, -0.5),
    )  # fmt: skip
    axes.set(
        xlabel="step",
        ylabel="layer",
        title="load of the busiest expert (1 is an even share)",
        yticks=_ticks(len(layers)),
    )
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)


def experts(axes: Any, run: RunLog) -> None:
    """Load of every expert at the last evaluation."""
    last = run.routers[-1]
    load = last["load"]
    from matplotlib.colors import TwoSlopeNorm

    most = max(max(map(max, load)), 1.01)
    image = axes.imshow(load, aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(1, 0, most), interpolation="nearest")
    axes.set(
        xlabel="expert", ylabel="layer", title=f"load of every expert at step {last['step']:,} (1 is an even share)",
        xticks=_ticks(len(load[0])), yticks=_ticks(len(load)),
    )  # fmt: skip
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(count // 8, 1)))
