"""Asking for what is not recorded yet: records in order, several requests in progress, every reply recorded at once.

    asker = Asker(job, backend, budget, options)
    asker.run(enumerate(splits))           # afterwards every request has an answer, or a reason why it has none

A request that brings no usable reply is tried again, each try with a reservation of its own, because a lost reply may have been
paid. What fits no budget, and everything after it, is left unasked.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.data.factory.answers import AnswerLog
from qwen3_jax.data.factory.budget import Budget
from qwen3_jax.data.factory.task import Asked, Walk, walk
from qwen3_jax.data.factory.work import EarlierAnswers, FactoryJob
from qwen3_jax.data.records import DataError, Malformed, Record
from qwen3_jax.data.sources import Split
from qwen3_jax.endpoints import Backend, ChatRequest, Reply, Tokens, prompt_bound
from qwen3_jax.endpoints.pause import FIRST_PAUSE, pause
from qwen3_jax.errors import UserError, warn

_UNREACHABLE_IN_A_ROW, _REFUSED_IN_A_ROW = 20, 100  # after which a run ends; refusals only before the first answer
_RECORDS = 256  # of recorded answers that are passed over between two looks at the backend


@dataclass(frozen=True)
class AskOptions:
    """How requests are sent.

    Attributes:
        tries: of one request, until it is "unreachable".
        max_failed: most requests that may end otherwise than "ok"; None is any number.
        wait: seconds before the second try; doubled for each further one, unless the endpoint says when.
    """

    tries: int = 6
    max_failed: int | None = None
    wait: float = FIRST_PAUSE

    def __post_init__(self) -> None:
        check_bounds(vars(self), "", tries=whole(1), max_failed=whole(0))


@dataclass
class Asking:
    """What a run has done.

    Attributes:
        records: records that were walked through.
        sent: requests that were answered by the backend.
        replayed: requests whose answers were recorded before.
        failed: by outcome, requests that ended otherwise than "ok".
        retries: tries that were repeated.
        settled: answers that were given to records; equal requests of several records have one answer.
        over_budget: why the run ended before all records were asked, or "".
    """

    records: int = 0
    sent: int = 0
    replayed: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    settled: int = 0
    over_budget: str = ""


@dataclass
class Usage:
    """What the records of one unit of a sample have used.

    Attributes:
        records: that are finished.
        requests, prompt, completion: by purpose (see `Task`), different requests and the tokens of their answers, each counted
            once, whether it was recorded before or not.
        left_out: by purpose, records about which nothing was asked.
        doubtful: tokens, at most, of tries that brought no counts and may have been paid.
    """

    records: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    prompt: Counter[str] = field(default_factory=Counter)
    completion: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    doubtful: Tokens = Tokens()  # noqa: RUF009 - frozen


@dataclass
class _Shard:
    """A split whose records are asked at the moment."""

    log: AnswerLog
    walks: int = 0  # that are not finished
    is_read: bool = False
    charged: set[str] = field(default_factory=set)  # keys of requests whose usage is counted


@dataclass
class _Open:
    """A record that waits for replies."""

    shard: _Shard
    record: Record
    walk: Walk
    asked: list[Asked] = field(default_factory=list)
    replies: dict[str, Reply] = field(default_factory=dict)
    stages: int = 0  # in which something was asked


@dataclass
class _Pending:
    """A request that has no answer yet, with the records that wait for it: equal records of a split share it."""

    key: str
    request: ChatRequest
    shard: _Shard
    bound: Tokens
    waiting: list[_Open]
    tries: int = 0


class Asker:
    """Sends the requests of a job; for one run.

    Args:
        job: whose records are asked.
        backend: answers.
        budget: what may be spent.
        options: tries and failures; None is the defaults.
        earlier: answers that were recorded while the corpus was split otherwise.
        usage: filled with what each unit of a sample uses; None counts nothing.
        advance: of a progress bar over the splits.
    """

    def __init__(
        self,
        job: FactoryJob,
        backend: Backend,
        budget: Budget,
        options: AskOptions | None = None,
        *,
        earlier: EarlierAnswers | None = None,
        usage: dict[int, Usage] | None = None,
        advance: Callable[[float, str], None] = lambda amount, note: None,
    ):
        self._job, self._backend, self._budget, self._options = job, backend, budget, options or AskOptions()
        self._earlier, self._usage, self._advance = earlier, usage, advance
        self._ready: deque[_Pending] = deque()
        self._later: list[tuple[float, int, _Pending]] = []
        self._flying: dict[int, _Pending] = {}
        self._pending: dict[tuple[int, str], _Pending] = {}
        self._numbers = itertools.count()
        self._malformed = self._unreachable = self._refused = 0
        self._answers_come = self._is_warned = False
        self.result = Asking()

    def run(self, splits: Iterable[tuple[int, Split]]) -> Asking:
        """Ask until every request is settled or a budget is used up; return what was done.

        Args:
            splits: with their numbers in the corpus.

        Raises:
            UserError: more failures than allowed, or an endpoint that answers nothing.
            DataError: more malformed records than allowed.
        """
        records = self._records(splits)
        more = True
        try:
            while True:
                for _ in range(_RECORDS):
                    if not more or len(self._ready) >= self._backend.slots:
                        break
                    more = self._start(records)
                self._wake()
                self._send()
                if self.result.over_budget and not self._flying:
                    break
                if not self._flying and not self._ready and not self._later:
                    if more:
                        continue
                    break
                self._receive()
        finally:
            for shard in {id(pending.shard): pending.shard for pending in self._pending.values()}.values():
                shard.log.close()
            records.close()  # type: ignore[attr-defined] # a generator
        return self.result

    def _records(self, splits: Iterable[tuple[int, Split]]) -> Iterator[tuple[_Shard, Record]]:
        """Every record with its shard, whose file is open until its last record is settled."""
        for number, split in splits:
            shard = _Shard(AnswerLog(self._job.answers(number), write=True))
            try:
                for record in self._job.read(number, split):
                    if isinstance(record, Malformed):
                        self._count_malformed(record)
                    else:
                        yield shard, record
            finally:
                shard.is_read = True
                self._release(shard)
                self._advance(1.0, "")

    def _count_malformed(self, record: Malformed) -> None:
        self._malformed += 1
        limit = self._job.source.cleaning.max_malformed
        if self._malformed > limit:
            more = f" ({self._malformed} malformed records, --max-malformed allows {limit})" if limit else ""
            raise DataError(record.reason + more)

    def _release(self, shard: _Shard) -> None:
        if shard.is_read and not shard.walks:
            shard.log.close()

    def _start(self, records: Iterator[tuple[_Shard, Record]]) -> bool:
        """Begin the next record; False if there is none, or nothing more may be asked."""
        if self.result.over_budget:
            return False
        for shard, record in records:
            shard.walks += 1
            self.result.records += 1
            self._go_on(_Open(shard, record, walk(self._job.task, record, self._backend.fingerprint)), None)
            return True
        return False

    def _go_on(self, one: _Open, replies: list[Reply] | None) -> None:
        """Give a record its replies; queue what it asks next, or finish it. Recorded answers are given at once."""
        while True:
            try:
                one.asked = next(one.walk) if replies is None else one.walk.send(replies)
            except StopIteration as end:
                if end.value.invalid:
                    self._count_failed("invalid", end.value.invalid, "an answer that cannot be used")
                self._finish(one)
                return
            except DataError as error:
                self._count_malformed(Malformed(str(error)))
                self._finish(one)
                return
            one.replies = {}
            one.stages = one.asked[0].stage + 1
            for asked in one.asked:
                if asked.key in one.replies:
                    continue
                recorded = self._recorded(one.shard, asked.key)
                if recorded is not None:
                    self.result.replayed += 1
                    self._settled(one, asked.key, recorded)
                    self._charge(one, asked.key, recorded)
                else:
                    self._want(one, asked)
            if any(asked.key not in one.replies for asked in one.asked):
                return
            replies = [one.replies[asked.key] for asked in one.asked]

    def _recorded(self, shard: _Shard, key: str) -> Reply | None:
        reply = shard.log.get(key)
        if reply is None and self._earlier is not None:
            reply = self._earlier.get(key)
            if reply is not None:
                shard.log.moved(key, reply)
        return reply

    def _want(self, one: _Open, asked: Asked) -> None:
        pending = self._pending.get((id(one.shard), asked.key))
        if pending is not None:
            pending.waiting.append(one)
            return
        bound = Tokens(prompt_bound(asked.request), asked.request.max_new_tokens)
        pending = _Pending(asked.key, asked.request, one.shard, bound, [one])
        self._pending[id(one.shard), asked.key] = pending
        self._ready.append(pending)

    def _finish(self, one: _Open) -> None:
        if self._usage is not None:
            usage = self._usage_of(one)
            usage.records += 1
            with contextlib.suppress(DataError):  # it was counted as malformed
                usage.left_out.update(self._job.task.purposes(one.record)[one.stages :])
        one.shard.walks -= 1
        self._release(one.shard)
        self._advance(0.0, f"{self.result.records:,} records, {self.result.sent:,} answers")

    def _wake(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._later)[2])

    def _send(self) -> None:
        """Send what the backend has room for, in order, as far as the budget allows."""
        if self.result.over_budget:
            return
        while self._ready and len(self._flying) < self._backend.slots:
            pending = self._ready[0]
            if self._budget.out_of_time or not self._budget.reserve(pending.bound):
                if not self._flying or self._budget.out_of_time:  # otherwise a reservation may yet be released
                    self.result.over_budget = self._budget.reason(pending.bound)
                return
            self._ready.popleft()
            pending.tries += 1
            if self._backend.is_remote:
                pending.shard.log.sent(pending.key, pending.bound)
            number = next(self._numbers)
            self._flying[number] = pending
            self._backend.submit(number, pending.request, pending.key)

    def _receive(self) -> None:
        wait = max(self._later[0][0] - time.monotonic(), 0.0) if self._later else None
        if not self._flying:
            time.sleep(wait or 0.0)
            return
        for number, reply in self._backend.collect(wait):
            pending = self._flying.pop(number)
            if reply.outcome == "unreachable":
                self._again(pending, reply)
            else:
                self._check_bound(pending, reply)
                self._budget.settle(pending.bound, _cost(pending, reply))
                pending.shard.log.answer(pending.key, reply)
                self.result.sent += 1
                self._watch(reply)
                self._deliver(pending, reply)

    def _again(self, pending: _Pending, reply: Reply) -> None:
        """Note a try that failed, and plan the next one."""
        self._budget.settle(pending.bound, _cost(pending, reply))
        if reply.may_cost:
            pending.shard.log.lost(pending.key, reply.reason)
            if self._usage is not None:
                usage = self._usage_of(pending.waiting[0])
                cost, before = _cost(pending, reply), usage.doubtful
                usage.doubtful = Tokens(before.prompt + cost.prompt, before.completion + cost.completion)
        else:
            pending.shard.log.free(pending.key, reply.reason)
        if pending.tries < self._options.tries and not self.result.over_budget:
            wait = pause(pending.tries, reply.retry_after, self._options.wait)
            self.result.retries += 1
            heapq.heappush(self._later, (time.monotonic() + wait, next(self._numbers), pending))
            return
        reason = f"no reply in {pending.tries} tries; the last: {reply.reason}"
        pending.shard.log.failed(pending.key, reason)
        self._watch(given_up := Reply("unreachable", reason=reason))
        self._deliver(pending, given_up)

    def _deliver(self, pending: _Pending, reply: Reply) -> None:
        del self._pending[id(pending.shard), pending.key]
        self._charge(pending.waiting[0], pending.key, reply)
        for one in pending.waiting:
            self._settled(one, pending.key, reply)
            if all(asked.key in one.replies for asked in one.asked):
                self._go_on(one, [one.replies[asked.key] for asked in one.asked])

    def _settled(self, one: _Open, key: str, reply: Reply) -> None:
        one.replies[key] = reply
        self.result.settled += 1
        if reply.outcome != "ok":
            self._count_failed(reply.outcome, 1, reply.reason)

    def _charge(self, one: _Open, key: str, reply: Reply) -> None:
        """Count a request in the usage of its unit, once for all records of a split that share it."""
        if self._usage is None or key in one.shard.charged:
            return
        one.shard.charged.add(key)
        usage, tokens = self._usage_of(one), reply.tokens or Tokens()
        purpose = self._job.task.purposes(one.record)[one.stages - 1]
        usage.requests[purpose] += 1
        usage.prompt[purpose] += tokens.prompt
        usage.completion[purpose] += tokens.completion

    def _usage_of(self, one: _Open) -> Usage:
        assert self._usage is not None
        return self._usage.setdefault(self._job.task.unit(one.record), Usage())

    def _count_failed(self, outcome: str, count: int, reason: str) -> None:
        """Note failures.

        Raises:
            UserError: there are more than allowed.
        """
        failed = self.result.failed
        failed[outcome] = failed.get(outcome, 0) + count
        limit = self._options.max_failed
        if limit is not None and sum(failed.values()) > limit:
            raise UserError(
                f"{sum(failed.values())} requests have failed, --max-failed allows {limit}; the last: {outcome}: {reason}"
            )

    def _watch(self, reply: Reply) -> None:
        """Stop where the failures in a row say that all other requests will fail too.

        Raises:
            UserError: says what the last one was.
        """
        if reply.outcome in ("ok", "truncated"):
            self._answers_come, self._unreachable, self._refused = True, 0, 0
        elif reply.outcome == "unreachable":
            self._unreachable += 1
        else:
            self._refused += not self._answers_come
        if self._unreachable >= _UNREACHABLE_IN_A_ROW or self._refused >= _REFUSED_IN_A_ROW:
            raise UserError(
                f"{max(self._unreachable, self._refused)} requests in a row have failed; the last: {reply.outcome}: "
                f"{reply.reason.rstrip('.')}. What is recorded stays, and the same command resumes from there."
            )

    def _check_bound(self, pending: _Pending, reply: Reply) -> None:
        """Say, once, that a backend counts more than can have been asked: a budget may be exceeded by that."""
        tokens, bound = reply.tokens, pending.bound
        if (
            tokens is None
            or self._is_warned
            or (tokens.prompt <= bound.prompt and tokens.completion <= bound.completion)
        ):
            return
        self._is_warned = True
        warn(
            f"the endpoint counts {tokens.prompt:,} prompt and {tokens.completion:,} answer tokens for a request of at most "
            f"{bound.prompt:,} and {bound.completion:,}; budgets cannot hold what it adds by itself"
        )


def _cost(pending: _Pending, reply: Reply) -> Tokens:
    """What a try may have cost: as the backend counts, or the reservation where it does not say."""
    if reply.tokens is not None:
        return reply.tokens
    return pending.bound if reply.may_cost else Tokens()
