"""What to compute next: sequences wait, are admitted, have their prompts prefilled in chunks, decode, and are preempted when
pages run out.

First come, first served. A sequence that fits in no shard waits, and so do all behind it. When pages run out, the youngest
sequence of the shard is preempted: it releases its pages and returns to the head of the queue, to recompute its prompt and its
answer so far. So the oldest sequence always advances, and none starves.

Prefill chunks and decode steps alternate: no running sequence waits for a whole long prompt. Offline, where nobody reads tokens
as they come, prompts come first instead, so that as many sequences as possible decode together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwen3_jax.generation.pool import Pool


@dataclass(eq=False, kw_only=True)
class TokenSequence:
    """A prompt and its answer so far, on the host.

    Attributes:
        tokens: ids of both.
        limit: most tokens of both.
        number: order of arrival.
        shard: of the batch, while admitted; else -1.
        pages: its pages, in order.
        computed: tokens whose keys and values are in the pages.
        cached: prompt tokens that were in the cache when it was first admitted; None before that.
        preemptions: how often it was preempted.
        last_alone: leave the prompt's last token to a decode step, or uncomputed if the sequence ends with the prompt.
        adapter: which of the model's adapters computes it, 0 for none: sequences of different ones share no pages.
        unreported: the first token whose log probability is still to be reported: the tokens from the one before it on are
            computed, also where the cache has them. None if there is no such token.
    """

    tokens: list[int]
    limit: int
    number: int = -1
    shard: int = -1
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int | None = None
    preemptions: int = 0
    last_alone: bool = False
    unreported: int | None = None
    adapter: int = 0

    @property
    def pending(self) -> int:
        """Tokens not computed yet; a sequence with one is ready to decode."""
        return len(self.tokens) - self.computed

    @property
    def shareable(self) -> list[int]:
        """The beginning whose pages, all but that of its last token, may come from the cache."""
        return self.tokens if self.unreported is None else self.tokens[: self.unreported]


T = TypeVar("T", bound=TokenSequence)


@dataclass(frozen=True)
class Prefill(Generic[T]):
    """Compute parts of prompts: for each shard, (sequence, tokens) in order."""

    parts: list[list[tuple[T, int]]]


@dataclass(frozen=True)
class Decode(Generic[T]):
    """Generate up to `steps` tokens in each sequence of each shard, as long as at least `least` of them are unfinished."""

    sequences: list[list[T]]
    steps: int
    least: int = 1


@dataclass(frozen=True)
class Grow:
    """Extend the cache from `before` to `pages` pages per shard, keep its contents, and schedule again."""

    before: int
    pages: int


class Scheduler(Generic[T]):
    """Decides what to compute; does no computation itself.

    Args:
        shards: of the batch, each with a pool of its own.
        pages: of a shard, page 0 included.
        max_pages: pages that a shard may grow to; None is `pages`.
        page_size: tokens per page.
        rows: sequences that a shard decodes together.
        chunk: prompt tokens that a shard computes together.
        chunk_rows: sequences that these may belong to.
        steps: decode steps between two decisions.
        prefix_cache: share equal beginnings of sequences.
        offline: compute the prompts of all admitted sequences before any of these decodes, and end a decode step early, when a
            quarter of its sequences are finished and others wait for their place.
    """

    def __init__(
        self, *, shards: int, pages: int, page_size: int, rows: int, chunk: int, chunk_rows: int, steps: int,
        prefix_cache: bool, max_pages: int | None = None, offline: bool = False,
    ):  # fmt: skip
        self.pools = [Pool(pages, page_size, prefix_cache) for _ in range(shards)]
        self.admitted: list[list[T]] = [[] for _ in range(shards)]
        self.waiting: deque[T] = deque()
        self.rows, self.chunk, self.chunk_rows, self.steps, self.page_size = rows, chunk, chunk_rows, steps, page_size
        self.pages, self.max_pages, self.offline = pages, max_pages or pages, offline
        self.preemptions = 0
        self._arrivals = 0
        self._decoded_last = True

    def add(self, sequence: T) -> None:
        """Append a sequence to the queue. It must fit into the pages of a shard."""
        assert 0 < len(sequence.tokens) <= sequence.limit
        sequence.number = self.next_number()
        self.waiting.append(sequence)

    def next_number(self) -> int:
        """Return the number of the next arrival."""
        self._arrivals += 1
        return self._arrivals - 1

    def remove(self, sequence: T) -> None:
        """Drop a sequence that is finished or cancelled."""
        if sequence.shard < 0:
            self.waiting.remove(sequence)
        else:
            self._release(sequence)

    def schedule(self) -> Prefill[T] | Decode[T] | Grow | None:
        """Return what to do next; None if no sequence is left."""
        if not self._admit():
            return self._grow()
        parts = [self._chunk(sequences) for sequences in self.admitted]
        prefill = Prefill(parts) if any(parts) else None
        if prefill is not None and (self._decoded_last or self.offline):
            self._decoded_last = False
            return prefill
        steps = 1 if prefill is not None else self.steps
        shards = range(len(self.pools))
        while not all(self._reserve(shard, steps) for shard in shards):
            if self.pages < self.max_pages:
                return self._grow()
            if steps == 1:
                for shard in shards:
                    while not self._reserve(shard, steps):
                        self._preempt(max(self.admitted[shard], key=lambda sequence: sequence.number))
                break
            steps //= 2
        self._decoded_last = True
        ready = [[sequence for sequence in sequences if sequence.pending == 1] for sequences in self.admitted]
        return Decode(ready, steps, self._least(sum(map(len, ready)))) if any(ready) else prefill

    def _least(self, ready: int) -> int:
        """Return the number of unfinished sequences below which the decode step ends."""
        return ready - ready // 4 if self.offline and self.waiting else 1

    def advance(self, sequence: T, count: int) -> None:
        """Note that `count` more tokens of a sequence are in its pages."""
        before = sequence.computed
        sequence.computed += count
        pool = self.pools[sequence.shard]
        done = before // self.page_size
        pool.record(sequence.pages, sequence.tokens, done, sequence.computed, sequence.adapter)

    def _grow(self) -> Grow:
        """Add pages to every pool; the caller extends the cache accordingly."""
        before, self.pages = self.pages, min(2 * self.pages, self.max_pages)
        for pool in self.pools:
            pool.extend(self.pages)
        return Grow(before, self.pages)

    def _admit(self) -> bool:
        """Admit waiting sequences in order; return False if the first one needs pages that the cache may still grow by.

        Offline, those that wait for a page that another one computes are passed by the next ones, up to as many as the rows.
        """
        passed: list[T] = []
        try:
            while self.waiting:
                sequence = self.waiting[0]
                if self._enter_any(sequence):
                    self.waiting.popleft()
                elif self.offline and len(passed) < self.rows and self._only_waits(sequence):
                    passed.append(self.waiting.popleft())
                else:
                    return self.pages == self.max_pages or not self._lacks_only_pages(sequence)
            return True
        finally:
            self.waiting.extendleft(reversed(passed))

    def _enter_any(self, sequence: T) -> bool:
        """Admit a sequence to the shard that suits it best, if any has space."""
        # Prefer the shard whose cache holds most of the sequence; of equal ones, the one with most available pages.
        order = []
        for shard, pool in enumerate(self.pools):
            cached = pool.match(sequence.shareable, sequence.adapter)
            order.append((-len(cached), -pool.available, shard, cached))
        return any(self._enter(sequence, shard, cached) for _, _, shard, cached in sorted(order))

    def _only_waits(self, sequence: T) -> bool:
        """Whether a shard has a row for a sequence, and a page of it is being computed there."""
        return any(
            len(others) < self.rows
            and self._worth_waiting(sequence, len(pool.match(sequence.shareable, sequence.adapter)), others)
            for pool, others in zip(self.pools, self.admitted, strict=True)
        )

    def _enter(self, sequence: T, shard: int, cached: list[int]) -> bool:
        """Admit a sequence to a shard if there is space; `cached` are its pages in the prefix cache."""
        pool, others = self.pools[shard], self.admitted[shard]
        if len(others) >= self.rows or self._worth_waiting(sequence, len(cached), others):
            return False
        pool.hold(cached)
        needed = self._pages(min(len(sequence.tokens), sequence.limit - 1)) - len(cached)
        # Leave each of the others a page to grow by, or they would preempt this one at once.
        fits = not others or needed + len(others) <= pool.available
        fresh = pool.take(needed) if fits else None
        if fresh is None:
            pool.release(cached)
            return False
        sequence.shard, sequence.pages = shard, cached + fresh
        sequence.computed = len(cached) * self.page_size
        if sequence.cached is None:
            sequence.cached = sequence.computed
        others.append(sequence)
        return True

    def _lacks_only_pages(self, sequence: T) -> bool:
        """Return whether a sequence would be admitted if there were more pages."""
        return all(
            len(others) < self.rows
            and not self._worth_waiting(sequence, len(pool.match(sequence.shareable, sequence.adapter)), others)
            for pool, others in zip(self.pools, self.admitted, strict=True)
        )

    def _worth_waiting(self, sequence: T, cached: int, others: Sequence[T]) -> bool:
        """Return whether the page after `cached` ones is being computed for another sequence and can soon be shared."""
        size = (cached + 1) * self.page_size
        if not self.pools[0].remember or size >= len(sequence.shareable):
            return False
        return any(
            other.pending > 1
            and other.adapter == sequence.adapter
            and other.computed < size < len(other.tokens)
            and other.tokens[:size] == sequence.tokens[:size]
            for other in others
        )

    def _chunk(self, sequences: Sequence[T]) -> list[tuple[T, int]]:
        """Return the prompt tokens that a shard computes next."""
        parts: list[tuple[T, int]] = []
        left = self.chunk
        for sequence in sequences:
            if sequence.pending > 1 and left > 0 and len(parts) < self.chunk_rows:
                count = min(sequence.pending - sequence.last_alone, left)
                parts.append((sequence, count))
                left -= count
        return parts

    def _reserve(self, shard: int, steps: int) -> bool:
        """Reserve pages for `steps` tokens of every decoding sequence of a shard, or return False and reserve none."""
        pool, needed = self.pools[shard], {}
        for sequence in self.admitted[shard]:
            if sequence.pending == 1:
                length = min(sequence.computed + steps, sequence.limit - 1)  # the last token's keys are never read
                needed[sequence] = max(self._pages(length) - len(sequence.pages), 0)
        fresh = pool.take(sum(needed.values()))
        if fresh is None:
            return False
        for sequence, count in needed.items():
            sequence.pages += [fresh.pop() for _ in range(count)]
        return True

    def _preempt(self, sequence: T) -> None:
        self._release(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: T) -> None:
        self.pools[sequence.shard].release(sequence.pages)
        self.admitted[sequence.shard].remove(sequence)
        sequence.shard, sequence.pages, sequence.computed = -1, [], 0

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)
