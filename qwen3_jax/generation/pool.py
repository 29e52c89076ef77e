"""Pages of the key/value cache: reference counts and the prefix cache.

A page filled by a sequence is indexed under (the page before it, its tokens), the first under its adapter, and later
sequences with the same prefix share it: multi-turn chats, and n samples of one prompt, are computed once (Kwon et al. 2023,
arXiv 2309.06180, section 4.4; Zheng et al. 2024, arXiv 2312.07104, section 3). An indexed page without holders is evicted
when pages run out: least recently released first, and the end of a sequence before its beginning.

Invariant: every page but page 0, which is reserved as a write sink, is free, held by at least one sequence, or indexed and
without holders. Shared pages are never written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Pool:
    """The pages of one shard of the batch.

    Args:
        pages: number of pages, page 0 included.
        page_size: tokens per page.
        remember: index pages for sharing.
    """

    def __init__(self, pages: int, page_size: int, remember: bool = True):
        self.page_size = page_size
        self.remember = remember
        self.capacity = pages - 1
        self._free = list(range(pages - 1, 0, -1))
        self._holders = [0] * pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed without holders, least recently released first
        self._page_of: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        # A page's name as a predecessor. Never reused, unlike its number: the successors of an evicted page stay unreachable.
        self._name_of: dict[int, int] = {}
        self._names = 0

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and indexed ones without holders."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages with at least one holder."""
        return self.capacity - self.available

    def match(self, tokens: Sequence[int], adapter: int = 0) -> list[int]:
        """Return the indexed pages of a sequence's prefix, in order; those of the same adapter. They never include its last
        token."""
        matched: list[int] = []
        name = _root(adapter)
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            page = self._page_of.get((name, tuple(tokens[start : start + self.page_size])))
            if page is None:
                break
            matched.append(page)
            name = self._name_of[page]
        return matched

    def hold(self, pages: Sequence[int]) -> None:
        """Add a holder to pages returned by `match`."""
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)

    def take(self, count: int) -> list[int] | None:
        """Return `count` fresh pages with one holder each; None, taking none, if too few are available."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._holders[page] = 1
            taken.append(page)
        return taken

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        del self._name_of[page]
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Remove a holder from the pages of a sequence, given in order."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, f"page {page} was released once too often"
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def record(
        self, pages: Sequence[int], tokens: Sequence[int], done: int, computed: int, adapter: int = 0
    ) -> None:  # fmt: skip
        """Index the pages that a sequence's first `computed` tokens fill.

        Args:
            pages: the sequence's pages, in order.
            tokens: the sequence.
            done: pages of it recorded before.
            computed: tokens whose keys and values are in the pages, or will be before any other sequence runs.
            adapter: which of the model's adapters computes them, 0 for none.
        """
        if not self.remember:
            return
        for place in range(done, computed // self.page_size):
            page = pages[place]
            if page in self._key_of:
                continue
            before = _root(adapter) if place == 0 else self._name_of.get(pages[place - 1])
            if before is None:
                return  # the predecessor is a duplicate of an indexed page
            key = (before, tuple(tokens[place * self.page_size : (place + 1) * self.page_size]))
            if key in self._page_of:
                return
            self._names += 1
            self._page_of[key], self._key_of[page], self._name_of[page] = page, key, self._names

    def forget(self) -> None:
        """Drop the index, for weights that have changed: what the pages hold is shared with no later sequence.

        Pages that are held stay with their holders and are freed when released.
        """
        self._free += self._idle
        self._free.sort(reverse=True)  # as at the start, so that equal requests take equal pages
        self._idle.clear()
        self._page_of, self._key_of, self._name_of = {}, {}, {}

    def extend(self, pages: int) -> None:
        """Increase the number of pages to `pages`."""
        self._free[:0] = range(pages - 1, self.capacity, -1)
        self._holders += [0] * (pages - len(self._holders))
        self.capacity = pages - 1


def _root(adapter: int) -> int:
    """The name of the predecessor of a first page: pages have names from 1 on."""
    return -adapter
