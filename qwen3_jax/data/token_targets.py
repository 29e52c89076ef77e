"""The most probable tokens of a teacher at every learned token of a document: in memory, and on disk beside a run.

    top = TopTokens.of(ids, log_probs, vocabulary)      # uint16 or uint32 [N, K], float16 [N, K]
    raw = packed([top, None, top])                      # the file of a part of the corpus
    targets = StoredTargets(folder, len(corpus), k, vocabulary)
    ids, log_probs = targets.read(7, 0, 120)            # of the first 120 learned tokens of document 7

    FOLDER/00000.top ...    learned tokens of each document, int32 [documents of the part], -1 where it was not computed;
                            then ids [tokens, K] and log-probabilities [tokens, K] of all of them

A learned token takes 4 K bytes, or 6 K where the vocabulary has more than 65,536 rows (Qwen3's has 151,936): 384 bytes for
K = 64, as much as 96 float32 of its 151,936 logits. A document takes 4 bytes more.

float16 rounds a log-probability by at most 1/2048 of itself. With each value rounded to the nearest one, the probability that
the k tokens leave to all others would be off by the sum of their errors, which may be more than it is. So of the two
neighbours of a value the one is taken that keeps the sum of the probabilities so far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwen3_jax.errors import UserError

PART, SUFFIX = 1024, ".top"
_NARROW = 2**16  # rows of a vocabulary whose ids have two bytes


class TopTokens(NamedTuple):
    """The most probable tokens of N places.

    Attributes:
        ids: uint16 or uint32 [N, K], different tokens.
        log_probs: float16 [N, K], in nats; -inf where there are fewer than K tokens.
    """

    ids: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, log_probs: np.ndarray, vocabulary: int) -> TopTokens:
        """Return the compact form of ids int [N, K], -1 for none, and log-probabilities float32 [N, K], descending."""
        known = (ids >= 0) & (log_probs > -np.inf)
        rounded = _rounded(np.where(known, np.minimum(log_probs, 0), -np.inf).astype(np.float32))
        return cls(np.where(known, ids, 0).astype(_id_type(vocabulary)), rounded)

    def fields(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 [N, K], -1 for none, and log-probabilities float32 [N, K], as the objective reads them."""
        known = self.log_probs > -np.inf
        return np.where(known, self.ids.astype(np.int32), -1), np.where(known, self.log_probs, 0).astype(np.float32)


def _id_type(vocabulary: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary <= _NARROW else "<u4")


def _rounded(log_probs: np.ndarray) -> np.ndarray:
    """float16 of values [N, K] up to 0, each one of its two neighbours, so that the sums of their exponentials stay."""
    out = np.empty(log_probs.shape, "<f2")
    error_n = np.zeros(len(log_probs))
    for place in range(log_probs.shape[1]):
        exact = log_probs[:, place].astype(np.float64)
        near = exact.astype(np.float16)
        away = np.where(near.astype(np.float64) > exact, np.float16(-np.inf), np.float16(0))
        other = np.where(near.astype(np.float64) == exact, near, np.nextafter(near, away))
        errors = [error_n + np.exp(x.astype(np.float64)) - np.exp(exact) for x in (near, other)]
        nearer = np.abs(errors[0]) <= np.abs(errors[1])
        out[:, place] = np.where(nearer, near, other)
        error_n = np.where(nearer, *errors)
    return out


def packed(documents: Sequence[TopTokens | None], k: int, vocabulary: int) -> bytes:
    """Return the file of some documents; None for one that was not computed."""
    there = [one for one in documents if one is not None]
    counts = np.asarray([-1 if one is None else len(one.ids) for one in documents], "<i4")
    empty = np.zeros((0, k))
    ids = np.concatenate([one.ids for one in there] or [empty]).astype(_id_type(vocabulary))
    log_probs = np.concatenate([one.log_probs for one in there] or [empty]).astype("<f2")
    return counts.tobytes() + ids.tobytes() + log_probs.tobytes()


class _Part(NamedTuple):
    """An open file: tokens of each document and where they begin [documents], and the mapped arrays [tokens, K]."""

    counts: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray


class StoredTargets:
    """The files of a corpus, mapped from disk; safe to read from several threads.

    Args:
        folder: on a local disk.
        documents: of the corpus.
        k: tokens of a place.
        vocabulary: rows of the teacher's vocabulary.
        part: documents of a file.
    """

    def __init__(self, folder: Path, documents: int, k: int, vocabulary: int, part: int = PART):
        self.k = k
        self._folder, self._documents, self._vocabulary, self._size = folder, documents, vocabulary, part
        self._open = functools.lru_cache(maxsize=256)(self._mapped)

    def read(self, document: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 [count, K], -1 for none, and log-probabilities float32 [count, K].

        Args:
            document: of the corpus.
            first: learned tokens of the document before those that are read.
            count: learned tokens to read.

        Raises:
            UserError: the file is damaged, or does not have them.
        """
        number, place = divmod(document, self._size)
        part = self._open(number)
        if first + count > part.counts[place]:
            raise UserError(
                f"{self._file(number)} has {part.counts[place]} tokens of document {document}, of which {first + count} are "
                "learned; delete it, and the same command computes it again."
            )
        here = slice(part.starts[place] + first, part.starts[place] + first + count)
        return TopTokens(part.ids[here], part.log_probs[here]).fields()

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}{SUFFIX}"

    def _mapped(self, number: int) -> _Part:
        file, size = self._file(number), min(self._size, self._documents - number * self._size)
        counts = read_counts(file, size, self.k, self._vocabulary)
        whole, kind = np.maximum(counts, 0).astype(np.int64), _id_type(self._vocabulary)
        tokens, raw = (
            int(whole.sum()),
            np.memmap(file, np.uint8, "r", offset=4 * size) if whole.any() else np.zeros(0, np.uint8),
        )
        middle = tokens * self.k * kind.itemsize
        ids, log_probs = raw[:middle].view(kind), raw[middle:].view("<f2")
        return _Part(counts, np.cumsum(whole) - whole, ids.reshape(tokens, self.k), log_probs.reshape(tokens, self.k))


def read_counts(file: Path, documents: int, k: int, vocabulary: int) -> np.ndarray:
    """Return the learned tokens of each document of a file, int32 [documents]; -1 where it was not computed.

    Args:
        file: on a disk or in a bucket.
        documents: that it has.
        k, vocabulary: see `StoredTargets`.

    Raises:
        UserError: the file is not as long as that makes it.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(4 * documents)
            found = stream.seek(0, 2)
        counts = np.frombuffer(raw, "<i4", documents)
        size = 4 * documents + int(np.maximum(counts, 0).sum(dtype=np.int64)) * k * (_id_type(vocabulary).itemsize + 2)
        if found != size:
            raise ValueError(f"it has {found:,} bytes, not {size:,}")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and the same command computes it again.") from None
    return counts
