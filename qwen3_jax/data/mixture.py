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
- The state is a handful of integers: each stream's place and tokens, the pieces that were carried over, and the row.

(Packing: Ding et al. 2024, arXiv 2404.10830, best-fit decreasing.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from grain.experimental import index_shuffle

from qwen3_jax.data.config import DataConfig, LengthShare, Source
from qwen3_jax.data.prepared import Prepared
from qwen3_jax.data.records import DataError

_CARRIED = 8  # at most 1 / 8 of a window's rows is planned again with the next window


class Piece(NamedTuple):
    """`pairs` (input, target) pairs of a document of a source, from token `start` on."""

    source: int
    document: int
    start: int
    pairs: int


Row = tuple[Piece, ...]


@dataclass(frozen=True)
class Stream:
    """The pieces of one source in one class of lengths.

    Attributes:
        key: names it in the saved state.
        source: place of the source in the mixture.
        document, start, pairs: [pieces], see `Piece`.
        share: of all tokens.
        seed: of its order.
    """

    key: str
    source: int
    document: np.ndarray
    start: np.ndarray
    pairs: np.ndarray
    share: float
    seed: int

    def piece(self, count: int) -> Piece:
        """The piece that comes after `count` others; each epoch has an order of its own."""
        epoch, place = divmod(count, len(self.pairs))
        seed = int.from_bytes(hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=4).digest(), "big")
        i = index_shuffle(place, len(self.pairs) - 1, seed, 4) if len(self.pairs) > 1 else 0
        return Piece(self.source, int(self.document[i]), int(self.start[i]), int(self.pairs[i]))


def at_boundary(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state from which another mixture continues. Each stream keeps its place, so that text which was drawn is not
    drawn again in this epoch, as long as its pieces are the same (row length, class of lengths, `where`). Shares are
    counted from 0, and carried-over pieces are dropped, since rows may have another length."""
    return {"window": state["window"], "drawn": dict(state["drawn"]), "tokens": {}, "carried": [], "row": 0}


def streams(config: DataConfig, corpora: Sequence[Prepared], weights: Mapping[str, float]) -> list[Stream]:
    """The streams of a mixture.

    Args:
        config: row length, length classes, seed and sources.
        corpora: one for each source.
        weights: by name of source; a source without one is left out.

    Raises:
        DataError: a source, or one of its length classes, has no text.
    """
    out = []
    classes: Sequence[LengthShare | None] = config.lengths or [None]
    whole = sum(weights.values())
    parts = sum(length_class.weight for length_class in config.lengths) or 1.0
    for number, (source, corpus) in enumerate(zip(config.sources, corpora, strict=True)):
        if source.name not in weights:
            continue
        used = np.flatnonzero(corpus.select(source.where) & ~corpus.held_out(source.eval_fraction))
        document, start, pairs = cut(used, np.asarray(corpus.lengths)[used], config.sequence_length)
        for length_class in classes:
            chosen = (
                slice(None) if length_class is None else (pairs > length_class.above) & (pairs <= length_class.up_to)
            )
            key = source.name if length_class is None else f"{source.name}/{length_class.above}-{length_class.up_to}"
            if not len(pairs[chosen]):
                what = (
                    "no text to train on"
                    if length_class is None
                    else f"no text of more than {length_class.above} and up to {length_class.up_to} tokens"
                )
                raise DataError(f"source {source.name!r} has {what}{_why(source, corpus)}.")
            share = weights[source.name] / whole * (length_class.weight / parts if length_class else 1.0)
            seed = int.from_bytes(hashlib.blake2b(f"{config.seed}/{key}".encode(), digest_size=4).digest(), "big")
            out.append(Stream(key, number, document[chosen], start[chosen], pairs[chosen], share, seed))
    return out


def cut(documents: np.ndarray, lengths: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents of these lengths (tokens) into pieces of at most `row` pairs: (document, start, pairs) of each piece.

    Neighbouring pieces share one token, so that no prediction is lost.
    """
    pairs = lengths.astype(np.int64) - 1
    counts = np.maximum(-(-pairs // row), 0)
    document = np.repeat(documents, counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * row
    return document, start.astype(np.int32), np.minimum(np.repeat(pairs, counts) - start, row).astype(np.int32)


class RowPlanner:
    """Plans rows, endlessly.

    Args:
        config: row length, window, seed.
        streams: the mixture.
    """

    def __init__(self, config: DataConfig, streams: Sequence[Stream]):
        self._length, self._window, self._seed = config.sequence_length, config.packing_rows, config.seed
        self._streams = list(streams)
        self._drawn = {stream.key: 0 for stream in streams}  # pieces
        self._tokens = {stream.key: 0 for stream in streams}
        self._carried: list[Piece] = []
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
        """Continue from a saved state. Streams that it lacks start at 0; streams that no longer exist are ignored."""
        for stream in self._streams:
            self._drawn[stream.key] = int(state["drawn"].get(stream.key, 0))
            self._tokens[stream.key] = int(state["tokens"].get(stream.key, 0))
        self._carried = [Piece(*piece) for piece in state["carried"]]
        self._number, self._rows, self._next = int(state["window"]), [], 0
        if state["row"]:
            self._plan()
            self._next = int(state["row"])

    def _now(self) -> dict[str, Any]:
        return {
            "window": self._number,
            "drawn": dict(self._drawn),
            "tokens": dict(self._tokens),
            "carried": [list(piece) for piece in self._carried],
        }

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


def _why(source: Source, corpus: Prepared) -> str:
    return f" ({len(corpus)} documents, eval_fraction {source.eval_fraction}, {source.where})"
