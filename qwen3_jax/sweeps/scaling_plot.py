"""One picture of a scaling fit: the parabolas, and the laws through their minima."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qwen3_jax.sweeps.config import ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED
from qwen3_jax.sweeps.optimum import Optimum, cells, short, short_rate
from qwen3_jax.sweeps.scaling import Prediction, Scaling

_DASHES = ("--", ":")


def plot(config: ScalingConfig, scaling: Scaling, prediction: Prediction | None, output: Path) -> None:
    """Draw loss against learning rate for each cell, and the optima with the laws."""
    panels = 2 if scaling.batch is None else 3
    figure = Figure(figsize=(5.2 * panels, 4.8), layout="constrained")
    grid = figure.subplots(1, panels)
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(scaling.optima.cells)))
    _parabolas(grid[0], scaling, shades)
    _rates(grid[1], config, scaling, prediction, shades)
    if scaling.batch is not None:
        _batches(grid[2], config, scaling, prediction, shades)
    for axes in grid:
        # Labels of minor ticks run into each other where an axis spans little more than a decade.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_rate(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, which="major")
        axes.legend(fontsize=7)
    figure.savefig(output, dpi=130)


def _parabolas(axes: Any, scaling: Scaling, shades: np.ndarray) -> None:
    """Draw all runs as dots, and the parabola through those at the batch size nearest to the optimum."""
    top = -math.inf
    for cell, runs, shade in zip(scaling.optima.cells, cells(scaling.observations).values(), shades, strict=True):
        finished = [run for run in runs if math.isfinite(run.loss)]
        sizes = sorted({run.batch_tokens for run in finished})
        at = sizes[0] if cell.log_batch is None else min(sizes, key=lambda size: abs(math.log(size) - _batch(cell)))
        top = max(top, cell.loss + 0.9 * (max(run.loss for run in finished) - cell.loss))
        others = [run for run in finished if run.batch_tokens != at]
        axes.plot(
            [r.learning_rate for r in others], [r.loss for r in others], "o", color=shade, markersize=2.5, alpha=0.35
        )
        chosen = sorted((run for run in finished if run.batch_tokens == at), key=lambda run: run.learning_rate)
        label = f"N={short(cell.parameters)}, D={short(cell.tokens)}"
        label += "" if len(sizes) == 1 else f" (line: B={short(at)})"
        axes.plot([r.learning_rate for r in chosen], [r.loss for r in chosen], "o", color=shade, markersize=5)
        x = np.linspace(math.log(chosen[0].learning_rate), math.log(chosen[-1].learning_rate), 100)
        y = cell.at(x, math.log(at))
        near = y < cell.loss + 0.3
        axes.plot(np.exp(x[near]), y[near], color=shade, label=label)
        if cell.usable:
            axes.plot(math.exp(cell.log_rate), cell.loss, "*", color=shade, markersize=12, markeredgecolor="black")
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="held-out loss (nats per token)")
    axes.set_title("runs, parabolas and minima (stars)", fontsize=10)
    low = min(run.loss for run in scaling.observations if math.isfinite(run.loss))
    axes.set_ylim(low - 0.03 * (top - low), top + 0.03 * (top - low))


def _batch(cell: Optimum) -> float:
    assert cell.log_batch is not None
    return cell.log_batch


def _rates(
    axes: Any, config: ScalingConfig, scaling: Scaling, prediction: Prediction | None, shades: np.ndarray
) -> None:
    """Draw learning rate against parameters, one line for each token count."""
    usable = [(cell, shade) for cell, shade in zip(scaling.optima.cells, shades, strict=True) if cell.usable]
    for cell, shade in usable:
        error = _interval_half_width(scaling, cell, 0, config.level)
        axes.errorbar(
            cell.parameters, math.exp(cell.log_rate), yerr=_bars(cell.log_rate, error), fmt="o", color=shade, capsize=3
        )
    counts = sorted({cell.tokens for cell, _ in usable} | ({prediction.tokens} if prediction else set()))
    sizes = [cell.parameters for cell, _ in usable] + ([prediction.parameters] if prediction else [])
    n = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 60)
    for number, tokens in enumerate(counts):
        aimed = prediction is not None and tokens == prediction.tokens
        color = "C3" if aimed else str(0.15 + 0.45 * number / max(len(counts) - 1, 1))
        axes.plot(n, [scaling.rate.law(v, tokens) for v in n], color=color, lw=1.4, label=f"fit, D={short(tokens)}")
    of = prediction.tokens if prediction else counts[-1]
    for law, dash in zip(PUBLISHED.values(), _DASHES, strict=True):
        axes.plot(n, [law.rate(v, of) for v in n], dash, color="C0", lw=1.2, label=f"{law.name}, D={short(of)}")
    if prediction:
        band = [scaling.rate.predict(v, prediction.tokens, config.level) for v in n]
        axes.fill_between(n, [b.low for b in band], [b.high for b in band], color="C3", alpha=0.12, lw=0)
        label = f"target: {prediction.rate.value:.2e}"
        axes.plot(prediction.parameters, prediction.rate.value, "D", color="C3", markersize=8, label=label)
    _within(axes, [math.exp(cell.log_rate) for cell, _ in usable])
    axes.set(xscale="log", yscale="log", xlabel="active parameters without embeddings", ylabel="best learning rate")
    exponents = {name: scaling.rate.exponent(name) for name in ("N", "D")}
    axes.set_title(
        "learning rate ~ " + " ".join(f"{k}^({v:.2f}±{e:.2f})" for k, (v, e) in exponents.items()), fontsize=10
    )


def _batches(
    axes: Any, config: ScalingConfig, scaling: Scaling, prediction: Prediction | None, shades: np.ndarray
) -> None:
    assert scaling.batch is not None
    usable = [(cell, shade) for cell, shade in zip(scaling.optima.cells, shades, strict=True) if cell.usable]
    for cell, shade in usable:
        error = _interval_half_width(scaling, cell, 1, config.level)
        axes.errorbar(
            cell.tokens, math.exp(_batch(cell)), yerr=_bars(_batch(cell), error), fmt="o", color=shade, capsize=3
        )
    counts = [cell.tokens for cell, _ in usable] + ([prediction.tokens] if prediction else [])
    d = np.geomspace(min(counts) / 1.3, max(counts) * 1.3, 60)
    size = prediction.parameters if prediction else usable[-1][0].parameters
    axes.plot(d, [scaling.batch.law(1.0, v) for v in d], color="C3", lw=1.4, label="fit")
    band = [scaling.batch.predict(size, v, config.level) for v in d]
    axes.fill_between(d, [b.low for b in band], [b.high for b in band], color="C3", alpha=0.12, lw=0)
    for law, dash in zip(PUBLISHED.values(), _DASHES, strict=True):
        label = law.name + ("" if law.batch.parameters == 0 else f", N={short(size)}")
        axes.plot(d, [law.batch(size, v) for v in d], dash, color="C0", lw=1.2, label=label)
    if prediction and prediction.batch:
        label = f"target: {short(prediction.batch.value)} tokens"
        axes.plot(prediction.tokens, prediction.batch.value, "D", color="C3", markersize=8, label=label)
    _within(axes, [math.exp(_batch(cell)) for cell, _ in usable])
    axes.set(xscale="log", yscale="log", xlabel="training tokens", ylabel="best batch size (tokens)")
    value, error = scaling.batch.exponent("D")
    axes.set_title(f"batch size ~ D^({value:.2f}±{error:.2f})", fontsize=10)


def _interval_half_width(scaling: Scaling, cell: Optimum, k: int, level: float) -> float:
    """Return half the width of a cell's interval, in log units."""
    from scipy import stats

    return float(stats.t.ppf(0.5 + level / 2, scaling.optima.degrees)) * math.sqrt(float(cell.covariance[k, k]))


def _within(axes: Any, optima: list[float]) -> None:
    """Set limits that show lines and optima; very long error bars are cut off."""
    shown = [
        value
        for line in axes.get_lines()
        for value in np.atleast_1d(line.get_ydata())
        if line.get_linestyle() != "None"
    ]
    values = [*shown, *optima]
    axes.set_ylim(min(values) / 2, max(values) * 2)


def _bars(log: float, error: float) -> list[list[float]]:
    value = math.exp(log)
    return [[value - value * math.exp(-error)], [value * math.exp(error) - value]]
