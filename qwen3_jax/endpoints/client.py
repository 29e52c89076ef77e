"""An OpenAI-compatible endpoint as a backend: requests in threads, each reply sorted into what it means for the request.

400, 413, 422           refused: the same request would be refused again
401; 403 and 404 before any answer: `EndpointError`, because every request would fail
408, 409, 425, 429, 5xx, a lost connection, a stall, a reply that is not whole     unreachable: try again
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Mapping
from typing import Any

from qwen3_jax.endpoints.chat import ChatRequest, Reply, Tokens
from qwen3_jax.endpoints.transport import EndpointError, HttpReply, LostReply, NoConnection, Transport
from qwen3_jax.text import parse

_REFUSED = (400, 413, 422)
_WRONG_FROM_THE_START = (403, 404, 405)


class Endpoint:
    """A chat endpoint.

    Args:
        url: as OpenAI's `base_url`, "http://localhost:8000/v1".
        model: its name there; None asks the server, which must have one.
        api_key: sent as a bearer token; None sends none.
        concurrency: requests at the same time.
        timeout: seconds for one whole reply.
        fingerprint: stands for the model in the identity of requests; None is address and name.
        budget_field: field of the body that holds a thinking budget (vLLM has thinking_token_budget).

    Raises:
        UserError: not an http address, a setting out of bounds, or no model to be found.
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        fingerprint: str | None = None,
        budget_field: str = "thinking_budget",
    ):
        self._transport = Transport(url, api_key=api_key, connections=concurrency, timeout=timeout)
        self.url, self.slots = self._transport.url, concurrency
        self.model = model or self._transport.only_model()
        self.fingerprint = fingerprint if fingerprint is not None else f"{self.url} {self.model}"
        self._budget_field = budget_field
        self._asked: queue.SimpleQueue[tuple[int, ChatRequest, str] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, Reply | BaseException]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._has_answered = False

    def submit(self, number: int, request: ChatRequest, key: str = "") -> None:
        """Send a request as soon as one of the threads is free."""
        if len(self._threads) < self.slots:
            thread = threading.Thread(target=self._work, name=f"endpoint-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._asked.put((number, request, key))

    def collect(self, seconds: float | None = None) -> list[tuple[int, Reply]]:
        """Wait for at least one reply; [] if there is none within `seconds`.

        Raises:
            EndpointError: the endpoint refuses every request.
        """
        replies: list[tuple[int, Reply]] = []
        with contextlib.suppress(queue.Empty):
            item = self._results.get(timeout=seconds)
            while True:
                number, reply = item
                if isinstance(reply, BaseException):
                    raise reply
                replies.append((number, reply))
                item = self._results.get_nowait()
        return replies

    def close(self) -> None:
        """End the threads; replies that are still to come are dropped."""
        for _ in self._threads:
            self._asked.put(None)
        self._threads = []
        self._transport.close()

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The JSON body of a request. Fields that OpenAI's API does not have are sent only where they are set."""
        body: dict[str, Any] = {
            "model": self.model, "messages": list(request.messages), "max_tokens": request.max_new_tokens, **request.sampling,
        }  # fmt: skip
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.enable_thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": request.enable_thinking}
        if request.thinking_budget is not None:
            body[self._budget_field] = request.thinking_budget
        if request.schema is not None:
            named = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if request.tools:
            body["tools"] = list(request.tools)
        return body

    def ask(self, request: ChatRequest, key: str = "") -> Reply:
        """Send one request and wait for its reply, in this thread.

        Raises:
            EndpointError: no request can succeed, or the endpoint does not keep a thinking budget.
        """
        headers = {"Idempotency-Key": key} if key else {}
        try:
            http = self._transport.post("/chat/completions", self.body(request), headers)
        except NoConnection as error:
            return Reply("unreachable", reason=str(error))
        except LostReply as error:
            return Reply("unreachable", reason=str(error), may_cost=True)
        if http.status != 200:
            return self._failed(http)
        reply = _reply(http.body)
        self._has_answered = self._has_answered or reply.outcome != "unreachable"
        budget = request.thinking_budget
        if budget is not None and reply.tokens is not None and reply.tokens.thinking > budget:
            raise EndpointError(
                f"{self.url} does not keep the thinking budget: an answer has {reply.tokens.thinking} thinking tokens under "
                f"{budget}, given as {self._budget_field!r}; name the field that it reads, or leave the budget out."
            )
        return reply

    def _failed(self, http: HttpReply) -> Reply:
        text = f"HTTP {http.status}" + (f": {http.message}" if http.message else "")
        if http.status in _REFUSED or (http.status in _WRONG_FROM_THE_START and self._has_answered):
            return Reply("refused", reason=text)
        if http.status == 401 or http.status in _WRONG_FROM_THE_START or 300 <= http.status < 400:
            raise EndpointError(f"{self.url} does not accept requests for the model {self.model!r} ({text}).")
        return Reply("unreachable", reason=text, retry_after=http.retry_after)

    def _work(self) -> None:
        while (item := self._asked.get()) is not None:
            number, request, key = item
            try:
                self._results.put((number, self.ask(request, key)))
            except BaseException as error:
                self._results.put((number, error))


def _reply(raw: bytes) -> Reply:
    """Read the body of a reply with status 200; anything that is not a whole chat completion is "unreachable"."""
    try:
        value = json.loads(raw)
        (choice,) = value["choices"]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content") or "", message.get("refusal")
        thinking = message.get("reasoning_content", message.get("reasoning"))
        calls = tuple(message.get("tool_calls") or ())
        tokens, forced = _usage(value.get("usage"))
        if not isinstance(content, str) or not isinstance(thinking, str | None):
            raise TypeError("its content is not text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Reply(
            "unreachable",
            reason=f"the reply is no chat completion ({type(error).__name__}: {error})"[:300],
            may_cost=True,
        )
    if thinking is None:  # a server that leaves the thinking in the text
        parsed = parse(content, tools=False)
        thinking, content = parsed.thinking, parsed.content
    of: dict[str, Any] = dict(
        content=content,
        thinking=thinking,
        tool_calls=calls,
        tokens=tokens,
        may_cost=tokens is None,
        forced_tokens=forced,
    )
    if refusal or finish == "content_filter":
        return Reply("refused", reason=f"the endpoint filtered the answer: {refusal or finish}"[:300], **of)
    if finish == "length":
        return Reply("truncated", reason="the answer reached its limit of tokens", **of)
    if finish not in ("stop", "tool_calls", "eos", "end_turn", None):
        return Reply("truncated", reason=f"the answer ended with finish_reason {finish!r}"[:300], **of)
    return Reply("ok", **of)


def _usage(usage: Any) -> tuple[Tokens | None, int | None]:
    if not isinstance(usage, Mapping):
        return None, None
    prompt, completion = counts = [usage.get(name, -1) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"its token counts are {counts}")
    before, after = (usage.get(f"{part}_tokens_details") or {} for part in ("prompt", "completion"))
    tokens = Tokens(prompt, completion, before.get("cached_tokens") or 0, after.get("reasoning_tokens") or 0)
    return tokens, after.get("forced_tokens")
