"""The filters of the report's section 4.1, each a function from texts to a reason or None.

Of queries: see `query_rules.py`; others depend on the answers: not verifiable, right without thinking, never solved. Of
responses: repetition, guesses, thinking that contradicts the answer, mixed languages, closeness to held-out queries; whether
the answer is right is a verifier's verdict.

They are rules, not models: cheap, the same everywhere, and measured by `benchmarks/filters.py` on planted faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_jax.data.cleaning import SIGNATURE, HeldOut, signature
from qwen3_jax.data.factory.queries import without_flag
from qwen3_jax.verifiers import verify

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
_GUESS_TAIL = 300  # characters of the thinking's end in which a guess decides the answer
_FEW_WORDS = 60  # of a thinking section that may be no reasoning at all

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_CHECK = re.compile(
    r"check|verif|confirm|\bfits?\b|consistent|works|earlier|instead|wrong|mistake|not\b", re.IGNORECASE
)
_VALUE = r"-?\d[\d,]*(?:\.\d+)?"
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
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def repetitive(text: str) -> str | None:
    """Whether a response runs in a loop or says much again."""
    verdict = verify("repetition", text)
    return None if verdict.status in ("right", "unparsable") else verdict.reason


def guessed(query: str, thinking: str, content: str) -> str | None:
    """Whether the answer is a guess: it says so at its end and nothing confirms it, or a short thinking section uses none of
    the numbers that are given."""
    for name, text in (("thinking", thinking[-_GUESS_TAIL:]), ("answer", content)):
        for match in _GUESS.finditer(text):
            if not _REASONED_GUESS.search(text[max(match.start() - 40, 0) : match.end() + 60]):
                return f"its {name} says {' '.join(match.group().split())[:80]!r}"
    given, used = _values(query), _values(thinking)
    answer = set(_NUMBER.findall(content)[-1:])  # a guess may be one of the given numbers
    is_short = bool(thinking.strip()) and len(thinking.split()) < _FEW_WORDS
    if is_short and len(given) >= 2 and not (given - answer) & used:
        return "its thinking uses none of the numbers that are given"
    return None


def _values(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def inconsistent(
    thinking: str, content: str, reference: Any = None, verifier: str = "", settings: Mapping[str, Any] | None = None
) -> str | None:
    """Whether the thinking ends with another answer than the response. Where it states none, nothing is said.

    Args:
        reference, verifier, settings: of the query; the response is right. "" compares the two answers as they are written.
    """
    concluded = conclusion(thinking[-_CONCLUSION_TAIL:])
    if concluded is None:
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


def _says(content: str, concluded: str) -> bool:
    """Whether an answer has the conclusion in it: the last of its numbers, or its text where it has none."""
    numbers = [float(number.replace(",", "")) for number in _NUMBER.findall(concluded)]
    if numbers:
        return numbers[-1] in [float(number.replace(",", "")) for number in _NUMBER.findall(content)]
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
    """Whether a response changes its language; a query that has several may be answered in several."""
    text = without_flag(query)
    # A short answer may hold more letters of the other script; the query says which one is meant.
    asked = verify("language", text, "en").status
    if asked == "wrong" and verify("language", text).status == "wrong":
        return None
    verdict = verify("language", f"{thinking}\n\n{content}", "en" if asked == "right" else None)
    return verdict.reason if verdict.status == "wrong" else None


def _plain(text: str) -> str:
    return re.sub(r"[\s$\\{}*]|\\text|left|right", "", text.lower())


@dataclass(frozen=True)
class Validation:
    """Held-out queries that no training query may come close to.

    Attributes:
        grams: their n-grams.
        signatures: dtype `cleaning.SIGNATURE`, one for each.
        similarity: estimated Jaccard similarity of 5-word shingles from which on a query is too close.
    """

    grams: HeldOut
    signatures: np.ndarray
    similarity: float

    @classmethod
    def of(cls, texts: Iterable[str], ngram: int = 13, similarity: float = 0.3) -> Validation:
        """From the texts of the queries."""
        every = [without_flag(text) for text in texts]
        signed = np.array([signature(text, near=True) for text in every], SIGNATURE)
        return cls(HeldOut.of(every, ngram), signed, similarity)

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
        for name, text in (("query", query), ("response", response)):
            if self.grams.overlaps(text):
                return f"its {name} shares {self.grams.n} words in a row with a held-out query"
        return None
