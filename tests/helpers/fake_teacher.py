"""A server that gives log-probabilities of prompts for distillation, in this process; it may be faulty, and it may die."""

import dataclasses
import itertools
import json
from http.server import BaseHTTPRequestHandler

import numpy as np

from tests.helpers.tiny_models import VOCABULARY

# by fault, what becomes of the alternatives of a token
ODD = {
    "text alternatives": lambda top: {token.replace("token_id:", "w"): value for token, value in top.items()},
    "nan": lambda top: dict.fromkeys(top, float("nan")),
    "positive": lambda top: dict.fromkeys(top, 2.0),
    "above 1": lambda top: dict.fromkeys(top, -0.1),
    "impossible": lambda top: dict.fromkeys(top, float("-inf")),
    "null": lambda top: dict.fromkeys(top),
}
OWN = {
    "own null": None,
    "own nan": float("nan"),
    "own positive": 3.0,
}  # what it gives as the token's own log-probability


@dataclasses.dataclass
class FakeTeacher:
    """A server whose log-probabilities depend on the token before alone.

    Attributes:
        fault: what it does wrong.
        answers: whole replies until it dies; None is no limit.
        asked: bodies of requests that it answered.
        seen: prompts of requests that it was alive for.
    """

    fault: str = ""
    answers: int | None = None
    asked: list = dataclasses.field(default_factory=list)
    seen: list = dataclasses.field(default_factory=list)

    def top(self, before: int, own: int, k: int) -> dict[int, float]:
        """k tokens with log-probabilities, and `own`."""
        random = np.random.default_rng(before)
        order, logits = random.permutation(VOCABULARY), np.sort(random.normal(size=VOCABULARY, scale=3.0))[::-1]
        logs = dict(zip(order.tolist(), (logits - np.logaddexp.reduce(logits)).tolist(), strict=True))
        return {own: logs[own]} | {token: logs[token] for token in order[:k].tolist()}

    def reply(self, body: dict) -> dict:
        ids, k = body["prompt"], body["logprobs"]
        fields = dict(echo=True, max_tokens=0, temperature=1, return_tokens_as_token_ids=True)
        assert {name: body[name] for name in fields} == fields
        seen = [*ids[:-1], (ids[-1] + 1) % VOCABULARY] if self.fault == "other ids" else ids
        spell = (lambda token: f"<{token}>") if self.fault == "text" else (lambda token: f"token_id:{token}")
        count = k - 2 if self.fault == "few" else k
        tops = [self.top(before, own, count) for before, own in itertools.pairwise(ids)]
        logprobs = {
            "tokens": [spell(token) for token in seen],
            "token_logprobs": [None, *(top[own] for top, own in zip(tops, ids[1:], strict=True))],
            "top_logprobs": [None, *({spell(token): value for token, value in top.items()} for top in tops)],
        }
        if self.fault in ODD:
            logprobs["top_logprobs"][1:] = [ODD[self.fault](top) for top in logprobs["top_logprobs"][1:]]
        if self.fault in OWN:
            logprobs["token_logprobs"] = [OWN[self.fault]] * len(seen)
        if self.fault == "no echo":
            logprobs = {name: [] for name in logprobs}
        return {"choices": [{"text": "", "logprobs": logprobs}]}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self._send(200, {"data": [{"id": "fake"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if fake.fault == "400":
                    return self._send(400, {"error": {"message": "logprobs is at most 5."}})
                if fake.answers is not None and len(fake.asked) >= fake.answers:
                    self.close_connection = True
                    return None
                is_new = body["prompt"] not in fake.seen
                fake.seen.append(body["prompt"])
                if fake.fault == "lossy" and is_new and sum(body["prompt"]) % 3 == 0:
                    return self._send(503, {"error": "busy"}, {"Retry-After": "0.01"})
                fake.asked.append(body)
                return self._send(200, fake.reply(body))

            def _send(self, status, value, headers=None):
                raw = json.dumps(value).encode()
                self.send_response(status)
                for name, text in ({"Content-Length": str(len(raw))} | (headers or {})).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(raw)

        return Handler
