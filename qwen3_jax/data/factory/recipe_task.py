"""The task of a recipe: one stage, `samples` requests for each record, records as the recipe says."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.data.factory.parsing import Unreadable
from qwen3_jax.data.factory.recipe import Recipe
from qwen3_jax.data.factory.task import Answers, Made, Rejection, record_bytes
from qwen3_jax.data.records import DataError, Record, texts
from qwen3_jax.endpoints import ChatRequest, Reply


@dataclass(frozen=True)
class RecipeTask:
    """Applies a recipe to every record.

    Attributes:
        of: the recipe.
        name: of the task.
        text_key: the key of a document's text.
    """

    of: Recipe
    name: str = "synthesize"
    text_key: str = "text"

    @property
    def recipe(self) -> str:
        """Name and version."""
        return self.of.identity

    @property
    def attempts(self) -> int:
        """Tries until an answer can be read."""
        return self.of.attempts

    @property
    def asking(self) -> Mapping[str, Any]:
        """What requests depend on."""
        return self.of.asking

    @property
    def reading(self) -> Mapping[str, Any]:
        """What only records depend on."""
        return self.of.reading

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """`samples` requests, each with its own choices; none for a text that is too long.

        Raises:
            DataError: the record has no text, or not the key that the prompt names.
        """
        if answers or self._too_long(record):
            return []
        try:
            return [self.of.request(self._values(record, sample)) for sample in range(self.of.samples)]
        except KeyError as error:
            raise DataError(f"{record.location}: the recipe's prompt needs {error.args[0]!r}") from None

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Why an answer cannot be used."""
        if reply.outcome != "ok":
            return reply.reason
        try:
            self._records(record, sample, reply)
        except Unreadable as error:
            return str(error)
        return None

    def made(self, record: Record, answers: Answers) -> Made:
        """The records of all answers that can be read."""
        out = Made()
        if not answers:
            length = len(_text(record, self.text_key))
            reason = f"the text has {length:,} characters, more than the recipe's {self.of.most_characters:,}"
            out.rejected.append(Rejection("invalid", reason))
            return out
        kept = 0
        for sample, reply in enumerate(answers[0]):
            if reply.outcome != "ok":
                out.rejected.append(Rejection(reply.outcome, reply.reason, sample))
                continue
            try:
                out.records.extend(self._records(record, sample, reply))
                kept += reply.tokens.completion if reply.tokens is not None else 0
            except Unreadable as error:
                out.rejected.append(Rejection("invalid", str(error), sample))
        return Made(out.records, out.rejected, kept)

    def _records(self, record: Record, sample: int, reply: Reply) -> list[dict[str, Any]]:
        answer = self.of.parser.read(reply.content, self.of.schema)
        values = self._values(record, sample)
        values |= {"answer": answer, "content": reply.content, "thinking": reply.thinking or ""}
        items: list[Any] = [None]
        if self.of.each:
            items = answer.get(self.of.each) if isinstance(answer, Mapping) else None  # type: ignore[assignment]
            if not isinstance(items, list) or not items:
                raise Unreadable(f"the answer has no list {self.of.each!r}")
        try:
            return [self.of.render(self.of.record, {**values, "item": item}) for item in items]
        except KeyError as error:
            raise Unreadable(f"the answer has no {error.args[0]!r}") from None

    def _values(self, record: Record, sample: int) -> dict[str, Any]:
        values: dict[str, Any] = {"record": record.body, "choice": self._choices(record, sample)}
        with contextlib.suppress(DataError):  # a prompt that has no {{text}} needs none
            values["text"] = _text(record, self.text_key)
        return values

    def _choices(self, record: Record, sample: int) -> dict[str, Any]:
        """A value of each choice; the samples of a record go through them, from a place of the record's own."""
        out = {}
        for name, values in self.of.choices.items():
            digest = hashlib.blake2b(name.encode() + b"\0" + record_bytes(record), digest_size=4).digest()
            start = int.from_bytes(digest, "big")
            out[name] = values[(start + sample) % len(values)]
        return out

    def _too_long(self, record: Record) -> bool:
        most = self.of.most_characters
        return most is not None and len(_text(record, self.text_key)) > most


def _text(record: Record, text_key: str) -> str:
    return "\n".join(texts(record, text_key))
