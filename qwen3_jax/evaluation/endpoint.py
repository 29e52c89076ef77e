"""Answers from a server with OpenAI's API: `qwen3 serve`, vLLM, SGLang, llama.cpp, a hosted model.

Requests that fail for a reason that passes (429, 5xx, a lost connection) are sent again, with longer and longer pauses. A
server that still does not answer ends the run in one sentence, after the answers in flight have been taken.
"""

from __future__ import annotations

import functools
import http.client
import json
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.plan import Item, sampling_fields
from qwen3_jax.evaluation.reply import Reply
from qwen3_jax.evaluation.workers import Workers
from qwen3_jax.text import parse
from qwen3_jax.text.byte_level import THINK_END, THINK_START

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
_SHOWN = 300  # characters of a server's message
_TOO_LONG = ("context_length_exceeded", "maximum context length", "context length", "context window", "too many tokens")


class _Dead(Exception):
    """The server does not answer, however often it is asked."""


class _Refused(Exception):
    """The server refuses the request; `too_long` if its context does not hold it."""

    def __init__(self, status: int, text: str, too_long: bool):
        super().__init__(f"HTTP {status}: {text}")
        self.too_long = too_long


class Endpoint:
    """Answers from a server.

    Args:
        url: http(s)://HOST:PORT, with or without /v1.
        model: its name there; None asks the server, which must have one model.
        key: sent as a bearer token; None sends none.
        concurrency: requests at a time.
        retries: how often a request is sent again.
        seconds: that one request may take.
        budget_field: field of the body that holds a thinking budget.

    Raises:
        UserError: the server cannot be reached, or has several models.
    """

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, concurrency: int = 16, retries: int = 6,
        seconds: float = 3600.0, budget_field: str = "thinking_budget",
    ):  # fmt: skip
        self.url = _base(url)
        self._key, self._concurrency, self._retries, self._seconds = key, concurrency, retries, seconds
        self._budget_field = budget_field
        self._ended = threading.Event()
        self.model = model or self._only_model()

    @property
    def thinks(self) -> None:
        """None, unknown: the API does not report it."""

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return {"endpoint": self.url, "model": self.model}

    def answers(self, families: Iterable[list[Item]]) -> Iterator[tuple[Item, Reply]]:
        """See `Source.answers`."""
        items = (item for family in families for item in family)
        failure: BaseException | None = None
        self._ended.clear()
        workers: Workers[Item, Reply] = Workers(self._concurrency, "endpoint")
        try:
            while True:
                while (
                    failure is None and workers.pending < self._concurrency and (item := next(items, None)) is not None
                ):
                    workers.put(item, functools.partial(self._ask, item))
                if (done := workers.take(wait=True)) is None:
                    break
                if done.value is not None:
                    yield done.tag, done.value
                elif done.error is not None and failure is None:
                    failure = _worded(done.error, done.tag, self.url)
                    self._ended.set()  # the others give up at their next failure
        finally:
            self._ended.set()
            workers.close()
        if failure is not None:
            raise failure

    def _ask(self, item: Item) -> Reply:
        prompt = item.question.problem.prompt
        body: dict[str, Any] = {
            "model": self.model, "max_tokens": item.max_new_tokens, "seed": item.sampling.seed,
            **sampling_fields(item.sampling),
        }  # fmt: skip
        if isinstance(prompt, str):
            return _of_text(self._post("/completions", body | {"prompt": prompt}), item)
        body["messages"] = [dict(message) for message in prompt]
        if item.question.problem.tools:
            body["tools"] = [dict(tool) for tool in item.question.problem.tools]
        if item.enable_thinking is False or item.budget == 0:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        elif item.budget is not None:
            body[self._budget_field] = item.budget
        reply = _of_message(self._post("/chat/completions", body), item)
        if item.budget is not None and (reply.thinking_tokens or 0) > item.budget:
            raise UserError(
                f"{self.url} does not keep the thinking budget: an answer has {reply.thinking_tokens} thinking tokens under "
                f"{item.budget}, given as {self._budget_field!r}; name the field that it reads, or leave the budget out."
            )
        return reply

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | str:
        """The server's answer; the reason, if the prompt is too long for it."""
        try:
            return self._send(path, body)
        except _Refused as error:
            if not error.too_long:
                raise
        # Some servers refuse a limit that the context does not hold behind the prompt; without one they take what it holds.
        try:
            return self._send(path, {name: value for name, value in body.items() if name != "max_tokens"})
        except _Refused as error:
            if not error.too_long:
                raise
            return str(error)

    def _send(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request and its repetitions; returns the JSON object of the reply."""
        for attempt in range(self._retries + 1):
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                text, code = _message(error)
                if error.code != 429 and error.code < 500:
                    said = f"{code} {text}".lower()
                    too_long = error.code in (400, 413, 422) and any(words in said for words in _TOO_LONG)
                    raise _Refused(error.code, text, too_long) from None
                reason, pause = f"HTTP {error.code}: {text}", error.headers.get("retry-after")
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, pause = _line(str(getattr(error, "reason", "")) or str(error) or type(error).__name__), None
            if attempt == self._retries or self._ended.wait(_pause(attempt, pause)):
                raise _Dead(f"{reason}; asked {attempt + 1} times")
        raise AssertionError

    def _once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=self._seconds) as response:
            value = json.loads(response.read())
        if not isinstance(value, dict):
            raise ValueError("the reply is no JSON object")
        return value

    def _only_model(self) -> str:
        try:
            listed = self._send("/models").get("data")
            names = [str(model["id"]) for model in listed or ()]
        except (_Dead, _Refused) as error:
            raise UserError(f"{self.url} cannot be asked for its model ({error}).") from None
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            has = f"has {len(names)} models" + (f" ({', '.join(names[:8])})" if names else "")
            raise UserError(f"{self.url} {has}; name one with --endpoint-model.")
        return names[0]


def _base(url: str) -> str:
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UserError(f"--model {url!r} is no address of a server, such as http://localhost:8000/v1.")
    path = parts.path.rstrip("/")
    for route in ("/chat/completions", "/completions"):
        path = path.removesuffix(route)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds to wait: what the server asked for, else twice as long each time, with some chance in it."""
    if asked is None:
        return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.75, 1.25)
    try:
        return min(max(float(asked), 0.0), _LONGEST_PAUSE)
    except ValueError:  # a date
        return _LONGEST_PAUSE


def _message(error: urllib.error.HTTPError) -> tuple[str, str]:
    """The text and the code of an error's body, in OpenAI's form or any other."""
    try:
        raw = error.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        raw = ""
    try:
        body = json.loads(raw)
        inner = body.get("error", body) if isinstance(body, dict) else body
        if isinstance(inner, dict):
            return _line(str(inner.get("message") or raw)), str(inner.get("code") or "")
    except ValueError:
        pass
    return _line(raw) or error.reason, ""


def _line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN].rstrip(".")


def _worded(error: BaseException, item: Item, url: str) -> BaseException:
    if isinstance(error, _Dead):
        return UserError(f"{url} does not answer any more ({error})")
    if isinstance(error, _Refused):
        return UserError(f"{url} refuses the task {item.key.task}, problem {item.key.problem} ({error})")
    return error


def _of_text(value: dict[str, Any] | str, item: Item) -> Reply:
    if isinstance(value, str):
        return Reply.not_asked(value)
    choice, usage = _choice(value)
    text = str(choice.get("text") or "")
    return _reply(text, text, None, (), choice, usage, item)


def _of_message(value: dict[str, Any] | str, item: Item) -> Reply:
    """A chat completion; its text is put together as the model writes it."""
    if isinstance(value, str):
        return Reply.not_asked(value)
    choice, usage = _choice(value)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise UserError("the server's reply has no message; it is not OpenAI's API.")
    content = message.get("content") if isinstance(message.get("content"), str) else ""
    thinking = message.get("reasoning_content") or message.get("reasoning") or None
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        calls.append({"name": str(function.get("name")), "arguments": str(function.get("arguments") or "{}")})
    text = content or ""
    if isinstance(thinking, str):
        closed = bool(text or calls) or choice.get("finish_reason") != "length"
        text = f"{THINK_START}\n{thinking}" + (f"\n{THINK_END}\n\n{text}" if closed else "")
    else:
        parsed = parse(text, tools=False)
        thinking, content = parsed.thinking, parsed.content
    for call in calls:
        name = json.dumps(call["name"], ensure_ascii=False)
        text += f'\n<tool_call>\n{{"name": {name}, "arguments": {call["arguments"]}}}\n</tool_call>'
    return _reply(text, content or "", thinking, tuple(calls), choice, usage, item)


def _choice(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    choices, usage = value.get("choices"), value.get("usage")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UserError("the server's reply has no choices; it is not OpenAI's API.")
    return choices[0], usage if isinstance(usage, dict) else {}


def _reply(
    text: str, content: str, thinking: str | None, calls: tuple[dict[str, str], ...], choice: dict[str, Any],
    usage: dict[str, Any], item: Item,
) -> Reply:  # fmt: skip
    details = usage.get("completion_tokens_details")
    counted = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return Reply(
        text, thinking, content, calls, str(choice.get("finish_reason") or "stop"), usage.get("prompt_tokens"),
        int(usage.get("completion_tokens") or 0), counted if counted is not None or thinking else 0, None,
        max_new_tokens=item.max_new_tokens, thinking_budget=item.budget,
    )  # fmt: skip
