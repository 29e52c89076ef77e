"""From a record to training tokens: one place that decides what is learned.

A record is a JSON object of one of these kinds (a later one is looked at only where the earlier keys are missing):

    {"messages": [...], "tools": [...]}                           a conversation, through the chat template
    {"messages": [...], "completion": C}                          a generation prompt, and the text that follows it, verbatim
    {"prompt": "...", "completion": C}                            raw strings, nothing added at the end
    {"text": "..."}                                               a document, closed by <|endoftext|>

with C a string, or segments `[{"text": "...", "loss": true}, ...]` where some of it is forced, never sampled.

The invariant: tokens are what generation would have seen. Every segment is encoded by itself, because generation
encodes the prompt, samples the answer, and inserts a forced text as three separate token lists; encoding their
concatenation could merge tokens across the seams. Thinking of earlier turns disappears from later prompts, so a
conversation becomes one document per user turn, each rendered as generation would render it at that turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from qwen3_jax.errors import UserError

END_OF_TURN = "<|im_end|>"
"""How every ChatML template closes a turn (the text; ids come from the tokenizer)."""


class DataError(UserError):
    """Training data that cannot be used; the message starts with the file, and the line where there is one."""


class TextTokenizer(Protocol):
    """What this package needs of a tokenizer; `qwen3_jax.text.Tokenizer` has it."""

    @property
    def endoftext_id(self) -> int | None: ...

    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]: ...

    def definition(self) -> str: ...

    def apply_chat_template(
        self, messages: list[dict[str, Any]], tools: Any = None, *, add_generation_prompt: bool = True
    ) -> Any: ...


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
    """Text that is encoded by itself; `loss` says whether its tokens are learned."""

    text: str
    loss: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One training document: segments in order, and whether `<|endoftext|>` closes it."""

    segments: tuple[Segment, ...]
    add_end: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """tokens int32 [n]; loss bool [n], whether token i is learned (as the target of token i - 1)."""

    tokens: np.ndarray
    loss: np.ndarray


def documents(
    record: Record, tokenizer: TextTokenizer, *, loss_on: Literal["all", "assistant"], text_key: str = "text"
) -> list[Document]:
    """The documents that `record` stands for: one, or one per user turn of a conversation.

    Raises:
        DataError: a key is missing or of the wrong type, the template refuses the messages, or nothing is learned.
    """
    body = record.body
    learn_prompt = loss_on == "all"
    if "messages" in body:
        messages = _messages(record)
        if "completion" in body:
            prompt = _render(record, tokenizer, messages, add_generation_prompt=True)
            return [Document((Segment(prompt, learn_prompt), *_completion(record)))]
        if learn_prompt:
            text = _render(record, tokenizer, messages, add_generation_prompt=False)
            return [Document((Segment(_until_end_of_turn(text), True),))]
        return _turns(record, tokenizer, messages)
    if "prompt" in body or "completion" in body:
        return [Document((Segment(_string(record, "prompt"), learn_prompt), *_completion(record)))]
    if text_key in body:
        text = _string(record, text_key)
        return [Document((Segment(text, True),), add_end=True)] if text else []
    raise _unknown(record, text_key)


def encode(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[Encoded]:
    """Encodes each segment by itself and joins the ids of a document's.

    Raises:
        ValueError: the tokenizer refuses a text, or lacks the end token that a document needs.
    """
    # One call for all segments, which the tokenizer may spread over cores.
    pieces = iter(tokenizer.encode_batch([segment.text for document in documents for segment in document.segments]))
    out = []
    for document in documents:
        ids = [np.asarray(next(pieces), dtype=np.int32) for _ in document.segments]
        if document.add_end:
            if tokenizer.endoftext_id is None:
                raise DataError("the tokenizer's vocabulary has no <|endoftext|> to close a document with")
            ids.append(np.asarray([tokenizer.endoftext_id], dtype=np.int32))
        learned = [segment.loss for segment in document.segments] + [True] * document.add_end
        out.append(Encoded(np.concatenate(ids), np.repeat(learned, [len(piece) for piece in ids])))
    return out


def texts(record: Record, text_key: str = "text") -> Iterator[str]:
    """Every text in the record, unrendered: what a tokenizer is trained on. Raises `DataError` as `documents` does."""
    body = record.body
    if "messages" in body:
        for message in _messages(record):
            yield from (message[key] for key in ("reasoning_content", "content") if isinstance(message.get(key), str))
    elif "prompt" in body or "completion" in body:
        yield _string(record, "prompt")
    elif text_key in body:
        yield _string(record, text_key)
    else:
        raise _unknown(record, text_key)
    if "completion" in body:
        yield from (segment.text for segment in _completion(record))


def _string(record: Record, key: str) -> str:
    value = record.body.get(key)
    if not isinstance(value, str):
        raise DataError(f"{record.location}: {key!r} must be a string, got {type(value).__name__}")
    return value


def _unknown(record: Record, text_key: str) -> DataError:
    return DataError(
        f"{record.location}: no {text_key!r}, 'messages' or 'prompt' key with text; the record has {sorted(record.body)}"
    )


def _turns(record: Record, tokenizer: TextTokenizer, messages: list[dict[str, Any]]) -> list[Document]:
    """One document per user turn that an assistant answers, with the tool calls and results of that turn."""
    roles = [message["role"] for message in messages]
    turns: list[Document] = []
    start = 0
    for end in range(1, len(messages) + 1):
        if end < len(messages) and roles[end] != "user":
            continue
        answers = [i for i in range(start, end) if roles[i] == "assistant"]
        if answers:
            turns.append(_turn(record, tokenizer, messages[: answers[-1] + 1], answers))
        start = end
    if not turns:
        raise DataError(f"{record.location}: no assistant message to learn from")
    return turns


def _turn(record: Record, tokenizer: TextTokenizer, messages: list[dict[str, Any]], answers: list[int]) -> Document:
    """`messages` as generation sees them while it writes the assistant messages at `answers`."""
    text = _render(record, tokenizer, messages, add_generation_prompt=False)
    segments: list[Segment] = []
    done = 0
    for i in answers:
        prompt = _render(record, tokenizer, messages[:i], add_generation_prompt=True)
        if not text.startswith(prompt) or len(prompt) < done:
            raise DataError(
                f"{record.location}: the chat template renders the messages before message {i + 1} (an assistant message) "
                "differently once it follows, so its prompt cannot be told from its answer"
            )
        end = text.find(END_OF_TURN, len(prompt))
        if end < 0:
            raise DataError(f"{record.location}: the chat template does not close message {i + 1} with {END_OF_TURN}")
        end += len(END_OF_TURN)
        segments += [Segment(text[done : len(prompt)], False), Segment(text[len(prompt) : end], True)]
        done = end
    return Document(tuple(segments))


def _until_end_of_turn(text: str) -> str:
    """Without the newline that the template puts after the last turn: generation has stopped by then."""
    return text[:-1] if text.endswith(END_OF_TURN + "\n") else text


def _render(
    record: Record, tokenizer: TextTokenizer, messages: list[dict[str, Any]], *, add_generation_prompt: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=record.body.get("tools"), add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template can raise any exception; it is this record that caused it
        raise DataError(f"{record.location}: the chat template rejects the messages: {error}") from error
    assert isinstance(text, str)
    return text


def _messages(record: Record) -> list[dict[str, Any]]:
    messages = record.body["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{record.location}: 'messages' must be a list with at least one message")
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{record.location}: message {i} must be an object with a 'role'")
        if not isinstance(message.get("content", ""), str | list | None):
            raise DataError(f"{record.location}: the content of message {i} must be text")
    tools = record.body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{record.location}: 'tools' must be a list")
    return messages


def _completion(record: Record) -> list[Segment]:
    completion = record.body.get("completion")
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
