"""One answer as it grows on the host: tokens in, typed deltas out, and the finished result.

Invariant: the deltas of a stream, joined, are the fields of its result.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qwen3_jax.generation.request import Request
from qwen3_jax.generation.stop_texts import StopTexts
from qwen3_jax.generation.tokens import FinishReason, Token, TokenLogprob
from qwen3_jax.text import AnswerParser, Parsed, Piece, Tokenizer, ToolCall


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer.

    Attributes:
        prompt_tokens: tokens of the prompt after the chat template.
        completion_tokens: all tokens of the answer: sampled, forced, and the one that ended it.
        thinking_tokens: sampled tokens between the think tags; what the budget limits.
        forced_tokens: tokens of the stop text.
        cached_tokens: prompt tokens whose keys and values were in the cache.
    """

    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int
    forced_tokens: int
    cached_tokens: int = field(default=0, compare=False)  # equal answers may differ in it

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    Attributes:
        text: the whole text, tags included; without special tokens and without the stop text that ended it.
        thinking: the text between the think tags; None if there was no thinking section.
        content: the text after it.
        tool_calls: the parsed calls if the request had tools; they are not part of `content`.
        token_ids: all tokens of the answer, the one that ended it included.
        forced_mask: for each token, whether the budget forced it.
        logprobs: for each token; None unless requested.
        finish_reason: "stop" (an end token or stop text), "length" (max_new_tokens), "tool_calls".
        usage: token counts.
        others: the other answers to the same prompt if `Sampling.n` > 1.
        stop_text: the stop text that ended the answer; None if none did.
    """

    text: str
    thinking: str | None
    content: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: list[int]
    forced_mask: list[bool]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    usage: Usage
    others: tuple[Generation, ...] = ()
    stop_text: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The answer as an assistant message, to continue the conversation with."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True)
class Delta:
    """One piece of a stream.

    Attributes:
        kind: "thinking" or "content" (with `text`), "tool_call" (with `tool_call`), "end" (with `result`).
        text: new text; empty for the other kinds.
        index: which prompt of the call.
        sample: which of the n answers to that prompt.
        tool_call: a complete call.
        result: the finished answer.
    """

    kind: Literal["thinking", "content", "tool_call", "end"]
    text: str = ""
    index: int = 0
    sample: int = 0
    tool_call: ToolCall | None = None
    result: Generation | None = None


class Answer:
    """The answer to one request as it grows.

    Args:
        tokenizer: None leaves the texts empty.
        request: says how to read the answer.
        deltas: give the deltas of a stream. Without them the text is made at once, at the end, unless it may end the answer.

    Attributes:
        request: as given.
        logprobs: of each token so far; empty unless requested.
        prompt_logprobs: of each token of the prompt so far that the request reports; None for the first token of all.
        experts: see `Token.experts`; None until the answer is finished.
        result: the finished answer, None until then.
    """

    def __init__(self, tokenizer: Tokenizer | None, request: Request, *, deltas: bool = True):
        self.request = request
        self._whole = not (deltas or request.sampling.stop or request.one_call)
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.result: Generation | None = None
        self.experts: np.ndarray | None = None
        self._tokens: list[int] = []
        self._forced: list[bool] = []
        self._ends: list[int] = []  # the length of the text after each token, with stop texts
        self._thinking_tokens = self._cached_tokens = 0
        self._reader = _Reader(request)
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer(skip_special_tokens=True)
        self._place = request.prompt_index, request.sample_index

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        prompt, forced = len(self.request.prompt), sum(self._forced)
        return Usage(prompt, len(self._tokens), self._thinking_tokens, forced, self._cached_tokens)

    def add(self, token: Token) -> list[Delta]:
        """Take the next token; return the deltas that are certain. Tokens after the end are dropped."""
        if self.result is not None:
            return []
        self._cached_tokens, self.experts = token.cached, token.experts
        if token.prompt:
            if self.request.score_from is not None and self.request.score_from < len(self.request.prompt):
                self.prompt_logprobs.append(token.logprob)
            return [] if token.finish is None else self._finish(token.finish, [], flush=True)
        self._tokens.append(token.id)
        self._forced.append(token.forced)
        self._thinking_tokens += token.thinking
        if token.logprob is not None:
            self.logprobs.append(token.logprob)
        if self._whole:
            return [] if token.finish is None else self._read_whole(token.finish)
        if token.finish == "stop":  # an end token is no text
            return self._finish("stop", [], flush=True)
        text = "" if self._detokenizer is None else self._detokenizer.add(token.id)
        deltas = self._deltas(self._reader.feed(text, forced=token.forced))
        self._ends.append(self._ends[-1] + len(text) if self._ends else len(text))
        called = self.request.one_call and any(delta.kind == "tool_call" for delta in deltas)
        if called or self._reader.stopped:
            return self._finish("stop", deltas, flush=False)
        return deltas if token.finish is None else self._finish(token.finish, deltas, flush=True)

    def _drop_tokens_behind_the_stop_text(self) -> None:
        """Tokens that came while it was not certain that the stop text is content, and neither a tag nor in a call."""
        count = bisect.bisect_left(self._ends, self._reader.stop_end) + 1
        self._tokens, self._forced = self._tokens[:count], self._forced[:count]
        del self.logprobs[count:]

    def begin(self, tokens: Sequence[Token]) -> None:
        """Take the first tokens of an answer, none of which is the last; their deltas are dropped."""
        if not self._whole:
            for token in tokens:
                self.add(token)
            return
        self._tokens += [token.id for token in tokens]
        self._forced += [token.forced for token in tokens]
        self._thinking_tokens += sum(token.thinking for token in tokens)

    def _read_whole(self, reason: FinishReason) -> list[Delta]:
        """Make the text of all tokens and end the answer; its only delta is the end."""
        ids = self._tokens[:-1] if reason == "stop" else self._tokens  # an end token is no text
        if self._detokenizer is not None:
            self._reader.feed("".join(map(self._detokenizer.add, ids)) + self._detokenizer.flush())
        self._finish(reason, [], flush=False)
        return [Delta("end", "", *self._place, result=self.result)]

    def _deltas(self, events: Sequence[Piece | ToolCall]) -> list[Delta]:
        return [
            Delta("tool_call", "", *self._place, event)
            if isinstance(event, ToolCall)
            else Delta(event.kind, event.text, *self._place)
            for event in events
        ]

    def _finish(self, reason: FinishReason, deltas: list[Delta], *, flush: bool) -> list[Delta]:
        """End the answer; `flush` releases an unfinished character, and a stop text may still cut what was withheld."""
        if flush and self._detokenizer is not None:
            deltas += self._deltas(self._reader.feed(self._detokenizer.flush()))
        deltas += self._deltas(self._reader.finish())
        parsed = self._reader.parsed()
        if self._reader.stopped:
            reason = "stop"
            self._drop_tokens_behind_the_stop_text()
        if reason == "stop" and parsed.tool_calls:
            reason = "tool_calls"
        self.result = Generation(
            text=self._reader.text,
            thinking=parsed.thinking,
            content=parsed.content,
            tool_calls=parsed.tool_calls,
            token_ids=self._tokens,
            forced_mask=self._forced,
            logprobs=None if self.request.sampling.logprobs is None else self.logprobs,
            finish_reason=reason,
            usage=self.usage,
            stop_text=self._reader.stop_text,
        )
        return [*deltas, Delta("end", "", *self._place, result=self.result)]


class _Reader:
    """Turns the text of an answer into events: parsed or raw, up to a stop text.

    A raw answer to messages is parsed too if it has stop texts: they act on its content alone.
    """

    def __init__(self, request: Request):
        self._raw, self._one_call = request.raw, request.one_call
        self._stops = StopTexts(request.sampling.stop) if request.sampling.stop else None
        parses = not request.raw or (self._stops is not None and not request.continues_text)
        self._parser = AnswerParser(request.thinking, request.tools, begun=request.answering) if parses else None
        self._texts: list[str] = []
        self._length = 0
        self._pending = ""  # raw text that is not given out yet
        self._events: list[Piece | ToolCall] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._stops is not None and self._stops.cut is not None

    @property
    def stop_end(self) -> int:
        """The place behind the stop text that has ended the answer."""
        assert self._stops is not None
        assert self._stops.end is not None
        return self._stops.end

    @property
    def stop_text(self) -> str | None:
        """The stop text that has ended the answer; None if none has."""
        return "".join(self._texts)[self._stops.cut : self._stops.end] if self._stops and self.stopped else None

    @property
    def text(self) -> str:
        """All of the text, up to the stop text."""
        return "".join(self._texts)[: self._stops.cut if self._stops else None]

    def parsed(self) -> Parsed:
        """All events so far as one result."""
        return (AnswerParser() if self._raw or self._parser is None else self._parser).collect(self._events)

    def feed(self, text: str, *, forced: bool = False) -> list[Piece | ToolCall]:
        """Read on; return what is certain. No stop text is looked for in forced text."""
        if not text or self.stopped:
            return []
        self._texts.append(text)
        events: list[Piece | ToolCall] = [Piece("content", text, self._length)]
        self._length += len(text)
        if self._raw and self._parser is not None:
            self._pending += text
        if forced and self._parser is None and self._stops is not None:
            events = [*self._stops.finish(), *events]
            self._events += events
            return events
        return self._release(self._parser.feed(text) if self._parser else events, last=False)

    def finish(self) -> list[Piece | ToolCall]:
        """The end of the text."""
        if self.stopped:
            return []
        return self._release(self._parser.finish() if self._parser else [], last=True)

    def _release(self, events: Sequence[Piece | ToolCall], *, last: bool) -> list[Piece | ToolCall]:
        if self._stops is not None:
            events = self._stops.feed(events)
            events += self._stops.finish() if last else []
        if self._raw and self._parser is not None:
            events = self._raw_piece(events, last)
        if self._one_call:
            events = self._up_to_one_call(events)
        self._events += events
        return list(events)

    def _up_to_one_call(self, events: Sequence[Piece | ToolCall]) -> Sequence[Piece | ToolCall]:
        """What comes up to the answer's first call; nothing comes behind it."""
        if any(isinstance(event, ToolCall) for event in self._events):
            return []
        place = next((i for i, event in enumerate(events) if isinstance(event, ToolCall)), len(events))
        return events[: place + 1]

    def _raw_piece(self, events: Sequence[Piece | ToolCall], last: bool) -> list[Piece | ToolCall]:
        """The raw text up to the last certain event."""
        start = self._length - len(self._pending)
        ends = [event.start + len(event.text) for event in events if isinstance(event, Piece)]
        end = self._length if last else max(ends, default=start)
        if self._stops is not None and self._stops.cut is not None:
            end = self._stops.cut
        text, self._pending = self._pending[: end - start], self._pending[end - start :]
        return [Piece("content", text, start)] if text else []


def extend(
    answers: Mapping[int, Answer] | Sequence[Answer], tokens: Iterable[tuple[int, Token]], cancel: Callable[[int], None]
) -> Iterator[tuple[int, Delta]]:
    """Add (key, token) pairs to the answers; yield (key, delta) pairs.

    `cancel` is called with the key of an answer that its text has ended, while the engine still generates it.
    """
    for key, token in tokens:
        answer = answers[key]
        if answer.result is not None:
            continue  # generated before the request was cancelled
        for delta in answer.add(token):
            yield key, delta
        if answer.result is not None and token.finish is None:
            cancel(key)
