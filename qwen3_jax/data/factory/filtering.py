"""`qwen3 data filter`: answers to queries in, those that the report's section 4.1 would keep out, with a funnel.

    see_split       where judges are asked: every record is verified, and what needs no judge is noted
    ask             what judges say, if there are any (`filter_task.py`)
    look_split      every record by itself: its query, its verdict, the first fault of query and of response
    decide          every query by all of its answers: solved without thinking, never solved, the balance of domains
    filter_split    records, rejections

Like duplicates in `qwen3 data prepare`, what concerns several records is decided between two passes over the splits. Queries
that no answer solves are set apart, for people to look at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3_jax.data.config import Source
from qwen3_jax.data.factory import judging
from qwen3_jax.data.factory.answers import AnswerLog
from qwen3_jax.data.factory.asking import AskOptions
from qwen3_jax.data.factory.budget import Limits
from qwen3_jax.data.factory.filter_task import OF_QUERIES, OF_RESPONSES, FilterTask, Look, SeenRecord, look, seen
from qwen3_jax.data.factory.job import Finished, ask, finished, open_job, publish, recorded_model
from qwen3_jax.data.factory.queries import query_of, without_flag
from qwen3_jax.data.factory.task import Made, Rejection
from qwen3_jax.data.factory.work import FactoryJob, PartCounts, Parts, RecordedAnswers
from qwen3_jax.data.records import PROVENANCE, DataError, Malformed, Record
from qwen3_jax.data.shards import PARTS
from qwen3_jax.data.sources import SPLIT_BYTES, Split
from qwen3_jax.data.workers import start_workers
from qwen3_jax.endpoints import Backend
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import write_json, written_whole
from qwen3_jax.json_fields import read_json
from qwen3_jax.progress import with_progress

NEVER_SOLVED, FUNNEL = "never_solved.jsonl", "funnel.json"
_ASKED_AGAIN = ("over budget", "unreachable")  # what a judge may yet answer in another run
_SEEN = ("verdict", "reason", "before", "after")  # fields of SeenRecord


@dataclass(frozen=True)
class FilterJob(FactoryJob):
    """A job whose records bring what `see_split` has noted of them."""

    def seen(self, number: int) -> Path:
        """What is noted of each record of a split, a line of JSON; null where it cannot be used."""
        return self.part(number, f".{self.settings}.seen")

    def read(self, number: int, split: Split) -> Iterator[Record | Malformed]:
        """The records of a split, as `SeenRecord` where they were noted."""
        records, file = super().read(number, split), self.seen(number)
        if not file.exists():
            yield from records
            return
        with file.open(encoding="utf-8") as stream:
            for record, line in zip(records, stream, strict=True):
                values = json.loads(line)
                if values is None or isinstance(record, Malformed):
                    yield record
                else:
                    verdict, reason, before, after = values
                    faults = (before and (before[0], before[1])), (after and (after[0], after[1]))
                    yield SeenRecord(record.location, record.body, record.key, verdict, reason, *faults)


def filter_records(
    source: Source, task: FilterTask, output: str | Path, backend: Backend | None = None, *, limits: Limits | None = None,
    options: AskOptions | None = None, sample: int | None = None, processes: int | None = 1, split_bytes: int = SPLIT_BYTES,
    visible: bool | None = None,
) -> Finished:  # fmt: skip
    """Filter a corpus of answers into `output`; see `Finished`, and funnel.json there.

    Args:
        backend: answers for the judges of the task; None uses what they have said before, and rules for the rest.
        source, task, output, limits, options, sample, processes, split_bytes, visible: see `qwen3_jax.data.factory.run`.

    Raises:
        DataError: a record cannot be read, or nothing is left.
        UserError: another process is at work on the folder, it holds something else, too many requests fail, or a backend is
            given to a task without judges.
    """
    if backend is not None and not task.judges:
        raise UserError("a model that filters needs judges: recipes that it answers.")
    limits, options = limits or Limits(), options or AskOptions()
    fingerprint = backend.fingerprint if backend is not None else recorded_model(output) if task.judges else ""
    with open_job(source, task, output, fingerprint, split_bytes, sample) as opened:
        if opened.is_done:
            return finished(opened.job.folder)
        job = FilterJob(**vars(opened.job))
        opened = replace(opened, job=job)
        count = min((os.cpu_count() or 1) if processes is None else processes, len(opened.splits))
        asking = None
        if backend is not None:
            with start_workers(job, count) as run:
                noted = run(see_split, opened.splits)
                for _ in with_progress(noted, "verifying", len(opened.splits), visible=visible):
                    pass
            asking = ask(opened, backend, limits, options, visible=visible)
        with start_workers(job, count) as run:
            looks = [Path(path) for path in run(look_split, opened.splits)]
            decided, totals = decide(task, (look for path in looks for look in _looks(path)))
            decisions = job.folder / PARTS / "decisions.json"
            write_json(decisions, decided)
            parts = list(run(filter_split, opened.splits, looks, [decisions] * len(opened.splits)))
        _write_never_solved(job, opened.splits, looks, decided)
        without = Counter(outcome for path in looks for one in _looks(path) for outcome in one.without)
        write_json(job.folder / FUNNEL, _funnel(task, totals, parts, without))
        return publish(opened, parts, limits, asking)


def see_split(job: FilterJob, number: int, split: Split) -> None:
    """Verify the records of a split, unless this was done."""
    file = job.seen(number)
    if file.exists():
        return
    task: Any = job.task
    with written_whole(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in job.read(number, split):
            noted = None
            with contextlib.suppress(DataError):  # counted by filter_split
                if isinstance(record, Record):
                    one = seen(task, record)
                    noted = [getattr(one, name) for name in _SEEN]
            out.write(json.dumps(noted) + "\n")


def look_split(job: FilterJob, number: int, split: Split) -> Path:
    """Write what each record of a split says by itself, one line of JSON each, and return the file.

    A line is a `Look`, or the reason why the record cannot be used.
    """
    log = AnswerLog(job.answers(number), write=False)
    path = job.part(number, f".{job.settings}.{log.end}.looks")
    if path.exists():
        log.close()
        return path
    task: Any = job.task
    recorded = RecordedAnswers(job, log)
    with contextlib.closing(log), written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in job.read(number, split):
            try:
                if isinstance(record, Malformed):
                    raise DataError(record.reason)
                one = seen(task, record)
                labels, without = task.labels(one, recorded.of(one))
                line = json.dumps(vars(look(task, one, labels, without)))
            except DataError as error:
                line = json.dumps(str(error))
            out.write(line + "\n")
    return path


def decide(task: FilterTask, looks: Iterable[Look]) -> tuple[dict[str, tuple[str, str]], Counter[str]]:
    """Decide about queries by all of their answers.

    Returns:
        The filter and the reason for each query that is left out, and how many queries each filter took (and "queries").
    """
    faults: dict[str, tuple[str, str]] = {}
    domains: dict[str, str] = {}
    plain: defaultdict[str, list[bool]] = defaultdict(list)
    solved: defaultdict[str, list[bool]] = defaultdict(list)
    for one in looks:
        domains.setdefault(one.query, one.domain)
        if one.query_fault is not None:
            faults.setdefault(one.query, one.query_fault)
        if one.right is not None:
            (solved if one.thinks else plain)[one.query].append(one.right)
    out: dict[str, tuple[str, str]] = {}
    for query in domains:
        right, answers = sum(plain[query]), len(plain[query])
        if query in faults:
            out[query] = faults[query]
        elif answers and right / answers >= task.solved_share and "solved without thinking" not in task.skip:
            out[query] = "solved without thinking", f"{right} of {answers} answers without thinking are right"
        elif (
            (solved[query] or plain[query])
            and not any(solved[query] + plain[query])
            and "never solved" not in task.skip
        ):
            out[query] = "never solved", f"none of {len(solved[query]) + answers} answers is right"
    if task.per_domain is not None and "balance" not in task.skip:
        _balance(task.per_domain, {query: domain for query, domain in domains.items() if query not in out}, out)
    totals = Counter(name for name, _ in out.values())
    totals["queries"] = len(domains)
    return out, totals


def filter_split(job: FilterJob, number: int, split: Split, looks: Path, decisions: Path) -> PartCounts:
    """Write the records of a split that are kept, and why others are not."""
    decided = read_json(decisions)
    parts = Parts(job, number)
    with parts.writing() as write:
        for record, one in zip(job.read(number, split), _lines(looks), strict=True):
            if isinstance(one, str) or isinstance(record, Malformed):
                write(record, Made(rejected=[Rejection("malformed", str(one))]))
                continue
            fault = decided.get(one.query) or one.fault
            rejected = [] if fault is None else [Rejection(*fault)]
            is_open = any(outcome in _ASKED_AGAIN for outcome in one.without)
            write(record, Made([] if rejected else [record.body], rejected), is_open)
    return parts.counts


def by_rules(task: FilterTask) -> list[str]:
    """Filters about meaning that no judge of the task decides: rules find what they have words for, and labels of records."""
    judged = {name for judge in task.judges for name in judging.filters_of(judge)}
    about_meaning = [name for names in judging.LABELS.values() for name in names.values()]
    return [name for name in about_meaning if name not in judged and name not in task.skip]


def _balance(most: int, domains: Mapping[str, str], out: dict[str, tuple[str, str]]) -> None:
    """Leave out queries of domains that have more than `most`: those whose hashes are largest."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for query, domain in domains.items():
        groups[domain].append(query)
    for domain, queries in groups.items():
        ordered = sorted(queries, key=lambda query: hashlib.blake2b(query.encode(), digest_size=8).digest())
        for query in ordered[most:]:
            out[query] = "balance", f"the domain {domain!r} has {len(queries):,} queries, {most:,} are kept"


def _lines(path: Path) -> Iterator[Look | str]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            values = json.loads(line)
            if isinstance(values, str):
                yield values
                continue
            pairs = {name: values[name] and tuple(values[name]) for name in ("query_fault", "fault", "without")}
            yield Look(**{**values, **pairs})


def _looks(path: Path) -> Iterator[Look]:
    return (one for one in _lines(path) if isinstance(one, Look))


def _write_never_solved(
    job: FilterJob, pieces: Sequence[Split], paths: Sequence[Path], decided: Mapping[str, tuple[str, str]]
) -> None:
    """The queries that no answer solves, each once, with its reference."""
    wanted = {query: reason for query, (name, reason) in decided.items() if name == "never solved"}
    task: Any = job.task
    with written_whole(job.folder / NEVER_SOLVED) as path, path.open("w", encoding="utf-8") as out:
        for number, (split, looks) in enumerate(zip(pieces, paths, strict=True)):
            if not wanted:
                break
            for record, one in zip(job.read(number, split), _lines(looks), strict=True):
                if isinstance(one, str) or one.query not in wanted or not isinstance(record, Record):
                    continue
                query = query_of(record)
                about = record.body.get(PROVENANCE)
                reference = record.body.get(
                    task.reference_key, about.get("reference") if isinstance(about, Mapping) else None
                )
                messages = [*query.messages[:-1], {**query.messages[-1], "content": without_flag(query.text)}]
                line = {"messages": messages, task.reference_key: reference, "reason": wanted.pop(one.query)}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _funnel(
    task: FilterTask, totals: Mapping[str, int], parts: Sequence[PartCounts], without: Mapping[str, int]
) -> dict[str, Any]:
    """funnel.json: of queries and of responses, how many each filter left out, in order; judges' requests without labels."""
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
    queries = {name: totals.get(name, 0) for name in OF_QUERIES if name not in task.skip}
    responses = {name: rejected.get(name, 0) for name in OF_RESPONSES if name not in task.skip}
    return {
        "queries": totals["queries"], "queries_left_out": queries,
        "queries_kept": totals["queries"] - sum(queries.values()),
        "responses": sum(part.read - part.malformed for part in parts),
        "responses_to_queries_left_out": sum(rejected[name] for name in OF_QUERIES),
        "responses_left_out": responses, "responses_kept": sum(part.made for part in parts),
        "decided_by_rules": by_rules(task),
        "left_to_rules": dict(sorted(without.items())),
    }  # fmt: skip
