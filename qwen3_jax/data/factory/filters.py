"""The filters of the report's section 4.1, each a function from texts to a reason or None.

Of queries: see `query_rules.py`; others depend on the answers: not verifiable, right without thinking, never solved. Of
responses: repetition, guesses, thinking that contradicts the answer, mixed languages, closeness to held-out queries; whether
the answer is right is a verifier's verdict.

They are rules, not models: cheap, the same everywhere, and measured by `benchmarks/filters.py` on planted faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_jax.data.cleaning import SIGNATURE, HeldOut, signature
from qwen3_jax.data.factory.queries import without_flag
from qwen3_jax.data.labels import language_probabilities
from qwen3_jax.verifiers import verify
from qwen3_jax.verifiers.style import prose_of

_SENTENCE = re.compile(r"(?<=[.?!。？！])[\s)*]+|\n+")

_GIVE = (
    r"(?:say|go(?:ing)? (?:with|for)|pick|choos|chose|guess|put|answer|assum|settl|hop|mak|throw|tak|wager|bet)\w*\b"
)
_UNABLE = (
    r"(?:\b(?:no|not any|don't have any|haven't any) (?:idea|clue|way)\b|\b(?:don't|do not|can't|cannot|could not|couldn't) "
    r"(?:really |quite |even )?(?:know|see|remember|recall|tell|understand|work (?:it|this) out|figure (?:it|this) out|"
    r"solve (?:it|this))\b|\b(?:not able to|unable to|not sure|unsure|uncertain|stuck|give up|gave up|giving up|no time|"
    r"time is short|out of time|too hard|too difficult|over my head)\b)"
)
_UNDONE = (
    r"\b(?:haven't|have not|hasn't|did not|didn't|did no|do not|don't|will not|won't|cannot|can't|could not|couldn't|without|"
    r"no time to|skip(?:ping)?|not|no)\b(?:\s+(?:really|actually|even|the|any|real|time|to|bother|bothering|doing|do|need))*\s+"
    r"(?:check|calculat|deriv|verif|comput|justif|work(?:ed|ing)? (?:it|this) out|reason|proof|prov)\w*"
)
_GUESS = re.compile(
    r"\bguess(?:es|ed|ing)?\b(?!\s*(?:and|-|&)\s*check)"
    r"|\b(?:randomly|arbitrarily|blindly) (?:pick|choose|select)"
    r"|\b(?:pick|choos|select|chose|put|say|tak)\w*\b[^.\n]{0,40}\b(?:at random|randomly|arbitrarily)"
    r"|\bshot in the dark\b|\bgut (?:feeling )?(?:says|tells)|\bfingers crossed\b|\b(?:flip|toss)\w* a coin\b"
    r"|\bhope (?:it's|it is|that it|for the best)|\bmak\w+ (?:something|a number|it|one) up\b|\bthrow\w* out a number\b"
    rf"|{_UNABLE}[^\n]{{0,100}}?\b{_GIVE}|\b{_GIVE}[^.\n]{{0,40}}{_UNDONE}|\b(?:let's|let us|i'd) say\b[^.\n]{{0,60}}{_UNABLE}"
    rf"|{_UNDONE}[^\n]{{0,80}}?\b{_GIVE}"
    rf"|\b(?:maybe|probably|perhaps|with (?:some|any) luck|simply assume|just assume|plausible)\b[^\n]{{0,60}}?{_UNDONE}"
    r"|\b(?:feels|sounds|seems|looks) (?:about )?(?:right|fine|plausible|good),? (?:so )?(?:i'll|let's|i will) (?:go|say|pick)"
    r"|猜|蒙一个|随便选",
    re.IGNORECASE,
)
_REASONED_GUESS = re.compile(
    r"\bguess(?:ed|es)? (?:is|was) (?:right|correct|confirmed|true|too)|\b(?:check|verif|confirm|test|prov|improv|refin)\w* "
    r"(?:the|this|my|that|our|a) (?:\w+ )?guess|\bguess[- ]and[- ](?:check|verify)|\b(?:instead of|not|without|rather than|no "
    r"need (?:to|for)|avoid|than)\s+(?:just |any |a )?guess|\b(?:first|initial|quick|educated|reasonable|rough|natural|good|"
    r"your|second|next|better|correct|right|by) guess|\bguess (?:the|a|that the) (?:form|solution|root|pattern|factor|formula)|"
    r"(?:number|game|player|person|friend)\w*[^.\n]{0,40}guess",
    re.IGNORECASE,
)
# Languages in Latin letters; those of one group are taken for each other.
_ALIKE = (
    "en", "de", "fr", "es pt gl ca it oc an", "nl af", "sv da nb nn no fo", "pl", "cs sk", "hr bs sr sl", "hu", "ro", "tr az",
    "fi et", "lv lt", "vi", "id ms jv",
)  # fmt: skip
_GROUP = {language: group.split()[0] for group in _ALIKE for language in group.split()}
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_PLAIN, _PLAIN_WORDS = 0.95, 6  # least probability of a language, in a sentence of so many words
_LIKELY = 0.6  # that of all short sentences together
_NAMES_LANGUAGE = re.compile(
    r"\b(?:translat\w*|languages?|english|german|french|spanish|portuguese|italian|dutch|swedish|danish|norwegian|polish|czech|"
    r"slovak|croatian|hungarian|romanian|turkish|finnish|estonian|latvian|lithuanian|vietnamese|indonesian|latin|catalan)\b",
    re.IGNORECASE,
)
_GUESS_TAIL = 300  # characters of the thinking's end in which a guess decides the answer
_FEW_WORDS = 60  # of a thinking section that may be no reasoning at all

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_CHECK = re.compile(
    r"check|verif|confirm|\bfits?\b|consistent|works|earlier|instead|wrong|mistake|not\b", re.IGNORECASE
)
_VALUE = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_CONCLUSION = re.compile(
    r"\b(?:final answer|answer|result|solution|total)\s*"
    r"(?:is|must be|should be|will be|has to be|comes out (?:as|to)|of|:|=)\s*"
    r"(?:therefore\s+|thus\s+|indeed\s+|just\s+|simply\s+)?\**([^\n.;,!?]*[^\s\n.;,!?](?:\.\d+)?)"
    rf"|\b(?:so|therefore|thus|hence|conclude|gives?)\b[^.\n]{{0,60}}?(?:\bis|\bequals|=|\bget)\s*\**({_VALUE})(?=[\s.,*$]|\Z)"
    rf"|\b(?:so|thus|then|therefore),? ({_VALUE}) it is\b"
    rf"|\b({_VALUE}) (?:(?:as|is) the (?:final )?(?:answer|result|total|solution)\b)"
    r"|\b(?:answer|choose|pick|option)\s*:?\s*\(?([A-J])\)?(?=[\s.,)]|$)",
    re.IGNORECASE,
)
_CONCLUSION_TAIL = 400
_LAST = re.compile(
    r"\W*(?:so|thus|therefore|hence|then|that|this|these|in total|altogether|all in all|we|everything|putting|finally|overall|"
    r"our|it|i|which|adding|together|in the end|ultimately|as a result|consequently|accordingly)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(_VALUE)
_NUMBERS_IN_WORDS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_NUMBER_WORDS = {word: value for value, word in enumerate(_NUMBERS_IN_WORDS, start=2)}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)
_QUANTITY = re.compile(
    r"\b(?:half|halves|twice|double|triple|thrice|dozen|hundred|thousand|third|quarter)\b", re.IGNORECASE
)
_FRACTION = re.compile(rf"(?:\\d?frac\s*\{{\s*({_VALUE})\s*\}}\s*\{{\s*({_VALUE})\s*\}}|({_VALUE})\s*/\s*({_VALUE}))")
_RESULT = re.compile(
    rf"(?:=|≈|\b(?:is|are|be|makes?|gives?|get|leaves?|equals?|becomes?|at|to))\s*\$?\**({_VALUE})", re.IGNORECASE
)
_OTHER_UNITS = (1, 100, 0.01, 1000, 0.001)  # per cent, kilometres
_CHINESE_NUMBER = re.compile(r"[〇零一二三四五六七八九十百千万两]")
_COUNTER = re.compile(r"(?:^|(?<=[.?!:;\n]))(\s*(?:[^\W\d]+\s+)?#?)\d+(?=\s*[:.)–-])", re.MULTILINE)
_NUMBERED = re.compile(r"([^\W\d_]+)\s*#?(\d{1,9})\b")
_COUNTED = 4  # turns from which on numbers behind a word are a counter


def repetitive(text: str) -> str | None:
    """Whether a response runs in a loop or says much again; a counter at its beginning makes no other sentence of one."""
    counted = _without_counters(text)
    for said, which in ((text, ""), (counted, "but for its counters ")):
        if which and counted == text:
            break
        verdict = verify("repetition", said)
        if verdict.status not in ("right", "unparsable"):
            return which + verdict.reason
    return None


def _without_counters(text: str) -> str:
    """A text with 0 in the place of one counter: numbers behind a word that count up, or else those that begin a sentence.

    Where several numbers count up, as in "Case 3: 90 divided by 3", something is done with them: only the first is the counter.
    """
    found: dict[str, list[int]] = {}
    for match in _NUMBERED.finditer(text):
        found.setdefault(match.group(1).lower(), []).append(int(match.group(2)))
    for word, values in found.items():
        if len(values) >= _COUNTED and values == list(range(values[0], values[0] + len(values))):
            return re.sub(rf"(\b{re.escape(word)}\s*#?)\d+", r"\g<1>0", text, flags=re.IGNORECASE)
    return _COUNTER.sub(r"\g<1>0", text)


def guessed(query: str, thinking: str, content: str) -> str | None:
    """Whether the answer is a guess: it says so at its end and nothing confirms it, or the thinking calculates nothing: it
    has no number but the answer, and a long one no quantity in words either."""
    for name, text in (("thinking", thinking[-_GUESS_TAIL:]), ("answer", content)):
        for match in _GUESS.finditer(text):
            if not _REASONED_GUESS.search(text[max(match.start() - 40, 0) : match.end() + 60]):
                return f"its {name} says {' '.join(match.group().split())[:80]!r}"
    given, used = _values(query), _values(thinking)
    answer = set(_NUMBER.findall(content)[-1:])  # a guess may be one of the given numbers
    if (given - answer) & _values(content):  # the answer itself calculates
        return None
    if not thinking.strip() or len(given) < 2:
        return None
    is_long = len(thinking.split()) >= _FEW_WORDS
    in_words = _NUMBER_WORD.search(thinking) or _QUANTITY.search(thinking) or _CHINESE_NUMBER.search(thinking)
    return None if used - answer or (is_long and in_words) else "its thinking has no number but the answer"


def _values(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def inconsistent(
    thinking: str, content: str, reference: Any = None, verifier: str = "", settings: Mapping[str, Any] | None = None
) -> str | None:
    """Whether the thinking ends with another answer than the response. Where it states none, it must at least name the number
    that the response gives, if it has calculated others.

    Args:
        reference, verifier, settings: of the query; the response is right. "" compares the two answers as they are written.
    """
    concluded = conclusion(thinking[-_CONCLUSION_TAIL:])
    if concluded is None:
        return _unnamed(thinking, content)
    last, said = _SENTENCE.split(thinking.strip())[-1], _NUMBER.findall(content)
    if said and any(_NUMBER_WORDS[word.lower()] == _value(said[-1]) for word in _NUMBER_WORD.findall(last)):
        return None
    if verifier and reference is not None:
        boxed = f"\\boxed{{{concluded}}}" if verifier == "math" else concluded
        if verifier == "choice":
            boxed = f"The answer is ({concluded})."
        verdict = verify(verifier, boxed, reference, dict(settings or {}))
        if verdict.status != "wrong" or _says(content, concluded):
            return None
        return f"its thinking concludes {concluded[:60]!r}, its answer does not"
    if _says(content, concluded):
        return None
    return f"its thinking concludes {concluded[:60]!r}, its answer {(conclusion(content) or content).strip()[:60]!r}"


def _unnamed(thinking: str, content: str) -> str | None:
    """Whether a thinking section calculates, and the one number of the answer does not occur in it in any form."""
    said, results = _NUMBER.findall(content), _RESULT.findall(thinking)
    if not results or not 1 <= len(said) <= 2 or len(set(said)) > 1 or _CHINESE_NUMBER.search(thinking):
        return None
    known = [_value(number) for number in _NUMBER.findall(thinking)]
    known += [_NUMBER_WORDS[word.lower()] for word in _NUMBER_WORD.findall(thinking)]
    for match in _FRACTION.finditer(thinking):
        above, below = (_value(number) for number in match.groups() if number is not None)
        known += [above / below] if below else []
    if any(_same(value, said[-1]) for value in known):
        return None
    return f"its thinking comes to {results[-1]!r} and nowhere to its answer, {said[-1]!r}"


def _same(value: float, number: str) -> bool:
    """Whether a value is a number that is written, rounded to its places, perhaps in other units."""
    places = len(number.partition(".")[2])
    return any(round(abs(value) * factor, places) == abs(_value(number)) for factor in _OTHER_UNITS)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _says(content: str, concluded: str) -> bool:
    """Whether an answer has the conclusion in it: the last of its numbers, or its text where it has none."""
    numbers = _NUMBER.findall(concluded)
    if numbers:
        return any(_same(_value(numbers[-1]), number) for number in _NUMBER.findall(content))
    return _plain(concluded) in _plain(content)


def conclusion(text: str) -> str | None:
    """The last answer that a text states as one: boxed, or after "the answer is"."""
    boxed = [(match.start(), match.group(1)) for match in _BOXED.finditer(text)]
    stated = [(match.start(), next(filter(None, match.groups()))) for match in _CONCLUSION.finditer(text)]
    every = sorted(boxed + stated)
    sentences = [one for one in _SENTENCE.split(text.strip()) if one]
    last = sentences[-1] if sentences else ""
    start = len(text.rstrip()) - len(last)
    numbers = _NUMBER.findall(last)
    is_answer = len(last) < 100 and _LAST.match(last)
    is_alone = len(last) < 60 and len(numbers) == 1 and not _CHECK.search(last)
    if numbers and (is_answer or is_alone) and not (every and every[-1][0] >= start):
        return numbers[-1]
    if not every:
        return None
    return every[-1][1].strip().strip("*$ ").removeprefix("\\(").removesuffix("\\)").strip() or None


def mixed_languages(query: str, thinking: str, content: str) -> str | None:
    """Whether a response changes its language; a query that has several, or that names one, may be answered in several.

    Raises:
        UserError: py3langid is not installed, and languages of the same script are to be told apart.
    """
    text = without_flag(query)
    # A short answer may hold more letters of the other script; the query says which one is meant.
    asked = verify("language", text, "en").status
    if asked == "wrong" and verify("language", text).status == "wrong":
        return None
    response = f"{thinking}\n\n{content}"
    verdict = verify("language", response, "en" if asked == "right" else None)
    if verdict.status == "wrong":
        return verdict.reason
    return _other_language(text, response) if asked == "right" else None


def _other_language(query: str, response: str) -> str | None:
    """Whether a sentence of a response is of another language in Latin letters than its query."""
    of_query, short = _languages(query)
    if len(of_query.keys()) > 1 or _NAMES_LANGUAGE.search(query):
        return None
    every, more = _languages(response)
    main = (
        next(iter(of_query), None)
        or _language([*short, *more], _LIKELY)
        or max(every, key=lambda one: len(every[one]), default=None)
    )
    for language, sentences in every.items():
        if language != main:
            return f"it has a sentence of another language than its query: {sentences[0][:80]!r}"
    return None


def _languages(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """Sentences whose language is plain by the first language of its group; and the words of those that are too short."""
    found: dict[str, list[str]] = {}
    short: list[str] = []
    for sentence in _SENTENCE.split(prose_of(text)):
        words = _LETTERS.findall(sentence)
        if len(words) < _PLAIN_WORDS:
            short += words
        elif (language := _language(words)) is not None:
            found.setdefault(language, []).append(" ".join(sentence.split()))
    return found, short


def _language(words: Sequence[str], least: float = _PLAIN) -> str | None:
    """The first language of the group that words are of, or None where its probability is less than `least`."""
    if len(words) < _PLAIN_WORDS:
        return None
    likely: dict[str, float] = {}
    for language, probability in language_probabilities(" ".join(words).lower()).items():
        group = _GROUP.get(language, "")
        likely[group] = likely.get(group, 0.0) + probability
    best = max(likely, key=likely.__getitem__)
    return best if best and likely[best] >= least else None


# The same numbers, two or more or only one, and these shares of the shorter query's words; and the fewest words of a query.
_WORDS_AND_NUMBERS, _WORDS_AND_NUMBER, _FEW_DIFFERENT = 0.7, 0.8, 8
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")


def _numbers_and_words(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    return tuple(sorted(_NUMBER.findall(text))), frozenset(_WORD.findall(text.lower()))


def _plain(text: str) -> str:
    return re.sub(r"[\s$\\{}*]|\\text|left|right", "", text.lower())


@dataclass(frozen=True)
class Validation:
    """Held-out queries that no training query may come close to.

    Attributes:
        grams: their n-grams.
        signatures: dtype `cleaning.SIGNATURE`, one for each.
        similarity: estimated Jaccard similarity of 5-word shingles from which on a query is too close.
        same_numbers: by the numbers of a held-out query in order of their size, the different words of each.
    """

    grams: HeldOut
    signatures: np.ndarray
    similarity: float
    same_numbers: Mapping[tuple[str, ...], list[frozenset[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str], ngram: int = 13, similarity: float = 0.3) -> Validation:
        """From the texts of the queries."""
        every = [without_flag(text) for text in texts]
        signed = np.array([signature(text, near=True) for text in every], SIGNATURE)
        same_numbers: dict[tuple[str, ...], list[frozenset[str]]] = {}
        for text in every:
            numbers, words = _numbers_and_words(text)
            same_numbers.setdefault(numbers, []).append(words)
        return cls(HeldOut.of(every, ngram), signed, similarity, same_numbers)

    def near(self, query: str, response: str = "") -> str | None:
        """Whether a query or a response comes close to one of them."""
        query = without_flag(query)
        signed = signature(query, near=True)
        if (self.signatures["exact"] == signed["exact"]).any():
            return "its query is one of the held-out ones"
        if len(self.signatures):
            closest = float((self.signatures["minhash"] == signed["minhash"]).mean(axis=1).max())
            if closest >= self.similarity:
                return f"its query resembles a held-out one ({closest:.0%} of its shingles)"
        numbers, words = _numbers_and_words(query)
        for other in self.same_numbers.get(numbers, ()) if numbers else ():
            share = len(words & other) / max(min(len(words), len(other)), 1)
            if (
                share >= (_WORDS_AND_NUMBERS if len(numbers) > 1 else _WORDS_AND_NUMBER)
                and len(words) >= _FEW_DIFFERENT
            ):
                return f"its query has the numbers of a held-out one, and {share:.0%} of the words"
        for name, text in (("query", query), ("response", response)):
            if self.grams.overlaps(text):
                return f"its {name} shares {self.grams.n} words in a row with a held-out query"
        return None
