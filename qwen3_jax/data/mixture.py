"""What every row is made of, planned from lengths alone.

The tokens of a corpus lie prepared on disk, so the order of training can be planned without reading them:

    documents -> pieces of at most T pairs -> streams (source x length class), each shuffled -> drawn by share of tokens
              -> windows of `packing_rows` rows, packed best fit first, longest piece first -> rows, shuffled

Invariants:
- A piece is a stretch of (input, target) pairs of one document: inputs doc[a : a + n], targets doc[a + 1 : a + 1 + n]. Every
  pair of every document that the mixture uses is in exactly one piece, and every piece in one row per epoch of its stream.
- Shares are shares of tokens: the next piece comes from the stream that is furthest behind its own. After any number of
  pieces a stream's tokens differ from its share by no more than a few pieces.
- Row g depends on (settings, corpora, g) alone, so every host plans the same rows, for any number of hosts, and reads only
  its own.
- The state is a handful of integers: each stream's place and tokens, the pieces that were carried over, and the row; after a
  boundary of stages also the pieces that the stage before had drawn and not given, until they are given.

(Packing: Ding et al. 2024, arXiv 2404.10830, best-fit decreasing.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qwen3_jax.data.config import DataConfig
from qwen3_jax.data.streams import Piece, Stream, cut_of

_CARRIED = 8  # at most 1 / 8 of a window's rows is planned again with the next window

Row = tuple[Piece, ...]


class RowPlanner:
    """Plans rows, endlessly.

    Args:
        config: row length, window, seed.
        streams: the mixture.
        earlier: what earlier stages have drawn, which the streams were made with (`streams.streams`).
    """

    def __init__(self, config: DataConfig, streams: Sequence[Stream], earlier: Sequence[Mapping[str, Any]] = ()):
        self._length, self._window, self._seed = config.sequence_length, config.packing_rows, config.seed
        self._cut, self.earlier = cut_of(config), list(earlier)
        self._streams = list(streams)
        self._drawn = {stream.key: 0 for stream in streams}  # pieces
        self._tokens = {stream.key: 0 for stream in streams}
        self._carried: list[Piece] = []
        self._returned: dict[str, deque[Piece]] = {}  # by stream, to be drawn before anything else
        self._number = 0  # of the window
        self._before: dict[str, Any] = {}
        self._rows: list[Row] = []
        self._next = 0

    def __iter__(self) -> RowPlanner:
        return self

    def __next__(self) -> Row:
        """The pieces of the next row."""
        if self._next == len(self._rows):
            self._plan()
        self._next += 1
        return self._rows[self._next - 1]

    def state(self) -> dict[str, Any]:
        """The position of the plan as JSON values; a planner restored from it plans the same rows."""
        if self._next == len(self._rows):
            return self._now() | {"row": 0}
        return self._before | {"row": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Streams that it lacks start at 0; the places of streams that the mixture lacks are kept
        for a later stage."""
        keys = [stream.key for stream in self._streams]
        self._drawn = dict.fromkeys(keys, 0) | {key: int(count) for key, count in state["drawn"].items()}
        self._tokens = {key: int(state["tokens"].get(key, 0)) for key in keys}
        self._carried = [Piece(*piece) for piece in state["carried"]]
        returned = state.get("returned", {})
        self._returned = {key: deque(Piece(*piece) for piece in pieces) for key, pieces in returned.items()}
        self._number, self._rows, self._next = int(state["window"]), [], 0
        if state["row"]:
            self._plan()
            self._next = int(state["row"])

    def at_boundary(self, now: DataConfig) -> dict[str, Any]:
        """Return the state from which the mixture of the next stage continues.

        Shares are counted from 0. Each stream keeps its place, and pieces that were drawn and are in no row yet are drawn
        again, before anything else; so are those of a source that the next stage leaves out, when it comes back. Where the
        next stage cuts text differently, its streams are made of what is left (`streams.streams`, `earlier`).
        """
        returned = {key: list(pieces) for key, pieces in self._returned.items() if pieces}
        for piece in [*(piece for row in self._rows[self._next :] for piece in row), *self._carried]:
            stream = next(stream for stream in self._streams if stream.holds(piece))
            returned.setdefault(stream.key, []).append(piece)
        progress = {"drawn": dict(self._drawn), "returned": _plain(returned)}
        state = {"window": self._number, "tokens": {}, "carried": [], "row": 0, "earlier": self.earlier}
        if cut_of(now) == self._cut:
            return _less_empty(state | progress)
        return state | {"drawn": {}, "earlier": [*self.earlier, self._cut | progress]}

    def _now(self) -> dict[str, Any]:
        return _less_empty({
            "window": self._number,
            "drawn": dict(self._drawn),
            "tokens": dict(self._tokens),
            "carried": [list(piece) for piece in self._carried],
            "returned": _plain(self._returned),
            "earlier": self.earlier,
        })  # fmt: skip

    def _plan(self) -> None:
        """Draw one window's pieces and pack them."""
        self._before = self._now()
        pieces = self._carried
        wanted = self._window * self._length - sum(piece.pairs for piece in pieces)
        while wanted > 0:
            pieces.append(self._draw())
            wanted -= pieces[-1].pairs
        rows = sorted(pack(pieces, self._length), key=lambda row: -sum(piece.pairs for piece in row))
        # The emptiest rows are carried over, to be packed with the next window.
        full = [row for row in rows if sum(piece.pairs for piece in row) == self._length]
        keep = max(len(full), len(rows) - max(self._window // _CARRIED, 1), 1)
        self._carried = [piece for row in rows[keep:] for piece in row]
        order = np.random.default_rng([self._seed, self._number]).permutation(keep)
        self._rows = [rows[i] for i in order]
        self._number += 1
        self._next = 0

    def _draw(self) -> Piece:
        """The next piece of the stream that is furthest behind its share."""
        total = sum(self._tokens.values())
        stream = max(self._streams, key=lambda s: s.share * (total + self._length) - self._tokens[s.key])
        if returned := self._returned.get(stream.key):
            piece = returned.popleft()
        else:
            piece = stream.piece(self._drawn[stream.key])
            self._drawn[stream.key] += 1
        self._tokens[stream.key] += piece.pairs
        return piece


def pack(pieces: Sequence[Piece], length: int) -> list[Row]:
    """Best-fit decreasing: each piece, longest first, goes to the row that it fills best."""
    rows: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # (free pairs, row), ascending
    for piece in sorted(pieces, key=lambda piece: -piece.pairs):
        place = bisect_left(room, (piece.pairs, -1))
        if place == len(room):
            free, row = length, len(rows)
            rows.append([])
        else:
            free, row = room.pop(place)
        rows[row].append(piece)
        if free > piece.pairs:
            insort(room, (free - piece.pairs, row))
    return [tuple(row) for row in rows]


def _plain(returned: Mapping[str, Iterable[Piece]]) -> dict[str, list[list[int]]]:
    """Pieces by stream as JSON values, without streams that have none."""
    lists = {key: [list(piece) for piece in pieces] for key, pieces in returned.items()}
    return {key: pieces for key, pieces in lists.items() if pieces}


def _less_empty(state: dict[str, Any]) -> dict[str, Any]:
    """A state without the parts that only boundaries of stages bring, where there are none."""
    return {name: value for name, value in state.items() if value or name not in ("returned", "earlier")}
