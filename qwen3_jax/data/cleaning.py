"""Finding what must not be trained on: duplicates, near-duplicates, and text that shares long passages with held-out sets.

Texts that are equal but for case and white space are exact duplicates. Near-duplicates are found by MinHash
(Broder 1997; as in Lee et al. 2021, arXiv 2107.06499): the share of equal entries of two signatures estimates the Jaccard
similarity of their sets of 5-word shingles; documents whose signatures agree in one of several bands are compared, and the
later one is left out when the estimate reaches the threshold.

Signatures of all documents lie on disk while a corpus is prepared, so memory does not grow with its text.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SHINGLE = 5
# Scripts that put no spaces between words count by the character: Thai to Burmese, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
# (bands, rows): the chance that two documents of similarity s are compared is 1 - (1 - s^rows)^bands.
BANDS, ROWS = 16, 8
_MULTIPLIERS = np.random.default_rng(20250509).integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)
SIGNATURE = np.dtype([("exact", "<u8"), ("minhash", "<u4", (BANDS * ROWS,))])


def words_of(text: str) -> np.ndarray:
    """uint64 [words]: a hash of each word."""
    return np.array(
        [zlib.crc32(word.encode("utf-8", "replace")) for word in _WORDS.findall(text.lower())], dtype=np.uint64
    )


def grams(words: np.ndarray, n: int) -> np.ndarray:
    """uint64 [max(words - n + 1, 0)]: a hash of every n consecutive words."""
    if len(words) < n:
        return np.zeros(0, np.uint64)
    out = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        out = (out ^ words[i : len(words) - n + 1 + i]) * _PRIME
        out ^= out >> np.uint64(29)
    return out


def signature(text: str, near: bool) -> np.ndarray:
    """One entry of dtype SIGNATURE; the MinHash is left 0 unless `near`."""
    out = np.zeros((), SIGNATURE)
    plain = " ".join(text.lower().split())
    out["exact"] = int.from_bytes(hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    if near:
        words = words_of(text)
        shingles = np.unique(grams(words, min(SHINGLE, max(len(words), 1))))
        least = np.full(BANDS * ROWS, np.uint64(2**64 - 1))
        for start in range(0, len(shingles), 4096):
            least = np.minimum(least, (shingles[start : start + 4096, None] * _MULTIPLIERS).min(axis=0))
        out["minhash"] = least >> np.uint64(32)
    return out


def duplicates(signatures: np.ndarray, near: bool, similarity: float) -> np.ndarray:
    """bool [documents]: which to leave out; the first of its kind stays.

    Args:
        signatures: of dtype SIGNATURE, in the corpus's order; may be mapped from disk.
        near: look for near-duplicates too.
        similarity: estimated Jaccard similarity from which on the later of two is left out.
    """
    dropped = np.zeros(len(signatures), bool)
    order = np.argsort(signatures["exact"], kind="stable")
    values = signatures["exact"][order]
    dropped[order[1:][values[1:] == values[:-1]]] = True
    if near:
        for band in range(BANDS):
            _drop_similar(signatures["minhash"], band, similarity, dropped)
    return dropped


def _drop_similar(minhash: np.ndarray, band: int, similarity: float, dropped: np.ndarray) -> None:
    """Compare each document with the first one that is kept among those that share its band."""
    rows = np.ascontiguousarray(minhash[:, band * ROWS : (band + 1) * ROWS])
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * ROWS))).ravel()
    _, groups, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(sizes)
    for group in np.flatnonzero(sizes > 1):
        members = [int(i) for i in order[ends[group] - sizes[group] : ends[group]] if not dropped[i]]
        kept: list[int] = []
        for member in members:
            if any((minhash[member] == minhash[other]).mean() >= similarity for other in kept):
                dropped[member] = True
            elif len(kept) < 8:  # dissimilar texts that share a band are few
                kept.append(member)


@dataclass(frozen=True)
class HeldOut:
    """The n-grams of texts that must not be trained on, sorted uint64."""

    grams: np.ndarray
    n: int

    @classmethod
    def of(cls, texts: Iterable[str], n: int) -> HeldOut:
        """Collect the n-grams of every text; one of fewer than n words has none."""
        grams_of_texts = [np.unique(grams(words_of(text), n)) for text in texts]
        return cls(np.unique(np.concatenate(grams_of_texts)) if grams_of_texts else np.zeros(0, np.uint64), n)

    def overlaps(self, text: str) -> bool:
        """Whether a text shares one n-gram with them."""
        ours = grams(words_of(text), self.n)
        if not len(ours) or not len(self.grams):
            return False
        places = np.searchsorted(self.grams, ours)
        places[places == len(self.grams)] = 0
        return bool((self.grams[places] == ours).any())
