"""Labels of a document: domain, language, quality. (Its length in tokens is known when it is encoded.)

Quality without a key is the share of the document rules of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and
table A1) that the text keeps: 1.0 keeps all. The rules are about prose in languages that put spaces between words; give
labels of your own for the rest.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from qwen3_jax.data.config import Labels
from qwen3_jax.data.records import DataError, Record
from qwen3_jax.errors import UserError

_DETECTED_CHARACTERS = 2000  # the beginning says it
_BULLETS = ("•", "-", "*", "‣", "–")
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
    language = _named(record, labels.language_key, language) or _detector()(text[:_DETECTED_CHARACTERS])
    if labels.quality_key is None or labels.quality_key not in record.body:
        return Labelled(domain, language, gopher_quality(text))
    value = record.body[labels.quality_key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{record.where}: {labels.quality_key!r} must be a number, got {type(value).__name__}")
    return Labelled(domain, language, float(value))


def gopher_quality(text: str) -> float:
    """The share of Gopher's rules on words, symbols, lines and repetition that a text keeps, 0 to 1."""
    words = text.split()
    if not words:
        return 0.0
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    count = len(words)
    repeated_lines = 1 - len(set(lines)) / len(lines)
    repeated_paragraphs = 1 - len(set(paragraphs)) / len(paragraphs)
    kept = [
        50 <= count <= 100_000,
        3 <= sum(map(len, words)) / count <= 10,
        (text.count("#") + text.count("...") + text.count("…")) / count <= 0.1,
        sum(line.startswith(_BULLETS) for line in lines) / len(lines) <= 0.9,
        sum(line.endswith(("...", "…")) for line in lines) / len(lines) <= 0.3,
        sum(any(map(str.isalpha, word)) for word in words) / count >= 0.8,
        len(_STOP_WORDS.intersection(words)) >= 2,
        repeated_lines <= 0.3,
        repeated_paragraphs <= 0.3,
        _top_share(words, 2) <= 0.2,
        _top_share(words, 3) <= 0.18,
        _top_share(words, 4) <= 0.16,
    ]
    return sum(kept) / len(kept)


def _top_share(words: list[str], n: int) -> float:
    """The share of the characters that lies in the most frequent n-gram."""
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    if not grams:
        return 0.0
    gram, times = grams.most_common(1)[0]
    return 0.0 if times == 1 else times * sum(map(len, gram)) / sum(map(len, words))


def _named(record: Record, key: str | None, otherwise: str) -> str:
    value: Any = record.body.get(key, otherwise) if key is not None else otherwise
    if not isinstance(value, str):
        raise DataError(f"{record.where}: {key!r} must be text, got {type(value).__name__}")
    return value


@functools.cache
def _detector() -> Callable[[str], str]:
    try:
        import py3langid
    except ImportError:
        raise UserError('labels.language detect needs the package py3langid: pip install "qwen3-jax[data]"') from None
    return lambda text: py3langid.classify(text)[0]
