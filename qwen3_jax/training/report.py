"""One page about a run, from what it wrote: losses by domain, norms, routers, throughput, and where the time went.

    qwen3 report runs/quickstart            # writes runs/quickstart/report.png

Goodput is the time that went to steps which the run still has, over all time since it was first started: compilation, input
wait, evaluation, checkpoints, steps lost to a kill and the time between a kill and the restart are what is missing from 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.config import read_json
from qwen3_jax.errors import UserError
from qwen3_jax.training import metrics

_PARTS = ("step", "input", "compile", "eval", "checkpoint")
Rows = list[dict[str, Any]]


def goodput(rows: Rows, history: Rows) -> float | None:
    """Return the share of the time since the first start that went to steps which count; None if nothing was logged."""
    spent = sum(row.get("seconds_step", 0.0) for row in rows)
    if not rows or not history:
        return None
    return spent / max(rows[-1]["time"] - history[0]["time"], 1e-9)


def time_spent(rows: Rows) -> dict[str, float]:
    """Return seconds by what they went to, of the steps that count."""
    return {part: sum(row.get(f"seconds_{part}", 0.0) for row in rows) for part in _PARTS}


def report(run_dir: Path) -> Path:
    """Draw the page and return its file.

    Raises:
        UserError: the folder is not a run's, or nothing was logged yet.
    """
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} is not the folder of a training run: it has no config.json.")
    rows, history = metrics.read(run_dir / "metrics.jsonl"), metrics.read(run_dir / "history.jsonl")
    train = [row for row in rows if "train.cross_entropy" in row]
    if not train:
        raise UserError(f"{run_dir} has no metrics yet.")
    config = read_json(run_dir / "config.json")
    routers = sorted(name for name in train[-1] if name.startswith("train.router_max_load."))

    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 12.5 if routers else 9.5), layout="constrained")
    grid = figure.subplots(4 if routers else 3, 2)
    figure.suptitle(_title(run_dir, config, train, rows, history), fontsize=11, x=0.01, ha="left")
    steps = [row["step"] for row in train]
    _losses(grid[0, 0], train, steps)
    _held_out(grid[0, 1], rows)
    _norms(grid[1, 0], train, steps)
    _line(grid[1, 1], train, steps, "train.learning_rate", "learning rate", "C2")
    _throughput(grid[2, 0], train)
    _time(grid[2, 1], rows)
    if routers:
        _heat(
            figure,
            grid[3, 0],
            train,
            steps,
            "train.router_max_load.",
            "load of the busiest expert (1 is even)",
            "magma",
        )
        _heat(figure, grid[3, 1], train, steps, "train.router_entropy.", "router entropy (nats)", "viridis")
    ends = _stage_ends(config)
    for axes in [*grid[:2].ravel(), grid[2, 0]]:
        axes.grid(alpha=0.25)
        for end in ends[:-1]:
            axes.axvline(end, color="0.5", linewidth=0.8, linestyle="--")
        if axes is not grid[2, 0] or axes.get_xlabel() == "step":
            axes.set(xlabel="step", xlim=(0, max(steps)))
    output = run_dir / "report.png"
    figure.savefig(output, dpi=110)
    return output


def _title(run_dir: Path, config: dict[str, Any], train: Rows, rows: Rows, history: Rows) -> str:
    last, done = train[-1], _stage_ends(config)[-1]
    parts = [f"{run_dir}: step {last['step']:,} of {done:,}, training loss {last['train.cross_entropy']:.3f}"]
    if last.get("train.skipped"):
        parts.append(f"{last['train.skipped']:.0f} steps skipped")
    starts = sum(row["event"] == "start" for row in history)
    parts.append(f"started {starts} time{'s' if starts > 1 else ''}")
    share = goodput(rows, history)
    if share is not None:
        parts.append(f"goodput {share:.0%}")
    return ", ".join(parts)


def _stage_ends(config: dict[str, Any]) -> list[int]:
    ends, total = [], 0
    for stage in config["stages"] or [{"steps": config["steps"]}]:
        total += stage["steps"]
        ends.append(total)
    return ends


def _losses(axes: Any, train: Rows, steps: Sequence[int]) -> None:
    values = [row["train.cross_entropy"] for row in train]
    axes.plot(steps, values, color="0.8", linewidth=0.8, label="batches")
    axes.plot(steps, _smooth(values), color="C0", label="running mean")
    axes.set(ylabel="nats per token", title="training loss")
    axes.legend(fontsize=8)


def _held_out(axes: Any, rows: Rows) -> None:
    names = sorted({
        name for row in rows for name in row if name.startswith("eval.") and not name.endswith("_unigram_entropy")
    })  # fmt: skip
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.removeprefix("eval."))
    axes.set(ylabel="nats per token", title="held-out loss by source and domain")
    if names:
        axes.legend(fontsize=8)


def _norms(axes: Any, train: Rows, steps: Sequence[int]) -> None:
    gradient = [row["train.gradient_norm"] for row in train]
    axes.plot(
        steps, [math.nan if value is None else value for value in gradient], color="C1", linewidth=0.9, label="gradient"
    )
    axes.set(ylabel="gradient norm", yscale="log", title="global norms")
    right = axes.twinx()
    right.plot(steps, [row["train.parameter_norm"] for row in train], color="C4", label="parameters")
    right.set_ylabel("parameter norm")
    handles = [*axes.get_lines(), *right.get_lines()]
    axes.legend(handles, [line.get_label() for line in handles], fontsize=8)


def _line(axes: Any, train: Rows, steps: Sequence[int], name: str, title: str, color: str) -> None:
    axes.plot(steps, [row[name] for row in train], color=color)
    axes.set(title=title, ylim=(0, None))


def _throughput(axes: Any, train: Rows) -> None:
    points = [(row["step"], row["tokens_per_second"]) for row in train if "tokens_per_second" in row]
    if points:
        axes.plot(*zip(*points, strict=True), color="C3", linewidth=0.9)
    axes.set(ylabel="tokens per second", title="throughput", ylim=(0, None), xlabel="step")
    shares = [(row["step"], 100 * row["mfu"]) for row in train if "mfu" in row]
    if shares:
        right = axes.twinx()
        right.plot(*zip(*shares, strict=True), color="C7", linewidth=0.7, linestyle=":")
        right.set(ylabel="MFU (%), dotted", ylim=(0, None))


def _time(axes: Any, rows: Rows) -> None:
    spent = time_spent(rows)
    total = max(sum(spent.values()), 1e-9)
    names = dict(zip(_PARTS, ("steps", "input wait", "compilation", "evaluation", "checkpoints"), strict=True))
    axes.barh([names[part] for part in spent][::-1], [spent[part] for part in spent][::-1], color="C0")
    for place, value in enumerate([spent[part] for part in spent][::-1]):
        axes.annotate(f" {value:,.1f} s, {value / total:.0%}", (value, place), va="center", fontsize=8)
    axes.set(title="where the time went", xlabel="seconds", xlim=(0, 1.25 * max(spent.values())))


def _heat(figure: Any, axes: Any, train: Rows, steps: Sequence[int], prefix: str, title: str, colors: str) -> None:
    layers = sorted(name for name in train[-1] if name.startswith(prefix))
    values = [[math.nan if row.get(name) is None else row[name] for row in train] for name in layers]
    image = axes.imshow(
        values,
        aspect="auto",
        cmap=colors,
        interpolation="nearest",
        extent=(steps[0], steps[-1], len(layers) - 0.5, -0.5),
    )
    axes.set(xlabel="step", ylabel="layer", title=title)
    figure.colorbar(image, ax=axes)


def _smooth(values: Sequence[float]) -> list[float]:
    width = max(len(values) // 20, 1)
    return [sum(values[max(i - width, 0) : i + 1]) / (i + 1 - max(i - width, 0)) for i in range(len(values))]


def summary(run_dir: Path) -> str:
    """The page's numbers as JSON: last metrics, time by part, goodput."""
    rows, history = metrics.read(run_dir / "metrics.jsonl"), metrics.read(run_dir / "history.jsonl")
    return json.dumps({"time": time_spent(rows), "goodput": goodput(rows, history), "last": rows[-1] if rows else None})
