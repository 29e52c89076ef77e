"""Answers as OpenAI's objects: whole, or as the chunks of a stream.

Thinking is sent as `reasoning_content`, read by Qwen-Agent and SGLang's clients, and as `reasoning`, vLLM's newer name. A tool
call is sent whole, in one chunk, with an id of its own. Log probabilities cover all tokens, thinking included.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from qwen3_jax.generation import Delta, Generation, TokenLogprob
from qwen3_jax.generation.answer import Answer
from qwen3_jax.text import Tokenizer, ToolCall

Json = dict[str, Any]


class Reply(ABC):
    """The answers to one HTTP request as they grow; base of `ChatReply` and `TextReply`.

    Args:
        model: its name on this server.
        tokenizer: spells the tokens of log probabilities.
        answers: one per choice, prompt by prompt.
        samples: choices per prompt.

    Attributes:
        answers: as given.
        started, first: times of the request and of its first token (`time.perf_counter`).
    """

    prefix, object, chunk_object = "", "", ""

    def __init__(self, model: str, tokenizer: Tokenizer, answers: Sequence[Answer], samples: int):
        self.answers = answers
        self.started = time.perf_counter()
        self.first: float | None = None
        self._samples = samples
        self._tokenizer = tokenizer
        self._common = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        # Per choice, in earlier chunks: log probabilities, tool calls, and characters of all tokens.
        self._sent, self._calls, self._offsets = ([0] * len(answers) for _ in range(3))

    @property
    def done(self) -> bool:
        """Whether all answers are finished."""
        return all(answer.result is not None for answer in self.answers)

    def note_first_token(self) -> None:
        """Set the time of the first token, unless it is set."""
        self.first = self.first or time.perf_counter()

    def opening(self) -> list[Json]:
        """Return the chunks before any token."""
        return []

    def chunk(self, choice: int, delta: Delta) -> Json:
        """Return the chunk of one delta, with the log probabilities that are new since the choice's previous chunk."""
        logprobs, start = self.answers[choice].logprobs, self._sent[choice]
        self._sent[choice] = len(logprobs)
        reported = self.answers[choice].request.sampling.logprobs is not None
        return self._chunk(choice, delta, [self._spelled(each) for each in logprobs[start:]] if reported else None)

    def closing(self) -> Json:
        """Return the chunk with the token counts."""
        return self._common | {"object": self.chunk_object, "choices": [], "usage": self.usage()}

    def whole(self) -> Json:
        """Return the object of a request that does not stream."""
        choices = []
        for index, answer in enumerate(self.answers):
            assert answer.result is not None
            logprobs = answer.result.logprobs
            spelled = None if logprobs is None else [self._spelled(each) for each in logprobs]
            choices.append(self._choice(index, answer.result, spelled))
        return self._common | {"object": self.object, "choices": choices, "usage": self.usage()}

    def usage(self) -> Json:
        """Return the token counts of all answers together, each prompt once."""
        usages = [answer.usage for answer in self.answers]
        prompts = usages[:: self._samples]
        prompt = sum(usage.prompt_tokens for usage in prompts)
        completion = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
            "completion_tokens_details": {
                "reasoning_tokens": sum(usage.thinking_tokens for usage in usages),
                "forced_tokens": sum(usage.forced_tokens for usage in usages),
            },
        }

    @abstractmethod
    def _chunk(self, choice: int, delta: Delta, logprobs: list[Json] | None) -> Json:
        """Return the chunk of a delta."""

    @abstractmethod
    def _choice(self, index: int, result: Generation, logprobs: list[Json] | None) -> Json:
        """Return a finished answer as an entry of "choices"."""

    def _spelled(self, of: TokenLogprob) -> Json:
        def one(token: int, logprob: float) -> Json:
            raw = self._tokenizer.bytes_of(token)
            # JSON has no -inf; OpenAI's API gives -9999 for it.
            return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}

        return one(of.token_id, of.logprob) | {"top_logprobs": [one(*pair) for pair in of.top]}


class ChatReply(Reply):
    """/v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[Json]:
        """Return the role, once for each choice."""
        return [self._wrap(i, {"role": "assistant", "content": ""}, None) for i in range(len(self.answers))]

    def _chunk(self, choice: int, delta: Delta, logprobs: list[Json] | None) -> Json:
        if delta.kind == "thinking":
            return self._wrap(choice, {"reasoning_content": delta.text, "reasoning": delta.text}, logprobs)
        if delta.kind == "content":
            return self._wrap(choice, {"content": delta.text}, logprobs)
        if delta.tool_call is not None:
            call = {"index": self._calls[choice]} | _call(delta.tool_call)
            self._calls[choice] += 1
            return self._wrap(choice, {"tool_calls": [call]}, logprobs)
        assert delta.result is not None
        return self._wrap(choice, {}, logprobs, delta.result.finish_reason)

    def _wrap(self, choice: int, delta: Json, logprobs: list[Json] | None, finish: str | None = None) -> Json:
        entry = {"index": choice, "delta": delta, "logprobs": _as_content(logprobs), "finish_reason": finish}
        return self._common | {"object": self.chunk_object, "choices": [entry]}

    def _choice(self, index: int, result: Generation, logprobs: list[Json] | None) -> Json:
        message: Json = {"role": "assistant", "content": result.content}
        if result.thinking is not None:
            message |= {"reasoning_content": result.thinking, "reasoning": result.thinking}
        if result.tool_calls:
            message |= {"content": result.content or None, "tool_calls": [_call(call) for call in result.tool_calls]}
        reason = result.finish_reason
        return {"index": index, "message": message, "logprobs": _as_content(logprobs), "finish_reason": reason}


class TextReply(Reply):
    """/v1/completions."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _chunk(self, choice: int, delta: Delta, logprobs: list[Json] | None) -> Json:
        finish = None if delta.result is None else delta.result.finish_reason
        entry = _text_choice(choice, delta.text, finish, logprobs, self._offsets[choice])
        self._offsets[choice] += sum(len(each["token"]) for each in logprobs or ())
        return self._common | {"object": self.chunk_object, "choices": [entry]}

    def _choice(self, index: int, result: Generation, logprobs: list[Json] | None) -> Json:
        return _text_choice(index, result.text, result.finish_reason, logprobs, 0)


def _text_choice(index: int, text: str, finish: str | None, entries: list[Json] | None, offset: int) -> Json:
    """Return an entry of "choices"; log probabilities have the older form, with offsets counted from `offset`."""
    logprobs = None
    if entries is not None:
        tokens = [each["token"] for each in entries]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [each["logprob"] for each in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in entries],
            "text_offset": [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))],
        }
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _as_content(logprobs: list[Json] | None) -> Json | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
