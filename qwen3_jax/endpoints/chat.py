"""What is asked and what comes back, in one form for every backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Outcome = Literal["ok", "truncated", "refused", "unreachable", "over budget"]
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
"""Fields of `ChatRequest.sampling`."""

# Tokens that a chat template may add: to a conversation, to each message, and for the instructions about tools.
_TEMPLATE_TOKENS, _MESSAGE_TOKENS, _TOOLS_TOKENS = 64, 16, 1024


@dataclass(frozen=True)
class ChatRequest:
    """One answer to ask for.

    Attributes:
        messages: the conversation, in OpenAI's form; () where `text` is given.
        max_new_tokens: most tokens of the answer, thinking included.
        sampling: some of `SAMPLING`; what is absent is the backend's default.
        seed: of the sampling, 0 to 2^31 - 1; None leaves it to the backend.
        stop: texts that end the answer.
        enable_thinking: None leaves it to the chat template.
        thinking_budget: most thinking tokens; None is unlimited.
        schema: a JSON Schema that the answer follows; None is free text.
        tools: functions that the model may call, in OpenAI's form.
        text: is continued as it is, without a chat template; None is a conversation.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_new_tokens: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class Tokens:
    """Token counts of one reply.

    Attributes:
        prompt: tokens of the prompt, cached ones included.
        completion: tokens of the answer, thinking included.
        cached: prompt tokens that were in the backend's cache.
        thinking: tokens of the thinking section.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    thinking: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes:
        outcome: "ok"; "truncated": the answer reached max_new_tokens; "refused": the backend will not answer this request, now
            or later; "unreachable": no usable reply this time, and another try may succeed; "over budget": it was not asked.
        content: the answer without its thinking; "" where there is none.
        thinking: the thinking section; None if the answer has none.
        tool_calls: in OpenAI's form.
        tokens: as the backend counts them; None where it did not say.
        reason: why there is no answer, or why it ended early; "" for "ok".
        may_cost: the backend may have worked on the request although no counts came back.
        retry_after: seconds after which the backend asks to be tried again; None if it did not say.
        forced_tokens: tokens of the answer that a thinking budget inserted; None where the backend does not say.
        finish_reason: as the backend gave it; "" where there is no answer.
        too_long: refused because the context does not hold the prompt.
        text: all that the model wrote, where a server does not tell thinking and answer apart; None elsewhere. Not recorded.
    """

    outcome: Outcome
    content: str = ""
    thinking: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tokens: Tokens | None = None
    reason: str = ""
    may_cost: bool = False
    retry_after: float | None = None
    forced_tokens: int | None = None
    finish_reason: str = ""
    too_long: bool = False
    text: str | None = None


class Backend(Protocol):
    """Answers requests, several at a time; used from one thread.

    Attributes:
        fingerprint: equal for models that give the same answers, as far as can be told.
        slots: requests that it works on at the same time; more may be submitted, and wait.
        is_remote: a request in progress is not lost with this process, and may be paid for.
    """

    fingerprint: str
    slots: int
    is_remote: bool

    def submit(self, number: int, request: ChatRequest, key: str = "") -> None:
        """Ask for an answer; `key` is equal for repetitions of one request, and goes to an endpoint as Idempotency-Key."""

    def collect(self, seconds: float | None = None) -> list[tuple[int, Reply]]:
        """Wait until a request is finished, at most `seconds`; return what is finished, with the numbers of `submit`.

        Raises:
            UserError: no request can succeed: a wrong key, an unknown model.
        """

    def close(self) -> None:
        """Drop the requests in progress."""


def prompt_bound(request: ChatRequest) -> int:
    """An upper bound of the tokens of a prompt, for any byte-level tokenizer: a token is a byte or more.

    The chat template's own text is counted generously; a system prompt that an endpoint adds by itself is not known here.
    """
    described = [
        *request.messages, *request.tools, *(each for each in (request.schema, request.text) if each is not None)
    ]  # fmt: skip
    size = sum(len(json.dumps(part, ensure_ascii=False).encode("utf-8", "replace")) for part in described)
    overhead = _TEMPLATE_TOKENS + _MESSAGE_TOKENS * len(request.messages)
    return size + overhead + (_TOOLS_TOKENS if request.tools or request.schema is not None else 0)
