"""A job of the data factory as an Apache Beam job: the same functions on the same splits, so the same records.

    run_with_beam(source, task, "answers", make_backend, ["--runner=FlinkRunner", "--flink_master=..."], limits=limits)

The pipeline hands splits to workers; each asks what is not recorded of its split with a backend of its own, into that split's
file of answers, and makes its records. Workers must share a file system with OUTPUT.

Budgets are divided: every split may spend a share of what is left, by its bytes, so that workers need not talk to each other.
What is left over after a round is divided among the splits that had too little, and among fewer of them where the shares have
become too small. Only where a budget ends the job may other records be left out than without Beam.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

from qwen3_jax.data.beam import import_beam, pipeline_options
from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.answers import AnswerLog, Spending
from qwen3_jax.data.factory.asking import Asker, Asking, AskOptions
from qwen3_jax.data.factory.budget import Budget, Limits
from qwen3_jax.data.factory.job import Finished, finished, open_job, publish, spending
from qwen3_jax.data.factory.task import Task
from qwen3_jax.data.factory.work import EARLIER, EarlierAnswers, FactoryJob, make_split
from qwen3_jax.data.sources import SPLIT_BYTES, Split
from qwen3_jax.endpoints import Backend
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import locked, write_json
from qwen3_jax.json_fields import read_json

_CENT = Decimal("0.000001")


@dataclass(frozen=True)
class Share:
    """What one split may spend in all, this run included.

    Attributes:
        tokens, usd: None is no limit.
    """

    tokens: int | None
    usd: Decimal | None


@dataclass(frozen=True)
class AskingWork:
    """Everything that a worker needs, besides a split and its share.

    Attributes:
        job: whose records are asked.
        make_backend: called once in each worker.
        limits: of the whole job; a split's share takes the place of tokens and dollars.
        options: tries.
        started: seconds of `time.time()` at which the run began.
    """

    job: FactoryJob
    make_backend: Callable[[], Backend]
    limits: Limits
    options: AskOptions
    started: float

    def asked(self, number: int) -> Path:
        """What became of one split in this round."""
        return self.job.part(number, ".asked.json")


def run_with_beam(
    source: Source,
    task: Task,
    output: str | Path,
    make_backend: Callable[[], Backend],
    beam_options: Sequence[str] = (),
    *,
    fingerprint: str,
    limits: Limits | None = None,
    options: AskOptions | None = None,
    sample: int | None = None,
    split_bytes: int = SPLIT_BYTES,
) -> Finished:
    """Ask and make everything, as `qwen3_jax.data.factory.run` does; where the result is there, nothing is done.

    Args:
        make_backend: makes a worker's backend; pickled.
        beam_options: Beam's own, such as --runner=DataflowRunner.
        fingerprint: of the backends.
        limits: what all workers together may spend.
        options: tries; the number of failures of all workers is not known to one of them, so `max_failed` must be None.

    Raises:
        UserError: Beam is not installed or does not know an option, or `max_failed` is given; besides the errors of `run`.
        DataError: as `run`.
    """
    beam = import_beam()
    chosen = pipeline_options(beam_options)
    limits, options = limits or Limits(), options or AskOptions()
    if options.max_failed is not None:
        raise UserError(
            "--max-failed does not go with --beam, where no worker knows the failures of all: leave it out."
        )
    with open_job(source, task, output, fingerprint, split_bytes, sample) as opened:
        if opened.is_done:
            return finished(opened.job.folder)
        work = AskingWork(opened.job, make_backend, limits, options, time.time())
        results = _ask_in_rounds(beam, chosen, work, opened.splits)
        parts = [make_split(opened.job, number, split) for number, split in enumerate(opened.splits)]
        return publish(opened, parts, limits, _together(results))


def _ask_in_rounds(beam: Any, chosen: Any, work: AskingWork, splits: Sequence[Split]) -> list[dict[int, Asking]]:
    """Ask until no split waits for a larger share, or all that is left is too little for one; return the results of each round.

    Raises:
        UserError: the one that ended a worker's work.
    """
    rounds: list[dict[int, Asking]] = []
    waiting = list(enumerate(splits))
    together = len(waiting)
    while waiting:
        asked = waiting[:together]
        shares = divide(work.job, work.limits, asked)
        for number, _ in asked:
            work.asked(number).unlink(missing_ok=True)
        with beam.Pipeline(options=chosen) as pipeline:
            elements = beam.Create([(number, split, shares[number]) for number, split in asked])
            spread = pipeline | "splits" >> elements | "spread" >> beam.Reshuffle()
            spread | "ask" >> beam.ParDo(_asking_function(beam, work))
        results = {number: _read(work.asked(number)) for number, _ in asked}
        rounds.append(results)
        waiting = [one for one in waiting if one[0] not in results or results[one[0]].over_budget]
        is_late = work.limits.hours is not None and time.time() - work.started >= work.limits.hours * 3600
        if not any(result.sent for result in results.values()):
            if together == 1 or is_late:
                break
            together = max(min(together, len(waiting)) // 2, 1)  # larger shares for fewer splits
    return rounds


def divide(job: FactoryJob, limits: Limits, waiting: Sequence[tuple[int, Split]]) -> dict[int, Share]:
    """What each split may spend in all: what its file of answers has spent, and a share of what is left, by bytes.

    The shares and what the other files have spent are together no more than the limits.
    """
    spent = spending(job.folder)
    sizes = {number: sum(_bytes(part) for part in split) + 1 for number, split in waiting}
    whole = sum(sizes.values())
    tokens_left = None if limits.tokens is None else max(limits.tokens - spent.at_most.total, 0)
    used = limits.dollars(spent.at_most)
    usd_left = None if limits.usd is None or used is None else max(limits.usd - used, Decimal(0))
    out = {}
    for number, _ in waiting:
        own = _own_spending(job, number).at_most
        tokens = None if tokens_left is None else own.total + tokens_left * sizes[number] // whole
        usd = None
        if usd_left is not None:
            share = (usd_left * sizes[number] / whole).quantize(_CENT, ROUND_DOWN)
            usd = (limits.dollars(own) or Decimal(0)) + share
        out[number] = Share(tokens, usd)
    return out


def ask_split(work: AskingWork, backend: Backend, number: int, split: Split, share: Share) -> None:
    """Ask what is not recorded of one split, make its records, and write what became of it.

    Raises:
        UserError: another worker is at work on the split.
    """
    job = work.job
    with locked(job.part(number, ".lock"), f"another worker is at work on split {number} of {job.folder}."):
        hours = work.limits.hours
        if hours is not None:
            hours = max(hours - (time.time() - work.started) / 3600, 1e-9)
        # No request costs as little as one token, which stands for none.
        tokens = None if share.tokens is None else max(share.tokens, 1)
        limits = dataclasses.replace(work.limits, tokens=tokens, usd=share.usd, hours=hours)
        earlier = job.folder / EARLIER
        asker = Asker(
            job, backend, Budget(limits, _own_spending(job, number)), work.options,
            earlier=EarlierAnswers(earlier) if earlier.is_dir() else None,
        )  # fmt: skip
        try:
            result: dict[str, Any] = dataclasses.asdict(asker.run([(number, split)]))
            make_split(job, number, split)
        except UserError as error:  # Beam would try it again, and then show a traceback
            result = {"error": str(error)}
        write_json(work.asked(number), result)


def _asking_function(beam: Any, work: AskingWork) -> Any:
    class Ask(beam.DoFn):
        """Asks the requests of splits with one backend."""

        def setup(self) -> None:
            self.backend = work.make_backend()

        def process(self, element: tuple[int, Split, Share]) -> None:
            ask_split(work, self.backend, *element)

        def teardown(self) -> None:
            self.backend.close()

    return Ask()


def _bytes(part: Any) -> int:
    return int((part.stop - part.start) if part.stop is not None and part.kind == "jsonl" else part.file.size)


def _own_spending(job: FactoryJob, number: int) -> Spending:
    log = AnswerLog(job.answers(number), write=False)
    log.close()
    return log.spending


def _read(path: Path) -> Asking:
    """What a worker wrote.

    Raises:
        UserError: the one that ended its work.
    """
    values = read_json(path)
    if "error" in values:
        raise UserError(values["error"])
    return Asking(**values)


def _together(rounds: Sequence[Mapping[int, Asking]]) -> Asking:
    """The sum of what was done; the first round looks at all records, the others at some of them again."""
    every = [result for results in rounds for result in results.values()]
    latest = {number: result for results in rounds for number, result in results.items()}
    failed: Counter[str] = Counter()
    for result in latest.values():
        failed.update(result.failed)
    return Asking(
        records=sum(result.records for result in rounds[0].values()),
        sent=sum(result.sent for result in every),
        replayed=sum(result.replayed for result in rounds[0].values()),
        failed=dict(failed),
        retries=sum(result.retries for result in every),
        over_budget=next((result.over_budget for result in latest.values() if result.over_budget), ""),
    )
