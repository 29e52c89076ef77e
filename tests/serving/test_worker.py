"""The engine's thread when the engine fails: who waits is told, who comes later too, and /health says so."""

import asyncio

import httpx
import pytest

from qwen3_jax import Engine, Request, Sampling
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.worker import Stopped, Worker
from tests.helpers import tiny_models


class Broken(Engine):
    """Fails in its third step."""

    steps = 0

    def step(self):
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("out of memory, say")
        return super().step()


def test_a_failed_engine_tells_all_who_wait(capfd):
    engine = Broken(tiny_models.model(2, eos=False), rows=2, cache_tokens=256, decode_steps=1)
    worker = Worker(engine)
    request = Request((5, 6, 7), Sampling(temperature=0, seed=0), 50)

    async def wait(ticket) -> None:
        while True:
            await ticket.next()

    async def clients() -> None:
        with worker.submit([request]) as first, worker.submit([request, request]) as second:
            for ticket in (first, second):
                with pytest.raises(Stopped, match="failed"):
                    await wait(ticket)
        with worker.submit([request]) as late, pytest.raises(Stopped, match="failed"):
            await late.next()

    worker.start()
    asyncio.run(asyncio.wait_for(clients(), 240))
    worker.stop()
    assert "out of memory, say" in capfd.readouterr().err


def test_a_failed_engine_is_no_healthy_server():
    engine = Broken(tiny_models.model(2, eos=False), rows=2, cache_tokens=256, decode_steps=1)
    server = Server(engine, tiny_models.tokenizer(), "tiny", warm_up=False)

    async def client() -> None:
        # ASGI itself, with no network: the process must outlive its engine to say so.
        lifespan = server._lifespan(None)
        async with (
            lifespan,
            httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as http,
        ):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            body = dict(messages=[{"role": "user", "content": "2 + 3"}], max_tokens=50)
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 503
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 503
            for path in ("/health", "/ready"):
                answer = await http.get(path)
                assert answer.status_code == 503
                assert "the engine has failed" in answer.json()["error"]["message"]

    asyncio.run(asyncio.wait_for(client(), 240))
