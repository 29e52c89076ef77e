"""Exact text."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong


@dataclass(frozen=True)
class ExactSettings:
    """Of `verify_exact`. Texts are compared in Unicode's form NFC, without space at the ends.

    Attributes:
        ignore_case: "Paris" equals "PARIS".
        ignore_punctuation: punctuation is left out.
        join_spaces: any white space counts as one space.
    """

    ignore_case: bool = False
    ignore_punctuation: bool = False
    join_spaces: bool = True


def verify_exact(answer: str, reference: Any, settings: ExactSettings) -> Verdict:
    """Whether the answer is the reference, or one of them.

    Args:
        reference: text, or a list of texts that are all right.
    """
    accepted = [reference] if isinstance(reference, str) else reference
    if not isinstance(accepted, Sequence) or not accepted or not all(isinstance(text, str) for text in accepted):
        raise BadReference(f"'exact' compares with text or a list of texts, got {reference!r:.200}")
    text = _normal(answer, settings)
    if text in {_normal(other, settings) for other in accepted}:
        return right("the answer is the reference", extracted=text)
    if not text:
        return unparsable("the answer is empty")
    return wrong(f"the answer is {text[:200]!r}, not {accepted[0][:200]!r}", extracted=text)


def _normal(text: str, settings: ExactSettings) -> str:
    text = unicodedata.normalize("NFC", text)
    if settings.ignore_case:
        text = text.casefold()
    if settings.ignore_punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    return " ".join(text.split()) if settings.join_spaces else text.strip()
