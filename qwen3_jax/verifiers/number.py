r"""Numbers as texts write them, and LaTeX: 1,234.5, -$5, 1 1/2, ½, \frac{3}{4}, 1.5 × 10^3, 50%.

verify("number", "About 4.1 km", 4, {"tolerance": 0.05})
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qwen3_jax.bounds import at_least, check_bounds
from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong

NO_SPACES = (
    r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"  # Chinese, Japanese, Korean: a number stands beside a word
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d+)?|\.\d+"


def _exponent(name: str) -> str:
    return rf" ?\^ ?(?:\{{ ?(?P<{name}_braced>[-+]?\d{{1,3}}) ?\}}|(?P<{name}_plain>[-+]?\d{{1,3}}))"


_NUMBER = re.compile(
    rf"(?<![^\W{NO_SPACES}])(?<![.^])(?<!\^-)(?<![_^]\{{)(?P<sign>[-+]?[$€£¥]?[-+]?)"
    rf"(?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}/\d))?(?P<upper>{_DIGITS})(?P<e>[eE][-+]?\d{{1,3}})?"
    rf"(?: ?/ ?(?P<lower>{_DIGITS})|(?P<power>{_exponent('power')}))?"
    rf"(?: ?(?:[×xX*·⋅]|\\times|\\cdot) ?10{_exponent('ten')})?(?P<percent> ?%)?"
)
_MARKED = re.compile(r"####|\\(?:boxed|fbox)\s*\{|(?i:\banswer\b(?:\s+is)?\s*[:=]?)|答案(?:是|为)?\s*[:：]?")
_LONGEST = 1000  # characters of a number

_PART = r"(?:\{ ?([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)) ?\}|(\d))"
_LATEX_FRACTION = re.compile(rf"(\d?) ?\\[dtc]?frac ?{_PART} ?{_PART}")
_VULGAR = re.compile(r"(\d?) ?([¼-¾⅐-⅞])")
_RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴-⁹]+")
_GROUPED = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'’~]|\\ )(?=\d{3}(?!\d))")  # between thousands
_SPACED_SIGN = re.compile(r"(\bis |[=({\[:<>≈$] ?)([-+]) (?=[\d.$])")  # elsewhere it is a difference or a list's mark


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

    Numbers may have thousands separators, a currency sign, an exponent, a power of ten, a denominator (3/4, also in LaTeX or as
    one character) or a percent sign. An exponent or an index by itself (cm^2, x_{1}) is no number.

    Args:
        reference: a number, or text whose last number it is (GSM8K's "#### 1,234").
    """
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise BadReference(f"'number' compares with a number, got {reference!r:.200}")
    in_reference = next(_numbers(str(reference), settings.percent, backwards=True), None)
    if in_reference is None:
        raise BadReference(f"there is no number in {reference!r:.200}")
    expected = in_reference[1]
    text = answer
    if settings.take == "marked":
        marks = list(_MARKED.finditer(answer))
        if not marks:
            return unparsable("the answer marks no number as its answer")
        text = answer[marks[-1].start() :]
    numbers = _numbers(text, settings.percent, backwards=settings.take == "last")
    first = next(numbers, None)
    if first is None:
        return unparsable("the answer holds no number")
    written, value = first
    if settings.take == "only" and (others := [each for each, other in numbers if other != value]):
        return wrong(f"the answer holds several numbers: {', '.join([written, *others[:4]])}")
    allowed = Fraction(settings.tolerance) + abs(expected) * Fraction(settings.relative_tolerance)
    if abs(value - expected) <= allowed:
        return right(f"the answer's number is {written}", extracted=str(value))
    return wrong(f"the answer's number is {written}, not {reference!s:.200}", extracted=str(value))


def _numbers(text: str, percent: bool, *, backwards: bool) -> Iterator[tuple[str, Fraction]]:
    """The numbers of a text as they are written, and their values."""
    matches = list(_NUMBER.finditer(_simple(text)))
    for match in reversed(matches) if backwards else matches:
        if len(match[0]) <= _LONGEST and (value := _value(match)) is not None:
            yield match[0].strip(), value / 100 if percent and match["percent"] else value


def _simple(text: str) -> str:
    """The text with signs, spaces, fractions and exponents written in one way each."""
    text = re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", _GROUPED.sub("", text))
    text = _VULGAR.sub(lambda half: f"{half[1]} {unicodedata.normalize('NFKC', half[2]).replace('⁄', '/')}", text)
    text = _RAISED.sub(lambda raised: "^" + unicodedata.normalize("NFKC", raised[0]), text)
    text = re.sub(r"(?<![\w)\]}%])–(?=[\d.$])", "-", unicodedata.normalize("NFKC", text))
    for written, plain in (("−", "-"), ("⁄", "/"), ("\\%", "%"), ("\\$", "$"), ("{,}", ","), ("\\,", ""), ("\\!", "")):
        text = text.replace(written, plain)
    return _SPACED_SIGN.sub(r"\1\2", _LATEX_FRACTION.sub(_fraction, text))


def _fraction(match: re.Match[str]) -> str:
    whole, *parts = match.groups()
    upper, lower = parts[0] or parts[1], parts[2] or parts[3]
    return f"{whole}{' ' * bool(whole)}{upper}/{lower}"


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a number; None if it is divided by zero or a power of more than a thousand digits."""
    upper, lower = (Fraction((match[name] or "1").replace(",", "")) for name in ("upper", "lower"))
    power, ten = (int(match[f"{name}_braced"] or match[f"{name}_plain"] or 0) for name in ("power", "ten"))
    if lower == 0 or (upper == 0 and power < 0) or len(match["upper"]) * abs(power) > _LONGEST:
        return None
    value = upper / lower
    if match["power"]:
        value = value**power
    value = (value + int(match["whole"] or 0)) * Fraction(10) ** (ten + int((match["e"] or "e0")[1:]))
    return -value if match["sign"].count("-") == 1 else value
