"""General reinforcement learning (section 4.4 of the report): generated tasks whose answers rules can judge.

    for record in records(1000, seed=0):                 # all tasks in turn
        {"messages": [...], "verifier": "checks", "answer": [...], "task": "persona"}

The report has more than 20 tasks: instruction following, formats, preference, use of tools, and specialised scenarios such as
answers from given texts. It publishes none of them. These are made from a seed; each problem has a verifier and its reference,
so a reward of `verifier: record` judges them. `qwen3 data tasks` writes them to a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError, nearest, repeated
from qwen3_jax.posttraining.general import formats, instructions, modes, reading, reasoning, tools
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask

__all__ = ["Drawn", "GeneralTask", "find", "names", "records"]

_TASKS: dict[str, GeneralTask] = {
    task.name: task for module in (formats, modes, instructions, tools, reading, reasoning) for task in module.TASKS
}


def names() -> list[str]:
    """The names of all tasks, in order."""
    return list(_TASKS)


def find(name: str) -> GeneralTask:
    """The task of this name; a UserError if there is none."""
    if name not in _TASKS:
        raise UserError(f"there is no task {name!r}; there are {', '.join(_TASKS)}.{nearest(name, names())}")
    return _TASKS[name]


def records(count: int, seed: int = 0, tasks: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Prompts of the tasks in turn: `messages`, `tools`, `verifier`, `answer` (its reference), `settings`, `task`, `mode`.

    Args:
        count: of all records. The first n are the same for every count.
        seed: of all that is drawn.
        tasks: names; () is all of them.

    Raises:
        UserError: no such task, one that is named twice, or a package that a task's verifier needs is missing.
    """
    check_bounds({"count": count, "seed": seed}, "", count=whole(0), seed=whole(0))
    twice = repeated(list(tasks))
    if twice is not None:
        raise UserError(f"the task {twice!r} is named twice.")
    chosen = [find(name) for name in tasks or names()]
    for task in chosen:
        if task.missing:
            raise UserError(f"the task {task.name}: {task.missing}; or name other tasks.")
    streams = [(task.name, task.problems(seed)) for task in chosen]
    for number in range(count):
        name, problems = streams[number % len(streams)]
        yield next(problems).record(name)
