"""An OpenAI-compatible endpoint as a backend: requests in threads, each reply sorted into what it means for the request.

    400, 413, 422           refused: the same request would be refused again
    401; 403 and 404 before any answer: `EndpointError`, because every request would fail
    408, 409, 425, 429, 5xx, a lost connection, a stall, a reply that is not whole     unreachable: try again

This module tries each request once; when to try again is the caller's decision, who also counts what it costs.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.endpoints.chat import ChatRequest, Reply, Tokens
from qwen3_jax.errors import UserError

_REFUSED = (400, 413, 422)
_WRONG_FROM_THE_START = (403, 404, 405)
_CONNECT_SECONDS = 10.0
_MOST_BYTES = 64 * 2**20  # of a reply


class EndpointError(UserError):
    """The endpoint cannot be used: a wrong address, key or model."""


class Endpoint:
    """A chat endpoint.

    Args:
        url: as OpenAI's `base_url`, "http://localhost:8000/v1"; "/v1" is added to an address without a path.
        model: its name there.
        api_key: sent as a bearer token; None sends none.
        concurrency: requests at the same time.
        timeout: seconds for one whole reply.
        fingerprint: stands for the model in the identity of requests; None is address and name.

    Raises:
        UserError: not an http address, or a setting out of bounds.
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        fingerprint: str | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is not the address of an endpoint; it starts with http:// or https://.")
        if not model:
            raise UserError(f"the endpoint {url} needs the name of a model.")
        options = dict(concurrency=concurrency, timeout=timeout)
        check_bounds(options, "endpoint option ", concurrency=whole(1), timeout=above(0, finite=True))
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = base if urlsplit(base).path else f"{base}/v1"
        self.model, self.slots, self.timeout = model, concurrency, timeout
        self.fingerprint = fingerprint if fingerprint is not None else f"{self.url} {model}"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=concurrency, block=False, retries=False, headers=self._headers
        )  # fmt: skip
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
        self._pool.clear()

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
            body["thinking_budget"] = request.thinking_budget
        if request.schema is not None:
            named = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if request.tools:
            body["tools"] = list(request.tools)
        return body

    def ask(self, request: ChatRequest, key: str = "") -> Reply:
        """Send one request and wait for its reply, in this thread.

        Raises:
            EndpointError: no request can succeed.
        """
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        deadline = time.monotonic() + self.timeout
        connected = False
        try:
            response = self._pool.request(
                "POST", f"{self.url}/chat/completions", body=json.dumps(self.body(request)).encode("utf-8", "replace"),
                headers=headers, preload_content=False, redirect=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT_SECONDS, self.timeout), read=self.timeout),
            )  # fmt: skip
            connected = True
            raw = _read(response, deadline)
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            return Reply("unreachable", reason=f"no connection ({_line(error)})")
        except (urllib3.exceptions.HTTPError, OSError, TimeoutError) as error:
            what = "the reply broke off" if connected else "no reply"
            return Reply("unreachable", reason=f"{what} ({_line(error)})", may_cost=True)
        if response.status != 200:
            return self._failed(response.status, raw, response.headers.get("Retry-After"))
        reply = _reply(raw)
        self._has_answered = self._has_answered or reply.outcome != "unreachable"
        return reply

    def _failed(self, status: int, raw: bytes, after: str | None) -> Reply:
        said = _message(raw)
        text = f"HTTP {status}" + (f": {said}" if said else "")
        if status in _REFUSED or (status in _WRONG_FROM_THE_START and self._has_answered):
            return Reply("refused", reason=text)
        if status == 401 or status in _WRONG_FROM_THE_START or 300 <= status < 400:
            raise EndpointError(f"{self.url} does not accept requests for the model {self.model!r} ({text}).")
        return Reply("unreachable", reason=text, retry_after=_seconds(after))

    def _work(self) -> None:
        while (item := self._asked.get()) is not None:
            number, request, key = item
            try:
                self._results.put((number, self.ask(request, key)))
            except BaseException as error:
                self._results.put((number, error))


def _read(response: Any, deadline: float) -> bytes:
    """The whole body, which may not trickle in for longer than the time limit."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in response.stream(2**16):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > deadline:
                raise TimeoutError("it took longer than the time limit")
            if size > _MOST_BYTES:
                raise TimeoutError(f"it is larger than {_MOST_BYTES} bytes")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return b"".join(pieces)


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


def _message(raw: bytes) -> str:
    """What the body of a failed request says, in one short line."""
    text = raw[:2000].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(raw)
        if isinstance(value, Mapping):
            error = value.get("error", value.get("message", value.get("detail", text)))
            text = str(error.get("message", error) if isinstance(error, Mapping) else error)
    return " ".join(text.split())[:300]


def _seconds(after: str | None) -> float | None:
    """The Retry-After header: seconds, or a date."""
    if after is None:
        return None
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
