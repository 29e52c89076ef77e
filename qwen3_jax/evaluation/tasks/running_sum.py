"""The quickstart's problems, `data.reasoning`: the last digit of a running sum, on questions that its training leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import Bound, check_bounds, whole
from qwen3_jax.data import running_sum_problem
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.generation import Sampling

_GREEDY = Sampling(temperature=0)  # a small model's curve without noise of sampling


@dataclass(frozen=True)
class RunningSumOptions:
    """Which problems. Those of a run of training are its data source's `running_sum` and `eval_fraction`.

    Attributes:
        problems: how many.
        seed: of the problems; `data.seed` of the run.
        min_digits, max_digits: length of the sums.
        eval_fraction: share of all questions that training leaves out.
    """

    problems: int = 300
    seed: int = 0
    min_digits: int = 2
    max_digits: int = 12
    eval_fraction: float = 0.05

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "", problems=whole(1), seed=whole(0), min_digits=whole(1), max_digits=whole(self.min_digits, 26),
            eval_fraction=Bound(0, 1, low_excluded=True),
        )  # fmt: skip


def generate(rows: Iterable[Row], options: Any) -> Iterator[Problem]:
    """The first problems of the evaluation split; no rows are read."""
    del rows
    for index in range(options.problems):
        made = running_sum_problem(
            index, options.seed, "eval", min_digits=options.min_digits, max_digits=options.max_digits,
            eval_fraction=options.eval_fraction,
        )  # fmt: skip
        yield Problem(str(index), ({"role": "user", "content": made.question},), made.answer)


RUNNING_SUM = Task(
    name="running_sum",
    about="the quickstart's sums, generated (300)",
    problems=generate,
    verifier="number",
    settings={"take": "only"},
    options=RunningSumOptions,
    max_new_tokens=128,
    thinking=_GREEDY,
    non_thinking=_GREEDY,
)
