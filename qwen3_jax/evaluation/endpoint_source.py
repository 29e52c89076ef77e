"""Answers from a server with OpenAI's API: `qwen3 serve`, vLLM, SGLang, llama.cpp, a hosted model.

Requests that fail for a reason that passes (429, 5xx, a lost connection) are sent again, with longer and longer pauses. A
server that still does not answer ends the run in one sentence, after the answers in flight have been taken.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from qwen3_jax import endpoints
from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.endpoints import ChatRequest, Endpoint
from qwen3_jax.endpoints.pause import FIRST_PAUSE
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.plan import Item, sampling_fields
from qwen3_jax.evaluation.reply import Reply
from qwen3_jax.text.byte_level import THINK_END, THINK_START
from qwen3_jax.threads import Workers


class EndpointSource:
    """Answers from a server.

    Args:
        endpoint: the server.
        retries: how often a request is sent again.
        first_pause: seconds before a request is sent again; longer each time, or as the server asks.
    """

    def __init__(self, endpoint: Endpoint, *, retries: int = 6, first_pause: float = FIRST_PAUSE):
        check_bounds(dict(retries=retries), "endpoint option ", retries=whole(0))
        self._endpoint, self._tries, self._first_pause = endpoint, retries + 1, first_pause
        self._ended = threading.Event()

    @property
    def model(self) -> str:
        """The model's name at the server."""
        return self._endpoint.model

    @property
    def thinks(self) -> None:
        """None, unknown: the API does not report it."""

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return {"endpoint": self._endpoint.url, "model": self._endpoint.model}

    def answers(self, families: Iterable[list[Item]]) -> Iterator[tuple[Item, Reply]]:
        """See `Source.answers`."""
        items = (item for family in families for item in family)
        failure: BaseException | None = None
        self._ended.clear()
        workers: Workers[Item, Reply] = Workers(self._endpoint.slots, "endpoint")
        try:
            while True:
                while (
                    failure is None
                    and workers.pending < self._endpoint.slots
                    and (item := next(items, None)) is not None
                ):
                    workers.put(item, functools.partial(self._ask, item))
                if (done := workers.take()) is None:
                    break
                if done.value is not None:
                    yield done.tag, done.value
                elif done.error is not None and failure is None:
                    failure = done.error
                    self._ended.set()  # the others give up at their next failure
        finally:
            self._ended.set()
            workers.close()
        if failure is not None:
            raise failure

    def _ask(self, item: Item) -> Reply:
        reply = self._endpoint.ask_again(
            _request(item), self._tries, first_pause=self._first_pause, stopped=self._ended
        )
        if reply.outcome == "unreachable":
            raise UserError(f"{self._endpoint.url} does not answer any more ({reply.reason})")
        if reply.too_long:
            return Reply.not_asked(reply.reason)
        if reply.outcome == "refused" and not reply.finish_reason:
            task, problem = item.key.task, item.key.problem
            raise UserError(f"{self._endpoint.url} refuses the task {task}, problem {problem} ({reply.reason})")
        return _reply(reply, item)


def _request(item: Item) -> ChatRequest:
    fields = sampling_fields(item.sampling)
    stop = tuple(fields.pop("stop", ()))
    of: dict[str, Any] = dict(
        max_new_tokens=item.max_new_tokens, sampling=fields, seed=item.sampling.seed, stop=stop,
    )  # fmt: skip
    problem = item.question.problem
    if isinstance(problem.prompt, str):
        return ChatRequest((), text=problem.prompt, **of)
    off = item.enable_thinking is False or item.budget == 0
    return ChatRequest(
        tuple(dict(message) for message in problem.prompt), tools=tuple(dict(tool) for tool in problem.tools or ()),
        enable_thinking=False if off else None, thinking_budget=None if off else item.budget, **of,
    )  # fmt: skip


def _reply(reply: endpoints.Reply, item: Item) -> Reply:
    """An answer of the server; its text is put together as the model writes it."""
    calls = tuple({name: call["function"][name] for name in ("name", "arguments")} for call in reply.tool_calls)
    tokens, thinking = reply.tokens or endpoints.Tokens(), reply.thinking
    reported = reply.tokens is not None and bool(tokens.thinking or not thinking)
    text = reply.content if reply.text is None else reply.text
    if thinking is not None and reply.text is None:
        closed = bool(text or calls) or reply.finish_reason != "length"
        text = f"{THINK_START}\n{thinking}" + (f"\n{THINK_END}\n\n{text}" if closed else "")
    for call in calls:
        name = json.dumps(call["name"], ensure_ascii=False)
        text += f'\n<tool_call>\n{{"name": {name}, "arguments": {call["arguments"]}}}\n</tool_call>'
    return Reply(
        text, thinking, reply.content, calls, reply.finish_reason, None if reply.tokens is None else tokens.prompt,
        tokens.completion, tokens.thinking if reported else None, reply.forced_tokens,
        max_new_tokens=item.max_new_tokens, thinking_budget=item.budget,
    )  # fmt: skip
