"""Who computes what next: texts wait, are admitted, have their prompts computed in chunks, decode, and make room when pages
run out.

Order is by arrival. A text that fits nowhere waits, and those behind it wait too; when pages run out, the youngest text of
the shard gives its pages back and waits again in front, its answer so far part of what it must compute again. So the oldest
text always goes on, and no text starves.

A chunk of prompts and a decode step take turns: nobody's next token waits for a whole long prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwen3_jax.generation.pool import Pool


@dataclass(eq=False, kw_only=True)
class Text:
    """A prompt and its answer so far, on the host.

    Attributes:
        tokens: ids of both.
        limit: tokens that both may have.
        number: order of arrival.
        shard: of the batch, while it is admitted.
        pages: its pages, in order.
        computed: tokens whose keys and values are in them.
        cached: tokens of the prompt that were found there when it was admitted first; None until then.
        preemptions: how often it had to make room.
        last_alone: the prompt's last token is left to a decode step.
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

    @property
    def pending(self) -> int:
        """Tokens that are yet to be computed; with one, the text is ready to decode."""
        return len(self.tokens) - self.computed


T = TypeVar("T", bound=Text)


@dataclass(frozen=True)
class Prefill(Generic[T]):
    """Compute parts of prompts: for each shard, (text, tokens) in order."""

    parts: list[list[tuple[T, int]]]


@dataclass(frozen=True)
class Decode(Generic[T]):
    """Generate up to `steps` tokens in each of the texts of each shard."""

    texts: list[list[T]]
    steps: int


class Scheduler(Generic[T]):
    """Decides; it computes nothing.

    Args:
        shards: of the batch, each with a pool of its own.
        pages: of a shard, page 0 included.
        page_size: tokens per page.
        rows: texts that a shard decodes together.
        chunk: tokens of prompts that a shard computes together.
        chunk_rows: texts that these may be of.
        steps: decode steps between two decisions.
        prefix_cache: share the beginnings of texts.
        more: called when pages run out; returns the number that a shard has from then on, or None to make do.
    """

    def __init__(
        self, *, shards: int, pages: int, page_size: int, rows: int, chunk: int, chunk_rows: int, steps: int,
        prefix_cache: bool, more: Callable[[], int | None] = lambda: None,
    ):  # fmt: skip
        self.pools = [Pool(pages, page_size, prefix_cache) for _ in range(shards)]
        self.admitted: list[list[T]] = [[] for _ in range(shards)]
        self.waiting: deque[T] = deque()
        self.rows, self.chunk, self.chunk_rows, self.steps, self.page_size = rows, chunk, chunk_rows, steps, page_size
        self.preemptions = 0
        self._more = more
        self._arrivals = 0
        self._decoded_last = True

    @property
    def texts(self) -> Iterator[T]:
        """All texts that are not finished."""
        yield from (text for texts in self.admitted for text in texts)
        yield from self.waiting

    def add(self, text: T) -> None:
        """Let a text wait its turn. A shard's pages must hold it alone."""
        assert 0 < len(text.tokens) < text.limit
        text.number = self._arrivals
        self._arrivals += 1
        self.waiting.append(text)

    def remove(self, text: T) -> None:
        """A text is finished or cancelled."""
        if text.shard < 0:
            self.waiting.remove(text)
        else:
            self._leave(text)

    def schedule(self) -> Prefill[T] | Decode[T] | None:
        """Return what to compute next; None when no text is left."""
        self._admit()
        parts = [self._chunk(texts) for texts in self.admitted]
        prefill = Prefill(parts) if any(parts) else None
        if prefill is not None and self._decoded_last:
            self._decoded_last = False
            return prefill
        self._decoded_last = True
        decode = self._decode(1 if prefill is not None else self.steps)
        return decode or prefill  # a decode step that preempts has texts to decode

    def computed(self, text: T, count: int) -> None:
        """So many more of a text's tokens are in its pages."""
        pool, before = self.pools[text.shard], text.computed
        text.computed += count
        pool.record(text.pages, text.tokens, before // self.page_size, text.computed)

    def _admit(self) -> None:
        while self.waiting:
            text = self.waiting[0]
            # The shard that has most of the text already; of equal ones, the one with most room.
            order = []
            for shard, pool in enumerate(self.pools):
                found = pool.match(text.tokens)
                order.append((-len(found), -pool.available, shard, found))
            if any(self._enter(text, shard, found) for _, _, shard, found in sorted(order)):
                self.waiting.popleft()
            elif not self._lacks_pages(text) or not self._extend():
                return

    def _enter(self, text: T, shard: int, found: list[int]) -> bool:
        """Admit a text to a shard if it has room."""
        pool, others = self.pools[shard], self.admitted[shard]
        if len(others) >= self.rows or self._comes_soon(text, len(found), others):
            return False
        pool.hold(found)
        needed = self._pages(len(text.tokens)) - len(found)
        # Room for the others to grow by a page, or they would drive this one out at once.
        if needed + len(others) > pool.available and others:
            fresh = None
        else:
            fresh = pool.take(needed)
        if fresh is None:
            pool.release(found)
            return False
        text.shard, text.pages, text.computed = shard, found + fresh, len(found) * self.page_size
        if text.cached is None:
            text.cached = text.computed
        others.append(text)
        return True

    def _lacks_pages(self, text: T) -> bool:
        """Whether pages alone keep a text from being admitted."""
        return all(
            len(others) < self.rows and not self._comes_soon(text, len(pool.match(text.tokens)), others)
            for pool, others in zip(self.pools, self.admitted, strict=True)
        )

    def _extend(self) -> bool:
        """Ask for more pages."""
        pages = self._more()
        if pages is not None:
            for pool in self.pools:
                pool.extend(pages)
        return pages is not None

    def _comes_soon(self, text: T, found: int, others: Sequence[T]) -> bool:
        """Whether the text's next page is being computed for another one: then it is worth waiting for."""
        size = (found + 1) * self.page_size
        if not self.pools[0].remember or size >= len(text.tokens):
            return False
        return any(
            other.pending > 1
            and other.computed < size < len(other.tokens)
            and other.tokens[:size] == text.tokens[:size]
            for other in others
        )

    def _chunk(self, texts: Sequence[T]) -> list[tuple[T, int]]:
        """Tokens of prompts that a shard computes next."""
        parts: list[tuple[T, int]] = []
        left = self.chunk
        for text in texts:
            if text.pending > 1 and left > 0 and len(parts) < self.chunk_rows:
                count = min(text.pending - text.last_alone, left)
                parts.append((text, count))
                left -= count
        return parts

    def _decode(self, steps: int) -> Decode[T] | None:
        for shard in range(len(self.pools)):
            while not self._grow(shard, steps) and steps > 1:
                steps = steps if self._extend() else 1
        for shard in range(len(self.pools)):
            while not self._grow(shard, steps):
                self._preempt(max(self.admitted[shard], key=lambda text: text.number))
        ready = [[text for text in texts if text.pending == 1] for texts in self.admitted]
        return Decode(ready, steps) if any(ready) else None

    def _grow(self, shard: int, steps: int) -> bool:
        """Give every text of a shard that decodes the pages for so many steps, or none of them."""
        pool, needed = self.pools[shard], {}
        for text in self.admitted[shard]:
            if text.pending == 1:
                length = min(text.computed + steps, text.limit - 1)  # the last token's keys are never read
                needed[text] = max(self._pages(length) - len(text.pages), 0)
        fresh = pool.take(sum(needed.values()))
        if fresh is None:
            return False
        for text, count in needed.items():
            text.pages += [fresh.pop() for _ in range(count)]
        return True

    def _preempt(self, text: T) -> None:
        self._leave(text)
        text.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(text)

    def _leave(self, text: T) -> None:
        self.pools[text.shard].release(text.pages)
        self.admitted[text.shard].remove(text)
        text.shard, text.pages, text.computed = -1, [], 0

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)
