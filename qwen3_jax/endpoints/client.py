"""An OpenAI-compatible endpoint as a backend: requests in threads, each reply sorted into what it means for the request.

400, 413, 422           refused: the same request would be refused again
401; 403 and 404 before any answer: `EndpointError`, because every request would fail
408, 409, 425, 429, 5xx, a lost connection, a stall, a reply that is not whole     unreachable: try again

A limit of new tokens that the context does not hold behind the prompt is refused by some servers, and lowered by others: such a
request is sent again without a limit, so that the same happens everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

from qwen3_jax.endpoints.chat import ChatRequest, Reply
from qwen3_jax.endpoints.pause import FIRST_PAUSE, pause
from qwen3_jax.endpoints.replies import read_reply
from qwen3_jax.endpoints.transport import CHAT, TEXT, EndpointError, HttpReply, LostReply, NoConnection, Transport
from qwen3_jax.threads import Workers

_REFUSED = (400, 413, 422)
_WRONG_FROM_THE_START = (403, 404, 405)
_TOO_LONG = ("context_length_exceeded", "context length", "context window", "context size", "too many tokens")


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
        self._workers: Workers[int, Reply] = Workers(concurrency, "endpoint")
        self._has_answered = False
        self._error: BaseException | None = None

    def submit(self, number: int, request: ChatRequest, key: str = "") -> None:
        """Send a request as soon as one of the threads is free."""
        self._workers.put(number, functools.partial(self.ask, request, key))

    def collect(self, seconds: float | None = None) -> list[tuple[int, Reply]]:
        """Wait for at least one reply; [] if there is none within `seconds`, or none is to come.

        Raises:
            EndpointError: the endpoint refuses every request.
        """
        if self._error is not None:
            raise self._error
        replies: list[tuple[int, Reply]] = []
        done = self._workers.take(seconds)
        while done is not None:
            if done.error is not None:
                self._error = done.error
                if replies:  # they are not lost: the error comes with the next call
                    return replies
                raise done.error
            assert done.value is not None
            replies.append((done.tag, done.value))
            done = self._workers.take(0)
        return replies

    def close(self) -> None:
        """End the threads; replies that are still to come are dropped."""
        self._workers.close()
        self._workers = Workers(self.slots, "endpoint")
        self._transport.close()

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The JSON body of a request. Fields that OpenAI's API does not have are sent only where they are set."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_new_tokens, **request.sampling}
        if request.text is None:
            body["messages"] = list(request.messages)
        else:
            body["prompt"] = request.text
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
        body = self.body(request)
        reply = self._reply(request, body, key)
        if reply.too_long:
            del body["max_tokens"]
            reply = self._reply(request, body, f"{key}-unlimited" if key else "")
        budget = request.thinking_budget
        if budget is not None and reply.tokens is not None and reply.tokens.thinking > budget:
            raise EndpointError(
                f"{self.url} does not keep the thinking budget: an answer has {reply.tokens.thinking} thinking tokens under "
                f"{budget}, given as {self._budget_field!r}; name the field that it reads, or leave the budget out."
            )
        return reply

    def ask_again(
        self, request: ChatRequest, tries: int, *, first_pause: float = FIRST_PAUSE, stopped: threading.Event | None = None,
        key: str = "",
    ) -> Reply:  # fmt: skip
        """Send one request until there is a usable reply, in this thread; "unreachable" says how often it was sent.

        Args:
            request: to send.
            tries: at most.
            first_pause: seconds before the second try; longer each time, or as the server asks.
            stopped: is set when no further try is wanted.
            key: equal for repetitions of one request; sent as Idempotency-Key.

        Raises:
            EndpointError: see `ask`.
        """
        stopped, tried = stopped or threading.Event(), 0
        while True:
            reply = self.ask(request, key)
            tried += 1
            if reply.outcome != "unreachable":
                return reply
            if tried == tries or stopped.wait(pause(tried, reply.retry_after, first_pause)):
                return dataclasses.replace(reply, reason=f"{reply.reason}; asked {tried} times")

    def _reply(self, request: ChatRequest, body: dict[str, Any], key: str) -> Reply:
        headers = {"Idempotency-Key": key} if key else {}
        of_text = request.text is not None
        try:
            http = self._transport.post(TEXT if of_text else CHAT, body, headers)
        except NoConnection as error:
            return Reply("unreachable", reason=str(error))
        except LostReply as error:
            return Reply("unreachable", reason=str(error), may_cost=True)
        if http.status != 200:
            return self._failed(http)
        reply = read_reply(http.body, of_text=of_text)
        self._has_answered = self._has_answered or reply.outcome != "unreachable"
        return reply

    def _failed(self, http: HttpReply) -> Reply:
        text = f"HTTP {http.status}" + (f": {http.message}" if http.message else "")
        if http.status in _REFUSED:
            said = f"{http.code} {http.message}".lower()
            return Reply("refused", reason=text, too_long=any(words in said for words in _TOO_LONG))
        if http.status in _WRONG_FROM_THE_START and self._has_answered:
            return Reply("refused", reason=text)
        if http.status == 401 or http.status in _WRONG_FROM_THE_START or 300 <= http.status < 400:
            raise EndpointError(
                f"{self.url} does not accept requests for the model {self.model!r} ({text})."
                + self._transport.key_hint(http.status)
            )
        return Reply("unreachable", reason=text, retry_after=http.retry_after)
