"""Tasks that are generated from a seed: the running sums of the quickstart, and any set of reasoning-gym."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.data.reasoning import held_out_running_sums
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import prompts
from qwen3_jax.generation import Sampling

REASONING_GYM = "reasoning_gym:"


@dataclass(frozen=True)
class RunningSumOptions:
    """Options of the running sums. Those of a model's training data give the problems that it has not seen.

    Attributes:
        problems: their number.
        seed: `data.seed` of the training configuration.
        min_digits, max_digits: as of the source (`running_sum` of its settings).
        eval_fraction: as of the source; a question is held out or not by a hash of its text.
    """

    problems: int = 200
    seed: int = 0
    min_digits: int = 2
    max_digits: int = 12
    eval_fraction: float = 0.05  # the quickstart's; a larger one would ask questions that it was trained on

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), problems=whole(1), seed=whole(0), min_digits=whole(2, 26), max_digits=whole(self.min_digits, 26),
            eval_fraction=between(0, 1),
        )  # fmt: skip


def generate_running_sums(rows: Iterable[Row], options: RunningSumOptions) -> Iterator[Problem]:
    """The first problems of the held-out split, asked as in training."""
    del rows
    problems = held_out_running_sums(
        options.problems, options.seed, options.min_digits, options.max_digits, options.eval_fraction
    )
    for number, problem in enumerate(problems):
        yield Problem(str(number), prompts.user(problem.question), problem.answer)


RUNNING_SUM = Task(
    name="running_sum",
    about="the last digit of a sum, as the quickstart learns it",
    problems=generate_running_sums,
    verifier="number",
    settings={"take": "only"},
    options=RunningSumOptions,
    max_new_tokens=128,
    thinking=Sampling(temperature=0),
    non_thinking=Sampling(temperature=0),
    reference="qwen3_jax/data/reasoning.py",
)

_GYM_FORM = "Think step by step. Put the final answer, and nothing else, between <answer> and </answer>."


def reasoning_gym_task(name: str) -> Task:
    """The task of a set of reasoning-gym. Its options are the fields of the set's own configuration, such as `seed` and `size`.

    Raises:
        UserError: the package is not installed, or has no such set.
    """
    from qwen3_jax.verifiers.reasoning_gym import package

    sets = package().DATASETS
    short = name.removeprefix(REASONING_GYM)
    if short not in sets:
        close = nearest(short, sorted(sets)) or f" There are {', '.join(sorted(sets))}."
        raise UserError(f"reasoning_gym has no set {short!r}.{close}")
    config = sets[short][1]

    def problems(rows: Iterable[Row], options: Any) -> Iterator[Problem]:
        del rows
        yield from _gym_problems(short, options)

    return Task(
        name=f"{REASONING_GYM}{short}",
        about=f"{short} of reasoning-gym",
        problems=problems,
        verifier="reasoning_gym",
        metric="score",
        options=config,
        reference="https://github.com/open-thought/reasoning-gym",
    )


def _gym_problems(name: str, options: Any) -> Iterator[Problem]:
    from qwen3_jax.verifiers.reasoning_gym import generate

    config = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.init and getattr(options, field.name) != _default(field)
    }
    if config.get("seed") is None:  # the package would draw one
        config["seed"] = 0
    for index, (question, answer) in enumerate(generate(name, config, getattr(options, "size", 500))):
        reference = {"set": name, "config": config, "index": index, "question": question, "answer": answer}
        yield Problem(str(index), prompts.user(f"{question.strip()}\n\n{_GYM_FORM}"), reference)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


TASKS = (RUNNING_SUM,)
