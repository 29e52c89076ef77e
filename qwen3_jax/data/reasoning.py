"""Generated problems that need their steps: the last digit of a running sum.

    Add these digits one by one and give the last digit of the sum: a7 b3 c9 d2
    thinking: a7:7 b3:0 c9:9 d2:1      each digit, and the running total modulo 10
    answer:   1

The letters give every digit a name, so that a small model finds its place again. Each step is one easy addition, all of
them at once are not: without thinking a small model is at chance (10%, since answers are uniform), with enough of it it is
right, and because lengths are mixed, accuracy rises smoothly with the thinking budget. A problem depends on (seed, split,
index) alone; a hash of its question decides whether it may be trained on, so train and eval questions are disjoint whatever
the seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.data.config import RunningSum
from qwen3_jax.data.records import Record
from qwen3_jax.data.rendering import END_OF_TURN
from qwen3_jax.errors import UserError
from qwen3_jax.text.thinking import STOP_TEXT

QUESTION = "Add these digits one by one and give the last digit of the sum: "

Split = Literal["train", "eval"]
Mode = Literal["thinking", "non_thinking", "disabled", "truncated", "document"]
"""How a problem is written down:

- thinking: the steps, then the answer.
- non_thinking: the user text ends with ` /no_think`; the model itself writes the empty thinking block.
- disabled: as with enable_thinking=False, the empty thinking block is in the prompt and is not learned.
- truncated: thinking stops after some tokens, the stop text is forced (not learned), then the answer.
- document: plain text, the question, the steps and one of `ENDINGS` with the answer, as a base model may have read them.
"""
MODES: tuple[Mode, ...] = ("thinking", "non_thinking", "disabled", "truncated", "document")
# What a document says after its steps. With one ending, a small model copies the last total from a fixed distance, and not in
# chats, where other tokens are between them.
ENDINGS = ("\n{}", "\n\n{}", ", so {}.", "\nThe last digit is {}.")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the thinking that leads to its answer, and the answer (one digit)."""

    question: str
    steps: str
    answer: str


def running_sum_problem(
    index: int,
    seed: int = 0,
    split: Split = "train",
    *,
    min_digits: int = 2,
    max_digits: int = 12,
    eval_fraction: float = 0.1,
) -> Problem:
    """Problem number `index` of a split.

    Args:
        min_digits, max_digits: the length is drawn evenly from this range, both ends included.
        eval_fraction: the share of all questions that belong to the eval split; give the one used in training.

    Raises:
        UserError: the split has no such question (eval_fraction 0, or lengths too small for it).
    """
    rng = random.Random(f"running_sum/{seed}/{split}/{index}")
    answer = rng.randrange(10)
    # The answer is drawn first and kept, so that answers are uniform even where a split holds few questions.
    for _ in range(10_000):
        digits = [rng.randrange(10) for _ in range(rng.randint(min_digits, max_digits) - 1)]
        digits.append((answer - sum(digits)) % 10)
        question = QUESTION + _named(digits)
        if (_share(question) < eval_fraction) == (split == "eval"):
            totals = [sum(digits[: i + 1]) % 10 for i in range(len(digits))]
            steps = [f"{digit}:{total}" for digit, total in zip(digits, totals, strict=True)]
            return Problem(question, _named(steps), str(answer))
    raise UserError(
        f"no {split} question with {min_digits} to {max_digits} digits and the answer {answer} "
        f"at eval_fraction {eval_fraction}"
    )


def held_out_running_sums(
    count: int, seed: int, min_digits: int, max_digits: int, eval_fraction: float
) -> Iterator[Problem]:
    """The first `count` problems of the eval split; the arguments are those of `running_sum_problem`."""
    for index in range(count):
        yield running_sum_problem(
            index, seed, "eval", min_digits=min_digits, max_digits=max_digits, eval_fraction=eval_fraction
        )


def is_correct(problem: Problem, content: str) -> bool:
    """Whether `content` (what follows the thinking block) states the answer: it holds one number, the right one."""
    return re.findall(r"\d+", content) == [problem.answer]


def problem_messages(problem: Problem, mode: Literal["thinking", "non_thinking"] = "thinking") -> list[dict[str, Any]]:
    """The problem as a user message and an assistant message."""
    if mode == "thinking":
        answer = {"role": "assistant", "reasoning_content": problem.steps, "content": problem.answer}
        return [{"role": "user", "content": problem.question}, answer]
    if mode == "non_thinking":
        answer = {"role": "assistant", "reasoning_content": "", "content": problem.answer}
        return [{"role": "user", "content": problem.question + " /no_think"}, answer]
    raise ValueError(f"mode {mode!r} has no plain messages; problem_record renders it")


def problem_record(problem: Problem, mode: Mode, *, cut: int = 0, stop_text: str = STOP_TEXT) -> dict[str, Any]:
    """The problem as the body of a `records.Record`.

    Args:
        cut: for `truncated`, how many tokens of the thinking remain (see `step_tokens`); generation may stop at any.
    """
    if mode in ("thinking", "non_thinking"):
        return {"messages": problem_messages(problem, "thinking" if mode == "thinking" else "non_thinking")}
    if mode == "document":
        ending = ENDINGS[zlib.crc32(problem.question.encode()) % len(ENDINGS)]
        return {"text": f"{problem.question}\n{problem.steps}{ending.format(problem.answer)}"}
    messages = [{"role": "user", "content": problem.question}]
    answer = {"text": problem.answer + END_OF_TURN, "loss": True}
    if mode == "disabled":
        return {"messages": messages, "completion": [{"text": "<think>\n\n</think>\n\n", "loss": False}, answer]}
    thinking = {"text": "<think>\n" + "".join(step_tokens(problem)[:cut]), "loss": True}
    return {"messages": messages, "completion": [thinking, {"text": stop_text, "loss": False}, answer]}


def step_tokens(problem: Problem) -> list[str]:
    """The thinking as the tokens it becomes: Qwen's pre-tokeniser cuts before a name, after it, and at the newline."""
    return re.findall(r" ?[a-z]|\d|:|\n", problem.steps + "\n")


class RunningSumRecords:
    """A random-access source of generated problems, written down in the configured mixture of modes."""

    def __init__(self, settings: RunningSum, split: Split, seed: int, eval_fraction: float):
        self._settings, self._split, self._seed, self._eval_fraction = settings, split, seed, eval_fraction

    def __repr__(self) -> str:
        return f"RunningSumRecords({self._settings}, {self._split!r}, {self._seed}, {self._eval_fraction})"

    def __len__(self) -> int:
        return self._settings.problems if self._split == "train" else self._settings.eval_problems

    def __getitem__(self, index: int) -> Record:
        settings = self._settings
        problem = running_sum_problem(
            index,
            self._seed,
            self._split,
            min_digits=settings.min_digits,
            max_digits=settings.max_digits,
            eval_fraction=self._eval_fraction,
        )
        rng = random.Random(f"mode/{self._seed}/{self._split}/{index}")
        shares = [getattr(settings, mode) for mode in MODES]
        mode = rng.choices(MODES, shares)[0]
        cut = rng.randint(0, len(step_tokens(problem)))
        body = problem_record(problem, mode, cut=cut, stop_text=settings.stop_text)
        return Record(f"synthetic:running_sum ({self._split} problem {index})", body)


def _named(items: list[Any]) -> str:
    return " ".join(f"{name}{item}" for name, item in zip(string.ascii_lowercase, items, strict=False))


def _share(question: str) -> float:
    """A number in [0, 1) that depends on the question alone."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big") / 2**64
