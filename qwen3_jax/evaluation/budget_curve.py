"""Accuracy against thinking budget, on generated problems that training never saw.

Source: Qwen3 technical report, figure 2: performance rises smoothly with the thinking budget.
"""

from __future__ import annotations

import io
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3_jax.checkpoint import load
from qwen3_jax.data import DataConfig, RunningSum
from qwen3_jax.data import Problem as Generated
from qwen3_jax.data.reasoning import held_out_running_sums
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.evaluation.engine_source import EngineSource
from qwen3_jax.evaluation.metrics import Scored, cells
from qwen3_jax.evaluation.plan import EvalConfig, Plan
from qwen3_jax.evaluation.report import draw_curves
from qwen3_jax.evaluation.runner import run
from qwen3_jax.evaluation.samples import SampleList
from qwen3_jax.evaluation.task import Problem
from qwen3_jax.evaluation.tasks import find
from qwen3_jax.generation import Engine
from qwen3_jax.model import Qwen3
from qwen3_jax.paths import replace_file
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer


@dataclass(frozen=True)
class Point:
    """One budget's result.

    Attributes:
        budget: thinking tokens allowed; None is unlimited.
        accuracy: share of correct answers.
        standard_error: of the accuracy, binomial.
        thinking_tokens: mean thinking tokens of an answer.
        halted: share of answers whose thinking the budget ended.
        problems: number of problems.
    """

    budget: int | None
    accuracy: float
    standard_error: float
    thinking_tokens: float
    halted: float
    problems: int


def measure(folder: Path, config: BudgetCurveConfig, data: DataConfig, run_dir: Path) -> list[Point]:
    """Ask held-out problems under every budget; print a table, write budget_curve.json and budget_curve.png.

    Decoding is greedy, so that the curve has no sampling noise.
    """
    model, tokenizer = load(folder)
    started = time.perf_counter()
    scored = cells(_answers(model, tokenizer, config, held_out_problems(data, config.source, config.problems)))
    points = [_point(budget, questions) for (_, _, budget), questions in scored.items()]
    replace_file(run_dir / "budget_curve.json", json.dumps([asdict(p) for p in points], indent=2) + "\n")
    show(points, time.perf_counter() - started)
    plot(points, run_dir / "budget_curve.png")
    return points


def _answers(model: Qwen3, tokenizer: Tokenizer, config: BudgetCurveConfig, made: Sequence[Generated]) -> list[Scored]:
    """The judged answers to the problems under every budget, in the order of the budgets."""
    problems = [
        Problem(str(place), ({"role": "user", "content": each.question},), each.answer)
        for place, each in enumerate(made)
    ]
    asked = EvalConfig(("thinking",), tuple(config.budgets), max_new_tokens=config.max_new_tokens)
    plan = Plan.of([(find("running_sum"), problems)], asked, thinks=tokenizer.supports_thinking, model="the model")
    source = EngineSource(Engine(model, rows=min(config.batch_size, len(plan)), offline=True), tokenizer)
    samples = SampleList()
    with progress_bar("thinking budgets", len(plan)) as bar:
        for _ in run(plan, source, samples):
            bar.advance()
    order = {budget: place for place, budget in enumerate(config.budgets)}
    return sorted(map(Scored.of, samples.samples()), key=lambda sample: order[sample.budget])


def _point(budget: int | None, questions: Mapping[str, Sequence[Scored]]) -> Point:
    answers = [sample for each in questions.values() for sample in each]
    count = len(answers)
    accuracy = sum(sample.right for sample in answers) / count
    return Point(
        budget,
        accuracy,
        (accuracy * (1 - accuracy) / count) ** 0.5,
        sum(sample.thinking_tokens or 0 for sample in answers) / count,
        sum(bool(sample.halted) for sample in answers) / count,
        count,
    )


def held_out_problems(data: DataConfig, source_name: str, count: int) -> list[Generated]:
    """Return the first `count` problems of a synthetic source's evaluation split."""
    source = data.source(source_name)
    settings = source.running_sum or RunningSum()
    return list(held_out_running_sums(count, data.seed, settings.min_digits, settings.max_digits, source.eval_fraction))


def show(points: list[Point], seconds: float) -> None:
    """Print the table."""
    table = Table(title=f"Accuracy on {points[0].problems} unseen problems ({seconds:.0f} s)", title_justify="left")
    for name in ("thinking budget", "accuracy", "", "mean thinking tokens", "halted"):
        table.add_column(name, justify="left" if not name else "right")
    for point in points:
        table.add_row(
            "unlimited" if point.budget is None else str(point.budget),
            f"{point.accuracy:.1%}",
            "█" * round(20 * point.accuracy),
            f"{point.thinking_tokens:.1f}",
            f"{point.halted:.0%}",
        )
    Console(width=100).print(table)


def plot(points: list[Point], output: Path) -> None:
    """Draw accuracy over budgets as `qwen3 eval` does, with the accuracy of guessing a digit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shared = {"task": "running_sum", "mode": "thinking"}
    draw_curves(
        axes,
        [
            {**shared, "thinking_budget": p.budget, "value": p.accuracy, "standard_error": p.standard_error}
            for p in points
        ],
    )
    axes.axhline(0.1, color="0.5", linestyle=":", linewidth=1)
    axes.annotate(
        "chance", (1, 0.1), xycoords=("axes fraction", "data"), xytext=(-3, 3), textcoords="offset points", ha="right",
        fontsize=8, color="0.4",
    )  # fmt: skip
    image = io.BytesIO()
    figure.savefig(image, dpi=130, format="png")
    output.write_bytes(image.getvalue())


def suggestion(folder: Path, config: BudgetCurveConfig, data: DataConfig) -> str:
    """Return a command for the exported model, with a held-out problem."""
    problem = held_out_problems(data, config.source, 1)[0]
    return (
        f"qwen3 infer --model {shlex.quote(str(folder))} --prompt {shlex.quote(problem.question)} --thinking-budget 8"
    )
