"""Answers as OpenAI's objects: whole, or as the chunks of a stream.

Thinking is sent as `reasoning_content`, read by Qwen-Agent and SGLang's clients, and as `reasoning`, vLLM's newer name. A tool
call is sent whole, in one chunk, with an id of its own. Log probabilities cover all tokens, thinking included.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwen3_jax.generation import Delta, Generation, TokenLogprob
from qwen3_jax.generation.answer import Answer
from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.events import event
from qwen3_jax.serving.objects import StreamOptions
from qwen3_jax.text import Tokenizer, ToolCall

Json = dict[str, Any]
Logprobs = Sequence[TokenLogprob] | None  # None unless requested


class Reply(ABC):
    """The answers to one HTTP request as they grow: the form of an API's objects and events.

    Args:
        model: its name on this server.
        answers: one per choice, prompt by prompt.
        samples: choices per prompt.

    Attributes:
        model, answers: as given.
        started, first: times of the request and of its first token (`time.perf_counter`).
    """

    def __init__(self, model: str, answers: Sequence[Answer], samples: int = 1):
        self.model, self.answers = model, answers
        self.started = time.perf_counter()
        self.first: float | None = None
        self._samples = samples

    @property
    def done(self) -> bool:
        """Whether all answers are finished."""
        return all(answer.result is not None for answer in self.answers)

    def note_first_token(self) -> None:
        """Set the time of the first token, unless it is set."""
        self.first = self.first or time.perf_counter()

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

    def opening(self) -> list[Json]:
        """Return the events before any token."""
        return []

    @abstractmethod
    def events(self, choice: int, delta: Delta) -> list[Json]:
        """Take a delta; return its events."""

    def take(self, choice: int, delta: Delta) -> None:
        """Take a delta of a request that does not stream."""
        self.events(choice, delta)

    def encode(self, value: Json) -> bytes:
        """Encode an event."""
        return event(value)

    def ending(self) -> bytes:
        """Return the encoded events behind the last delta's."""
        return b""

    def failed(self, refused: Refused) -> bytes:
        """Return the encoded event of an error behind the first event."""
        return event(refused.body())

    @abstractmethod
    def whole(self) -> Json:
        """Return the object of a finished request that does not stream."""


class Chunks(Reply):
    """OpenAI's older APIs; base of `ChatReply` and `TextReply`.

    Args:
        tokenizer: spells the tokens of log probabilities.
        wanted: token counts in a stream.
        model, answers, samples: see `Reply`.
    """

    prefix, object, chunk_object = "", "", ""

    def __init__(
        self, model: str, tokenizer: Tokenizer, answers: Sequence[Answer], samples: int, wanted: StreamOptions | None = None
    ):  # fmt: skip
        super().__init__(model, answers, samples)
        self._tokenizer = tokenizer
        self._wanted = wanted or StreamOptions()
        self._common = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        # Per choice, in earlier chunks: log probabilities, and tool calls.
        self._sent, self._calls = ([0] * len(answers) for _ in range(2))

    def events(self, choice: int, delta: Delta) -> list[Json]:
        """Return the chunk of a delta."""
        return [self.chunk(choice, delta)]

    def take(self, choice: int, delta: Delta) -> None:
        """Take a delta of a request that does not stream: `whole` is made from the results."""

    def encode(self, value: Json) -> bytes:
        """Encode a chunk, with the token counts so far if they are wanted."""
        if self._wanted.continuous_usage_stats:
            return event(value | {"usage": self.usage()})
        return event(value | {"usage": None} if self._wanted.include_usage else value)

    def ending(self) -> bytes:
        """Return the chunk with the token counts, if it is wanted, and the end mark."""
        return (event(self.closing()) if self._wanted.include_usage else b"") + b"data: [DONE]\n\n"

    def chunk(self, choice: int, delta: Delta) -> Json:
        """Return the chunk of one delta, with the log probabilities that are new since the choice's previous chunk."""
        logprobs, start = self.answers[choice].logprobs, self._sent[choice]
        self._sent[choice] = len(logprobs)
        reported = self.answers[choice].request.sampling.logprobs is not None
        return self._chunk(choice, delta, logprobs[start:] if reported else None)

    def closing(self) -> Json:
        """Return the chunk with the token counts."""
        return self._common | {"object": self.chunk_object, "choices": [], "usage": self.usage()}

    def whole(self) -> Json:
        """Return the object of a request that does not stream."""
        choices = []
        for index, answer in enumerate(self.answers):
            assert answer.result is not None
            choices.append(self._choice(index, answer.result))
        return self._common | {"object": self.object, "choices": choices, "usage": self.usage()}

    @abstractmethod
    def _chunk(self, choice: int, delta: Delta, logprobs: Logprobs) -> Json:
        """Return the chunk of a delta."""

    @abstractmethod
    def _choice(self, index: int, result: Generation) -> Json:
        """Return a finished answer as an entry of "choices"."""

    def _spelled(self, token: int) -> str:
        return self._tokenizer.bytes_of(token).decode("utf-8", "replace")


class ChatReply(Chunks):
    """/v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[Json]:
        """Return the role, once for each choice."""
        return [self._wrap(i, {"role": "assistant", "content": ""}, None) for i in range(len(self.answers))]

    def _chunk(self, choice: int, delta: Delta, logprobs: Logprobs) -> Json:
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

    def _wrap(self, choice: int, delta: Json, logprobs: Logprobs, finish: str | None = None) -> Json:
        entry = {"index": choice, "delta": delta, "logprobs": self._content(logprobs), "finish_reason": finish}
        return self._common | {"object": self.chunk_object, "choices": [entry]}

    def _choice(self, index: int, result: Generation) -> Json:
        message: Json = {"role": "assistant", "content": result.content}
        if result.thinking is not None:
            message |= {"reasoning_content": result.thinking, "reasoning": result.thinking}
        if result.tool_calls:
            message |= {"content": result.content or None, "tool_calls": [_call(call) for call in result.tool_calls]}
        reason = result.finish_reason
        return {
            "index": index, "message": message, "logprobs": self._content(result.logprobs), "finish_reason": reason,
        }  # fmt: skip

    def _content(self, logprobs: Logprobs) -> Json | None:
        if logprobs is None:
            return None

        def one(token: int, logprob: float) -> Json:
            raw = list(self._tokenizer.bytes_of(token))
            return {"token": self._spelled(token), "logprob": _finite(logprob), "bytes": raw}

        entries = [one(of.token_id, of.logprob) | {"top_logprobs": [one(*pair) for pair in of.top]} for of in logprobs]
        return {"content": entries, "refusal": None}


class TextReply(Chunks):
    """/v1/completions.

    Args:
        prompts: as in the request, to be repeated before the answers to them (`echo`); empty repeats none.
        as_ids: tokens of log probabilities are spelled "token_id:9707", as vLLM does, so that they can be told apart.
        model, tokenizer, answers, samples, wanted: see `Chunks`.
    """

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, model: str, tokenizer: Tokenizer, answers: Sequence[Answer], samples: int,
        wanted: StreamOptions | None = None, prompts: Sequence[str | Sequence[int]] = (), as_ids: bool = False,
    ):  # fmt: skip
        super().__init__(model, tokenizer, answers, samples, wanted)
        self._as_ids = as_ids
        self._prompts = [_Prompt.of(tokenizer, prompt, answers[i * samples]) for i, prompt in enumerate(prompts)]
        self._places = [self._new_places(choice) for choice in range(len(answers))]
        self._begun = [False] * len(answers)

    def _chunk(self, choice: int, delta: Delta, logprobs: Logprobs) -> Json:
        finish = None if delta.result is None else delta.result.finish_reason
        entry = self._entry(choice, delta.text, finish, logprobs, self._places[choice], first=not self._begun[choice])
        self._begun[choice] = True
        return self._common | {"object": self.chunk_object, "choices": [entry]}

    def _choice(self, index: int, result: Generation) -> Json:
        return self._entry(
            index, result.text, result.finish_reason, result.logprobs, self._new_places(index), first=True
        )

    def _spelled(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else super()._spelled(token)

    def _prompt(self, choice: int) -> "_Prompt | None":
        return self._prompts[choice // self._samples] if self._prompts else None

    def _new_places(self, choice: int) -> "_Places":
        prompt = self._prompt(choice)
        return _Places(self._tokenizer, 0 if prompt is None else len(prompt.text))

    def _entry(
        self, choice: int, text: str, finish: str | None, logprobs: Logprobs, places: "_Places", *, first: bool
    ) -> Json:
        """Return an entry of "choices"; log probabilities have the older form. The `first` one has the prompt."""
        prompt = self._prompt(choice) if first else None
        reported = None
        if logprobs is not None:
            tokens = [each.token_id for each in logprobs]
            entries: list[TokenLogprob | None] = list(logprobs)
            offsets = [places.add(token) for token in tokens]
            if prompt is not None:
                tokens, offsets = [*prompt.tokens, *tokens], [*prompt.offsets, *offsets]
                entries = [*self.answers[choice].prompt_logprobs, *entries]
            reported = {
                "tokens": [self._spelled(token) for token in tokens],
                "token_logprobs": [None if each is None else _finite(each.logprob) for each in entries],
                "top_logprobs": [None if each is None else self._top(each) for each in entries],
                "text_offset": offsets,
            }
        text = text if prompt is None else prompt.text + text
        return {"index": choice, "text": text, "logprobs": reported, "finish_reason": finish}

    def _top(self, of: TokenLogprob) -> dict[str, float]:
        """The most likely tokens and the token itself; of several with the same text (parts of characters) the likeliest."""
        top: dict[str, float] = {}
        for token, logprob in (*of.top, (of.token_id, of.logprob)):
            top.setdefault(self._spelled(token), _finite(logprob))
        return top


class _Places:
    """Where the tokens of an answer stand in the text of its choice, in characters; `start` is that of the first."""

    def __init__(self, tokenizer: Tokenizer, start: int):
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=True)
        self._at = start

    def add(self, token: int) -> int:
        """Return the place of the next token."""
        place = self._at
        self._at += len(self._detokenizer.add(token))
        return place


class _Prompt(NamedTuple):
    """A prompt that is repeated: its text, its tokens, and where they stand in the text, in characters."""

    text: str
    tokens: Sequence[int]
    offsets: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str | Sequence[int], answer: Answer) -> "_Prompt":
        tokens, detokenizer = answer.request.prompt, tokenizer.detokenizer()
        offsets, text = [], ""
        for token in tokens:
            offsets.append(len(text))
            text += detokenizer.add(token)
        text += detokenizer.flush()
        if isinstance(prompt, str) and prompt != text:  # the tokenizer has normalised it
            offsets, text = tokenizer.offsets(prompt), prompt
        return cls(text, tokens, offsets)


def _finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI's API gives -9999 for it."""
    return max(logprob, -9999.0)


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
