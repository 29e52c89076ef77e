"""One answer as it grows on the host: tokens in, typed deltas out, and the finished result.

Invariant: the deltas of a stream, joined, are the fields of its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qwen3_jax.text import AnswerParser, Tokenizer, ToolCall
from qwen3_jax.text import Delta as Piece

if TYPE_CHECKING:
    from qwen3_jax.generation.requests import Token

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer.

    Attributes:
        prompt_tokens: tokens of the prompt after the chat template.
        completion_tokens: all tokens of the answer: sampled, forced, and the one that ended it.
        thinking_tokens: sampled tokens between the think tags; what the budget limits.
        forced_tokens: tokens of the stop text.
        cached_tokens: tokens of the prompt whose keys and values were there already.
    """

    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int
    forced_tokens: int
    cached_tokens: int = field(default=0, compare=False)  # how an answer came about is not what it is

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log probability of one token (natural log, before penalties and temperature).

    Attributes:
        token_id, logprob: the token that was taken.
        top: (token id, log probability) of the most likely tokens, best first, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    Attributes:
        text: everything that was written, tags included; without special tokens and without the stop text that ended it.
        thinking: what stood between the think tags; None if there was no thinking section.
        content: the answer proper.
        tool_calls: the calls in it, when tools were given; then they are not part of `content`.
        token_ids: all tokens of the answer, the ending one included.
        forced_mask: for each token, whether the budget forced it.
        logprobs: for each token, or None when they were not asked for.
        finish_reason: "stop" (an end token or stop text), "length" (max_new_tokens), "tool_calls".
        usage: token counts.
        others: the further answers to the same prompt when `Sampling.n` > 1.
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
        """The answer as a message, to go on from."""
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
        index: which prompt this belongs to.
        sample: which of the n answers to it.
        tool_call: a complete call.
        result: the finished answer.
    """

    kind: Literal["thinking", "content", "tool_call", "end"]
    text: str = ""
    index: int = 0
    sample: int = 0
    tool_call: ToolCall | None = None
    result: Generation | None = None


@dataclass
class Answer:
    """Collects one row's tokens until it is finished.

    Attributes:
        tokenizer: None gives empty texts.
        prompt_tokens: length of the prompt.
        max_new_tokens: tokens after which the answer ends with "length".
        eos: tokens that end it.
        stop: texts that end it.
        in_thinking: the prompt left `<think>` open.
        tools: tool calls are parsed.
        logprobs: alternatives to report, or None.
        raw: think tags and tool calls are text like any other.
        one_call: the answer ends with its first tool call.
        index, sample: copied into the deltas.
    """

    tokenizer: Tokenizer | None
    prompt_tokens: int
    max_new_tokens: int
    eos: frozenset[int]
    stop: tuple[str, ...]
    in_thinking: bool
    tools: bool
    logprobs: int | None
    raw: bool = False
    one_call: bool = False
    index: int = 0
    sample: int = 0
    result: Generation | None = None
    _tokens: list[int] = field(default_factory=list)
    _forced: list[bool] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _thinking_tokens: int = 0
    _cached_tokens: int = 0
    _text: list[str] = field(default_factory=list)
    _held: str = ""  # text that may yet turn out to begin a stop text
    _events: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parser = AnswerParser(self.in_thinking and not self.raw, self.tools and not self.raw)
        self._detokenizer = None if self.tokenizer is None else self.tokenizer.detokenizer(skip_special_tokens=True)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        forced, cached = sum(self._forced), self._cached_tokens
        return Usage(self.prompt_tokens, len(self._tokens), self._thinking_tokens, forced, cached)

    def add(self, token: Token) -> list[Delta]:
        """Take the next token; give the deltas that are certain. Tokens after the end are dropped."""
        if self.result is not None:
            return []
        self._tokens.append(token.id)
        self._forced.append(token.forced)
        self._thinking_tokens += token.thinking
        self._cached_tokens = token.cached
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
        if token.id in self.eos:
            return self._finish("stop", [])
        text = "" if self._detokenizer is None else self._detokenizer.add(token.id)
        deltas, stopped = self._release(text)
        if stopped or (self.one_call and any(delta.kind == "tool_call" for delta in deltas)):
            return self._finish("stop", deltas)
        if len(self._tokens) >= self.max_new_tokens:
            return self._finish("length", deltas)
        return deltas

    def _release(self, text: str) -> tuple[list[Delta], bool]:
        """Pass on text up to what may begin a stop text; cut at the one that is whole first, the longest of several."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self.stop if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return self._parse(text[: min(found)[1]]), True
        held = _overlap(text, self.stop)
        self._held = text[len(text) - held :]
        return self._parse(text[: len(text) - held]), False

    def _parse(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._text.append(text)
        return self._deltas([Piece("content", text)] if self.raw else self._parser.feed(text))

    def _deltas(self, events: Sequence) -> list[Delta]:
        self._events.extend(events)
        return [
            Delta("tool_call", index=self.index, sample=self.sample, tool_call=event)
            if isinstance(event, ToolCall)
            else Delta(event.kind, event.text, self.index, self.sample)
            for event in events
        ]

    def _finish(self, reason: FinishReason, deltas: list[Delta]) -> list[Delta]:
        ended_by_text = reason == "stop" and not (self._tokens and self._tokens[-1] in self.eos)
        if self._detokenizer is not None and not ended_by_text:
            more, stopped = self._release(self._detokenizer.flush())
            deltas += more
            if not stopped:
                deltas += self._parse(self._held)
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
            logprobs=None if self.logprobs is None else self._logprobs,
            finish_reason=reason,
            usage=self.usage,
        )
        return [*deltas, Delta("end", index=self.index, sample=self.sample, result=self.result)]


def _overlap(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins one of the stop texts."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
