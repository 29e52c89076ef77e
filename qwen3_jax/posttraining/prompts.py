"""Prompts of reinforcement learning: which are asked in a round, in which mode, and with which thinking budget.

Invariant: what is drawn depends on the configuration and the number of the draw alone, and on which prompts were solved where
`keep_rate` is below 1; so a resumed run draws what an unbroken one does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.queries import query_of
from qwen3_jax.data.records import Malformed, Record
from qwen3_jax.data.sources import records_of
from qwen3_jax.errors import UserError, warn
from qwen3_jax.json_fields import digest
from qwen3_jax.training.rl_config import PromptSource, RolloutConfig

Mode = Literal["thinking", "non-thinking"]
_MODES = ("thinking", "non-thinking")
_LONGEST_SKIP = 10_000  # draws in a row that `keep_rate` may pass over


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: 16 hexadecimal digits, equal for equal messages and tools; of episodes, for equal records.
        source: the name of its source.
        messages: to ask.
        tools: that the model may call, in OpenAI's form.
        record: as in its file.
        mode: that the record asks for; None leaves it to the configuration.
        location: file and line of the record.
    """

    id: str
    source: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode | None = None
    location: str = ""


@dataclass(frozen=True)
class Draw:
    """A prompt of a round, and how it is asked.

    Attributes:
        number: of the draw, counted from 0 over the run.
        prompt: what is asked.
        mode: thinking or not.
        budget: thinking tokens allowed; None is unlimited.
        seed: of its answers.
    """

    number: int
    prompt: Prompt
    mode: Mode
    budget: int | None
    seed: int


class Prompts:
    """The prompts of all sources.

    Args:
        sources: at least one.
        rollouts: shares of the modes, budgets and `keep_rate`.
        seed: of the order, the modes and the budgets.
        by_record: prompts are equal where their whole records are: environments read those, so that one question may stand
            for different tasks.

    Raises:
        UserError: a file cannot be read, a record has no question, or a source has none left to train on.
    """

    def __init__(self, sources: list[PromptSource], rollouts: RolloutConfig, seed: int, *, by_record: bool = False):
        self._sources, self._rollouts, self._seed = sources, rollouts, seed
        self.training: list[list[Prompt]] = []
        self.held_out: dict[str, list[Prompt]] = {}
        for source in sources:
            training, held_out = split(source, read_prompts(source, by_record=by_record))
            if not training:
                raise UserError(f"rl.prompts {source.name!r}: no prompt is left to train on.")
            self.training.append(training)
            if held_out:
                self.held_out[source.name] = held_out
        self._read = digest([[prompt.id for prompt in prompts] for prompts in self.training])
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        # Draws of each source, and places passed in its epochs, which are more where solved prompts were passed over.
        self._draws, self._places = [0] * len(sources), [0] * len(sources)
        self._solved: set[str] = set()

    def check(self, unusable: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], str]) -> None:
        """Refuse a prompt whose answers cannot be scored.

        Args:
            unusable: of a record and the messages of its prompt; the reason, or "".

        Raises:
            UserError: names its file and line.
        """
        for source in (*self.training, *self.held_out.values()):
            for prompt in source:
                if reason := unusable(prompt.record, prompt.messages):
                    raise UserError(f"{prompt.location}: its answers cannot be scored: {reason}.")

    @property
    def state(self) -> dict[str, Any]:
        """The position, as JSON values.

        Raises:
            UserError: it is set to a position in other prompts.
        """
        solved = sorted(self._solved)
        return {"draws": list(self._draws), "places": list(self._places), "solved": solved, "prompts": self._read}

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        if value["prompts"] != self._read:
            names = ", ".join(repr(source.name) for source in self._sources)
            raise UserError(
                f"rl.prompts {names}: the files hold other prompts than those that the run has begun with; restore them, or "
                "set run_dir to another folder."
            )
        self._draws, self._places, self._solved = list(value["draws"]), list(value["places"]), set(value["solved"])

    @property
    def epochs(self) -> list[float]:
        """How often each source's prompts have been passed."""
        return [count / len(prompts) for count, prompts in zip(self._places, self.training, strict=True)]

    @property
    def count(self) -> int:
        """Number of prompts to train on."""
        return sum(map(len, self.training))

    def draw(self, count: int) -> list[Draw]:
        """Return the next prompts."""
        return [self._draw() for _ in range(count)]

    def note(self, draw: Draw, pass_rate: float) -> None:
        """Note the share of the answers to a prompt that were right."""
        if pass_rate >= 1:
            self._solved.add(draw.prompt.id)
        else:
            self._solved.discard(draw.prompt.id)

    def _draw(self) -> Draw:
        # The source that is furthest behind its share.
        weights = np.asarray([source.weight for source in self._sources]) / sum(s.weight for s in self._sources)
        number = sum(self._draws)
        source = int(np.argmax(weights * (number + 1) - self._draws))
        self._draws[source] += 1
        prompt = self._pass(source)
        for _ in range(_LONGEST_SKIP):
            if (
                prompt.id not in self._solved
                or self._uniform("keep", source, self._places[source]) < self._rollouts.keep_rate
            ):
                break
            prompt = self._pass(source)
        mode, budget = self._mode(prompt, number), None
        if (
            mode == "thinking"
            and self._rollouts.budgets
            and self._uniform("share", number) < self._rollouts.budget_share
        ):
            low, high = self._rollouts.budgets
            budget = low + int(self._uniform("budget", number) * (high - low + 1))
            if budget == 0:
                mode, budget = "non-thinking", None  # which is what no thinking tokens are
        return Draw(number, prompt, mode, budget, self._number("seed", number) >> 1)

    def _pass(self, source: int) -> Prompt:
        """Return the next prompt of a source's shuffled epochs."""
        prompts, place = self.training[source], self._places[source]
        self._places[source] += 1
        epoch, place = divmod(place, len(prompts))
        key = source, epoch
        if key not in self._orders:
            self._orders = {of: order for of, order in self._orders.items() if of[0] != source}
            self._orders[key] = np.random.default_rng(self._number("order", *key)).permutation(len(prompts))
        return prompts[self._orders[key][place]]

    def _mode(self, prompt: Prompt, number: int) -> Mode:
        if prompt.mode is not None:
            return prompt.mode
        return "thinking" if self._uniform("mode", number) < self._rollouts.thinking else "non-thinking"

    def _number(self, *of: Any) -> int:
        """A number below 2^64 that is random in its arguments."""
        text = repr((self._seed, *of)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def _uniform(self, *of: Any) -> float:
        return self._number(*of) / 2**64


def read_prompts(source: PromptSource, *, by_record: bool = False) -> list[Prompt]:
    """Read the prompts of a source, in order; equal ones once, see `Prompts`.

    Raises:
        UserError: a file cannot be read, or a record has no question; names file and line.
    """
    prompts: dict[str, Prompt] = {}
    repeated = 0
    for record in records_of(Source(source.name, source.path, source.format), f"reading {source.name}"):
        if isinstance(record, Malformed):
            raise UserError(f"rl.prompts {source.name!r}: {record.reason}")
        prompt = _prompt(source, record, by_record)
        if source.pass_rate is not None and not _is_within(record, source.pass_rate):
            continue
        repeated += prompt.id in prompts
        prompts.setdefault(prompt.id, prompt)
    if repeated:
        warn(f"rl.prompts {source.name!r}: {repeated:,} prompts occur more than once and are asked as one.")
    return list(prompts.values())


def split(source: PromptSource, prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts to train on, and those that are held out by a hash of their id."""
    sides: tuple[list[Prompt], list[Prompt]] = [], []
    for prompt in prompts:
        sides[int(prompt.id, 16) / 2**64 < source.eval_fraction].append(prompt)
    return sides


def _prompt(source: PromptSource, record: Record, by_record: bool) -> Prompt:
    query = query_of(record)
    name = digest([query.id, dict(record.body)])[: len(query.id)] if by_record else query.id
    mode = record.body.get("mode")
    if mode is not None and mode not in _MODES:
        raise UserError(f"{record.location}: mode is {mode!r}; it must be one of {', '.join(_MODES)}.")
    return Prompt(name, source.name, query.messages, query.tools, record.body, mode, record.location)


def _is_within(record: Record, rates: list[float]) -> bool:
    rate = record.body.get("pass_rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool):
        raise UserError(f"{record.location}: it has no pass_rate, a number from 0 to 1, and the source selects by it.")
    return rates[0] <= rate <= rates[1]
