"""The work on one split, wherever it runs: what is made of the recorded answers, as files below parts/.

    make_split(job, 7, split)     # parts/00007.jsonl, its rejections and counts

Like a shard of `qwen3_jax.data.shards` it depends on its split, the job's settings and the recorded answers alone, and is made
again unless its counts are there for the same answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.answers import AnswerLog
from qwen3_jax.data.factory.task import Asked, Made, Rejection, Task, walk
from qwen3_jax.data.records import DataError, Malformed, Record
from qwen3_jax.data.shards import PARTS, write_json, written_whole
from qwen3_jax.data.sources import Split, read
from qwen3_jax.endpoints import Reply

ANSWERS, EARLIER = "answers", "earlier"


@dataclass(frozen=True)
class FactoryJob:
    """Everything that the work on one split needs, besides the split.

    Attributes:
        source: of the records.
        task: what is asked and made.
        folder: OUTPUT.
        fingerprint: of the model.
        settings: digest of all that the result depends on, besides records and answers.
    """

    source: Source
    task: Task
    folder: Path
    fingerprint: str
    settings: str = ""

    def answers(self, number: int) -> Path:
        """The recorded answers of one split."""
        return self.folder / ANSWERS / f"{number:05d}.log"

    def part(self, number: int, suffix: str) -> Path:
        """A file about one split, until all are finished."""
        return self.folder / PARTS / f"{number:05d}{suffix}"


@dataclass(frozen=True)
class PartCounts:
    """What was made of one split.

    Attributes:
        number: of the split.
        state: of settings and recorded answers.
        read: records read.
        made: records written.
        rejected: by outcome.
        unasked: records of which a request has no answer because of a budget.
        kept_tokens: completion tokens of the answers that are in the records.
        used_tokens: prompt and completion tokens of the answers that were looked at.
        malformed: records that could not be read.
    """

    number: int
    state: str
    read: int = 0
    made: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unasked: int = 0
    kept_tokens: int = 0
    used_tokens: int = 0
    malformed: int = 0


class EarlierAnswers:
    """Answers that were recorded while the corpus was split otherwise; read only."""

    def __init__(self, folder: Path):
        self._logs = [AnswerLog(path, write=False) for path in sorted(folder.rglob("*.log"))]
        self._places = {key: log for log in self._logs for key in log}

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        """The recorded answer, or None."""
        log = self._places.get(key)
        return None if log is None else log.get(key)


def make_split(job: FactoryJob, number: int, split: Split) -> PartCounts:
    """Write what the recorded answers give, unless it is there.

    Raises:
        DataError: a file cannot be read.
    """
    log = AnswerLog(job.answers(number), write=False)
    state = hashlib.blake2b(f"{job.settings} {log.end}".encode(), digest_size=8).hexdigest()
    done = job.part(number, ".json")
    if done.exists():
        counts = PartCounts(**json.loads(done.read_text(encoding="utf-8")))
        if counts.state == state:
            return counts
    work = _Making(job, log)
    with (
        written_whole(job.part(number, ".jsonl")) as records,
        written_whole(job.part(number, ".rejects.jsonl")) as rejects,
        records.open("w", encoding="utf-8") as made,
        rejects.open("w", encoding="utf-8") as rejected,
    ):
        for record in read(split, job.source):
            location = record.reason if isinstance(record, Malformed) else record.location
            result = work.make(record)
            for one in result.records:
                made.write(json.dumps(one, ensure_ascii=False) + "\n")
            for rejection in result.rejected:
                line = {"record": location, **rejection._asdict()}
                rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
    log.close()
    counts = work.counts(number, state)
    write_json(done, dataclasses.asdict(counts))
    return counts


class _Making:
    """The records of one split on their way to what is made of them."""

    def __init__(self, job: FactoryJob, log: AnswerLog):
        self._job, self._log = job, log
        self._totals: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._is_unasked = False

    def make(self, record: Record | Malformed) -> Made:
        """What the recorded answers give."""
        self._totals["read"] += 1
        if isinstance(record, Malformed):
            return self._malformed(record.reason)
        try:
            made = self._walked(record)
        except DataError as error:
            return self._malformed(str(error))
        self._totals["made"] += len(made.records)
        self._totals["kept_tokens"] += made.kept_tokens
        self._rejected.update(rejection.outcome for rejection in made.rejected)
        return made

    def counts(self, number: int, state: str) -> PartCounts:
        """Of all records so far."""
        totals: dict[str, Any] = dict(self._totals)
        return PartCounts(number, state, rejected=dict(sorted(self._rejected.items())), **totals)

    def _malformed(self, reason: str) -> Made:
        self._totals["malformed"] += 1
        self._rejected["malformed"] += 1
        return Made(rejected=[Rejection("malformed", reason)])

    def _walked(self, record: Record) -> Made:
        steps = walk(self._job.task, record, self._job.fingerprint)
        unasked = False
        try:
            asked = next(steps)
            while True:
                replies = [self._reply(one) for one in asked]
                unasked = unasked or any(reply.outcome == "over budget" for reply in replies)
                asked = steps.send(replies)
        except StopIteration as end:
            self._totals["unasked"] += unasked
            return self._job.task.made(record, end.value.answers)

    def _reply(self, asked: Asked) -> Reply:
        reply = self._log.get(asked.key)
        if reply is not None:
            self._totals["used_tokens"] += reply.tokens.total if reply.tokens is not None else 0
            return reply
        failure = self._log.failure(asked.key)
        if failure is not None:
            return Reply("unreachable", reason=failure)
        return Reply("over budget", reason="the budget was used up before it was asked")


def total(parts: Sequence[PartCounts]) -> PartCounts:
    """The counts of all splits together."""
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
    names = ("read", "made", "unasked", "kept_tokens", "used_tokens", "malformed")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return PartCounts(len(parts), "", rejected=dict(sorted(rejected.items())), **sums)
