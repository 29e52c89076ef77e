"""The tasks by name, and their problems.

task = find("gsm8k")                                   # or "my_task.yaml", "reasoning_gym:leg_counting"
problems = load(task, Path("gsm8k"), {})
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation import reward_verifier  # noqa: F401 - registers the verifier
from qwen3_jax.evaluation.rows import RowError
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import (
    choices,
    coding,
    conversations,
    counterfactual,
    functions,
    generated,
    instructions,
    long_context,
    mathematics,
    tool_use,
)
from qwen3_jax.evaluation.tasks.declared import read_task
from qwen3_jax.evaluation.tasks.generated import REASONING_GYM, reasoning_gym_task
from qwen3_jax.evaluation.tasks.options import options_of
from qwen3_jax.evaluation.tasks.reading import read_rows
from qwen3_jax.text_files import is_unicode
from qwen3_jax.verifiers import settings_of

_MODULES = (
    mathematics, choices, coding, instructions, functions, long_context, generated, conversations, counterfactual, tool_use,
)  # fmt: skip
_TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}


def names() -> list[str]:
    """The names of all tasks; besides them there are `reasoning_gym:NAME` and YAML files."""
    return sorted(_TASKS)


def register(task: Task) -> Task:
    """Add a task, which `find` then knows by its name; returns it.

    Raises:
        UserError: the name is taken by another task, or the task's verifier does not know its settings.
    """
    check(task)
    if _TASKS.setdefault(task.name, task) is not task:
        raise UserError(f"there is a task {task.name!r} already; choose another name.")
    return task


def check(task: Task) -> None:
    """Refuse a task whose name, verifier, settings or counts are no good."""
    if not task.name or any(letter in task.name for letter in ":=,/ ") or task.name.endswith((".yaml", ".yml")):
        raise UserError(f"a task's name must be letters, digits, '_', '-' or '.', got {task.name!r}.")
    try:
        settings_of(task.verifier, task.settings)
    except UserError as error:
        raise UserError(f"the task {task.name}: {error}") from None
    for field in ("samples", "max_new_tokens"):
        value = getattr(task, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"the task {task.name}: {field} is {value!r}; it must be a whole number of at least 1.")


def find(name: str) -> Task:
    """The task of this name.

    Args:
        name: of `names()`; or the path of a YAML file that declares one; or `reasoning_gym:NAME`.

    Raises:
        UserError: no task has this name; the message has the nearest one.
    """
    if name in _TASKS:
        return _TASKS[name]
    if name.startswith(REASONING_GYM):
        return reasoning_gym_task(name)
    if name.endswith((".yaml", ".yml")):
        task = read_task(Path(name).expanduser())
        check(task)
        return task
    if "/" in name or "." in name:
        raise UserError(f"{name} is no task; a file that declares one ends in .yaml or .yml.")
    close = nearest(name.lower().replace("-", "_").replace("'", ""), names())
    raise UserError(
        f"there is no task {name!r}; there are {', '.join(names())}, reasoning_gym:NAME, and tasks that a YAML file declares."
        f"{close}"
    )


def load(task: Task, data: Path | None = None, options: Mapping[str, Any] | None = None) -> list[Problem]:
    """The problems of a task, in a fixed order, each with an id of its own.

    Args:
        data: a file or folder with the task's data; None is where its source says.
        options: of the task, by name; texts are read as their fields' types.

    Raises:
        UserError: the data is missing, or in another form (names file, row and column); an unknown option; no problems.
    """
    chosen = options_of(task, options or {})
    if task.source is None and data is not None:
        raise UserError(f"the task {task.name} is generated and reads no data; remove --data {task.name}={data}.")
    rows = iter(()) if task.source is None else read_rows(task.name, task.source, data)
    try:
        problems = list(_named(task.problems(rows, chosen)))
    except RowError as error:
        form = "; ".join(f"{column}: {what}" for column, what in task.columns.items())
        expects = f" The task {task.name} reads {form}." if form else ""
        text = str(error).rstrip(".")
        raise UserError(f"{text}{'' if text.endswith('?') else '.'}{expects}") from None
    if not problems:
        where = f" in {data}" if data is not None else ""
        raise UserError(f"the task {task.name} has no problems{where}.")
    for problem in problems:
        _check(task, problem)
    return problems


def _named(problems: Iterator[Problem] | Any) -> Iterator[Problem]:
    """The problems with unique ids: the second one with the id x becomes "x#2"."""
    taken: set[str] = set()
    for problem in problems:
        name = problem.id
        for count in itertools.count(2):
            if name not in taken:
                break
            name = f"{problem.id}#{count}"
        taken.add(name)
        yield problem if name == problem.id else dataclasses.replace(problem, id=name)


def _check(task: Task, problem: Problem) -> None:
    """Refuse a problem that cannot be asked: without text, or with text that no tokenizer encodes."""
    texts = (
        [problem.prompt]
        if isinstance(problem.prompt, str)
        else [message["content"] for message in problem.prompt if isinstance(message.get("content"), str)]
    )
    if not any(text.strip() for text in texts):
        raise UserError(f"the task {task.name}: the prompt of problem {problem.id} is empty.")
    if not all(is_unicode(text) for text in texts):
        raise UserError(
            f"the task {task.name}: the prompt of problem {problem.id} holds half of a surrogate pair, which is no text."
        )
