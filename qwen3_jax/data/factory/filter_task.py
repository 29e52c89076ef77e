"""The task of `qwen3 data filter`: what each record says about its query and its response, by rules and by judges.

A record is asked about in one stage for each judge, the query first, and not at all where another filter leaves it out already.
Equal queries of a split are judged once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.data.config import Source
from qwen3_jax.data.factory import filters, judging, query_rules
from qwen3_jax.data.factory.queries import query_of, response_of, without_flag
from qwen3_jax.data.factory.recipe import Recipe
from qwen3_jax.data.factory.recipe_task import RecipeTask
from qwen3_jax.data.factory.task import Answers, Made, bits_of, record_bytes
from qwen3_jax.data.records import PROVENANCE, DataError, Malformed, Record, texts
from qwen3_jax.data.sources import read, splits
from qwen3_jax.endpoints import ChatRequest, Reply
from qwen3_jax.errors import UserError, nearest
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


@dataclass(frozen=True)
class FilterTask:
    """What is left out. It asks nothing, unless there are judges.

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
        judges: recipes that label queries or responses (see `judging.py`); () leaves everything to rules.
    """

    shares_answers: ClassVar[bool] = True
    units: ClassVar[str] = "queries"

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
    judges: tuple[Recipe, ...] = ()
    name: str = "filter"

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
        kinds = [judging.kind_of(judge) for judge in self.judges]
        if len(set(kinds)) < len(kinds) or kinds != sorted(kinds):
            raise UserError("give at most one judge of queries and one of responses, in this order.")

    @property
    def recipe(self) -> str:
        """Names and versions of the judges."""
        return " ".join(["filter/2", *(judge.identity for judge in self.judges)])

    @property
    def attempts(self) -> int:
        """Tries until a judge's answer can be read."""
        return max((judge.attempts for judge in self.judges), default=1)

    @property
    def asking(self) -> Mapping[str, Any]:
        """What the judges' requests depend on."""
        return {judge.name: judge.asking for judge in self.judges}

    @property
    def reading(self) -> Mapping[str, Any]:
        """All other settings."""
        names = [each.name for each in fields(self) if each.name not in ("name", "judges")]
        return {name: getattr(self, name) for name in names} | {
            "judges": {judge.name: judge.reading for judge in self.judges}
        }

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """The request of the next judge; none where nothing is left to judge.

        Raises:
            DataError: the record has no query, or no response.
        """
        steps = self._steps(record)
        if len(answers) >= len(steps):
            return []
        judge = steps[len(answers)]
        if judging.kind_of(judge) == judging.QUERY:
            known = look_at_query(self, record, judging.written(record), judging.filters_of(judge))
        else:
            labels, _ = self.labels(record, answers)
            one = look(self, seen(self, record), labels, leave_out=judging.filters_of(judge))
            known = one.query_fault or one.fault
        return [] if known else RecipeTask(judge).asks(record, [])

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Why a judge's answer cannot be used."""
        labels, outcome = judging.read(self._steps(record)[len(answers)], record, reply)
        return None if labels is not None else outcome

    def labels(self, record: Record, answers: Answers) -> tuple[judging.Labels, list[str]]:
        """(What is known about a record, the outcome of each request that gave no labels)."""
        found, without = judging.written(record), []
        for judge, (reply,) in zip(self._steps(record), answers, strict=False):
            labels, outcome = judging.read(judge, record, reply)
            if labels is None:
                without.append(outcome)
            else:
                found[judging.kind_of(judge)] = labels
        return found, without

    def unit(self, record: Record) -> int:
        """Equal for all answers to a query, which share what is asked about it and are looked at together."""
        try:
            return bits_of(without_flag(query_of(record).text).encode("utf-8", "surrogatepass"))
        except DataError:
            return bits_of(record_bytes(record))

    def purposes(self, record: Record) -> Sequence[str]:
        """The names of the judges that a record may need."""
        return [judge.name for judge in self._steps(record)]

    def _steps(self, record: Record) -> list[Recipe]:
        """The judges that a record needs: it has not their labels, and one of their filters is applied."""
        known = judging.written(record)
        return [
            judge
            for judge in self.judges
            if judging.kind_of(judge) not in known and not judging.filters_of(judge) <= set(self.skip)
        ]

    def made(self, record: Record, answers: Answers) -> Made:
        """The record as it is: `filter_split` decides."""
        return Made([record.body])

    @functools.cached_property
    def validation(self) -> filters.Validation:
        """The held-out queries."""
        return filters.Validation.of(_held_out_texts(self.held_out), self.ngram, self.similarity)


@dataclass(frozen=True, slots=True)
class SeenRecord(Record):
    """A record with what no judge is needed for, which includes its verdict. It is looked at several times and verified once.

    Attributes:
        verdict, reason: of the verifier; the verdict is None where nothing judges.
        before, after: (filter, reason), the first fault of the response by the filters in front of the judges', and behind.
    """

    verdict: str | None = None
    reason: str = ""
    before: tuple[str, str] | None = None
    after: tuple[str, str] | None = None


@dataclass(frozen=True)
class Look:
    """What one record says about its query and its response.

    Attributes:
        query: id.
        domain: of the query.
        thinks: the response has a thinking section.
        right: the verdict; None is not known.
        query_fault, fault: (filter, reason) of the query and of the response, or None.
        without: outcomes of the judges' requests that gave no labels: rules stand for them.
    """

    query: str
    domain: str
    thinks: bool
    right: bool | None
    query_fault: tuple[str, str] | None
    fault: tuple[str, str] | None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Case:
    """A record as the filters read it."""

    query: str
    text: str
    thinking: str
    content: str
    reference: Any
    about: Mapping[str, Any]

    @classmethod
    def of(cls, task: FilterTask, record: Record) -> _Case:
        query = query_of(record)
        thinking, content = response_of(record)
        found = record.body.get(PROVENANCE)
        about = found if isinstance(found, Mapping) else {}
        text = without_flag(query.text)
        plain = (*query.messages[:-1], {**query.messages[-1], "content": text})
        identity = str(about.get("query") or replace(query, messages=plain).id)
        reference = record.body.get(task.reference_key, about.get("reference"))
        return cls(identity, text, thinking, content, reference, about)


def seen(task: FilterTask, record: Record) -> SeenRecord:
    """Verify a record and apply all filters of responses that need no judge, unless this was done.

    Raises:
        DataError: it has no query, or no response.
    """
    if isinstance(record, SeenRecord):
        return record
    case, skip = _Case.of(task, record), set(task.skip)
    verdict, reason = _verdict(task, case)
    response = f"{case.thinking}\n\n{case.content}"
    before = _first(skip, [
        ("wrong", lambda: None if verdict in (None, "right") else f"{verdict}: {reason}"),
        ("repetitive", lambda: filters.repetitive(response)),
    ])  # fmt: skip
    after = None if before is not None else _first(skip, [
        ("mixed languages", lambda: filters.mixed_languages(case.text, case.thinking, case.content)),
        ("near validation", lambda: task.validation.near(case.text, response) if task.held_out else None),
    ])  # fmt: skip
    return SeenRecord(record.location, record.body, record.key, verdict, reason, before, after)


def look(
    task: FilterTask, record: SeenRecord, labels: judging.Labels, without: Sequence[str] = (),
    leave_out: set[str] | None = None,
) -> Look:  # fmt: skip
    """What one record says.

    Args:
        record: of `seen`.
        labels: of judges, see `FilterTask.labels`; of what has none, rules decide.
        without: see `Look`.
        leave_out: filters that are not applied yet.

    Raises:
        DataError: it has no query, or no response.
    """
    case = _Case.of(task, record)
    skip = {*task.skip, *(leave_out or ())}
    domain = str(record.body.get(task.domain_key, "")) if task.domain_key is not None else ""
    verdict = record.verdict
    said = labels.get(judging.RESPONSE, {})
    verifier = task.verifier if verdict == "right" else ""
    thinking, content = case.thinking, case.content
    fault = record.before or _first(skip, [
        ("guessed", lambda: _label(said, "guessed", True, lambda: filters.guessed(case.text, thinking, content))),
        ("inconsistent", lambda: _label(said, "consistent", False, lambda: filters.inconsistent(
            thinking, content, case.reference, verifier, task.settings))),
    ]) or record.after  # fmt: skip
    query_fault = _query_fault(task, case, labels, skip, record.reason if verdict == "error" else None)
    right = None if verdict is None else verdict == "right"
    return Look(case.query, domain, bool(thinking.strip()), right, query_fault, fault, tuple(without))


def look_at_query(
    task: FilterTask, record: Record, labels: judging.Labels, leave_out: set[str]
) -> tuple[str, str] | None:
    """The (filter, reason) that leaves a query out before any answer is verified, or None."""
    case = _Case.of(task, record)
    known = labels if judging.QUERY in labels else {**labels, judging.QUERY: {}}
    rules = leave_out - {"not verifiable"}  # a missing reference is seen without a judge
    return _query_fault(task, case, known, {*task.skip, *rules}, None)


def _query_fault(
    task: FilterTask, case: _Case, labels: judging.Labels, skip: set[str], bad_reference: str | None
) -> tuple[str, str] | None:
    said, text = labels.get(judging.QUERY, {}), case.text
    return _first(skip, [
        ("not verifiable", lambda: bad_reference or _no_reference(task, case)),
        ("not verifiable", lambda: _label(said, "verifiable", False, lambda: None)),
        ("several parts", lambda: _label(said, "several_parts", True, lambda: query_rules.several_parts(text))),
        ("general writing", lambda: _label(said, "general_writing", True, lambda: query_rules.general_writing(text))),
    ])  # fmt: skip


def _verdict(task: FilterTask, case: _Case) -> tuple[str | None, str]:
    """(status, reason); the status is None where nothing judges."""
    if task.verifier:
        text = f"<think>\n{case.thinking}\n</think>\n\n{case.content}" if case.thinking else case.content
        verdict = verify(task.verifier, text, case.reference, dict(task.settings))
        return verdict.status, verdict.reason
    about = case.about
    return (str(about["verdict"]), str(about.get("reason", ""))) if "verdict" in about else (None, "")


def _no_reference(task: FilterTask, case: _Case) -> str | None:
    judged = bool(task.verifier) or "verdict" in case.about
    return "it has no reference" if judged and case.reference in (None, "") else None


def _first(skip: set[str], tests: Sequence[tuple[str, Callable[[], str | None]]]) -> tuple[str, str] | None:
    for name, test in tests:
        reason = None if name in skip else test()
        if reason is not None:
            return name, reason
    return None


def _label(labels: Mapping[str, Any], name: str, fault: bool, rule: Callable[[], str | None]) -> str | None:
    """What a judge said (or `qwen3 data annotate` with the judge's recipe), else what the rule says."""
    value = labels.get(name)
    if not isinstance(value, bool):
        return rule()
    return f"its label {name} is {json.dumps(value)}" if value is fault else None


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
