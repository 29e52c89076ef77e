"""From the samples of a folder to its results: results.json, which depends on nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.evaluation.metrics import TOO_LONG, Scored, summarise
from qwen3_jax.evaluation.samples import RESULTS, SETTINGS, json_text, read_samples
from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import replace_file

_NAMED = 100  # ids of a list


def results(samples: Iterable[Mapping[str, Any]], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Return the figures of samples: JSON values.

    Args:
        samples: lines of samples.jsonl.
        metrics: the headline of each task.

    Returns:
        `rows`: see `metrics.summarise`. `too_long`: by task, the problems that were not asked because their prompt leaves no
        room in the context (the first hundred).
    """
    scored = []
    too_long: dict[str, dict[str, None]] = {}
    for sample in samples:
        scored.append(Scored.of(sample))
        if sample["finish_reason"] == TOO_LONG:
            too_long.setdefault(sample["task"], {})[sample["problem"]] = None
    return {
        "samples": len(scored),
        "rows": summarise(scored, metrics),
        "too_long": {task: list(ids)[:_NAMED] for task, ids in too_long.items()},
    }


def write_results(folder: Path) -> dict[str, Any]:
    """Compute the figures of a folder's samples, finished or not, and write results.json; returns them.

    Raises:
        UserError: it is no folder of a run.
    """
    settings = read_json(folder / SETTINGS)
    out = results(read_samples(folder), metrics_of(settings))
    order = [list(settings.get(name, ())) for name in ("tasks", "modes", "thinking_budgets")]
    names = ("task", "mode", "thinking_budget")
    # The samples of a run that is not finished are in the order in which they came.
    out["rows"].sort(key=lambda row: [_place(known, row[name]) for known, name in zip(order, names, strict=True)])
    replace_file(folder / RESULTS, json_text({"settings": settings, **out}, indent=1) + "\n")
    return out


def metrics_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The headline of each task, "accuracy" or "score", from a folder's settings."""
    return {name: task.get("metric", "accuracy") for name, task in settings.get("tasks", {}).items()}


def _place(known: Sequence[Any], value: Any) -> int:
    return known.index(value) if value in known else len(known)
