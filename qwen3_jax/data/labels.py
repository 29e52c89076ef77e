"""Labels of a document: domain, language, quality. (Its length in tokens is known when it is encoded.)

Quality without a key is the share of the document rules of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and
table A1) that the text keeps: 1.0 keeps all. The rules are about prose in languages that put spaces between words; give
labels of your own for the rest.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from itertools import filterfalse
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.data.cleaning import grams
from qwen3_jax.data.config import Labels
from qwen3_jax.data.records import DataError, Record
from qwen3_jax.errors import UserError, nearest

_DETECTED_CHARACTERS = 2000  # the beginning says it
_LETTER = re.compile(r"[^\W\d_]")
_BULLETS = frozenset("•-*‣–")
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


class Labelled(NamedTuple):
    """domain and language by name; quality as a number."""

    domain: str
    language: str
    quality: float


def label(record: Record, text: str, labels: Labels, source_name: str) -> Labelled:
    """Return the labels of a record with this text.

    Raises:
        DataError: a key holds something else than it should.
    """
    domain = _named(record, labels.domain_key, labels.domain or source_name)
    language = labels.language if labels.language != "detect" else ""
    language = _named(record, labels.language_key, language) or detect_language(text)
    value = record.body.get(labels.quality_key) if labels.quality_key is not None else None
    if value is None:
        return Labelled(domain, language, gopher_quality(text) if labels.quality is None else labels.quality)
    is_number = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)  # a cell of CSV is text
    with contextlib.suppress(ValueError):
        if is_number:
            return Labelled(domain, language, float(value))
    raise DataError(f"{record.location}: {labels.quality_key!r} must be a number, got {type(value).__name__}")


def detect_language(text: str) -> str:
    """The language of a text (ISO 639-1), from its beginning.

    Raises:
        UserError: py3langid is not installed.
    """
    return _detector()(text[:_DETECTED_CHARACTERS])


def check_label_keys(labels: Labels, keys: set[str], name: str) -> None:
    """Refuse a label's key that no record has: everything would get one and the same label.

    Args:
        labels: of the source.
        keys: every key of its records.
        name: of the source.

    Raises:
        DataError: names the key and the nearest that there is.
    """
    for field, key in named_keys(labels).items():
        if key not in keys:
            raise DataError(
                f"source {name!r}: no record has the key {key!r} that labels.{field} (--{field.replace('_', '-')}) names; the "
                f"records have {sorted(keys)[:20]}.{nearest(key, sorted(keys))}"
            )


def named_keys(labels: Labels) -> dict[str, str]:
    """The fields of `labels` that name a key of the records."""
    fields = {field: getattr(labels, field) for field in ("domain_key", "language_key", "quality_key")}
    return {field: key for field, key in fields.items() if key is not None}


def gopher_quality(text: str) -> float:
    """The share of Gopher's rules on words, symbols, lines and repetition that a text keeps, 0 to 1."""
    words = text.split()
    if not words:
        return 0.0
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    paragraphs = [stripped for part in text.split("\n\n") if (stripped := part.strip())]
    count, different = len(words), Counter(words)
    lengths = np.fromiter(map(len, words), np.int64, count)
    unlettered = [word for word in filterfalse(str.isalpha, different) if not _LETTER.search(word)]
    trailing = [line for line in lines if line.endswith(("...", "…"))] if "..." in text or "…" in text else []
    kept = [
        50 <= count <= 100_000,
        3 <= lengths.sum() / count <= 10,
        (text.count("#") + text.count("...") + text.count("…")) / count <= 0.1,
        len([line for line in lines if line[0] in _BULLETS]) / len(lines) <= 0.9,
        len(trailing) / len(lines) <= 0.3,
        sum(map(different.__getitem__, unlettered)) / count <= 0.2,
        len(_STOP_WORDS.intersection(different)) >= 2,
        1 - len(set(lines)) / len(lines) <= 0.3,
        1 - len(set(paragraphs)) / len(paragraphs) <= 0.3,
    ]
    places = dict(zip(different, range(count), strict=False))
    ids = np.fromiter(map(places.__getitem__, words), np.uint64, count)
    kept += [_top_share(ids, lengths, n) <= most for n, most in ((2, 0.2), (3, 0.18), (4, 0.16))]
    return float(sum(kept) / len(kept))


def _top_share(words: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """The share of the characters that lies in the most frequent n-gram of words, 0 where none comes twice."""
    hashes = grams(words, n)
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return 0.0
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    times = np.diff(ends, prepend=-1)
    most = ordered[ends[times == times.max()]]
    place = int(np.isin(hashes, most).argmax())  # of several the first
    return float(times.max() * lengths[place : place + n].sum() / lengths.sum())


def _named(record: Record, key: str | None, default: str) -> str:
    value: Any = record.body.get(key) if key is not None else None
    value = default if value is None else value
    if not isinstance(value, str):
        raise DataError(f"{record.location}: {key!r} must be text, got {type(value).__name__}")
    return value


def language_probabilities(text: str) -> dict[str, float]:
    """The probability of each language (ISO 639-1) that is known.

    Raises:
        UserError: py3langid is not installed.
    """
    return {language: float(probability) for language, probability in _identifier().rank(text)}


@functools.cache
def _identifier() -> Any:
    """Like `_detector`, with probabilities."""
    _detector()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _detector() -> Callable[[str], str]:
    try:
        import py3langid
    except ImportError:
        raise UserError('detecting languages needs the package py3langid: pip install "qwen3-jax[data]"') from None
    return lambda text: py3langid.classify(text)[0]
