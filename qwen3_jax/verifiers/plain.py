"""Exact text, numbers, and letters of a multiple choice."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qwen3_jax.bounds import at_least, check_bounds
from qwen3_jax.errors import UserError
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


_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_NO_SPACES = (
    r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"  # Chinese, Japanese, Korean: a number stands beside a word
)
_NUMBER = re.compile(
    rf"(?<![^\W{_NO_SPACES}])(?<!\.)[-+]?\s?[$€£¥]?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}})?(?:\s?/\s?\d+(?![\d.]))?(?:\s?%)?"
)
_MARKED = re.compile(r"####|\\boxed\{|(?i:\banswer\b(?:\s+is)?\s*[:=]?)|答案(?:是|为)?\s*[:：]?")
_LONGEST = 1000  # characters of a number


@dataclass(frozen=True)
class NumberSettings:
    """Of `verify_number`.

    Attributes:
        take: which number of the answer counts: "last"; "first"; "marked", the first after the last "####", `boxed` or "answer
            is"; "only", where more than one is wrong.
        tolerance: absolute difference that is still right.
        relative_tolerance: the same, as a share of the reference.
        percent: "5%" is 0.05; otherwise the sign is left out.
    """

    take: str = "last"
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    percent: bool = False

    def __post_init__(self) -> None:
        if self.take not in ("last", "first", "marked", "only"):
            raise UserError(f"settings of 'number': take is {self.take!r}; it must be last, first, marked or only.")
        check_bounds(vars(self), "settings of 'number': ", tolerance=at_least(0), relative_tolerance=at_least(0))


def verify_number(answer: str, reference: Any, settings: NumberSettings) -> Verdict:
    """Whether a number of the answer equals the reference, exactly or within a tolerance.

    Numbers may have thousands separators, a currency sign, an exponent, a denominator (3/4) or a percent sign.

    Args:
        reference: a number, or text whose last number it is (GSM8K's "#### 1,234").
    """
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise BadReference(f"'number' compares with a number, got {reference!r:.200}")
    in_reference = _numbers(str(reference), settings.percent)
    if not in_reference:
        raise BadReference(f"there is no number in {reference!r:.200}")
    expected = in_reference[-1][1]
    text = answer
    if settings.take == "marked":
        marks = list(_MARKED.finditer(answer))
        if not marks:
            return unparsable("the answer marks no number as its answer")
        text = answer[marks[-1].end() :]
    found = _numbers(text, settings.percent)
    if not found:
        return unparsable("the answer holds no number")
    if settings.take == "only" and len({value for _, value in found}) > 1:
        return wrong(f"the answer holds several numbers: {', '.join(written for written, _ in found[:5])}")
    written, value = found[-1 if settings.take == "last" else 0]
    allowed = Fraction(settings.tolerance) + abs(expected) * Fraction(settings.relative_tolerance)
    if abs(value - expected) <= allowed:
        return right(f"the answer's number is {written}", extracted=str(value))
    return wrong(f"the answer's number is {written}, not {reference!s:.200}", extracted=str(value))


def _numbers(text: str, percent: bool) -> list[tuple[str, Fraction]]:
    """The numbers of a text as they are written, and their values."""
    text = unicodedata.normalize(
        "NFKC",
        text.replace("−", "-")
        .replace("\\%", "%")
        .replace("\\$", "$")
        .replace("{,}", ",")
        .replace("\\,", "")
        .replace("\\!", ""),
    )
    numbers = []
    for match in _NUMBER.finditer(text):
        written = match[0]
        if len(written) > _LONGEST:
            continue
        digits = re.sub(r"[\s,$€£¥%+]", "", written.replace("e+", "e").replace("E+", "e"))
        upper, _, lower = digits.partition("/")
        if lower and not int(lower):
            continue
        value = Fraction(upper) / (int(lower) if lower else 1)
        numbers.append((written.strip(), value / 100 if percent and "%" in written else value))
    return numbers


@dataclass(frozen=True)
class ChoiceSettings:
    """Of `verify_choice`.

    Attributes:
        letters: of the choices, in order.
    """

    letters: str = "ABCD"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.letters, str)
            or not self.letters.isalpha()
            or not self.letters.isupper()
            or len(set(self.letters)) != len(self.letters)
        ):
            raise UserError(f"settings of 'choice': letters is {self.letters!r}; it must be different capital letters.")


def verify_choice(answer: str, reference: Any, settings: ChoiceSettings) -> Verdict:
    r"""Whether the answer chooses the reference's letter.

    Its letter is looked for in this order, the last of a kind counts: `\boxed{C}`, `"answer": "C"` in JSON, "answer is (C)" or
    "Answer: C", a bold C or one at the start of a line before ")" or ".", the answer as a whole.

    Args:
        reference: a letter, or the index of a choice from 0.
    """
    letters = settings.letters
    expected = reference
    if isinstance(reference, int) and not isinstance(reference, bool) and 0 <= reference < len(letters):
        expected = letters[reference]
    if not isinstance(expected, str) or expected.strip().strip("()").upper() not in set(letters):
        raise BadReference(f"'choice' compares with one of {', '.join(letters)} or an index, got {reference!r:.200}")
    expected = expected.strip().strip("()").upper()
    text = re.sub(r"\s+", lambda space: "\n" if "\n" in space[0] else " ", unicodedata.normalize("NFKC", answer))
    letter = _choice(text, letters)  # runs of space would take the patterns time in the cube of their length
    if letter is None:
        return unparsable("the answer chooses no letter")
    if letter == expected:
        return right(f"the answer chooses {letter}", extracted=letter)
    return wrong(f"it chooses {letter}, not {expected}", extracted=letter)


def _choice(text: str, letters: str) -> str | None:
    one = f"[{letters}]"
    opening = r"(?:\*\*|\$|\\\(|\s|[(\[\"'`])*(?:\\(?:boxed|text|textbf|mathrm)\{\s*)*"
    wrapped = rf"{opening}\(?({one}|{one.lower()}(?=\)|[.*]*\s*\Z))(?![\w-]|['’]\w)"
    patterns = (
        rf"\\boxed\s*\{{(?:\\(?:text|textbf|mathrm)\s*\{{)?\s*\(?({one}|{one.lower()})\)?\s*[.}}:)]",
        rf"(?i:[\"'`]answer[\"'`]\s*:\s*[\"'`(\[]{{0,2}})({one}|{one.lower()})"  # JSON, as Qwen asks for it
        rf"(?=[\"'`.,:)\]}}]|\s*(?:\Z|[}}\n]))",
        rf"(?i:\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be|to\s+this\s+question\s+is))?|答案(?:是|为)?|选(?:择|项)?)"
        rf"\s*[\"'`*]{{0,3}}\s*[:=]?{wrapped}",
        rf"\*\*\(?({one})[).:]?\*\*|(?m:^ ?\(?({one})[).:](?=\s|$))",
        rf"\A\W*({one}|{one.lower()})\W*\Z",
    )
    for pattern in patterns:
        matches = list(re.finditer(pattern, text))
        if matches:
            return next(group for group in matches[-1].groups() if group).upper()
    return None
