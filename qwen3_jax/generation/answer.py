"""One answer as it grows on the host: tokens in, typed deltas out, and the finished result.

Invariant: the deltas of a stream, joined, are the fields of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.generation.request import Request
from qwen3_jax.generation.tokens import FinishReason, Token, TokenLogprob
from qwen3_jax.text import AnswerParser, Piece, Tokenizer, ToolCall


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

    Attributes:
        request: as given.
        logprobs: of each token so far; empty unless requested.
        result: the finished answer, None until then.
    """

    def __init__(self, tokenizer: Tokenizer | None, request: Request):
        self.request = request
        self.logprobs: list[TokenLogprob] = []
        self.result: Generation | None = None
        self._tokens: list[int] = []
        self._forced: list[bool] = []
        self._thinking_tokens = self._cached_tokens = 0
        self._text: list[str] = []
        self._withheld = ""  # text that may be the beginning of a stop text
        self._events: list[Piece | ToolCall] = []
        parse = not request.raw
        self._parser = AnswerParser(request.thinking and parse, request.tools and parse)
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer(skip_special_tokens=True)
        self._stop: tuple[str, ...] = tuple(request.sampling.stop)
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
        self._tokens.append(token.id)
        self._forced.append(token.forced)
        self._thinking_tokens += token.thinking
        self._cached_tokens = token.cached
        if token.logprob is not None:
            self.logprobs.append(token.logprob)
        if token.finish == "stop":  # an end token is no text
            return self._finish("stop", [], flush=True)
        text = "" if self._detokenizer is None else self._detokenizer.add(token.id)
        deltas, stopped = self._release(text)
        if stopped or (self.request.one_call and any(delta.kind == "tool_call" for delta in deltas)):
            return self._finish("stop", deltas, flush=False)
        return deltas if token.finish is None else self._finish(token.finish, deltas, flush=True)

    def _release(self, text: str) -> tuple[list[Delta], bool]:
        """Return the deltas of all text that cannot begin a stop text, and whether a stop text ended the answer.

        The stop text that is complete first ends it; of several that are complete at once, the longest.
        """
        text = self._withheld + text
        matches = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if matches:
            self._withheld = ""
            return self._parse(text[: min(matches)[1]]), True
        certain = len(text) - _overlap(text, self._stop)
        self._withheld = text[certain:]
        return self._parse(text[:certain]), False

    def _parse(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._text.append(text)
        return self._deltas([Piece("content", text)] if self.request.raw else self._parser.feed(text))

    def _deltas(self, events: Sequence[Piece | ToolCall]) -> list[Delta]:
        self._events.extend(events)
        return [
            Delta("tool_call", "", *self._place, event)
            if isinstance(event, ToolCall)
            else Delta(event.kind, event.text, *self._place)
            for event in events
        ]

    def _finish(self, reason: FinishReason, deltas: list[Delta], *, flush: bool) -> list[Delta]:
        """End the answer; `flush` releases the text that was withheld, which a stop text may still cut."""
        if flush and self._detokenizer is not None:
            rest, stopped = self._release(self._detokenizer.flush())
            deltas += rest
            if not stopped:
                deltas += self._parse(self._withheld)
        deltas += self._deltas(self._parser.finish())
        parsed = self._parser.collect(self._events)
        if reason == "stop" and parsed.tool_calls:
            reason = "tool_calls"
        self.result = Generation(
            text="".join(self._text),
            thinking=parsed.thinking,
            content=parsed.content,
            tool_calls=parsed.tool_calls,
            token_ids=self._tokens,
            forced_mask=self._forced,
            logprobs=None if self.request.sampling.logprobs is None else self.logprobs,
            finish_reason=reason,
            usage=self.usage,
        )
        return [*deltas, Delta("end", "", *self._place, result=self.result)]


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


def _overlap(text: str, stops: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
