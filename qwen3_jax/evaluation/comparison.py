"""Two runs question by question: the difference of each question's means, its mean, and how certain that is.

    d_q = mean_i b_qi - mean_i a_qi         SE = sqrt(var_q d_q / Q)        interval: mean +- t(0.975, Q - 1) SE

Pairs remove what makes questions easier or harder than each other, so that the interval is narrower than that of two means. The
sign test asks only which run is better at a question: the exact binomial test over the questions where they differ. With one
answer to each question that is McNemar's exact test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.metrics import Scored, cells
from qwen3_jax.evaluation.results import metrics_of
from qwen3_jax.evaluation.samples import SETTINGS, read_samples
from qwen3_jax.json_fields import read_json

CONFIDENCE = 0.95


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """Return a row for each task, mode and budget that both runs have, over the questions that both have.

    Raises:
        UserError: no folder of a run; nothing in common; a question with one id that is asked or judged in two ways.
    """
    runs = [cells(map(Scored.of, read_samples(folder))) for folder in (first, second)]
    metrics = [metrics_of(read_json(folder / SETTINGS)) for folder in (first, second)]
    common = [cell for cell in runs[0] if cell in runs[1]]
    if not common:
        raise UserError(
            f"{first} and {second} have no task, mode and thinking budget in common: {_has(runs, first, second)}."
        )
    rows = []
    for cell in common:
        task, mode, budget = cell
        metric = metrics[0].get(task, "accuracy")
        if metric != metrics[1].get(task, "accuracy"):
            raise UserError(f"{first} and {second} cannot be compared: the metric of the task {task} differs.")
        left, right = runs[0][cell], runs[1][cell]
        shared = [problem for problem in left if problem in right]
        for problem in shared:
            if left[problem][0].digest != right[problem][0].digest:
                raise UserError(
                    f"{first} and {second} cannot be compared: problem {problem} of the task {task} is asked or judged in two "
                    "ways (its prompt, tools, reference, verifier or the verifier's settings differ)."
                )
        if not shared:
            raise UserError(
                f"{first} and {second} cannot be compared: they have no problem of the task {task} in common."
            )
        means = [
            [statistics.fmean(sample.value(metric) for sample in run[problem]) for problem in shared]
            for run in (left, right)
        ]
        rows.append({
            "task": task, "mode": mode, "thinking_budget": budget, "metric": metric,
            "only_first": len(left) - len(shared), "only_second": len(right) - len(shared), **paired(*means),
        })  # fmt: skip
    return rows


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return the figures of paired means, one for each question.

    Returns:
        `first`, `second`: their means. `difference`: second less first, with its `standard_error` and the `interval` of 95%;
        both None for one question. `better`, `worse`: questions at which the second is better or worse. `p`: of the sign test.
    """
    from scipy import stats

    differences = [b - a for a, b in zip(first, second, strict=True)]
    count, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    reach = None if error is None else float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return {
        "questions": count, "first": statistics.fmean(first), "second": statistics.fmean(second), "difference": mean,
        "standard_error": error, "interval": None if reach is None else [mean - reach, mean + reach], "better": better,
        "worse": worse, "p": float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0,
    }  # fmt: skip


def _has(runs: Sequence[Mapping[Any, Any]], first: Path, second: Path) -> str:
    def listed(run: Mapping[Any, Any]) -> str:
        names = sorted({f"{task} ({mode}, {'unlimited' if budget is None else budget})" for task, mode, budget in run})
        return ", ".join(names[:8]) or "nothing"

    return f"{first} has {listed(runs[0])}; {second} has {listed(runs[1])}"
