"""An evaluation as one call.

model, tokenizer = qwen3_jax.load("runs/quickstart/hf")
source = EngineSource(Engine(model), tokenizer)
results = evaluate(source, ["running_sum"], EvalConfig(budgets=(0, 16, None)), folder="results")
results["rows"][0]["accuracy"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.evaluation.plan import EvalConfig, Plan
from qwen3_jax.evaluation.reply import Source
from qwen3_jax.evaluation.report import write_report
from qwen3_jax.evaluation.results import results, write_results
from qwen3_jax.evaluation.runner import Samples, check_verifiers, run
from qwen3_jax.evaluation.samples import SampleFile, SampleList, key_of
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import find, load
from qwen3_jax.progress import progress_bar

Asked = str | Task | tuple[Task, Sequence[Problem]]


def evaluate(
    source: Source,
    tasks: Sequence[Asked],
    config: EvalConfig = EvalConfig(),  # noqa: B008 - frozen
    *,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Ask a model all problems of some tasks; return the figures.

    Args:
        source: what answers: `EngineSource` or `Endpoint`.
        tasks: names, tasks (with the data and options that they have by themselves), or a task with its problems.
        config: modes, budgets, samples, sampling.
        folder: keeps samples, results and report, and continues what is there; None keeps nothing.
        progress: draw a progress bar; None draws it on a terminal.

    Returns:
        `samples`: how many; `rows`: a dict of figures for each task, mode and budget, and for each group of problems in it;
        `too_long`: by task, problems that the context does not hold.

    Raises:
        UserError: an unknown task, missing data, a folder of another run, and what else `Plan.of` and the source refuse.
    """
    chosen = []
    for asked in tasks:
        task, problems = asked if isinstance(asked, tuple) else (find(asked) if isinstance(asked, str) else asked, None)
        chosen.append((task, load(task) if problems is None else problems))
    plan = Plan.of(chosen, config, thinks=source.thinks, model="the model")
    check_verifiers(plan)
    if folder is None:
        kept = SampleList()
        _ask(plan, source, kept, progress)
        order = {key: place for place, key in enumerate(plan.keys())}
        ordered = sorted(kept.samples(), key=lambda sample: order[key_of(sample)])
        return results(ordered, {name: task.metric for name, task in plan.tasks.items()})
    folder = Path(folder).expanduser()
    with SampleFile(folder, plan, {"model": source.describe(), **plan.settings()}) as samples:
        _ask(plan, source, samples, progress)
        samples.sort()
    out = write_results(folder)
    write_report(folder, out)
    return out


def _ask(plan: Plan, source: Source, samples: Samples, progress: bool | None) -> None:
    with progress_bar("evaluating", len(plan), done=len(samples.done), visible=progress) as bar:
        for _ in run(plan, source, samples):
            bar.advance()
