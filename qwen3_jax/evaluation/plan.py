"""What a run of an evaluation asks: every sample by its key, in one order, with all that determines its answer.

A sample's seed comes from its task, problem, mode and number, and from the run's seed: not from the batch it runs in, nor from
its budget. So answers under several budgets share their thinking up to the smaller budget, which is then generated once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import RequestError, UserError, nearest, repeated
from qwen3_jax.evaluation.task import NON_THINKING, THINKING, Problem, Task
from qwen3_jax.generation import STOP_TEXT, Sampling
from qwen3_jax.json_fields import digest
from qwen3_jax.verifiers import settings_of

MODES = ("thinking", "non-thinking")
TEXT = "text"
"""The mode of a problem whose prompt is a text that is continued: it has neither a chat template nor a budget."""


class Key(NamedTuple):
    """Which answer: task, id of the problem, mode, thinking budget (None is unlimited), number of the sample from 0."""

    task: str
    problem: str
    mode: str
    budget: int | None
    sample: int


@dataclass(frozen=True)
class EvalConfig:
    """What a user may ask of a run.

    Attributes:
        modes: of `MODES`; None is thinking, or non-thinking for a model that does not think.
        budgets: thinking budgets of the thinking mode; None is unlimited.
        samples: answers to each problem under each budget; None is the task's number.
        limit: problems of each task, from its first; None is all.
        max_new_tokens: most tokens of an answer; None is the task's number. Both are lowered to what the context holds.
        sampling: fields of `Sampling` that replace those of the task, in every mode.
        seed: of all samples.
        stop_text: ends the thinking when the budget is used up.
    """

    modes: tuple[str, ...] | None = None
    budgets: tuple[int | None, ...] = (None,)
    samples: int | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    stop_text: str = STOP_TEXT

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "evaluation option ", budgets=whole(0), samples=whole(1), limit=whole(1), max_new_tokens=whole(1),
            seed=whole(0),
        )  # fmt: skip
        for name, values in (("mode", self.modes or ()), ("thinking budget", self.budgets)):
            shown = [str(value).lower() for value in values]
            if (twice := repeated(shown)) is not None:
                raise UserError(f"the {name} {twice} is given twice.")
        if not self.budgets:
            raise UserError("there is no thinking budget; leave the option out for an unlimited one.")
        for mode in self.modes or ():
            if mode not in MODES:
                raise UserError(f"there is no mode {mode!r}; there are {' and '.join(MODES)}.{nearest(mode, MODES)}")
        if self.modes is not None and "thinking" not in self.modes and self.budgets != (None,):
            raise UserError(
                "a thinking budget needs the thinking mode; name it among the modes, or leave the budget out."
            )
        self.sampled(THINKING)  # refuses wrong values

    def sampled(self, of: Sampling) -> Sampling:
        """Sampling of a task with this run's fields in it.

        Raises:
            RequestError: a field is unknown or has a wrong value.
        """
        known = {each.name for each in dataclasses.fields(Sampling)} - {"seed", "n", "logprobs"}
        for name in self.sampling:
            if name not in known:
                raise RequestError(f"there is no sampling option {name!r}.{nearest(name, sorted(known))}", name)
        return dataclasses.replace(of, **self.sampling)


@dataclass(frozen=True)
class Question:
    """A problem of a task, as every sample of it is asked.

    Attributes:
        task: the task.
        problem: the problem.
        verifier, settings: that judge its answers; the settings as an instance of the verifier's.
        digest: of all that is asked and judged, the same on every machine and for every model.
    """

    task: Task
    problem: Problem
    verifier: str
    settings: Any
    digest: str

    @classmethod
    def of(cls, task: Task, problem: Problem) -> Question:
        """Check the verifier's settings.

        Raises:
            UserError: an unknown verifier or setting; names the task and the problem.
        """
        verifier, given = problem.verifier or task.verifier, dict(problem.settings)
        if verifier == task.verifier:
            given = dict(task.settings) | given
        try:
            settings = settings_of(verifier, given)
        except UserError as error:
            raise UserError(f"the task {task.name}, problem {problem.id}: {error}") from None
        asked = [problem.prompt, problem.reference, problem.tools, problem.enable_thinking, verifier, given]
        return cls(task, problem, verifier, settings, digest(asked))


@dataclass(frozen=True)
class Item:
    """One sample to generate.

    Attributes:
        key: which one.
        question: what is asked.
        sampling: all of it, the seed included.
        max_new_tokens: most tokens of the answer, if the context holds them.
        enable_thinking: for the chat template; None is up to the model, or to the budget.
        stop_text: of the budget.
    """

    key: Key
    question: Question
    sampling: Sampling
    max_new_tokens: int
    enable_thinking: bool | None
    stop_text: str

    @property
    def budget(self) -> int | None:
        """Thinking tokens allowed; None is unlimited."""
        return self.key.budget


@dataclass(frozen=True)
class Plan:
    """All samples of a run.

    Attributes:
        config: as asked, with `modes` filled in.
        tasks: by name, in the order given.
        questions: of each task, in its order.
    """

    config: EvalConfig
    tasks: Mapping[str, Task]
    questions: Mapping[str, tuple[Question, ...]]

    @classmethod
    def of(
        cls, tasks: Sequence[tuple[Task, Sequence[Problem]]], config: EvalConfig, *, thinks: bool | None, model: str
    ) -> Plan:
        """Check everything that can be told without an answer.

        Args:
            tasks: with all their problems.
            config: what was asked.
            thinks: whether the model's chat template and vocabulary know thinking; None is unknown.
            model: what messages call the model.

        Raises:
            UserError: a task without problems, an id or a task that stands twice, thinking asked of a model without it.
        """
        if (twice := repeated([task.name for task, _ in tasks])) is not None:
            raise UserError(f"the task {twice} is given twice.")
        needs = [task.name for task, _ in tasks if task.needs_thinking]
        if thinks is False:
            why = f"{model} has no think tags in its vocabulary and chat template"
            if needs:
                raise UserError(f"the task {needs[0]} measures thinking, and {why}; leave the task out.")
            if config.modes is not None and "thinking" in config.modes:
                raise UserError(f"the mode 'thinking' was asked for, and {why}; leave it out.")
            if config.budgets != (None,):
                raise UserError(f"a thinking budget was given, and {why}; leave it out.")
        modes = config.modes or (MODES[:1] if thinks is not False else MODES[1:])
        questions = {}
        for task, problems in tasks:
            problems = problems[: config.limit]
            if not problems:
                raise UserError(f"the task {task.name} has no problems: its data is empty.")
            if (twice := repeated([problem.id for problem in problems])) is not None:
                raise UserError(f"the task {task.name} has two problems with the id {twice!r}.")
            questions[task.name] = tuple(Question.of(task, problem) for problem in problems)
        plan = cls(dataclasses.replace(config, modes=tuple(modes)), {task.name: task for task, _ in tasks}, questions)
        for task, mode in ((task, mode) for task, _ in tasks for mode in modes):
            if config.samples not in (None, 1) and plan.sampling(task, mode).temperature == 0:
                raise UserError(f"{config.samples} samples with temperature 0 are equal; leave the samples out.")
        return plan

    def sampling(self, task: Task, mode: str) -> Sampling:
        """Sampling of a task in a mode; its temperature is set."""
        own = (task.thinking or THINKING) if mode == "thinking" else (task.non_thinking or NON_THINKING)
        return self.config.sampled(own)

    def samples(self, task: Task, mode: str) -> int:
        """Answers to each problem; one where they would all be equal."""
        return 1 if self.sampling(task, mode).temperature == 0 else self.config.samples or task.samples

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def keys(self) -> Iterator[Key]:
        """All samples in the order of the finished file."""
        for name, questions in self.questions.items():
            for question in questions:
                for mode, budgets in self._forms(question):
                    for budget in budgets:
                        for sample in range(self.samples(self.tasks[name], mode)):
                            yield Key(name, question.problem.id, mode, budget, sample)

    def families(self, done: Container[Key] = ()) -> Iterator[list[Item]]:
        """The samples that are not done; those of a family differ in their budget alone, and the largest comes first."""
        for name, questions in self.questions.items():
            task = self.tasks[name]
            for question in questions:
                for mode, budgets in self._forms(question):
                    largest_first = sorted(budgets, key=lambda budget: (budget is not None, -(budget or 0)))
                    sampling = self.sampling(task, mode)
                    for sample in range(self.samples(task, mode)):
                        seeded = dataclasses.replace(sampling, seed=self._seed(name, question, mode, sample))
                        family = [
                            self._item(key, question, seeded)
                            for budget in largest_first
                            if (key := Key(name, question.problem.id, mode, budget, sample)) not in done
                        ]
                        if family:
                            yield family

    def _forms(self, question: Question) -> list[tuple[str, tuple[int | None, ...]]]:
        """The modes in which a question is asked, with their budgets."""
        if isinstance(question.problem.prompt, str):
            return [(TEXT, (None,))]
        one: tuple[int | None, ...] = (None,)
        off = question.problem.enable_thinking is False
        return [
            (mode, self.config.budgets if mode == "thinking" and not off else one) for mode in self.config.modes or ()
        ]

    def _item(self, key: Key, question: Question, sampling: Sampling) -> Item:
        task, enable = self.tasks[key.task], question.problem.enable_thinking
        if enable is None and key.mode != TEXT:
            enable = key.mode == "thinking"
        if key.budget == 0:
            enable = None  # 0 is no thinking
        limit = self.config.max_new_tokens or task.max_new_tokens
        return Item(key, question, sampling, limit, enable, self.config.stop_text)

    def _seed(self, task: str, question: Question, mode: str, sample: int) -> int:
        names = [self.config.seed, task, question.problem.id, mode, sample]
        return int(digest(names)[:16], 16) >> 1

    def settings(self) -> dict[str, Any]:
        """What determines the samples, besides the model: JSON values."""
        tasks = {}
        for name, task in self.tasks.items():
            forms = {mode for question in self.questions[name] for mode, _ in self._forms(question)}
            tasks[name] = {
                "data": digest([[question.problem.id, question.digest] for question in self.questions[name]]),
                "problems": len(self.questions[name]),
                "max_new_tokens": self.config.max_new_tokens or task.max_new_tokens,
                "samples": {mode: self.samples(task, mode) for mode in sorted(forms)},
                "sampling": {mode: sampling_fields(self.sampling(task, mode)) for mode in sorted(forms)},
                "metric": task.metric,
            }
        config = self.config
        return {
            "tasks": tasks, "modes": list(config.modes or ()), "thinking_budgets": list(config.budgets),
            "seed": config.seed, "thinking_stop_text": config.stop_text,
        }  # fmt: skip


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The fields of a sampling that differ from their defaults, seed and number of answers apart."""
    default = Sampling()
    values = {each.name: getattr(sampling, each.name) for each in dataclasses.fields(Sampling)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != getattr(default, name) and name not in ("seed", "n")
    }
