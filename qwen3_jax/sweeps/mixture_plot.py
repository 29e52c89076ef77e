"""One picture of a mixture search: regression, proposal, verification."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen3_jax.sweeps.mixture_proposal import Proposal, Regression, Verdict


def plot(regression: Regression, proposal: Proposal, result: Verdict, output: Path) -> None:
    """Draw predicted against measured losses, the proposed weights, and the verification's differences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.1, 1.1])
    left.plot(regression.left_out, regression.values, "o", color="C0", markersize=5)
    ends = [
        min(regression.left_out.min(), regression.values.min()),
        max(regression.left_out.max(), regression.values.max()),
    ]
    left.plot(ends, ends, color="0.6", lw=1)
    left.set(
        xlabel="predicted with the run left out (nats)", ylabel="measured (nats)", aspect="equal", adjustable="datalim"
    )
    left.set_title(f"{len(regression.weights)} proxies, rank correlation {regression.fidelity:.2f}", fontsize=10)
    k = len(regression.components)
    rows = np.arange(k)[::-1]
    middle.barh(rows, proposal.weights, xerr=proposal.deviations, color="C3", alpha=0.75, height=0.55, capsize=3)
    middle.axvline(1 / k, color="0.4", lw=1, ls="--", label="uniform")
    best = regression.weights[regression.values.argmin()]
    middle.plot(best, rows, "o", color="black", markersize=5, label="best proxy")
    middle.set_yticks(rows, [_wrapped(name) for name in regression.components], fontsize=8)
    middle.set(xlabel="share of tokens", xlim=(0, None))
    middle.set_title("proposed weights (bars: over resampled proxies)", fontsize=10)
    middle.legend(fontsize=8)
    names = list(result.by_loss)
    rows = np.arange(len(names) + 1)[::-1]
    differences = [a - b for a, b in result.by_loss.values()]
    colors = ["C2" if value < 0 else "C1" for value in differences]
    right.barh(rows[:-1], differences, color=colors, alpha=0.6, height=0.55)
    error = None if result.interval is None else [[result.difference - result.interval[0]]] * 2
    right.barh(
        rows[-1:],
        [result.difference],
        xerr=error,
        color="C2" if result.difference < 0 else "C1",
        height=0.55,
        capsize=4,
    )
    right.set_yticks(rows, [*(_wrapped(name) for name in names), "objective"], fontsize=8)
    right.axvline(0, color="0.3", lw=1)
    right.set(xlabel="held-out loss, proposal - uniform (nats; below 0 is better)")
    right.set_title(f"verification, {len(result.proposed)} pairs of runs", fontsize=10)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    figure.savefig(output, dpi=130)


def _wrapped(name: str) -> str:
    words = name.split(" ", 1)
    return "\n".join(words)
