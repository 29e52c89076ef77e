"""The task of a recipe: one stage, `samples` requests for each record, records as the recipe says."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.data.factory.parsing import Unreadable
from qwen3_jax.data.factory.queries import query_of, response_of, without_flag
from qwen3_jax.data.factory.recipe import Recipe
from qwen3_jax.data.factory.task import Answers, Independent, Made, Rejection, record_bytes
from qwen3_jax.data.forms import Conversation, read_form
from qwen3_jax.data.messages import FormError
from qwen3_jax.data.records import DataError, Record, texts
from qwen3_jax.endpoints import ChatRequest, Reply
from qwen3_jax.verifiers import verify

_PASSAGE = 2000  # characters


@dataclass(frozen=True)
class RecipeTask(Independent):
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
        if self.of.evidence:
            values["evidence"] = _evidence(answer.get(self.of.evidence), values)
        if self.of.tests:
            _check_tests(answer.get(self.of.solution), answer.get(self.of.tests))
        items: list[Any] = [None]
        if self.of.each:
            items = answer.get(self.of.each) if isinstance(answer, Mapping) else None  # type: ignore[assignment]
            if not isinstance(items, list) or not items:
                raise Unreadable(f"the answer has no list {self.of.each!r}")
        try:
            out = [self.of.render(self.of.record, {**values, "item": item}) for item in items]
        except KeyError as error:
            raise Unreadable(f"the answer has no {error.args[0]!r}") from None
        for one in out:
            _check_messages(one)
        return [{**record.body, **one} for one in out] if self.of.with_record else out

    def _values(self, record: Record, sample: int) -> dict[str, Any]:
        values: dict[str, Any] = {"record": record.body, "choice": self._choices(record, sample)}
        with contextlib.suppress(DataError):  # a prompt without {{text}} needs none
            values["text"] = _text(record, self.text_key)[: self.of.cut_characters]
            values["passage"] = _passage(values["text"], self._draw(record, "passage", sample))
        with contextlib.suppress(DataError):
            values["query"] = without_flag(query_of(record).text)[: self.of.cut_characters]
        with contextlib.suppress(DataError):
            start = -self.of.cut_characters if self.of.cut_characters is not None else None
            thinking, content = response_of(record)
            values["response"] = {"thinking": thinking[start:], "content": content[start:]}
        return values

    def _choices(self, record: Record, sample: int) -> dict[str, Any]:
        """A value of each choice; the samples of a record go through them, from a place of the record's own."""
        return {
            name: values[(self._draw(record, name, 0) + sample) % len(values)]
            for name, values in self.of.choices.items()
        }

    def _draw(self, record: Record, name: str, sample: int) -> int:
        """32 bits that depend on the record alone."""
        text = f"{name}/{sample}\0".encode() + record_bytes(record)
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")

    def _too_long(self, record: Record) -> bool:
        most = self.of.most_characters
        return most is not None and len(_text(record, self.text_key)) > most


def _text(record: Record, text_key: str) -> str:
    return "\n".join(texts(record, text_key))


def _passage(text: str, draw: int) -> str:
    """A run of whole paragraphs of about `_PASSAGE` characters; of a paragraph that is longer, its beginning."""
    starts = [0] + [match.end() for match in re.finditer(r"\n\s*\n", text) if match.end() < len(text)]
    start = starts[draw % len(starts)]
    if len(text) - start < _PASSAGE // 2:
        start = max((one for one in starts if len(text) - one >= _PASSAGE // 2), default=0)
    end = max((one for one in starts if start < one <= start + _PASSAGE), default=start + _PASSAGE)
    return text[start:end].strip()


def _evidence(quote: Any, values: Mapping[str, Any]) -> list[int]:
    """The place of a quotation from the passage in the whole text, [start, stop]; white space may differ.

    Raises:
        Unreadable: the passage does not hold it.
    """
    words = str(quote).split()
    pattern = r"\s+".join(map(re.escape, words))
    passage, text = values.get("passage", ""), values.get("text", "")
    found = re.search(pattern, passage) if words else None
    if found is None:
        raise Unreadable("its quotation does not occur in the passage")
    start = text.index(passage) + found.start()
    return [start, start + len(found.group())]


def _check_tests(solution: Any, tests: Any) -> None:
    """Run the tests on the solution.

    Raises:
        Unreadable: there are none, or the solution fails.
    """
    reason = _fault_of_tests(str(solution or ""), str(tests or ""))
    if reason:
        raise Unreadable(reason)


@functools.lru_cache(maxsize=256)
def _fault_of_tests(solution: str, tests: str) -> str:
    """Why tests do not show that a solution is right, or ""; kept, as an answer is judged before a record is made of it."""
    lines = [line.strip() for line in tests.splitlines() if line.strip() and "```" not in line]
    if not solution or not lines or not all(line.startswith("assert ") for line in lines):
        return "its tests are not assert statements, one a line"
    verdict = verify("code", solution, {"assertions": lines})
    return "" if verdict.status == "right" else f"its solution does not pass its tests: {verdict.reason}"[:300]


def _check_messages(record: Mapping[str, Any]) -> None:
    """Refuse a conversation that training would refuse."""
    if "messages" not in record:
        return
    try:
        form, _ = read_form(record)
    except FormError as error:
        raise Unreadable(f"the conversation cannot be trained on: {error}"[:300]) from None
    if isinstance(form, Conversation) and [message["role"] for message in form.turns.messages][-1] != "assistant":
        raise Unreadable("the conversation does not end with the assistant")
