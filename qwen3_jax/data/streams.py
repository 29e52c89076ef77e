"""The text of a mixture as streams of pieces, each in an order of its own, and what earlier stages have left of it.

    documents -> pieces of at most T pairs -> streams (source x length class), shuffled anew in every epoch

Where a stage cuts text as the one before (same row length, same length classes), its streams go on where they were. Where it
cuts differently, the first epoch of its streams is what the stages before have not given of theirs, joined and cut again; so
every prediction is made once in an epoch of a source, whatever the stages between.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from grain.experimental import index_shuffle

from qwen3_jax.data.config import DataConfig, LengthShare, Source
from qwen3_jax.data.prepared import Prepared
from qwen3_jax.data.records import DataError

_UNBOUNDED = 2**62


class Piece(NamedTuple):
    """`pairs` (input, target) pairs of a document of a source, from token `start` on."""

    source: int
    document: int
    start: int
    pairs: int


class Pieces(NamedTuple):
    """Pieces of one source: integers [pieces]."""

    document: np.ndarray
    start: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Stream:
    """The pieces of one source in one class of lengths.

    Attributes:
        key: names it in the saved state.
        source: place of the source in the mixture.
        document, start, pairs: [pieces], see `Piece`.
        share: of all tokens.
        seed: of its order.
        rest: what comes before the first epoch, left over by earlier stages; None where the first epoch is whole.
        above, up_to: the class of lengths.
    """

    key: str
    source: int
    document: np.ndarray
    start: np.ndarray
    pairs: np.ndarray
    share: float
    seed: int
    rest: Pieces | None = None
    above: int = 0
    up_to: int = _UNBOUNDED

    def piece(self, count: int) -> Piece:
        """The piece that comes after `count` others; each epoch has an order of its own."""
        pieces, epoch, place = self._epoch(count)
        i = _shuffled(place, len(pieces.pairs), self._seed_of(epoch))
        return Piece(self.source, int(pieces.document[i]), int(pieces.start[i]), int(pieces.pairs[i]))

    def left(self, count: int) -> Pieces:
        """What is still to come in the epoch in progress after `count` pieces; nothing at the end of an epoch."""
        pieces, epoch, place = self._epoch(count)
        size, seed = len(pieces.pairs), self._seed_of(epoch)
        ended = place == 0 and epoch != "rest" and (epoch != 0 or self.rest is not None)
        indices = [] if ended else sorted(_shuffled(i, size, seed) for i in range(place, size))
        return _taken(Pieces(pieces.document, pieces.start, pieces.pairs), np.asarray(indices, np.int64))

    def holds(self, piece: Piece) -> bool:
        """Whether a piece of the mixture is this stream's."""
        return piece.source == self.source and self.above < piece.pairs <= self.up_to

    def _epoch(self, count: int) -> tuple[Pieces | Stream, int | str, int]:
        """The pieces of the epoch in which the piece after `count` others lies, its name, and the place in it."""
        if self.rest is not None:
            if count < len(self.rest.pairs):
                return self.rest, "rest", count
            count -= len(self.rest.pairs)
        return self, *divmod(count, len(self.pairs))

    def _seed_of(self, epoch: int | str) -> int:
        return _hashed(f"{self.seed}/{epoch}")


def streams(
    config: DataConfig,
    corpora: Sequence[Prepared],
    weights: Mapping[str, float],
    earlier: Sequence[Mapping[str, Any]] = (),
) -> list[Stream]:
    """The streams of a mixture.

    Args:
        config: row length, length classes, seed and sources.
        corpora: one for each source.
        weights: by name of source; a source without one is left out.
        earlier: what earlier stages that cut text differently have drawn, see `cut_of` and `mixture.RowPlanner.at_boundary`.

    Raises:
        DataError: a source, or one of its length classes, has no text.
    """
    out: list[Stream] = []
    whole = sum(weights.values())
    left = _left(config, corpora, earlier)
    for number, (source, corpus) in enumerate(zip(config.sources, corpora, strict=True)):
        if source.name not in weights:
            continue
        for stream in _streams_of(config, number, corpus, left[number], len(earlier)):
            if not len(stream.pairs):
                what = (
                    f"no text of more than {stream.above} and up to {stream.up_to} tokens"
                    if config.lengths
                    else "no text to train on"
                )
                raise DataError(f"source {source.name!r} has {what}{_why(source, corpus)}.")
            out.append(dataclasses.replace(stream, share=weights[source.name] / whole * stream.share))
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


def pieces_of(used: np.ndarray, corpus: Prepared, row: int) -> Pieces:
    """The pieces of some documents of a corpus; a preference is one piece of all its tokens, because each of its two documents
    is read to its last token.

    Raises:
        DataError: a preference is longer than a row.
    """
    lengths = np.asarray(corpus.lengths)[used]
    if not corpus.pairs:
        return Pieces(*cut(used, lengths, row))
    if len(lengths) and lengths.max() > row:
        raise DataError(
            f"{int((lengths > row).sum()):,} of {len(lengths):,} preferences in {corpus.folder} have more tokens, chosen and "
            f"rejected together, than a row of {row} (the longest has {lengths.max():,}); raise data.sequence_length, or leave "
            f"them out with 'where: {{length: [null, {row}]}}' of the source."
        )
    return Pieces(used, np.zeros(len(used), np.int32), lengths.astype(np.int32))


def cut_of(config: DataConfig) -> dict[str, Any]:
    """What decides into which pieces text is cut, as JSON values."""
    classes = [[length_class.above, length_class.up_to] for length_class in config.lengths]
    return {"sequence_length": config.sequence_length, "lengths": classes}


def _streams_of(
    config: DataConfig, number: int, corpus: Prepared, rest: Pieces | None, boundaries: int
) -> list[Stream]:
    """The streams of one source, empty ones too; `share` is that of a length class."""
    source = config.sources[number]
    pieces = _whole(config, source, corpus)
    rest = None if rest is None else _cut_again(rest, config.sequence_length)
    parts = sum(length_class.weight for length_class in config.lengths)
    out = []
    for one in config.lengths or [LengthShare(0, _UNBOUNDED, 1.0)]:
        key = f"{source.name}/{one.above}-{one.up_to}" if config.lengths else source.name
        seed = _hashed(f"{config.seed}/{key}" if rest is None else f"{config.seed}/{key}/{boundaries}")
        out.append(
            Stream(
                key, number, *_of_class(pieces, one), one.weight / (parts or 1.0), seed,
                None if rest is None else _of_class(rest, one), one.above, one.up_to,
            )
        )  # fmt: skip
    return out


def _left(config: DataConfig, corpora: Sequence[Prepared], earlier: Sequence[Mapping[str, Any]]) -> list[Pieces | None]:
    """For each source, what earlier stages have left of the epoch in progress; None where it has not begun."""
    left: list[Pieces | None] = [None] * len(corpora)
    for boundaries, part in enumerate(earlier):
        classes = [LengthShare(above, up_to, 1.0) for above, up_to in part["lengths"]]
        then = dataclasses.replace(config, sequence_length=part["sequence_length"], lengths=classes)
        for number, corpus in enumerate(corpora):
            before = _streams_of(then, number, corpus, left[number], boundaries)
            drawn = [part["drawn"].get(stream.key, 0) for stream in before]
            if not any(drawn):
                continue
            parts = [stream.left(count) for stream, count in zip(before, drawn, strict=True)]
            for stream in before:
                returned = np.asarray(part["returned"].get(stream.key, []), np.int64).reshape(-1, 4)
                parts.append(Pieces(*returned[:, 1:].T))
            rest = left[number]
            whole = _whole(then, then.sources[number], corpus)
            parts.append(_of_no_class(whole if rest is None else _cut_again(rest, then.sequence_length), classes))
            left[number] = _joined(parts)
    return left


def _whole(config: DataConfig, source: Source, corpus: Prepared) -> Pieces:
    used = np.flatnonzero(corpus.select(source.where) & ~corpus.held_out(source.eval_fraction))
    return pieces_of(used, corpus, config.sequence_length)


def _cut_again(rest: Pieces, row: int) -> Pieces:
    """Cut stretches of documents into pieces of at most `row` pairs."""
    place, start, pairs = cut(np.arange(len(rest.pairs)), rest.pairs + 1, row)
    return Pieces(rest.document[place], rest.start[place] + start, pairs)


def _joined(parts: Sequence[Pieces]) -> Pieces:
    """All pieces in order, those that follow each other in a document as one. A stretch that comes twice stays twice."""
    document, start, pairs = (np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True))
    order = np.lexsort((start, document))
    document, start, pairs = document[order], start[order], pairs[order]
    begins = np.ones(len(document), bool)
    begins[1:] = (document[1:] != document[:-1]) | (start[1:] != start[:-1] + pairs[:-1])
    first = np.flatnonzero(begins)
    return Pieces(document[first], start[first], np.add.reduceat(pairs, first) if len(first) else pairs)


def _of_class(pieces: Pieces, one: LengthShare) -> Pieces:
    return _taken(pieces, (pieces.pairs > one.above) & (pieces.pairs <= one.up_to))


def _of_no_class(pieces: Pieces, classes: Sequence[LengthShare]) -> Pieces:
    outside = np.full(len(pieces.pairs), bool(classes))
    for one in classes:
        outside &= (pieces.pairs <= one.above) | (pieces.pairs > one.up_to)
    return _taken(pieces, outside)


def _taken(pieces: Pieces, which: np.ndarray) -> Pieces:
    return Pieces(*(column[which] for column in pieces))


def _shuffled(place: int, size: int, seed: int) -> int:
    return index_shuffle(place, size - 1, seed, 4) if size > 1 else 0


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _why(source: Source, corpus: Prepared) -> str:
    return f" ({len(corpus)} documents, eval_fraction {source.eval_fraction}, {source.where})"
