"""Answers as OpenAI's objects: whole, or as the chunks of a stream.

Thinking comes as `reasoning_content`, which Qwen-Agent and SGLang's clients read, and as `reasoning`, vLLM's newer name. A tool
call comes whole, in one chunk with an id of its own. Log probabilities are of all tokens, thinking included.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from qwen3_jax.generation import Delta, Generation, Token, TokenLogprob, Usage
from qwen3_jax.generation.answer import Answer
from qwen3_jax.text import Tokenizer, ToolCall


class Reply(ABC):
    """The answers to one request as they grow; base of `ChatReply` and `TextReply`.

    Args:
        model: what the server calls it.
        tokenizer: spells the tokens of log probabilities.
        answers: choice by choice; the prompts of several choices may be the same.
        samples: choices per prompt.
    """

    prefix, object, chunk_object = "", "", ""

    def __init__(self, model: str, tokenizer: Tokenizer, answers: Sequence[Answer], samples: int):
        self.answers = answers
        self.started = time.perf_counter()
        self.first: float | None = None
        self._samples = samples
        self._tokenizer = tokenizer
        self._common = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in answers]
        self._given = [0] * len(answers)  # of these, in chunks
        self._calls = [0] * len(answers)

    @property
    def done(self) -> bool:
        """Whether all answers are finished."""
        return all(answer.result is not None for answer in self.answers)

    def add(self, index: int, token: Token) -> list[dict[str, Any]]:
        """Take one answer's next token; return the chunks that are certain."""
        if self.first is None:
            self.first = time.perf_counter()
        if token.logprob is not None:
            self._logprobs[index].append(self._spelled(token.logprob))
        return [chunk for delta in self.answers[index].add(token) for chunk in self._chunks(index, delta)]

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before any token."""
        return []

    def closing(self) -> dict[str, Any]:
        """The chunk with the token counts."""
        return self._chunk([]) | {"usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The object of a request that does not stream."""
        choices = [self._choice(i, answer.result) for i, answer in enumerate(self.answers) if answer.result is not None]
        return self._common | {"object": self.object, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Token counts of all answers together, each prompt once."""
        all_of: list[Usage] = [answer.usage for answer in self.answers]
        prompts = all_of[:: self._samples]
        prompt = sum(usage.prompt_tokens for usage in prompts)
        completion = sum(usage.completion_tokens for usage in all_of)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
            "completion_tokens_details": {
                "reasoning_tokens": sum(usage.thinking_tokens for usage in all_of),
                "forced_tokens": sum(usage.forced_tokens for usage in all_of),
            },
        }

    @abstractmethod
    def _chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """What a stream says of a delta."""

    @abstractmethod
    def _choice(self, index: int, result: Generation) -> dict[str, Any]:
        """A finished answer in the object of a request that does not stream."""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._common | {"object": self.chunk_object, "choices": choices}

    def _since(self, index: int, start: int) -> list[dict[str, Any]] | None:
        """Log probabilities of an answer's tokens from one on; None where none are reported."""
        return None if self.answers[index].logprobs is None else self._logprobs[index][start:]

    def _new(self, index: int) -> list[dict[str, Any]] | None:
        """Those that no chunk has had yet."""
        start, self._given[index] = self._given[index], len(self._logprobs[index])
        return self._since(index, start)

    def _spelled(self, of: TokenLogprob) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            bytes_ = self._tokenizer.bytes_of(token)
            # JSON has no -inf; OpenAI's own stand-in for what is out of reach.
            return {
                "token": bytes_.decode("utf-8", "replace"),
                "logprob": max(logprob, -9999.0),
                "bytes": list(bytes_),
            }

        return one(of.token_id, of.logprob) | {"top_logprobs": [one(*pair) for pair in of.top]}


class ChatReply(Reply):
    """/v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """The role, once for each choice."""
        return [self._delta(i, {"role": "assistant", "content": ""}, None) for i in range(len(self.answers))]

    def _chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        taken = self._new(index)
        if delta.kind == "thinking":
            return [self._delta(index, {"reasoning_content": delta.text, "reasoning": delta.text}, taken)]
        if delta.kind == "content":
            return [self._delta(index, {"content": delta.text}, taken)]
        if delta.tool_call is not None:
            place = self._calls[index]
            self._calls[index] += 1
            call = {"index": place} | _call(delta.tool_call)
            return [self._delta(index, {"tool_calls": [call]}, taken)]
        assert delta.result is not None
        return [self._delta(index, {}, taken, delta.result.finish_reason)]

    def _delta(self, index: int, delta: dict[str, Any], taken: Any, finish: str | None = None) -> dict[str, Any]:
        return self._chunk([{"index": index, "delta": delta, "logprobs": _of_content(taken), "finish_reason": finish}])

    def _choice(self, index: int, result: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.content}
        if result.thinking is not None:
            message |= {"reasoning_content": result.thinking, "reasoning": result.thinking}
        if result.tool_calls:
            message |= {"content": result.content or None, "tool_calls": [_call(call) for call in result.tool_calls]}
        return {
            "index": index,
            "message": message,
            "logprobs": _of_content(self._since(index, 0)),
            "finish_reason": result.finish_reason,
        }


class TextReply(Reply):
    """/v1/completions."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        finish, start = None if delta.result is None else delta.result.finish_reason, self._given[index]
        return [self._chunk([self._piece(index, delta.text, finish, self._new(index), start)])]

    def _choice(self, index: int, result: Generation) -> dict[str, Any]:
        return self._piece(index, result.text, result.finish_reason, self._since(index, 0), 0)

    def _piece(
        self, index: int, text: str, finish: str | None, of: list[dict[str, Any]] | None, start: int
    ) -> dict[str, Any]:
        logprobs = None
        if of is not None:  # in the older form
            lengths = [len(one["token"]) for one in self._logprobs[index]]
            logprobs = {
                "tokens": [one["token"] for one in of],
                "token_logprobs": [one["logprob"] for one in of],
                "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in of],
                "text_offset": [sum(lengths[:place]) for place in range(start, start + len(of))],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _of_content(logprobs: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
