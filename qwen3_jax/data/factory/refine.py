"""`qwen3 data refine`: recognised text corrected by a model, paragraph by paragraph, and only where nothing was lost.

A passage is accepted when its numbers and names survive and its length is about the same; otherwise the original stays. The
record says how many passages were changed and how many were kept.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import at_least, between, check_bounds, whole
from qwen3_jax.data.factory.parsing import Unreadable
from qwen3_jax.data.factory.recipe import Recipe
from qwen3_jax.data.factory.task import Answers, Independent, Made, Rejection
from qwen3_jax.data.records import DataError, Record
from qwen3_jax.endpoints import ChatRequest, Reply

_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*(?!\w)")
# Digits that were recognised as letters, in a word with other digits.
_GARBLED = re.compile(r"(?<!\w)(?=\w*\d)(?=\w*[OolISB])[\dOolISB]+(?!\w)")
_DIGITS = str.maketrans("OolISB", "001158")
_NAME = re.compile(r"(?<![.!?:\n\"(]\s)(?<!\A)\b[A-Z][\w'-]{2,}\b")
_WORD = re.compile(r"[\w'-]+")
_CLOSE = 0.7  # a name in which letters were corrected
_BREAK = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class RefineTask(Independent):
    """Corrects the text of every record.

    Attributes:
        of: the recipe; its prompt has `{{text}}`, one passage.
        text_key: the key of the text.
        passage: characters of a passage, which is made of whole paragraphs; longer ones stand alone.
        least: accepted length, as a share of the original's.
        most: the same.
        names: share of the names in the middle of sentences that must survive; a few letters of a name may be corrected.
    """

    of: Recipe
    text_key: str = "text"
    passage: int = 2000
    least: float = 0.8
    most: float = 1.25
    names: float = 0.9
    name: str = "refine"

    def __post_init__(self) -> None:
        check_bounds(vars(self), "", passage=whole(100), least=between(0, 1), most=at_least(1), names=between(0, 1))

    @property
    def recipe(self) -> str:
        """Name and version."""
        return self.of.identity

    @property
    def attempts(self) -> int:
        """Tries of a passage."""
        return self.of.attempts

    @property
    def asking(self) -> Mapping[str, Any]:
        """What requests depend on."""
        return {**self.of.asking, "passage": self.passage}

    @property
    def reading(self) -> Mapping[str, Any]:
        """What only records depend on."""
        return {**self.of.reading, "least": self.least, "most": self.most, "names": self.names}

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """One request for each passage.

        Raises:
            DataError: the record has no text.
        """
        if answers:
            return []
        return [self.of.request({"text": part}) for part, _ in self._passages(record) if part.strip()]

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Why a passage stays as it was."""
        parts = [part for part, _ in self._passages(record) if part.strip()]
        try:
            self._accepted(parts[sample], reply)
        except Unreadable as error:
            return str(error)
        return None

    def made(self, record: Record, answers: Answers) -> Made:
        """The record with its refined text; passages that were kept have their reasons among the rejections."""
        replies = iter(enumerate(answers[0] if answers else ()))
        pieces, rejected, changed, kept = [], [], 0, 0
        for part, after in self._passages(record):
            if not part.strip():
                pieces.append(part + after)
                continue
            sample, reply = next(replies)
            try:
                text = self._accepted(part, reply)
                changed += text != part.strip()
                kept += reply.tokens.completion if reply.tokens is not None else 0
                pieces.append(part.replace(part.strip(), text) + after)
            except Unreadable as error:
                outcome = reply.outcome if reply.outcome != "ok" else "invalid"
                rejected.append(Rejection(outcome, f"the original stays: {error}", sample))
                pieces.append(part + after)
        refined = {"passages": sample + 1 if answers and answers[0] else 0, "changed": changed, "kept": len(rejected)}
        body = {**record.body, self.text_key: "".join(pieces), "refined": refined}
        return Made([body], rejected, kept)

    def _passages(self, record: Record) -> list[tuple[str, str]]:
        """(passage, white space behind it) pairs, which together are the text."""
        text = record.body.get(self.text_key)
        if not isinstance(text, str):
            raise DataError(f"{record.location}: it has no text under {self.text_key!r}")
        out: list[tuple[str, str]] = []
        start = 0
        breaks = [(match.start(), match.end()) for match in _BREAK.finditer(text)] + [(len(text), len(text))]
        last: tuple[int, int] | None = None
        for begin, end in breaks:
            if last is not None and begin - start > self.passage:
                out.append((text[start : last[0]], text[last[0] : last[1]]))
                start = last[1]
            last = begin, end
        out.append((text[start:], ""))
        return out

    def _accepted(self, original: str, reply: Reply) -> str:
        """The refined passage.

        Raises:
            Unreadable: something was lost; says what.
        """
        if reply.outcome != "ok":
            raise Unreadable(reply.reason or reply.outcome)
        text = str(self.of.parser.read(reply.content).get("text", ""))
        original = original.strip()
        share = len(text) / max(len(original), 1)
        if not self.least <= share <= self.most:
            raise Unreadable(f"its length is {share:.0%} of the original's")
        numbers, after = Counter(_NUMBER.findall(original)), Counter(_NUMBER.findall(text))
        garbled = Counter(word.translate(_DIGITS) for word in _GARBLED.findall(original))
        lost, added = numbers - after, after - numbers - garbled
        if lost or added:
            first = next(iter(lost or added))
            raise Unreadable(f"the number {first} is {'lost' if lost else 'new'}")
        names, words = set(_NAME.findall(original)), _WORD.findall(text)
        lost_names = [name for name in sorted(names) if not difflib.get_close_matches(name, words, 1, _CLOSE)]
        if len(lost_names) > (1 - self.names) * len(names):
            raise Unreadable(f"names are lost: {', '.join(lost_names[:4])}")
        return text
