"""Records to training documents, a batch at a time: the one path that preparation, and `qwen3 data show`, take.

for read in encode_records(records, source, tokenizer):
    read.documents            # list of Encoded: token ids, and which of them are learned
    read.problem              # why the record cannot be used, or None
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from qwen3_jax.data.config import Source
from qwen3_jax.data.records import (
    DataError,
    Document,
    Encoded,
    Malformed,
    Record,
    TextTokenizer,
    encode,
    texts,
)
from qwen3_jax.data.rendering import documents

# Records encoded in one call: at most this many records, or about this many characters.
_BATCH, _BATCH_CHARACTERS = 64, 2**20


@dataclass(slots=True)
class Read:
    """What became of one record.

    Attributes:
        record: as the files gave it.
        text: all that it says, unrendered.
        documents: what training reads of it: one, or one for each user turn; each of two tokens or more, fewer predict nothing.
        problem: why it cannot be used, beginning with its location; None where it can.
    """

    record: Record | Malformed
    text: str = ""
    documents: list[Encoded] = field(default_factory=list)
    problem: str | None = None


def encode_records(
    records: Iterable[Record | Malformed],
    source: Source,
    tokenizer: TextTokenizer,
    is_wanted: Callable[[int, Record, str], bool] = lambda place, record, text: True,
) -> Iterator[Read]:
    """Yield what becomes of each record, in order; those that are not wanted are left out.

    Args:
        records: of `sources.read`.
        source: how its records are read.
        tokenizer: renders and encodes.
        is_wanted: of a record's place among `records`, itself, and its text.

    Raises:
        DataError: the vocabulary lacks the token that closes a document. (What is wrong with one record is its `problem`.)
    """
    waiting: list[tuple[Read, list[Document]]] = []
    characters = 0
    for place, record in enumerate(records):
        read, rendered = Read(record), []
        try:
            read.text = record_text(record, source)
            assert isinstance(record, Record)
            if not is_wanted(place, record, read.text):
                continue
            rendered = documents(
                record, tokenizer, loss_on=source.loss_on, text_key=source.text_key, history=source.history,
                read_control_tokens=source.read_control_tokens, pairs=source.pairs,
            )  # fmt: skip
        except DataError as error:
            read.problem = str(error)
        waiting.append((read, rendered))
        characters += len(read.text)
        if len(waiting) == _BATCH or characters > _BATCH_CHARACTERS:
            yield from _encoded(waiting, tokenizer)
            waiting, characters = [], 0
    yield from _encoded(waiting, tokenizer)


def record_text(record: Record | Malformed, source: Source) -> str:
    """All that a record says, unrendered.

    Raises:
        DataError: it is malformed, or in no form that is read.
    """
    if isinstance(record, Malformed):
        raise DataError(record.reason)
    return "\n".join(texts(record, source.text_key, source.pairs))


def _encoded(waiting: list[tuple[Read, list[Document]]], tokenizer: TextTokenizer) -> Iterator[Read]:
    """The records with their documents: encoded in one call, and record by record where the tokenizer refuses that."""
    try:
        encoded = iter(encode([document for _, rendered in waiting for document in rendered], tokenizer))
        for read, rendered in waiting:
            read.documents = [next(encoded) for _ in rendered]
    except DataError:
        raise
    except ValueError:
        for read, rendered in waiting:
            try:
                read.documents = encode(rendered, tokenizer)
            except ValueError as error:  # half a surrogate pair, say, which JSON can spell and UTF-8 cannot
                assert isinstance(read.record, Record)
                read.problem = f"{read.record.location}: the tokenizer refuses the text: {error}"
    for read, _ in waiting:
        read.documents = [document for document in read.documents if len(document.tokens) > 1]
        yield read
