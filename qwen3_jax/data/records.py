"""From a record to training tokens: one place that decides what is learned.

A record is a JSON object in one of the forms of `qwen3_jax.data.forms`. Three remain when it has been read:

    a conversation         through the chat template; or its generation prompt, and the text that follows it, verbatim
    a raw prompt           and the text that follows it, nothing added at the end
    a document             closed by <|endoftext|>

The text that follows is a string, or segments `[{"text": "...", "loss": true}, ...]` where some of it is forced, never sampled.

The invariant: tokens are what generation would have seen. Every segment is encoded by itself, because generation
encodes the prompt, samples the answer, and inserts a forced text as three separate token lists; encoding their
concatenation could merge tokens across the seams. Thinking of earlier turns disappears from later prompts, so a
conversation becomes one document per user turn, each rendered as generation would render it at that turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from qwen3_jax.data.forms import Continuation, Conversation, Form, PlainText, read_form
from qwen3_jax.data.messages import FormError, decoded
from qwen3_jax.errors import UserError, nearest, repeated

END_OF_TURN = "<|im_end|>"
"""How every ChatML template closes a turn (the text; ids come from the tokenizer)."""
_THINK_TAG = re.compile(r"</?think>")


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
    form = form_of(record, text_key)[0]
    learn_prompt = loss_on == "all"
    if isinstance(form, PlainText):
        text = _string(record, text_key, form.text)
        return [Document((Segment(text, True),), add_end=True)] if text else []
    if isinstance(form, Continuation):
        prompt = _string(record, "prompt", form.prompt)
        return [Document((Segment(prompt, learn_prompt), *_completion(record, form.completion)))]
    _check_explained(record, tokenizer, form)
    learned = _learned(record, form, learn_prompt)
    messages = form.turns.messages
    if form.completion is not None:
        prompt = _render(record, tokenizer, form, messages, add_generation_prompt=True)
        return [Document((Segment(prompt, learn_prompt), *_completion(record, form.completion)))]
    if learn_prompt:
        text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
        for place in learned:
            _check_whole(record, messages[place], place, text, thinking=place == len(messages) - 1)
        return [Document((Segment(_until_end_of_turn(text), True),))]
    return _turns(record, tokenizer, form, learned)


def form_of(record: Record, text_key: str = "text") -> tuple[Form, set[str]]:
    """What the record says, and the keys of it that say it.

    Raises:
        DataError: it is in no form that is read.
    """
    try:
        return read_form(record.body, text_key)
    except FormError as error:
        raise DataError(f"{record.location}: {error}") from None


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
    """Every text in the record, unrendered: what a tokenizer is trained on, and what duplicates are found by. Raises
    `DataError` as `documents` does."""
    form = form_of(record, text_key)[0]
    if isinstance(form, PlainText):
        yield _string(record, text_key, form.text)
        return
    if isinstance(form, Continuation):
        yield _string(record, "prompt", form.prompt)
    else:
        for message in form.turns.messages:
            yield from (message[key] for key in ("reasoning_content", "content") if isinstance(message.get(key), str))
            if "tool_calls" in message:
                functions = [call.get("function", call) for call in message["tool_calls"]]
                yield json.dumps([(f["name"], decoded(f["arguments"], "")) for f in functions], ensure_ascii=False)
    if isinstance(form, Continuation) or form.completion is not None:
        yield from (segment.text for segment in _completion(record, form.completion))


def _string(record: Record, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{record.location}: {key!r} must be a string, got {type(value).__name__}")
    return value


def _learned(record: Record, form: Conversation, everything: bool) -> list[int]:
    """Places of the messages that are learned.

    Raises:
        DataError: the record wants a message learned, or not, that is not, or is.
    """
    turns = form.turns
    for i, (message, weight) in enumerate(zip(turns.messages, turns.weights, strict=True)):
        name = f"{record.location}: message {i + 1} ({message['role']}) has"
        if everything and weight is False:
            raise DataError(
                f"{name} weight 0, and loss_on: all learns everything; say loss_on: assistant (--loss-on assistant)"
            )
        answers = message["role"] == "assistant" and i >= form.context
        if not everything and weight and not answers:
            raise DataError(
                f"{name} weight 1, and only what the assistant answers is learned; remove it, or say loss_on: all "
                "(--loss-on all)"
            )
    return [
        i
        for i, (message, weight) in enumerate(zip(turns.messages, turns.weights, strict=True))
        if message["role"] == "assistant" and i >= form.context and weight is not False
    ]


def _check_explained(record: Record, tokenizer: TextTokenizer, form: Conversation) -> None:
    """Refuse a key of a message that the chat template does not read: what it says would be lost.

    Raises:
        DataError: names the message and the key.
    """
    if not form.turns.unexplained:
        return
    messages = form.turns.messages
    text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
    for place, key in form.turns.unexplained:
        less = [{k: v for k, v in m.items() if i != place or k != key} for i, m in enumerate(messages)]
        if _render(record, tokenizer, form, less, add_generation_prompt=False) == text:
            known = ["role", "content", "reasoning_content", "tool_calls", "weight"]
            raise DataError(
                f"{record.location}: message {place + 1} has {key!r}, which the chat template leaves out; write it into the "
                f"content, or remove it.{nearest(key, known)}"
            )


def _turns(record: Record, tokenizer: TextTokenizer, form: Conversation, learned: list[int]) -> list[Document]:
    """One document per user turn that has an answer to learn, with the tool calls and results of that turn."""
    messages = form.turns.messages
    turns: list[Document] = []
    start = 0
    for end in range(1, len(messages) + 1):
        if end < len(messages) and messages[end]["role"] != "user":
            continue
        answers = [i for i in learned if start <= i < end]
        if answers:
            turns.append(_turn(record, tokenizer, form, answers))
        start = end
    if not turns:
        raise DataError(f"{record.location}: no assistant message to learn from")
    return turns


def _turn(record: Record, tokenizer: TextTokenizer, form: Conversation, answers: list[int]) -> Document:
    """The messages as generation sees them while it writes the assistant messages at `answers`."""
    messages = form.turns.messages[: answers[-1] + 1]
    text = _render(record, tokenizer, form, messages, add_generation_prompt=False)
    segments: list[Segment] = []
    done = 0
    for i in answers:
        if i == 0:
            raise DataError(
                f"{record.location}: the conversation begins with an assistant message, which answers no prompt; put a system "
                "or user message before it, or keep it as context with 'weight': 0"
            )
        prompt = _render(record, tokenizer, form, messages[:i], add_generation_prompt=True)
        if not text.startswith(prompt) or len(prompt) < done:
            raise DataError(
                f"{record.location}: the chat template renders the messages before message {i + 1} (an assistant message) "
                "differently once it follows, so its prompt cannot be told from its answer"
            )
        end = text.find(END_OF_TURN, len(prompt))
        if end < 0:
            raise DataError(f"{record.location}: the chat template does not close message {i + 1} with {END_OF_TURN}")
        end += len(END_OF_TURN)
        _check_whole(record, messages[i], i, text[len(prompt) : end])
        segments += [Segment(text[done : len(prompt)], False), Segment(text[len(prompt) : end], True)]
        done = end
    return Document(tuple(segments))


def _check_whole(record: Record, message: dict[str, Any], place: int, answer: str, *, thinking: bool = True) -> None:
    """Refuse an answer of which the template drops a part: text around a think tag, or thinking where it knows none.

    thinking: whether it has to be there; templates drop that of earlier turns.
    """
    said = _THINK_TAG.split(message.get("content", ""))
    if thinking:
        said.append(message.get("reasoning_content", ""))
    elif len(said) > 1 and not said[0].strip():
        del said[1]
    said += [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
    lost = next((text for text in said if text.strip() not in answer), None)
    if lost is not None:
        raise DataError(
            f"{record.location}: the chat template drops {lost.strip()[:40]!r} of message {place + 1}; thinking belongs in "
            "'reasoning_content' or in think tags at the beginning of the content"
        )


def _until_end_of_turn(text: str) -> str:
    """Without the newline that the template puts after the last turn: generation has stopped by then."""
    return text[:-1] if text.endswith(END_OF_TURN + "\n") else text


def _render(
    record: Record,
    tokenizer: TextTokenizer,
    form: Conversation,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool,
) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tools=form.tools, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template can raise any exception; it is this record that caused it
        raise DataError(f"{record.location}: the chat template rejects the messages: {error}") from error
    assert isinstance(text, str)
    for tool in form.tools or ():
        if tool["function"]["name"] not in text:
            raise DataError(f"{record.location}: the chat template leaves out the tool {tool['function']['name']!r}")
    return text


def _completion(record: Record, completion: Any) -> list[Segment]:
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
