"""The filters of the report's section 4.1, each a function from texts to a reason or None.

Of queries: several parts, general writing (others depend on the answers: not verifiable, right without thinking, never solved).
Of responses: repetition, guesses, thinking that contradicts the answer, mixed languages, closeness to held-out queries; whether the
answer is right is a verifier's verdict.

They are rules, not models: cheap, the same everywhere, and measured by `benchmarks/filters.py` on planted faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_jax.data.cleaning import SIGNATURE, HeldOut, signature
from qwen3_jax.verifiers import verify

# Verbs and words with which a task that can be asked by itself begins.
_TASK = (
    r"(?:find|prove|show|compute|calculate|determine|evaluate|solve|explain|describe|derive|list|name|state|give|write|"
    r"sketch|draw|estimate|express|verify|identify|discuss|compare|simplify|what|how|why|when|where|which|who|is|are|does|do|can)\b"
)
_ITEM = re.compile(
    rf"(?:^|[\n;.?!:]\s*|\s)(?:\(([a-z]|[ivx]{{1,4}}|\d{{1,2}})\)|([a-z]|[ivx]{{1,4}}|\d{{1,2}})[).]|part\s+([a-z]|[ivx]+|\d)\s*[:.)]?)"
    rf"\s+(?={_TASK})",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.?!\n？。！]{8,}[?？]")
_ASIDE = re.compile(
    r"^\W*(?:did you know|right|ok(?:ay)?|you know what|guess what|can you help(?: me)?|could you help(?: me)?)\b", re.I
)
_ALSO = re.compile(
    rf"[.?!;,]\s*(?:and\s+)?(?:also|then|next|additionally|furthermore|after that|finally|second(?:ly)?|in addition),?\s+(?:please\s+)?{_TASK}",
    re.IGNORECASE,
)  # fmt: skip

_WRITING = re.compile(
    r"\b(?:write|compose|draft|create|pen|craft|come up with|generate|make up|tell(?: me)?|produce)\b[^.?!\n]{0,60}?"
    r"\b(?:essay|poem|haiku|sonnet|limerick|story|stories|tale|letter|e-?mail|speech|song|lyrics|blog(?: post)?|article|"
    r"review|slogan|script|dialogue|diary(?: entry)?|advertisement|ad copy|press release|cover letter|biography|toast|"
    r"product description|newsletter|screenplay|fable|joke|tagline|tweet|social media post|caption|paragraph about|"
    r"fan ?fiction|monologue|report about|itinerary|invitation|thank[- ]you note|post about)\b"
    r"|写一(?:篇|首|封|个故事|段)|作文",
    re.IGNORECASE,
)
_NOT_WRITING = re.compile(
    r"\bhow many\b|\bwhat is the (?:number|total|probability|sum|average|price|length)\b", re.IGNORECASE
)

_GUESS = re.compile(
    r"\b(?:i(?:'ll| will| would|'d|'m going to| am going to)?|let(?:'s| me| us)|i have to|i need to|we(?:'ll| can)|have to|going to|"
    r"best i can do is(?: to)?|might as well)\s+(?:just\s+|simply\s+|randomly\s+|blindly\s+|take a\s+|make a\s+|hazard a\s+|go with a\s+)*"
    r"(?:wild\s+|random\s+|blind\s+|lucky\s+|total\s+|complete\s+|pure\s+|rough\s+)?guess(?:ing)?\b(?!\s*(?:and|-|&)\s*check)"
    r"|\bi(?:'m| am) (?:just |only |really |basically )?guessing\b"
    r"|\b(?:wild|random|blind|lucky|pure|total|complete) guess\b"
    r"|\b(?:randomly|arbitrarily|blindly) (?:pick|choose|select|guess)"
    r"|\b(?:pick|choose|select|picked|chose|choosing|picking) (?:one |an answer |something |a number |it )?(?:at random|randomly|arbitrarily)"
    r"|\b(?:no|not any|don't have any|haven't any) (?:idea|clue)\b[^.]{0,80}\b(?:so|but)\b[^.]{0,60}\b(?:say|go with|pick|choose|answer|put)\b"
    r"|\b(?:don't|do not|can't|cannot) (?:really )?(?:know|work (?:it|this) out|figure (?:it|this) out|solve (?:it|this))\b[^.]{0,80}"
    r"\b(?:so|but)\b[^.]{0,60}\b(?:say|go with|pick|choose|guess|put|answer)\b"
    r"|\b(?:it|that|this) (?:feels|sounds|seems) (?:about )?right,? (?:so )?(?:i'll|let's|i will) (?:go|say|pick)"
    r"|(?:随便|瞎|胡乱)(?:猜|选|蒙)|我(?:就|只能|来)?猜",
    re.IGNORECASE,
)
_REASONED_GUESS = re.compile(
    r"\b(?:guess(?:ed|es)? (?:is|was) (?:right|correct|confirmed)|check(?:s|ed|ing)? (?:the|this|my|that) guess|"
    r"verif(?:y|ied|ies|ying) (?:the|this|my|that) guess|guess[- ]and[- ](?:check|verify)|instead of guessing|"
    r"(?:not|without|rather than|no need to) (?:just )?guess(?:ing)?)\b",
    re.IGNORECASE,
)
_GUESS_TAIL = 1500  # characters of the thinking's end in which a guess decides the answer

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_CONCLUSION = re.compile(
    r"\b(?:final answer|answer|result|solution|total)\s*(?:is|must be|should be|will be|has to be|comes out (?:as|to)|:|=)\s*"
    r"(?:therefore\s+|thus\s+|indeed\s+|just\s+|simply\s+)?\**([^\n.;,!?]*[^\s\n.;,!?](?:\.\d+)?)"
    r"|\b(?:so|therefore|thus|hence)\b[^.\n]{0,60}?(?:\bis|\bequals|=)\s*\**(-?[\d][\d,]*(?:\.\d+)?)\b"
    r"|\b(?:answer|choose|pick|option)\s*:?\s*\(?([A-J])\)?(?=[\s.,)]|$)",
    re.IGNORECASE,
)
_CONCLUSION_TAIL = 400
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FLAG = re.compile(r"\s*/(?:no_)?think\s*\Z")


def without_flag(text: str) -> str:
    """A query without the flag that a training sample carries."""
    return _FLAG.sub("", text)


def several_parts(query: str) -> str | None:
    """Whether a query asks several things, of which a verifier sees the last alone."""
    text = without_flag(query)
    items = [next(filter(None, match.groups())) for match in _ITEM.finditer(text)]
    if len(items) >= 2:
        return f"it has the parts {', '.join(items[:6])}"
    questions = [match.group().strip() for match in _QUESTION.finditer(text) if not _ASIDE.match(match.group())]
    if len(questions) >= 2:
        return f"it asks {len(questions)} questions"
    also = _ALSO.search(text)
    before = text[: also.start()] if also else ""
    if also and (re.search(rf"(?:^|[.?!]\s+|please\s+){_TASK}", before, re.IGNORECASE) or "?" in before):
        return f"it asks for more: {also.group().strip(' .?!;,')!r}"
    return None


def general_writing(query: str) -> str | None:
    """Whether a query asks for a text that no reference can judge."""
    match = _WRITING.search(without_flag(query))
    if match is None or _NOT_WRITING.search(query):
        return None
    return f"it asks for a text: {' '.join(match.group().split())[:80]!r}"


def repetitive(text: str) -> str | None:
    """Whether a response runs in a loop or says much again."""
    verdict = verify("repetition", text)
    return None if verdict.status in ("right", "unparsable") else verdict.reason


def guessed(thinking: str, content: str) -> str | None:
    """Whether the answer is a guess that nothing confirms."""
    for name, text in (("thinking", thinking[-_GUESS_TAIL:]), ("answer", content)):
        match = _GUESS.search(text)
        if match is not None and not _REASONED_GUESS.search(text[max(match.start() - 40, 0) :]):
            return f"its {name} says {' '.join(match.group().split())[:80]!r}"
    return None


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
        if verdict.status != "wrong" or _plain(concluded) in _plain(content):
            return None
        return f"its thinking concludes {concluded[:60]!r}, its answer does not"
    said = conclusion(content) or content
    numbers = [_NUMBER.findall(each.replace(",", "")) for each in (concluded, said)]
    if all(numbers) and float(numbers[0][-1]) != float(numbers[1][-1]):
        return f"its thinking concludes {concluded[:60]!r}, its answer {said.strip()[:60]!r}"
    if not any(numbers) and _plain(concluded) not in _plain(content):
        return f"its thinking concludes {concluded[:60]!r}, its answer {said.strip()[:60]!r}"
    return None


def conclusion(text: str) -> str | None:
    """The last answer that a text states as one: boxed, or after "the answer is"."""
    boxed = [(match.start(), match.group(1)) for match in _BOXED.finditer(text)]
    stated = [(match.start(), next(filter(None, match.groups()))) for match in _CONCLUSION.finditer(text)]
    every = sorted(boxed + stated)
    if not every:
        return None
    return every[-1][1].strip().strip("*$ ").removeprefix("\\(").removesuffix("\\)").strip() or None


def mixed_languages(query: str, thinking: str, content: str) -> str | None:
    """Whether a response changes its language; a query that has several may be answered in several."""
    verdict = verify("language", f"{thinking}\n\n{content}")
    if verdict.status != "wrong" or verify("language", without_flag(query)).status == "wrong":
        return None
    return verdict.reason


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
    def of(cls, texts: Iterable[str], ngram: int = 13, similarity: float = 0.6) -> Validation:
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
