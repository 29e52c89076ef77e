"""The work on one split, wherever it runs: what is made of the recorded answers, as files below parts/.

    make_split(job, 7, split)     # parts/00007.jsonl, its rejections and counts

Like a shard of `qwen3_jax.data.shards` it depends on its split, the job's settings and the recorded answers alone, and is made
again unless its counts are there for the same answers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.answers import AnswerLog, read_reply
from qwen3_jax.data.factory.task import Answers, Asked, Made, Rejection, Task, record_bytes, walk
from qwen3_jax.data.records import DataError, Malformed, Record
from qwen3_jax.data.shards import PARTS
from qwen3_jax.data.sources import Split, read
from qwen3_jax.endpoints import Reply
from qwen3_jax.file_writes import write_json, written_whole
from qwen3_jax.json_fields import read_json
from qwen3_jax.text_files import is_unicode

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
        most_unit: records with larger units are passed over: a sample of the corpus (see `sample_of`). None takes all.
    """

    source: Source
    task: Task
    folder: Path
    fingerprint: str
    settings: str = ""
    most_unit: int | None = None

    def read(self, number: int, split: Split) -> Iterator[Record | Malformed]:
        """The records of a split, those of the sample alone where there is one; malformed ones count in any case."""
        for record in read(split, self.source):
            most = self.most_unit
            if isinstance(record, Malformed) or most is None or self.task.unit(record) <= most:
                yield record

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
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in sorted(folder.rglob("*.log")):
            log = AnswerLog(path, write=False)
            log.close()
            self._places.update({key: (path, *place) for key, place in log.places.items()})

    def get(self, key: str) -> Reply | None:
        """The recorded answer, or None."""
        if key not in self._places:
            return None
        path, start, length = self._places[key]
        with path.open("rb") as stream:
            stream.seek(start)
            return read_reply(stream.read(length))


@dataclass(frozen=True)
class Sample:
    """A sample of a corpus: the units (see `Task`) with the smallest hashes.

    Attributes:
        most_unit: the largest of them.
        sizes: of each of them, its number of records.
        units, records: of the whole corpus.
    """

    most_unit: int
    sizes: dict[int, int]
    units: int
    records: int


def sample_of(source: Source, task: Task, pieces: Sequence[Split], count: int) -> Sample:
    """The sample of `count` units, or of all where there are fewer. It holds 8 bytes for each record of the corpus.

    Raises:
        DataError: there are no records.
    """
    every = array("Q")
    for split in pieces:
        every.extend(task.unit(record) for record in read(split, source) if isinstance(record, Record))
    if not every:
        raise DataError("there are no records to take a sample of")
    units, sizes = np.unique(np.asarray(every, np.uint64), return_counts=True)
    taken = {int(unit): int(size) for unit, size in zip(units[:count], sizes[:count], strict=True)}
    return Sample(max(taken), taken, len(units), len(every))


def make_split(job: FactoryJob, number: int, split: Split) -> PartCounts:
    """Write what the recorded answers give, unless it is there.

    Raises:
        DataError: a file cannot be read.
    """
    log = AnswerLog(job.answers(number), write=False)
    state = hashlib.blake2b(f"{job.settings} {log.end}".encode(), digest_size=8).hexdigest()
    done = job.part(number, ".json")
    if done.exists():
        counts = PartCounts(**read_json(done))
        if counts.state == state:
            return counts
    recorded = RecordedAnswers(job, log)
    making = _Making(job, recorded)
    parts = Parts(job, number, state)
    with parts.writing() as write:
        for record in job.read(number, split):
            made, unread = making.made(record), isinstance(record, Malformed)
            write(record, made, not unread and recorded.unasked, 0 if unread else recorded.used_tokens)
    log.close()
    return parts.counts


class Parts:
    """The files of one split: records with the keys of what they were made of, rejections, and counts, written last.

    Args:
        state: of settings and recorded answers, kept with the counts.

    Attributes:
        counts: when `writing` has ended.
    """

    def __init__(self, job: FactoryJob, number: int, state: str = ""):
        self._job, self._number, self._state = job, number, state
        self._totals: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self.counts = PartCounts(number, state)

    @contextmanager
    def writing(self) -> Iterator[Callable[..., None]]:
        """Yield write(record, what was made of it, whether an answer is missing, tokens looked at)."""
        keys = array("Q")
        part = functools.partial(self._job.part, self._number)
        with (
            written_whole(part(".jsonl")) as records,
            written_whole(part(".rejects.jsonl")) as rejects,
            records.open("w", encoding="utf-8") as made,
            rejects.open("w", encoding="utf-8") as rejected,
        ):

            def write(record: Record | Malformed, result: Made, unasked: bool = False, used_tokens: int = 0) -> None:
                location = record.reason if isinstance(record, Malformed) else record.location
                lines = [json.dumps(one, ensure_ascii=False) for one in result.records]
                whole = [line for line in lines if is_unicode(line)]
                made.writelines(line + "\n" for line in whole)
                if isinstance(record, Record):
                    keys.extend([record.key] * len(whole))
                rejections = list(result.rejected)
                if len(whole) < len(lines):
                    rejections.append(Rejection("invalid", "it has half of a surrogate pair, which UTF-8 cannot hold"))
                for rejection in rejections:
                    text = json.dumps({"record": location, **rejection._asdict()}, ensure_ascii=False)
                    rejected.write(text.encode("utf-8", "replace").decode() + "\n")
                outcomes = [rejection.outcome for rejection in rejections]
                self._rejected.update(outcomes)
                self._totals.update(
                    read=1, made=len(whole), kept_tokens=result.kept_tokens, unasked=int(unasked),
                    used_tokens=used_tokens, malformed=outcomes.count("malformed"),
                )  # fmt: skip

            yield write
        with written_whole(part(".keys.npy")) as path, path.open("wb") as out:
            np.save(out, np.asarray(keys, np.uint64))
        totals: dict[str, Any] = dict(self._totals)
        self.counts = PartCounts(self._number, self._state, rejected=dict(sorted(self._rejected.items())), **totals)
        write_json(part(".json"), dataclasses.asdict(self.counts))


class RecordedAnswers:
    """The recorded answers of a split.

    Attributes:
        unasked: an answer to the last record is missing, because of a budget.
        used_tokens: of the answers to the last record.
    """

    def __init__(self, job: FactoryJob, log: AnswerLog):
        self._job, self._log = job, log
        self.unasked, self.used_tokens = False, 0

    def of(self, record: Record) -> Answers:
        """The answers to a record; "unreachable" and "over budget" stand for those that are missing.

        Raises:
            DataError: the record has not what the task needs.
        """
        self.unasked, self.used_tokens = False, 0
        steps = walk(self._job.task, record, self._job.fingerprint)
        try:
            asked = next(steps)
            while True:
                asked = steps.send([self._reply(one) for one in asked])
        except StopIteration as end:
            return end.value.answers

    def _reply(self, asked: Asked) -> Reply:
        reply = self._log.get(asked.key)
        if reply is not None:
            self.used_tokens += reply.tokens.total if reply.tokens is not None else 0
            return reply
        failure = self._log.failure(asked.key)
        if failure is not None:
            return Reply("unreachable", reason=failure)
        self.unasked = True
        return Reply("over budget", reason="the budget was used up before it was asked")


class _Making:
    """What the recorded answers of a split give."""

    def __init__(self, job: FactoryJob, recorded: RecordedAnswers):
        self._job, self._recorded = job, recorded
        self._seen: set[bytes] = set()

    def made(self, record: Record | Malformed) -> Made:
        """What is made of the next record."""
        try:
            if isinstance(record, Malformed):
                raise DataError(record.reason)
            made = self._job.task.made(record, self._recorded.of(record))
            return made if self._is_new(record) else dataclasses.replace(made, kept_tokens=0)
        except DataError as error:
            return Made(rejected=[Rejection("malformed", str(error))])

    def _is_new(self, record: Record) -> bool:
        """Whether a record comes for the first time; equal ones share their answers, whose tokens count once."""
        digest = hashlib.blake2b(record_bytes(record), digest_size=16).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


def total(parts: Sequence[PartCounts]) -> PartCounts:
    """The counts of all splits together."""
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
    names = ("read", "made", "unasked", "kept_tokens", "used_tokens", "malformed")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return PartCounts(len(parts), "", rejected=dict(sorted(rejected.items())), **sums)
