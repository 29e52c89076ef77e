"""Figures of a recipe's phases: values with their errors, and curves, read from what the phases wrote."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.run_log import RunLog, read_run


class Missing(Exception):
    """A phase has not made what a claim needs; the text says which."""


@dataclass(frozen=True)
class Measured:
    """A value and its standard error.

    Attributes:
        value: the mean, over questions and seeds.
        error: its standard error: over questions, or over seeds where that is larger.
        seeds: number of seeds.
    """

    value: float
    error: float = 0.0
    seeds: int = 1

    def __sub__(self, other: Measured) -> Measured:
        return Measured(self.value - other.value, math.hypot(self.error, other.error), min(self.seeds, other.seeds))

    @property
    def is_above_0(self) -> bool:
        """Whether it is above 0 by more than two standard errors."""
        return self.value > 2 * self.error

    @property
    def is_below_0(self) -> bool:
        """Whether it is below 0 by more than two standard errors."""
        return self.value < -2 * self.error

    def percent(self) -> str:
        """As "93.5% ± 1.2%"."""
        return f"{self.value:.1%} ± {self.error:.1%}"

    def points(self) -> str:
        """A difference of shares, as "+3.5 ± 1.2 points"."""
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f} points"

    def text(self) -> str:
        """As "2.31 ± 0.02"."""
        return f"{self.value:.3f} ± {self.error:.3f}"


def mean_of(values: Sequence[Measured]) -> Measured:
    """Return one value of several seeds. Its error is that of the mean: from the errors within or the spread, if larger."""
    count = len(values)
    within = math.sqrt(sum(one.error**2 for one in values)) / count
    between = float(np.std([one.value for one in values], ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return Measured(float(np.mean([one.value for one in values])), max(within, between), count)


def share(value: float, count: float) -> Measured:
    """Return a share of a number of questions, with its binomial error."""
    return Measured(value, math.sqrt(max(value * (1 - value), 0) / max(count, 1)))


def run_of(folder: Path) -> RunLog:
    """Return what a training phase has logged.

    Raises:
        Missing: nothing.
    """
    try:
        run = read_run(folder)
    except UserError as error:
        raise Missing(str(error)) from None
    if "data" not in run.config:
        raise Missing(f"{folder / 'config.json'} is damaged: it has no settings of a run.")
    return run


def evaluation_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an evaluation's results, without those of groups.

    Raises:
        Missing: there are none.
    """
    file = folder / "results.json"
    if not file.exists():
        raise Missing(f"{folder} has no results of an evaluation.")
    rows = read_json(file).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "group" in row for row in rows):
        raise Missing(f"{file} is damaged: it has no rows of an evaluation.")
    return [row for row in rows if row["group"] is None]


def row_of(rows: Sequence[dict[str, Any]], mode: str = "thinking", budget: int | None = None) -> dict[str, Any]:
    """Return the row of a mode and a budget.

    Raises:
        Missing: the evaluation has no such row.
    """
    for row in rows:
        if row["mode"] == mode and row["thinking_budget"] == budget:
            return row
    raise Missing(f"the evaluation has no answers in {mode} mode.")


def value_of(row: dict[str, Any]) -> Measured:
    """Return the headline of a row."""
    return Measured(row["value"], row["standard_error"] or 0.0)


def held_out_curve(run: RunLog) -> tuple[list[int], list[Measured]]:
    """Return steps and shares of held-out prompts that were answered right, over all sources.

    Raises:
        Missing: nothing was measured.
    """
    steps, values = [], []
    rl = run.config.get("rl")
    if rl is None:
        raise Missing(f"{run.folder} is of a run without rl, which measures held-out prompts.")
    for row in run.rows:
        found = [name for name in row if name.startswith("held_out.") and name.endswith(".pass_rate")]
        if found:
            of = [name.removesuffix("pass_rate") for name in found]
            answers = [row[f"{name}sampled_tokens"] / row[f"{name}tokens"] for name in of]
            mean = float(np.average([row[name] for name in found], weights=answers))
            steps.append(row["step"])
            values.append(share(mean, sum(answers) / rl["eval_samples"]))
    if not steps:
        raise Missing(f"{run.folder} has measured no held-out prompts.")
    return steps, values


@dataclass(frozen=True)
class Compute:
    """What the steps of a run have cost up to some step.

    Attributes:
        flops: of products, by formula: rollouts and a teacher's pass forward, updates forward and backward.
        seconds: of rounds and steps, without compiling, evaluation and checkpoints.
    """

    flops: float
    seconds: float


def compute_of(run: RunLog, step: int, teacher: Path | None = None) -> Compute:
    """Return what a run on sampled answers has cost up to a step.

    Args:
        step: the last one that counts.
        teacher: its folder, whose pass over every answer counts; None without one.
    """
    rows = [row for row in run.train if row["step"] <= step]
    prompt, answers = _prompt_tokens(run.folder), sum(_answers(run, row) for row in rows)
    sampled = sum(row.get("rl.sampled_tokens", 0.0) for row in rows)
    tokens = sampled + prompt * answers
    length = run.config["data"]["sequence_length"]
    student = training_flops_per_token(_architecture(run.folder / "architecture.json"), length)
    flops = tokens * student / 3 + tokens * student  # sampled, then learned from
    if teacher is not None:
        flops += tokens * training_flops_per_token(_architecture(teacher / "config.json"), length) / 3
    seconds = sum(row.get("seconds_step", 0.0) + row.get("seconds_input", 0.0) for row in rows)
    return Compute(flops, seconds)


def _answers(run: RunLog, row: dict[str, Any]) -> int:
    return round(row["rl.sampled_tokens"] / row["rl.tokens"]) if row.get("rl.tokens") else 0


def _prompt_tokens(folder: Path) -> float:
    """Mean tokens of a prompt in the newest round."""
    files = sorted((folder / "rollouts").glob("*.npz"), key=lambda file: int(file.stem))
    if not files:
        raise Missing(f"{folder} has no rollouts.")
    try:
        with np.load(files[-1]) as arrays:
            return float(np.mean(arrays["prompt_lengths"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Missing(f"{files[-1]} is damaged ({error}).") from None


def _architecture(file: Path) -> Qwen3Config:
    if not file.exists():
        raise Missing(f"there is no {file}.")
    return Qwen3Config.from_hf(read_json(file))
