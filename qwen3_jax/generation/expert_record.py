"""Which experts each token of a request was sent to, kept on the host in the order of the cache's pages.

A request that shares the keys and values of a beginning shares its experts as well, so they belong to pages, not to requests.

Shapes: n tokens, l MoE layers, k experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.generation.active import ActiveRequest


class Run(NamedTuple):
    """Consecutive tokens of a request that a program computes.

    Attributes:
        shard: of the batch.
        pages: of the request.
        start: position of the first token.
        length: number of tokens; 0 if only the program knows it.
    """

    shard: int
    pages: list[int]
    start: int
    length: int


class ExpertRecord:
    """The experts of the tokens in each shard's pages.

    Args:
        shards: of the batch.
        page_size: tokens per page.
    """

    def __init__(self, shards: int, page_size: int):
        self._page_size = page_size
        self._slots: list[np.ndarray | None] = [None] * shards  # int16 [slots, L, K]

    @staticmethod
    def runs(sequences: Sequence[Sequence[tuple[ActiveRequest, int]]]) -> list[list[Run]]:
        """Return for each shard the runs of (request, tokens) that a program is about to compute."""
        return [
            [Run(shard, list(active.pages), active.computed, count) for active, count in some]
            for shard, some in enumerate(sequences)
        ]

    def take(self, runs: Sequence[Sequence[Run]], experts_dflk: Any, output: Any) -> None:
        """Record what a program computed: the experts of `program.prefill`, or those of the `Output` of steps."""
        if experts_dflk is None:
            self._take_steps(runs, output.experts, output.valid)
        else:
            self._take_prefill(runs, experts_dflk)

    def _take_prefill(self, runs: Sequence[Sequence[Run]], experts_dflk: np.ndarray) -> None:
        """The tokens of a shard lie one run after another."""
        for some in runs:
            first = 0
            for run in some:
                self._write(run, experts_dflk[run.shard, first : first + run.length])
                first += run.length

    def _take_steps(self, runs: Sequence[Sequence[Run]], experts_sblk: np.ndarray, valid_sb: np.ndarray) -> None:
        """Shards have equal numbers of rows; step s of a row reads the token at `start` + s."""
        rows = experts_sblk.shape[1] // len(runs)
        for some in runs:
            for place, run in enumerate(some):
                row = run.shard * rows + place
                self._write(run, experts_sblk[: int(valid_sb[:, row].sum()), row])

    def of(self, active: ActiveRequest) -> np.ndarray:
        """Return the experts of all tokens of a request but the newest, int16 [N - 1, L, K]."""
        slots = self._slots[active.shard]
        assert slots is not None
        return slots[self._places(active.pages, 0, len(active.tokens) - 1)]

    def _places(self, pages: Sequence[int], start: int, count: int) -> np.ndarray:
        position = start + np.arange(count)
        return np.asarray(pages, np.int64)[position // self._page_size] * self._page_size + position % self._page_size

    def _write(self, run: Run, experts_nlk: np.ndarray) -> None:
        places = self._places(run.pages, run.start, len(experts_nlk))
        if not len(places):
            return
        slots, needed = self._slots[run.shard], int(places.max()) + 1
        if slots is None or len(slots) < needed:
            larger = np.zeros((2 * needed, *experts_nlk.shape[1:]), np.int16)
            if slots is not None:
                larger[: len(slots)] = slots
            self._slots[run.shard] = slots = larger
        slots[places] = experts_nlk
