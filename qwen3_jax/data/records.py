"""Records, the documents that they become (`qwen3_jax.data.rendering`), and the tokens of these.

Every segment of a document is encoded by itself, because generation encodes the prompt, samples the answer, and inserts a
forced text as three separate token lists; encoding their concatenation could merge tokens across the seams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qwen3_jax.data.forms import Continuation, Form, PlainText, read_form
from qwen3_jax.data.messages import FormError, decoded
from qwen3_jax.data.preferences import Pair, read_pair
from qwen3_jax.errors import UserError, repeated
from qwen3_jax.text import quoting


class DataError(UserError):
    """Training data that cannot be used; the message starts with the file, and the line where there is one."""


def check_columns(names: Sequence[str], url: str) -> None:
    """Refuse a table with two columns of one name: a record could hold only one.

    Raises:
        DataError: names the column.
    """
    twice = repeated(names)
    if twice is not None:
        raise DataError(f"{url}: two columns are named {twice!r}; rename one of them")


class TextTokenizer(Protocol):
    """What this package needs of a tokenizer; `qwen3_jax.text.Tokenizer` has it."""

    @property
    def endoftext_id(self) -> int | None: ...

    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]: ...

    def definition(self) -> str: ...

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tools: Any = None,
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        preserve_thinking: bool | None = None,
        quoted: bool = False,
    ) -> Any: ...

    def encode_quoted(self, text: str, /) -> list[int]: ...


PROVENANCE = "generated"
"""The key under which commands write how a record was made; training reads nothing of it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object, its location (`path` or `path:line`), and a 64-bit hash of its place that is equal on every machine."""

    location: str
    body: dict[str, Any]
    key: int = 0


@dataclass(frozen=True, slots=True)
class Malformed:
    """A record that cannot be used; the reason starts with its location."""

    reason: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Text that is encoded by itself.

    Attributes:
        text: what is encoded.
        loss: whether its tokens are learned.
        quoted: the text was rendered from messages of which the special tokens are marked (`qwen3_jax.text.quoting`).
    """

    text: str
    loss: bool
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """One training document, or a preference as two of them.

    Attributes:
        segments: in order.
        add_end: whether `<|endoftext|>` closes it.
        rejected: of a preference, how many segments at the beginning are the chosen document, which the rejected one follows.
    """

    segments: tuple[Segment, ...]
    add_end: bool = False
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """tokens int32 [n]; loss bool [n], whether token i is learned (as the target of token i - 1); rejected, of a preference the
    place at which the rejected document begins, else 0."""

    tokens: np.ndarray
    loss: np.ndarray
    rejected: int = 0

    def sides(self) -> tuple[Encoded, Encoded]:
        """The chosen and the rejected document of a preference."""
        cut = self.rejected
        return Encoded(self.tokens[:cut], self.loss[:cut]), Encoded(self.tokens[cut:], self.loss[cut:])


def form_of(record: Record, text_key: str = "text") -> tuple[Form, set[str]]:
    """What the record says, and the keys of it that say it.

    Raises:
        DataError: it is in no form that is read.
    """
    try:
        return read_form(record.body, text_key)
    except FormError as error:
        raise DataError(f"{record.location}: {error}") from None


def pair_of(record: Record) -> tuple[Pair, set[str]]:
    """The preference that the record states, and the keys of it that state it.

    Raises:
        DataError: it is in no form of preferences that is read.
    """
    try:
        return read_pair(record.body)
    except FormError as error:
        raise DataError(f"{record.location}: {error}") from None


def encode(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[Encoded]:
    """Encodes each segment by itself and joins the ids of a document's.

    Raises:
        ValueError: the tokenizer refuses a text, or lacks the end token that a document needs.
    """
    # One call for all segments, which the tokenizer may spread over cores.
    every = [
        (segment.text, segment.quoted and quoting.MARK in segment.text)
        for document in documents
        for segment in document.segments
    ]
    batch = iter(tokenizer.encode_batch([text for text, marked in every if not marked]))
    pieces = (tokenizer.encode_quoted(text) if marked else next(batch) for text, marked in every)
    out = []
    for document in documents:
        ids = [np.asarray(next(pieces), dtype=np.int32) for _ in document.segments]
        if document.add_end:
            if tokenizer.endoftext_id is None:
                raise DataError("the tokenizer's vocabulary has no <|endoftext|> to close a document with")
            ids.append(np.asarray([tokenizer.endoftext_id], dtype=np.int32))
        learned = [segment.loss for segment in document.segments] + [True] * document.add_end
        lengths = [len(piece) for piece in ids]
        out.append(Encoded(np.concatenate(ids), np.repeat(learned, lengths), sum(lengths[: document.rejected])))
    return out


def texts(record: Record, text_key: str = "text", pairs: bool = False) -> Iterator[str]:
    """Every text in the record, unrendered: what a tokenizer is trained on, and what duplicates are found by. Raises
    `DataError` as `documents` does."""
    if pairs:
        pair = pair_of(record)[0]
        yield from _texts(record, pair.chosen, text_key)
        yield from _texts(record, pair.rejected, text_key)
    else:
        yield from _texts(record, form_of(record, text_key)[0], text_key)


def _texts(record: Record, form: Form, text_key: str) -> Iterator[str]:
    if isinstance(form, PlainText):
        yield checked_string(record, text_key, form.text)
        return
    if isinstance(form, Continuation):
        yield checked_string(record, "prompt", form.prompt)
    else:
        for message in form.turns.messages:
            yield from (message[key] for key in ("reasoning_content", "content") if isinstance(message.get(key), str))
            if "tool_calls" in message:
                functions = [call.get("function", call) for call in message["tool_calls"]]
                yield json.dumps([(f["name"], decoded(f["arguments"], "")) for f in functions], ensure_ascii=False)
    if isinstance(form, Continuation) or form.completion is not None:
        yield from (segment.text for segment in completion_segments(record, form.completion))


def checked_string(record: Record, key: str, value: Any) -> str:
    """Return a value that must be a string; a `DataError` if it is not."""
    if not isinstance(value, str):
        raise DataError(f"{record.location}: {key!r} must be a string, got {type(value).__name__}")
    return value


def completion_segments(record: Record, completion: Any) -> list[Segment]:
    """Return the segments of a completion, which is a string or a list of them; a `DataError` if nothing in it is learned."""
    if isinstance(completion, str):
        completion = [{"text": completion, "loss": True}]
    if not isinstance(completion, list):
        raise DataError(f"{record.location}: 'completion' must be a string or a list of segments")
    segments = []
    for i, segment in enumerate(completion, 1):
        match segment:
            case {"text": str(text), "loss": bool(loss)}:
                segments.append(Segment(text, loss))
            case _:
                raise DataError(
                    f"{record.location}: completion segment {i} must be {{'text': string, 'loss': true/false}}"
                )
    if not any(segment.loss and segment.text for segment in segments):
        raise DataError(f"{record.location}: nothing in 'completion' is learned")
    return segments
