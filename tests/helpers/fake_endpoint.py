"""An OpenAI-compatible endpoint in this process that answers, fails, stalls, sends garbage and repeats itself, and counts.

What it does with a request is decided by a hash of the request's key and of how often that key has come, so that a test knows
that every kind of fault occurs, and that the next try may succeed. Answers depend on the request alone.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.helpers import loopback

FAULTS = ("HTTP 500", "HTTP 429", "stall", "garbage", "cut off", "no reply")


def answer_of(body: dict) -> str:
    """The default answer: some words that depend on the prompt and the seed."""
    prompt = body["messages"][-1]["content"]
    digest = hashlib.blake2b(f"{prompt}\0{body.get('seed')}".encode(), digest_size=8).hexdigest()
    return f"Answer {digest}. " + "word " * (int(digest[:2], 16) % 30)


@dataclass
class FakeEndpoint:
    """What it has seen and sent.

    Attributes:
        faulty: share of requests that fail in one of the ways of FAULTS.
        answer: makes the text of an answer from the body.
        seconds: that an answer takes.
        requests: (key, what was done) in the order of arrival; "ok" where a whole reply was sent.
        served: by key, (prompt, completion) tokens of every whole reply.
        worked: tokens of all requests that it has worked on, whether a whole reply came of it or not: what it may have billed.
        bodies: of all requests.
        faults: how often each kind of reply was sent.
    """

    faulty: float = 0.0
    answer: Callable[[dict], str] = answer_of
    seconds: float = 0.0
    stall_seconds: float = 30.0
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    served: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    worked: int = 0
    bodies: list[dict] = field(default_factory=list)
    faults: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def repeated(self) -> int:
        """Whole replies to requests that had been sent one before."""
        return sum(len(pairs) - 1 for pairs in self.served.values())

    def refused(self) -> set[str]:
        """Keys of the requests that it refuses for what they ask."""
        return {key for key, what in self.requests if what == "HTTP 400"}

    def plan(self, key: str, time_seen: int) -> str:
        """What is done with the request of this key when it comes for the n-th time."""
        digest = hashlib.blake2b(f"{key}/{time_seen}".encode(), digest_size=8).digest()
        if int.from_bytes(digest[:4], "big") / 2**32 >= self.faulty:
            return "ok"
        return FAULTS[digest[4] % len(FAULTS)]

    def total(self, *, once: bool = False) -> tuple[int, int]:
        """Prompt and completion tokens of all whole replies; `once`: of one for each key."""
        every = [pair for pairs in self.served.values() for pair in (pairs[:1] if once else pairs)]
        return sum(pair[0] for pair in every), sum(pair[1] for pair in every)


def reply(body: dict, text: str) -> dict:
    """A chat completion; tokens are words. "length" where the text has more than max_tokens words."""
    words = text.split(" ")
    most = body["max_tokens"]
    finish, text = ("stop", text) if len(words) <= most else ("length", " ".join(words[:most]))
    prompt = sum(len(message["content"].split()) for message in body["messages"]) + 3
    completion = min(len(words), most)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: FakeEndpoint

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key, one = self.headers.get("Idempotency-Key", ""), self.endpoint
        with one.lock:
            seen = sum(1 for other, _ in one.requests if other == key)
            what = one.plan(key, seen)
            prompt = body["messages"][-1]["content"]
            what = "HTTP 400" if "REFUSE" in prompt else what
            one.requests.append((key, what))
            one.bodies.append(body)
            one.faults[what] += 1
        if what == "HTTP 400":
            return self._send(400, {"error": {"message": "the prompt is too long"}})
        if what == "HTTP 500":
            return self._send(500, {"error": "out of memory"})
        if what == "HTTP 429":
            return self._send(429, {"error": "slow down"}, {"Retry-After": "0.01"})
        value = reply(body, "again and " * 10_000 if "REPEAT" in prompt else one.answer(body))
        with one.lock:
            one.worked += value["usage"]["total_tokens"]
        if what == "stall":
            time.sleep(one.stall_seconds)
            self.close_connection = True
            return None
        if what == "garbage":
            return self._send(200, None, raw=b"<html>bad gateway</html>")
        if what == "no reply":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        raw = json.dumps(value).encode()
        if what == "cut off":
            self._head(200, len(raw), {})
            self.wfile.write(raw[: len(raw) // 2])
            self.close_connection = True
            return None
        time.sleep(one.seconds)
        with one.lock:
            usage = value["usage"]
            one.served.setdefault(key, []).append((usage["prompt_tokens"], usage["completion_tokens"]))
        return self._send(200, None, raw=raw)

    def _send(self, status: int, value, headers: dict | None = None, raw: bytes = b"") -> None:
        raw = raw or json.dumps(value).encode()
        try:
            self._head(status, len(raw), headers or {})
            self.wfile.write(raw)
        except OSError:  # the client is gone
            self.close_connection = True

    def _head(self, status: int, length: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def fake_endpoint(**options):
    """Yield a running `FakeEndpoint`."""
    endpoint = FakeEndpoint(**options)
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    with loopback.serving(handler) as address:
        endpoint.url = f"{address}/v1"
        yield endpoint
