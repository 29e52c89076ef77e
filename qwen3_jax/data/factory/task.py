"""A task: which requests a record makes, and what is made of their answers. Two pure functions, and the walk through them.

    for a record:  asks(record, []) -> requests -> answers -> asks(record, [answers]) -> ... -> [] -> made(record, answers)

Every request has a key, the hash of all that determines its answer; the seed is bits of it. The walk is the same whether
answers come from a backend or from what was recorded, so what is made depends on the recorded answers alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from qwen3_jax.data.records import Record
from qwen3_jax.endpoints import ChatRequest, Reply
from qwen3_jax.json_fields import canonical_json

_MOST_STAGES = 64

Answers = Sequence[Sequence[Reply]]
"""Of each stage, the replies to its requests, in their order."""


class Rejection(NamedTuple):
    """Something that was not made, and why.

    Attributes:
        outcome: truncated, refused, invalid, unreachable or over budget; or the name of a filter.
        reason: one sentence.
        sample: which of a record's answers; None for the record.
    """

    outcome: str
    reason: str
    sample: int | None = None


@dataclass(frozen=True)
class Made:
    """What became of one record.

    Attributes:
        records: JSON objects that training or another task reads.
        rejected: what was not made of it.
        kept_tokens: completion tokens of the answers that are in `records`.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    kept_tokens: int = 0


class Task(Protocol):
    """A frozen dataclass with two pure functions; pickled to worker processes.

    Attributes:
        name: of the task; a folder holds the answers of one.
        recipe: name and version, part of the identity of every request.
        attempts: how often an answer that is invalid is asked for, each time with another seed.
        asking: settings that requests depend on, as JSON values.
        reading: settings that only what is made of answers depends on.
        shares_answers: equal requests of different records have one answer; otherwise each record has its own.
        units: what a sample of a corpus consists of, in the plural: "records", or "queries" with all their answers.
    """

    @property
    def name(self) -> str: ...

    @property
    def recipe(self) -> str: ...

    @property
    def attempts(self) -> int: ...

    @property
    def asking(self) -> Mapping[str, Any]: ...

    @property
    def reading(self) -> Mapping[str, Any]: ...

    @property
    def shares_answers(self) -> bool: ...

    @property
    def units(self) -> str: ...

    def unit(self, record: Record) -> int:
        """64 bits that are equal for records which may share answers: a sample has all of them or none."""

    def purposes(self, record: Record) -> Sequence[str]:
        """What each stage that a record may need is for, in order; it may come to an end before.

        Raises:
            DataError: the record has not what the task needs.
        """

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """The requests of the next stage, without seeds; none when there are enough answers.

        Raises:
            DataError: the record has not what the task needs.
        """

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Why a reply of the current stage (`len(answers)`) cannot be used, or None."""

    def made(self, record: Record, answers: Answers) -> Made:
        """What the answers give."""


class Independent:
    """A part of tasks in which every record has answers of its own, asked for in one stage."""

    shares_answers: ClassVar[bool] = False
    units: ClassVar[str] = "records"

    def unit(self, record: Record) -> int:
        """Equal records of a split have the same answers."""
        return bits_of(record_bytes(record))

    def purposes(self, record: Record) -> Sequence[str]:
        """One stage."""
        return ("answers",)


class Answered(NamedTuple):
    """The end of a walk: all answers of a record, and how many of them are invalid."""

    answers: Answers
    invalid: int


class Asked(NamedTuple):
    """A request with its identity, 32 hexadecimal digits, and the stage that it belongs to."""

    key: str
    request: ChatRequest
    stage: int


Walk = Generator[list[Asked], Sequence[Reply], Answered]


def walk(task: Task, record: Record, fingerprint: str) -> Walk:
    """Yield the requests of a record, stage by stage, and take their replies in the same order; return all answers.

    Args:
        fingerprint: of the model.

    Raises:
        DataError: the record has not what the task needs.
    """
    answers: list[list[Reply]] = []
    start, invalid = b"" if task.shares_answers else record_bytes(record), 0
    while requests := task.asks(record, answers):
        stage = len(answers)
        if stage == _MOST_STAGES:
            raise RuntimeError(f"the task {task.name} asks in more than {_MOST_STAGES} stages")
        replies: list[Reply | None] = [None] * len(requests)
        wanted = list(range(len(requests)))
        for attempt in range(task.attempts):
            asked = []
            for sample in wanted:
                key = key_of(start, task, fingerprint, requests[sample], stage, sample, attempt)
                asked.append(Asked(key, dataclasses.replace(requests[sample], seed=int(key[:8], 16) >> 1), stage))
            received = yield asked
            for sample, reply in zip(wanted, received, strict=True):
                replies[sample] = reply
            wanted = [
                sample
                for sample, reply in zip(wanted, received, strict=True)
                if reply.outcome in ("ok", "truncated") and task.invalid(record, answers, sample, reply)
            ]
            if not wanted:
                break
        given = [reply for reply in replies if reply is not None]
        invalid += sum(given[sample].outcome == "ok" for sample in wanted)
        answers.append(given)
    return Answered(answers, invalid)


def record_bytes(record: Record) -> bytes:
    """What a record says, in one form; equal records have equal answers, wherever they stand."""
    return canonical_json(record.body)


def bits_of(value: bytes) -> int:
    """A hash of 64 bits, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")


def key_of(
    record: bytes, task: Task, fingerprint: str, request: ChatRequest, stage: int, sample: int, attempt: int
) -> str:
    """The identity of a request: a hash of record, recipe, model, what is asked (sampling included), stage, sample, attempt."""
    digest = hashlib.blake2b(record, digest_size=16)
    asked = {name: value for name, value in dataclasses.asdict(request).items() if name != "seed"}
    digest.update(b"\0" + canonical_json([task.name, task.recipe, fingerprint, asked, stage, sample, attempt]))
    return digest.hexdigest()
