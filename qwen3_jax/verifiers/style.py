"""How an answer is written: its thinking section, repetition, mixing of languages, length."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.errors import UserError
from qwen3_jax.text.parsers import parse
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded, right, unparsable, wrong


@dataclass(frozen=True)
class ThinkingSettings:
    """Of `verify_thinking`.

    Attributes:
        content: text must follow the thinking section.
    """

    content: bool = True


def verify_thinking(answer: str, reference: Any, settings: ThinkingSettings) -> Verdict:
    r"""Whether the answer thinks where it was asked to, in Qwen3's format: one section at the start, closed, then the answer.

    Without thinking, an empty section (`<think>\n\n</think>`) and none are both right.

    Args:
        reference: true: the flag in force is /think; false: /no_think; None: the format alone is judged.
    """
    if reference is not None and not isinstance(reference, bool):
        raise BadReference(f"'thinking' needs true, false or null, got {reference!r:.200}")
    parsed = parse(answer, tools=False)
    thinks = bool(parsed.thinking and parsed.thinking.strip())
    if parsed.thinking is not None and "</think>" not in answer:
        return wrong("the thinking section is not closed")
    if re.search(r"</?think>", parsed.content):
        return wrong("a think tag stands outside of the one section at the start")
    if parsed.thinking is not None and "<think>" in parsed.thinking:
        return wrong("a thinking section is opened twice")
    if parsed.thinking is None and "</think>" in answer:
        return wrong("a thinking section is closed that was not opened")
    if settings.content and not parsed.content.strip():
        return wrong("no answer follows the thinking section")
    if reference is not None and thinks != reference:
        return wrong("it thinks, and was asked not to" if thinks else "it does not think, and was asked to")
    return right("it thinks" if thinks else "it does not think")


_ONE_BY_ONE = (
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"  # Chinese and Japanese have no spaces
)
_WORD = re.compile(rf"[{_ONE_BY_ONE}]|(?:(?![{_ONE_BY_ONE}])\w)+")
_PIECE = re.compile(rf"{_WORD.pattern}|[^\w\s]")


@dataclass(frozen=True)
class RepetitionSettings:
    """Of `verify_repetition`. Units are words, Chinese and Japanese characters, and punctuation marks.

    Attributes:
        n: length of the n-grams.
        most: share of n-grams that may have come before.
        times: a run of one passage, again and again, is a loop from this number on.
        loop_units: and from this length of the whole run on.
        longest: units of the longest passage that is looked for.
    """

    n: int = 20
    most: float = 0.2
    times: int = 4
    loop_units: int = 40
    longest: int = 200

    def __post_init__(self) -> None:
        check_bounds(
            vars(self),
            "settings of 'repetition': ",
            n=whole(1),
            most=between(0, 1),
            times=whole(2),
            loop_units=whole(1),
            longest=whole(1),
        )


def verify_repetition(answer: str, reference: Any, settings: RepetitionSettings) -> Verdict:
    """Whether the answer, with its thinking, is free of loops and of too much repetition.

    The score is 1 if it is, otherwise the share of n-grams that are new, 0 with a loop.

    Args:
        reference: not used.
    """
    del reference
    units = _PIECE.findall(answer.lower())
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], np.int64)
    period, run = _longest_loop(ids, settings)
    if period:
        start = " ".join(units[run - period : run])[:100]
        return wrong(f"a passage of {period} words is repeated in a loop: {start!r}")
    grams = Counter(tuple(units[i : i + settings.n]) for i in range(len(units) - settings.n + 1))
    total = sum(grams.values())
    repeated = (total - len(grams)) / total if total else 0.0
    if repeated > settings.most:
        return wrong(f"{repeated:.0%} of its {settings.n}-grams have come before", 1 - repeated)
    return right(f"{repeated:.0%} of its {settings.n}-grams have come before")


def _longest_loop(ids: np.ndarray, settings: RepetitionSettings) -> tuple[int, int]:
    """The shortest passage that runs in a loop, and the place behind the loop's second passage; (0, 0) if there is none."""
    for period in range(1, min(settings.longest, len(ids) // settings.times) + 1):
        same = np.concatenate(([False], ids[period:] == ids[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        starts, ends = edges[::2], edges[1::2]
        lengths = ends - starts + period
        loops = np.flatnonzero((lengths >= period * settings.times) & (lengths >= settings.loop_units))
        if len(loops):
            return period, int(starts[loops[0]]) + period
    return 0, 0


_LANGUAGES = {  # scripts, as the names of their characters begin: codes of the languages; all others are Latin
    "CJK": "zh yue", "CJK HIRAGANA KATAKANA": "ja", "HANGUL CJK": "ko", "CYRILLIC": "ru uk bg be mk kk ky mn tg tt",
    "CYRILLIC LATIN": "sr", "ARABIC": "ar fa ur ps sd ug", "DEVANAGARI": "hi mr ne sa", "GREEK": "el", "HEBREW": "he yi",
    "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my", "BENGALI": "bn as", "GURMUKHI": "pa", "GUJARATI": "gu",
    "ORIYA": "or", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml", "SINHALA": "si", "GEORGIAN": "ka",
    "ARMENIAN": "hy", "ETHIOPIC": "am ti", "TIBETAN": "bo",
}  # fmt: skip
_SCRIPTS = {code: set(scripts.split()) for scripts, codes in _LANGUAGES.items() for code in codes.split()}
_TOGETHER = ({"CJK", "HIRAGANA", "KATAKANA"}, {"CJK", "HANGUL"})  # scripts of one language
_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.{,2000}?\\\]|\\\(.{,2000}?\\\)|\\[a-zA-Z]+|https?://\S+|(?<!\S)\S{1,100}@\S+|</?think>"
    r"|(?<![^\W\d_])[\u0370-\u03ff](?![^\W\d_])",  # a Greek letter alone is a symbol
    re.DOTALL,
)


@dataclass(frozen=True)
class LanguageSettings:
    """Of `verify_language`.

    Attributes:
        most: share of letters that may be of another script.
        most_latin: the same for Latin letters in other scripts, which use them for names and terms.
    """

    most: float = 0.02
    most_latin: float = 0.5

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'language': ", most=between(0, 1), most_latin=between(0, 1))


def prose_of(text: str) -> str:
    """A text without code, formulas and addresses, which are of no language."""
    return _NO_LANGUAGE.sub(" ", text)


def verify_language(answer: str, reference: Any, settings: LanguageSettings) -> Verdict:
    """Whether the answer, with its thinking, keeps to the script of one language. Code, formulas and addresses are left out.

    Languages that share a script, such as English and Spanish, are not told apart; "ifeval" has `language:response_language`.
    The score is 1, or the share of letters that are of the language's script.

    Args:
        reference: the language's ISO 639-1 code, as "zh" or "pt-BR"; None: that of most letters.
    """
    if reference is not None and (
        not isinstance(reference, str) or not re.fullmatch(r"[A-Za-z]{2,3}([-_]\w+)*", reference)
    ):
        raise BadReference(f"'language' needs the code of a language, got {reference!r:.200}")
    counts = Counter(_script(char) for char in prose_of(answer) if char.isalpha())
    del counts[""]
    if not counts:
        return unparsable("the answer holds no text in a language")
    if reference is None:
        main = counts.most_common(1)[0][0]
        own = next((scripts for scripts in _TOGETHER if main in scripts and len(scripts & counts.keys()) > 1), {main})
    else:
        own = _SCRIPTS.get(re.split("[-_]", reference.lower())[0], {"LATIN"})
    total = counts.total()
    latin = counts["LATIN"] / total if "LATIN" not in own else 0.0
    other = sum(count for script, count in counts.items() if script not in {*own, "LATIN"}) / total
    share = sum(counts[script] for script in own) / total
    if other > settings.most or latin > settings.most_latin:
        script = max(counts.keys() - own, key=counts.__getitem__)
        return wrong(f"{counts[script] / total:.0%} of its letters are {script.title()}", min(share, 0.99))
    return right(f"{share:.0%} of its letters are {' and '.join(sorted(own)).title()}")


@lru_cache(maxsize=1 << 16)
def _script(char: str) -> str:
    """The first word of the character's name, "LATIN"; "" for letters that belong to no language, such as mathematical ones."""
    name = unicodedata.name(char, "").split(" ")[0].split("-")[0]
    if name in (
        "FULLWIDTH",
        "HALFWIDTH",
        "MODIFIER",
        "MATHEMATICAL",
        "DOUBLE",
        "SCRIPT",
        "PLANCK",
        "FEMININE",
        "MASCULINE",
    ):
        return ""
    return "" if name in ("MICRO", "OHM", "KELVIN", "ANGSTROM") else name


_LENGTH_UNITS = ("words", "characters", "sentences", "paragraphs", "lines")


@dataclass(frozen=True)
class LengthSettings:
    """Of `verify_length`.

    Attributes:
        unit: words (Chinese and Japanese characters count as words), characters, sentences, paragraphs or lines.
        tolerance: a single target may be missed by this share of it.
    """

    unit: str = "words"
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.unit not in _LENGTH_UNITS:
            raise UserError(
                f"settings of 'length': unit is {self.unit!r}; it must be one of {', '.join(_LENGTH_UNITS)}."
            )
        check_bounds(vars(self), "settings of 'length': ", tolerance=at_least(0))


def verify_length(answer: str, reference: Any, settings: LengthSettings) -> Verdict:
    """Whether the answer's length keeps its bounds. The score falls in proportion to the excess: to 0 at twice the bound.

    Args:
        reference: a target number, or an object with `min`, `max` or both.
    """
    low, high = _length_bounds(reference, settings.tolerance)
    count = _length(answer, settings.unit)
    wanted = f"{low:g} to {high:g}" if np.isfinite(high) else f"at least {low:g}"
    reason = f"{count} {settings.unit}, {wanted} asked for"
    if low <= count <= high:
        return right(reason)
    score = count / low if count < low else max(0.0, 1 - (count - high) / high) if high else 0.0
    return graded(min(score, 0.999), reason)


def _length_bounds(reference: Any, tolerance: float) -> tuple[float, float]:
    bounds = reference if isinstance(reference, Mapping) else {"target": reference}
    if not bounds or not bounds.keys() <= ({"min", "max"} if isinstance(reference, Mapping) else {"target"}):
        raise BadReference(f"'length' needs a number or an object with min and max, got {reference!r:.200}")
    try:
        check_bounds(
            bounds,
            "the reference's ",
            **dict.fromkeys(bounds, above(0, finite=True) if "target" in bounds else at_least(0)),
        )
    except UserError as error:
        raise BadReference(str(error)) from None
    if "target" in bounds:
        return bounds["target"] * (1 - tolerance), bounds["target"] * (1 + tolerance)
    low, high = bounds.get("min") or 0, bounds["max"] if bounds.get("max") is not None else np.inf
    if low > high:
        raise BadReference(f"min {low} is above max {high}")
    return low, high


def _length(text: str, unit: str) -> int:
    if unit == "words":
        return len(_WORD.findall(text))
    if unit == "characters":
        return len(text.strip())
    if unit == "sentences":
        return len(
            [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])|\n\s*\n", text) if re.search(r"\w", part)]
        )
    parts = re.split(r"\n\s*\n", text) if unit == "paragraphs" else text.split("\n")
    return sum(bool(part.strip()) for part in parts)
