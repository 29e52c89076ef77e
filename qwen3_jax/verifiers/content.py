"""What an answer must hold or must say: texts of a list, the rejection of a false premise."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.number import NO_SPACES
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded, right, unparsable, wrong


@dataclass(frozen=True)
class RecallSettings:
    """Of `verify_recall`.

    Attributes:
        need: "all" of the texts, the score is the share that is there; or "any" of them.
        ignore_case: "Paris" equals "PARIS".
        whole_words: 12 is not found in 123.
    """

    need: Literal["all", "any"] = "all"
    ignore_case: bool = True
    whole_words: bool = True

    def __post_init__(self) -> None:
        if self.need not in ("all", "any"):
            raise UserError(f"settings of 'recall': need is {self.need!r}; it must be all or any.")


def verify_recall(answer: str, reference: Any, settings: RecallSettings) -> Verdict:
    """Whether the answer holds the texts of the reference, as RULER counts (Hsieh et al. 2024, arXiv 2404.06654).

    Args:
        reference: a text, or a list of texts.
    """
    wanted = [reference] if isinstance(reference, str) else reference
    if (
        not isinstance(wanted, Sequence)
        or not wanted
        or not all(isinstance(text, str) and text.strip() for text in wanted)
    ):
        raise BadReference(f"'recall' looks for a text or a list of texts, got {reference!r:.200}")
    if not answer.strip():
        return unparsable("the answer is empty")
    parts = tuple(_holds(answer, text, settings) for text in wanted)
    missing = [text for text, there in zip(wanted, parts, strict=True) if not there]
    if settings.need == "any":
        return right("the answer holds one of the texts") if any(parts) else wrong("the answer holds none of the texts")
    reason = f"{sum(parts)} of {len(parts)} texts are there"
    return graded(sum(parts) / len(parts), reason + (f", not {missing[0][:80]!r}" if missing else ""), parts)


_LETTER = rf"[^\W_{NO_SPACES}]"  # or a digit; scripts without spaces have no whole words, and _12_ is 12 in Markdown


def _holds(answer: str, text: str, settings: RecallSettings) -> bool:
    answer, text = (unicodedata.normalize("NFC", value) for value in (answer, text.strip()))
    if settings.ignore_case:
        answer, text = answer.casefold(), text.casefold()
    if not settings.whole_words:
        return text in answer
    before = rf"(?<!{_LETTER})(?<!{_LETTER}_)" if re.match(_LETTER, text) else ""
    after = rf"(?!_?{_LETTER})" if re.search(rf"{_LETTER}\Z", text) else ""
    return re.search(before + re.escape(text) + after, answer) is not None


# Phrases that say of a premise that it is not so. "not" alone is too common to count.
_REJECTIONS = re.compile(
    r"\b(?:did|does|do|was|were|is|are|has|have|had|could|can|would)(?:\s+not|n[o'’]?t)\b(?!\s+only)"
    r"|\b(?:never|false|fictional|fictitious|counterfactual|incorrect|inaccurate|mistaken|misconception|misunderstanding|myth|"
    r"impossible|untrue|erroneous|nonexistent|non-existent|hypothetical)\b"
    r"|\b(?:not\s+(?:true|correct|accurate|possible|factual|real|the\s+case))\b"
    r"|\b(?:no|without)\s+(?:\w+\s+)?(?:evidence|record|records|such|basis|historical|known|real|factual|truth|credible|reliable)\b"
    r"|\b(?:there(?:\s+is|\s+was|\s+are|\s+were|['’]s)\s+no)\b|\bcontrary\s+to\b|\bfalse\s+premise\b"
    r"|不正确|不准确|不属实|错误|虚构|并未|没有|从未|并非|不存在|不是|误解",
    re.IGNORECASE,
)
_UNCERTAIN = re.compile(
    r"\bI(?:\s+am|['’]m)\s+not\s+(?:aware|familiar)\b|\b(?:cannot|can['’]?t|could\s+not)\s+(?:verify|confirm|find)\b|\bunable\s+to\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PremiseSettings:
    """Of `verify_premise`.

    Attributes:
        within: number of sentences at the start among which a rejection must stand; 0 is anywhere.
    """

    within: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.within, bool) or not isinstance(self.within, int) or self.within < 0:
            raise UserError(
                f"settings of 'premise': within is {self.within!r}; it must be a whole number of at least 0."
            )


def verify_premise(answer: str, reference: Any, settings: PremiseSettings) -> Verdict:
    """Whether the answer rejects the false premise of its question, or answers one whose premise is true.

    Rejections are found by phrases in English and Chinese, so an answer that rejects in other words counts as wrong.

    Args:
        reference: an object with `premise`, false or true; for a false one optionally `corrections`, texts one of which is a
            rejection by itself (the fact that the premise contradicts); for a true one `facts`, texts that must all be there.
    """
    if not isinstance(reference, Mapping) or not isinstance(reference.get("premise"), bool):
        raise BadReference("'premise' needs an object with premise, true or false")
    for key in ("corrections", "facts"):
        texts = reference.get(key) or []
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise BadReference(f"{key} must be a list of texts")
    if not answer.strip():
        return unparsable("the answer is empty")
    sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", answer.strip())
    start = " ".join(sentences[: settings.within] if settings.within else sentences)
    match = _REJECTIONS.search(start) or _UNCERTAIN.search(start)
    loosely = RecallSettings()
    if not reference["premise"]:
        if match is not None:
            return right(f"it rejects the premise: {match[0]!r}")
        stated = next((text for text in reference.get("corrections") or [] if _holds(answer, text, loosely)), None)
        if stated is not None:
            return right(f"it states the fact: {stated[:80]!r}")
        return wrong("it goes along with a false premise")
    missing = [text for text in reference.get("facts") or [] if not _holds(answer, text, loosely)]
    if missing:
        return wrong(f"the premise is true, and the answer lacks {missing[0][:80]!r}")
    return right("it answers a question whose premise is true")
