"""`qwen3 data filter`: answers to queries in, those that the report's section 4.1 would keep out, with a funnel.

    look_split      every record by itself: its query, its verdict, the first fault of query and of response
    decide          every query by all of its answers: solved without thinking, never solved, the balance of domains
    filter_split    records, rejections

Like duplicates in `qwen3 data prepare`, what concerns several records is decided between two passes over the splits. Queries
that no answer solves are set apart, for people to look at.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.data.config import Source
from qwen3_jax.data.factory import filters
from qwen3_jax.data.factory.job import Finished, finished, open_job, publish
from qwen3_jax.data.factory.queries import query_of
from qwen3_jax.data.factory.task import Answers, Made, Rejection
from qwen3_jax.data.factory.work import FactoryJob, PartCounts, Parts
from qwen3_jax.data.forms import Conversation, read_form
from qwen3_jax.data.messages import FormError
from qwen3_jax.data.records import END_OF_TURN, DataError, Malformed, Record, texts
from qwen3_jax.data.shards import PARTS
from qwen3_jax.data.sources import SPLIT_BYTES, Split, read, splits
from qwen3_jax.data.workers import start_workers
from qwen3_jax.endpoints import ChatRequest, Reply
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.file_writes import write_json, written_whole
from qwen3_jax.json_fields import read_json
from qwen3_jax.text import parse
from qwen3_jax.verifiers import settings_of, verify

OF_QUERIES = (
    "not verifiable",
    "several parts",
    "general writing",
    "solved without thinking",
    "never solved",
    "balance",
)
OF_RESPONSES = ("wrong", "repetitive", "guessed", "inconsistent", "mixed languages", "near validation")
NEVER_SOLVED, FUNNEL = "never_solved.jsonl", "funnel.json"


@dataclass(frozen=True)
class FilterTask:
    """What is left out; it asks nothing.

    Attributes:
        verifier: judges every answer anew; "" takes the verdicts that `data generate --keep all` wrote.
        settings: of the verifier.
        reference_key: key of the record with the reference, where `data generate` has not written it.
        domain_key: key of the record with the query's domain.
        per_domain: most queries of a domain; None is no limit.
        solved_share: a query is solved without thinking where this share of its answers without thinking is right.
        held_out: files with queries that no query may come close to.
        ngram: words in a row that count as close.
        similarity: of 5-word shingles, that counts as close.
        skip: filters of OF_QUERIES and OF_RESPONSES that are not applied.
    """

    verifier: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference_key: str = "answer"
    domain_key: str | None = None
    per_domain: int | None = None
    solved_share: float = 0.5
    held_out: tuple[str, ...] = ()
    ngram: int = 13
    similarity: float = 0.3
    skip: tuple[str, ...] = ()
    name: str = "filter"
    recipe: str = "filter/1"
    attempts: int = 1

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "", per_domain=whole(1), solved_share=between(0, 1), ngram=whole(1), similarity=between(0.1, 1),
        )  # fmt: skip
        known = [*OF_QUERIES, *OF_RESPONSES]
        for name in self.skip:
            if name not in known:
                raise UserError(f"there is no filter {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
        if self.per_domain is not None and self.domain_key is None:
            raise UserError("a number of queries for each domain needs the key of the domain, --domain-key.")
        if self.verifier:
            settings_of(self.verifier, dict(self.settings))

    @property
    def asking(self) -> Mapping[str, Any]:
        """Nothing is asked."""
        return {}

    @property
    def reading(self) -> Mapping[str, Any]:
        """All settings."""
        names = [each.name for each in fields(self) if each.name not in ("name", "recipe", "attempts")]
        return {name: getattr(self, name) for name in names}

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """Nothing."""
        return []

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Nothing is asked."""
        return None

    def made(self, record: Record, answers: Answers) -> Made:
        """The record as it is: `filter_split` decides."""
        return Made([record.body])

    @functools.cached_property
    def validation(self) -> filters.Validation:
        """The held-out queries."""
        return filters.Validation.of(_held_out_texts(self.held_out), self.ngram, self.similarity)


@dataclass(frozen=True)
class Look:
    """What one record says about its query and its response.

    Attributes:
        query: id.
        domain: of the query.
        thinks: the response has a thinking section.
        right: the verdict; None is not known.
        query_fault, fault: (filter, reason) of the query and of the response, or None.
    """

    query: str
    domain: str
    thinks: bool
    right: bool | None
    query_fault: tuple[str, str] | None
    fault: tuple[str, str] | None


def filter_records(
    source: Source, task: FilterTask, output: str | Path, *, processes: int | None = 1, split_bytes: int = SPLIT_BYTES
) -> Finished:
    """Filter a corpus of answers into `output`; see `Finished`, and funnel.json there.

    Raises:
        DataError: a record cannot be read, or nothing is left.
        UserError: another process is at work on the folder, or it holds something else.
    """
    with open_job(source, task, output, "", split_bytes) as opened:
        if opened.is_done:
            return finished(opened.job.folder)
        count = min(processes or 1, len(opened.splits))
        with start_workers(opened.job, count) as run:
            looks = [Path(path) for path in run(look_split, opened.splits)]
            decided, totals = decide(task, (look for path in looks for look in _looks(path)))
            decisions = opened.job.folder / PARTS / "decisions.json"
            write_json(decisions, decided)
            parts = list(run(filter_split, opened.splits, looks, [decisions] * len(opened.splits)))
        _write_never_solved(opened.job, opened.splits, decided)
        write_json(opened.job.folder / FUNNEL, _funnel(task, totals, parts))
        return publish(opened, parts)


def look_split(job: FactoryJob, number: int, split: Split) -> Path:
    """Write what each record of a split says by itself, one line of JSON each, and return the file."""
    path = job.part(number, f".{job.settings}.looks")
    if path.exists():
        return path
    task: Any = job.task
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in read(split, job.source):
            try:
                line = json.dumps(vars(look(task, record))) if isinstance(record, Record) else "null"
            except DataError:
                line = "null"  # counted by filter_split
            out.write(line + "\n")
    return path


def look(task: FilterTask, record: Record) -> Look:
    """What one record says.

    Raises:
        DataError: it has no query, or no response.
    """
    query = query_of(record)
    thinking, content = response_of(record)
    about = record.body.get("generated")
    about = about if isinstance(about, Mapping) else {}
    reference = record.body.get(task.reference_key, about.get("reference"))
    text = filters.without_flag(query.text)
    plain = [*query.messages[:-1], {**query.messages[-1], "content": text}]
    identity = about.get("query") or replace(query, messages=tuple(plain)).id
    domain = str(record.body.get(task.domain_key, "")) if task.domain_key is not None else ""
    verdict, reason = _verdict(task, thinking, content, reference, about)
    labels = record.body.get("query_labels")
    said: Mapping[str, Any] = labels if isinstance(labels, Mapping) else {}
    query_fault = _first(task, [
        ("not verifiable", lambda: reason if verdict == "error" else _no_reference(task, reference, about)),
        ("not verifiable", lambda: _label(said, "verifiable", False, lambda: None)),
        ("several parts", lambda: _label(said, "several_parts", True, lambda: filters.several_parts(text))),
        ("general writing", lambda: _label(said, "general_writing", True, lambda: filters.general_writing(text))),
    ])  # fmt: skip
    verifier = task.verifier if verdict == "right" else ""
    fault = _first(task, [
        ("wrong", lambda: None if verdict in (None, "right") else f"{verdict}: {reason}"),
        ("repetitive", lambda: filters.repetitive(f"{thinking}\n\n{content}")),
        ("guessed", lambda: filters.guessed(text, thinking, content)),
        ("inconsistent", lambda: filters.inconsistent(thinking, content, reference, verifier, task.settings)),
        ("mixed languages", lambda: filters.mixed_languages(text, thinking, content)),
        ("near validation", lambda: task.validation.near(text, f"{thinking}\n{content}") if task.held_out else None),
    ])  # fmt: skip
    return Look(
        identity, domain, bool(thinking.strip()), None if verdict is None else verdict == "right", query_fault, fault
    )


def response_of(record: Record) -> tuple[str, str]:
    """(thinking, answer) of a record's last response; thinking is "" where there is none.

    Raises:
        DataError: there is no response.
    """
    try:
        form, _ = read_form(record.body)
    except FormError as error:
        raise DataError(f"{record.location}: {error}") from None
    if isinstance(form, Conversation) and form.completion is not None:
        segments = form.completion
        text = segments if isinstance(segments, str) else "".join(str(segment.get("text", "")) for segment in segments)
        parsed = parse(text.removesuffix(END_OF_TURN), tools=False)
        return parsed.thinking or "", parsed.content
    if not isinstance(form, Conversation) or form.turns.messages[-1]["role"] != "assistant":
        raise DataError(f"{record.location}: it has no answer of an assistant at its end")
    message = form.turns.messages[-1]
    content, thinking = message.get("content", ""), message.get("reasoning_content")
    if thinking is None:
        parsed = parse(content, tools=False)
        thinking, content = parsed.thinking or "", parsed.content
    return thinking, content


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


def filter_split(job: FactoryJob, number: int, split: Split, looks: Path, decisions: Path) -> PartCounts:
    """Write the records of a split that are kept, and why others are not."""
    decided = read_json(decisions)
    parts = Parts(job, number)
    with parts.writing() as write:
        for record, one in zip(read(split, job.source), _lines(looks), strict=True):
            if isinstance(record, Malformed):
                write(record, Made(rejected=[Rejection("malformed", record.reason)]))
                continue
            if one is None:
                try:
                    look(job.task, record)  # type: ignore[arg-type]
                    reason = f"{record.location}: it could not be read before"
                except DataError as error:
                    reason = str(error)
                write(record, Made(rejected=[Rejection("malformed", reason)]))
                continue
            fault = decided.get(one.query) or one.fault
            rejected = [] if fault is None else [Rejection(*fault)]
            write(record, Made([] if rejected else [record.body], rejected))
    return parts.counts


def _balance(most: int, domains: Mapping[str, str], out: dict[str, tuple[str, str]]) -> None:
    """Leave out queries of domains that have more than `most`: those whose hashes are largest."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for query, domain in domains.items():
        groups[domain].append(query)
    for domain, queries in groups.items():
        ordered = sorted(queries, key=lambda query: hashlib.blake2b(query.encode(), digest_size=8).digest())
        for query in ordered[most:]:
            out[query] = "balance", f"the domain {domain!r} has {len(queries):,} queries, {most:,} are kept"


def _verdict(
    task: FilterTask, thinking: str, content: str, reference: Any, about: Mapping[str, Any]
) -> tuple[str | None, str]:  # fmt: skip
    """(status, reason); the status is None where nothing judges."""
    if task.verifier:
        text = f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else content
        verdict = verify(task.verifier, text, reference, dict(task.settings))
        return verdict.status, verdict.reason
    return (str(about["verdict"]), str(about.get("reason", ""))) if "verdict" in about else (None, "")


def _no_reference(task: FilterTask, reference: Any, about: Mapping[str, Any]) -> str | None:
    judged = bool(task.verifier) or "verdict" in about
    return "it has no reference" if judged and reference in (None, "") else None


def _first(task: FilterTask, tests: Sequence[tuple[str, Any]]) -> tuple[str, str] | None:
    for name, test in tests:
        reason = None if name in task.skip else test()
        if reason is not None:
            return name, reason
    return None


def _label(labels: Mapping[str, Any], name: str, fault: bool, rule: Callable[[], str | None]) -> str | None:
    """What a model said of a query (`qwen3 data annotate --recipe query_kind`), else what the rule says."""
    value = labels.get(name)
    if not isinstance(value, bool):
        return rule()
    return f"its label {name} is {json.dumps(value)}" if value is fault else None


def _lines(path: Path) -> Iterator[Look | None]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            values = json.loads(line)
            if values is None:
                yield None
                continue
            pairs = {name: values[name] and tuple(values[name]) for name in ("query_fault", "fault")}
            yield Look(**{**values, **pairs})


def _looks(path: Path) -> Iterator[Look]:
    return (one for one in _lines(path) if one is not None)


def _write_never_solved(job: FactoryJob, pieces: Sequence[Split], decided: Mapping[str, tuple[str, str]]) -> None:
    """The queries that no answer solves, each once, with its reference."""
    wanted = {query: reason for query, (name, reason) in decided.items() if name == "never solved"}
    task: Any = job.task
    with written_whole(job.folder / NEVER_SOLVED) as path, path.open("w", encoding="utf-8") as out:
        for number, split in enumerate(pieces):
            if not wanted:
                break
            looks = _lines(job.part(number, f".{job.settings}.looks"))
            for record, one in zip(read(split, job.source), looks, strict=True):
                if one is None or one.query not in wanted or not isinstance(record, Record):
                    continue
                query = query_of(record)
                about = record.body.get("generated")
                reference = record.body.get(
                    task.reference_key, about.get("reference") if isinstance(about, Mapping) else None
                )
                messages = [*query.messages[:-1], {**query.messages[-1], "content": filters.without_flag(query.text)}]
                line = {"messages": messages, task.reference_key: reference, "reason": wanted.pop(one.query)}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _funnel(task: FilterTask, totals: Mapping[str, int], parts: Sequence[PartCounts]) -> dict[str, Any]:
    """funnel.json: of queries and of responses, how many each filter left out, in order."""
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
    }  # fmt: skip


def _held_out_texts(paths: Sequence[str]) -> Iterator[str]:
    """The queries of held-out files; the whole text of a record that has no query."""
    if not paths:
        return
    source = Source("held-out", list(paths))
    for split in splits(source):
        for record in read(split, source):
            if isinstance(record, Malformed):
                raise DataError(record.reason)
            try:
                yield query_of(record).text
            except DataError:
                yield "\n".join(texts(record))
