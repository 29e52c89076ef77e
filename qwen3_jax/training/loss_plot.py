"""loss.png: training loss, held-out losses and unigram entropies over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from qwen3_jax.training.metrics import read, training_losses


def nan_for_null(values: Iterable[float | None]) -> list[float]:
    """Return values as matplotlib draws them: NaN for null."""
    return [math.nan if value is None else value for value in values]


def running_mean(values: Sequence[float]) -> list[float]:
    """Return, for each value, the mean of it and of the len(values) // 20 before it; NaN is left out."""
    width = max(len(values) // 20, 1)
    out = []
    for i in range(len(values)):
        near = [value for value in values[max(i - width, 0) : i + 1] if not math.isnan(value)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def plot_loss(path: Path, output: Path, baseline: dict[str, float], named: str = "unigram entropy") -> None:
    """Draw the training loss, the held-out losses and the losses to compare them with, called `named`, over steps."""
    from matplotlib.figure import Figure

    rows = read(path)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train, key, unit = training_losses(rows)
    if train:
        steps, losses = [row["step"] for row in train], nan_for_null(row[key] for row in train)
        axes.plot(steps, losses, color="0.85", linewidth=1, label="training batches")
        # Batches differ in content, so single losses scatter; the mean shows the trend.
        axes.plot(steps, running_mean(losses), color="0.45", linewidth=1.3, label="running mean")
    for color, (name, nats) in zip(("C0", "C1", "C2", "C3", "C4", "C5"), baseline.items(), strict=False):
        points = [(row["step"], row[f"eval.{name}"]) for row in rows if f"eval.{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=f"held-out {name}")
        axes.axhline(nats, color=color, linestyle=":", linewidth=1, label=f"{named} of {name}")
    axes.set(xlabel="step", ylabel=f"loss ({unit})", ylim=(0, None))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:  # a run may end before its first line of metrics
        axes.legend(fontsize=8)
    figure.savefig(output, dpi=130)
