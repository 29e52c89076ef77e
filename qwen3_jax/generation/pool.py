"""Pages of the key/value cache: who holds which, and which hold the beginnings of texts that may come again.

A page that is full of a text's tokens is remembered under (the page before it, its tokens), so that a later text with the
same beginning shares it: multi-turn chats, and n samples of one prompt, are computed once (Kwon et al. 2023, arXiv
2309.06180, section 4.4; Zheng et al. 2024, arXiv 2312.07104, section 3). A remembered page that nobody holds stays until room
is needed; then the one that was let go longest ago goes first, and of one text its end before its beginning.

Invariant: every page but page 0, which belongs to nobody, is free, held by its count of texts, or remembered and held by
none. Shared pages are never written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_ROOT = 0  # the page before the first


class Pool:
    """The pages of one shard of the batch.

    Args:
        pages: how many there are, page 0 included.
        page_size: tokens per page.
        remember: share the beginnings of texts.
    """

    def __init__(self, pages: int, page_size: int, remember: bool = True):
        self.page_size = page_size
        self.remember = remember
        self.capacity = pages - 1
        self._free = list(range(pages - 1, 0, -1))
        self._holders = [0] * pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered and held by none, longest ago first
        self._page_of: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        # A page's name as a predecessor, never given twice: what followed an evicted page is not found again by its number.
        self._name_of: dict[int, int] = {}
        self._names = _ROOT

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones and those that are only remembered."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages that some text holds."""
        return self.capacity - self.available

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Return the remembered pages of a text's beginning, in order. At least its last token is left to compute."""
        found: list[int] = []
        name = _ROOT
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            page = self._page_of.get((name, tuple(tokens[start : start + self.page_size])))
            if page is None:
                break
            found.append(page)
            name = self._name_of[page]
        return found

    def hold(self, pages: Sequence[int]) -> None:
        """Add a holder to pages that `match` has found."""
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)

    def take(self, count: int) -> list[int] | None:
        """Return so many fresh pages with one holder each, or None, taking none, where there are too few."""
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
        """Take a holder away from the pages of a text, given in order."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, f"page {page} was released once too often"
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def record(self, pages: Sequence[int], tokens: Sequence[int], done: int, known: int) -> None:
        """Remember the pages that are full once a text's first `known` tokens are in them.

        Args:
            pages: the text's pages, in order.
            tokens: the text.
            done: pages of it that were recorded before.
            known: tokens whose keys and values are in the pages, or will be before any other text's are computed.
        """
        if not self.remember:
            return
        for place in range(done, known // self.page_size):
            page = pages[place]
            if page in self._key_of:
                continue
            before = _ROOT if place == 0 else self._name_of.get(pages[place - 1])
            if before is None:
                return  # an equal text's page is remembered in place of this one's predecessor
            key = (before, tuple(tokens[place * self.page_size : (place + 1) * self.page_size]))
            if key in self._page_of:
                return
            self._names += 1
            self._page_of[key], self._key_of[page], self._name_of[page] = page, key, self._names

    def extend(self, pages: int) -> None:
        """There are now so many pages, more than before."""
        self._free[:0] = range(pages - 1, self.capacity, -1)
        self._holders += [0] * (pages - len(self._holders))
        self.capacity = pages - 1

    def forget(self) -> None:
        """Drop all that is remembered (the weights have changed)."""
        for page in list(self._idle):
            self._free.append(page)
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()
        self._name_of.clear()

    def check(self) -> None:
        """Raise AssertionError unless the invariant holds."""
        free, idle = set(self._free), set(self._idle)
        held = {page for page in range(1, self.capacity + 1) if self._holders[page] > 0}
        assert len(free) == len(self._free), "a page is free twice"
        assert len(free) + len(idle) + len(held) == len(free | idle | held), "a page is in two states"
        assert len(free | idle | held) == self.capacity, "a page is lost"
        assert idle <= set(self._key_of) <= idle | held, "a page is remembered and free, or idle and forgotten"
        assert {self._page_of[key] for key in self._page_of} == set(self._key_of) == set(self._name_of)
