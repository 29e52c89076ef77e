"""A server of which a test sees what it would generate."""

import asyncio
import contextlib
from collections.abc import Iterator

import httpx

from qwen3_jax import Engine
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.worker import Stopped
from tests.helpers import tiny_models


class Captured:
    """A server that accepts requests and generates nothing."""

    def __init__(self) -> None:
        self.server = Server(Engine(tiny_models.model(0), rows=2, cache_tokens=2048), tiny_models.tokenizer(), "tiny")
        self.server.ready = True
        self.server._engine.max_length = 1 << 16  # schemas are long in the tokens of the tiny tokenizer
        self.server.app._log = None
        self.server.worker.submit = self._submit  # type: ignore[method-assign]
        self.requests: list = []

    @contextlib.contextmanager
    def _submit(self, requests) -> Iterator[None]:
        self.requests = list(requests)
        raise Stopped("captured")
        yield

    def ask(self, path: str, body: dict) -> dict | None:
        """Send a body; return the error, or None if it was accepted."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.post(path, json=body)

        response = asyncio.run(send())
        error = response.json()["error"]
        if error["message"] == "captured.":
            return None
        assert response.status_code == 400, (response.status_code, error)
        return error


def check_place(error: dict, body: dict) -> None:
    """A refusal names a field of the body, in one sentence."""
    names = [name for name in body if name in error["message"]]
    assert error.get("param") or names, error
    assert error["message"].endswith((".", "?"))
    assert "\n" not in error["message"]
