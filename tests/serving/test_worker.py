"""The engine's thread: delivery of tokens, cancellation, and errors when the engine fails or stops."""

import asyncio
import dataclasses
import threading

import httpx
import pytest

from qwen3_jax import Engine, Request, Sampling
from qwen3_jax.errors import RequestError
from qwen3_jax.generation import Stats, Token
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.events import while_connected
from qwen3_jax.serving.worker import Load, Stopped, Worker
from tests.helpers import tiny_models

SIZES = dict(rows=2, cache_tokens=512, slots_per_page=4, prefill_chunk=16, decode_steps=1)


class Broken(Engine):
    """Fails in its third step."""

    steps = 0

    def step(self):
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("out of memory, say")
        return super().step()


def test_a_failed_engine_raises_for_all_clients(capfd):
    engine = Broken(tiny_models.model(2, eos=False), **SIZES)
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


def test_a_server_with_a_failed_engine_is_unhealthy():
    engine = Broken(tiny_models.model(2, eos=False), **SIZES)
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
            assert (server._open, server._open_answers) == (0, 0)
            for path in ("/health", "/ready"):
                answer = await http.get(path)
                assert answer.status_code == 503
                assert "the engine has failed" in answer.json()["error"]["message"]

    asyncio.run(asyncio.wait_for(client(), 240))


class Scripted:
    """An engine without a model: each step returns one token per request, until each has `length` tokens."""

    def __init__(self, length: int):
        self.length, self.left, self.cancelled, self.count = length, {}, [], 0
        self.cache_usage, self.stats, self.waiting = (3, 9), Stats(prefill_tokens=5), 2
        self.gate = threading.Semaphore(0)  # one step per release

    @property
    def busy(self) -> bool:
        return bool(self.left)

    @property
    def running(self) -> int:
        return len(self.left)

    def submit(self, request: Request) -> int:
        if request.max_new_tokens > 100:
            raise RequestError("too long", "max_new_tokens")
        self.left[self.count] = self.length
        self.count += 1
        return self.count - 1

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        del self.left[number]

    def step(self) -> list[Token]:
        tokens: list[Token] = []
        if not self.gate.acquire(timeout=0.01):
            return tokens
        for number in list(self.left):
            self.left[number] -= 1
            last = self.left[number] == 0
            tokens.append(
                Token(number, 10 * number + self.left[number], False, False, None, "length" if last else None)
            )
            if last:
                del self.left[number]
        return tokens


def scripted(length: int, clients) -> tuple[Scripted, Worker]:
    """Run `clients(engine, worker)` in an event loop beside a worker."""
    engine = Scripted(length)
    worker = Worker(engine)
    worker.start()
    asyncio.run(asyncio.wait_for(clients(engine, worker), 60))
    for _ in range(10):
        engine.gate.release()
    worker.stop()
    return engine, worker


ONE = Request((1,), Sampling(), 5)


def test_each_ticket_gets_its_own_tokens_by_index():
    async def clients(engine, worker) -> None:
        with worker.submit([ONE, ONE]) as first, worker.submit([ONE]) as second:
            while engine.count < 3:
                await asyncio.sleep(0.001)
            engine.gate.release()
            assert [(i, token.id, token.finish) for i, token in await first.next()] == [(0, 1, None), (1, 11, None)]
            assert [(i, token.id, token.finish) for i, token in await second.next()] == [(0, 21, None)]
            engine.gate.release()
            assert [(i, token.id, token.finish) for i, token in await first.next()] == [
                (0, 0, "length"),
                (1, 10, "length"),
            ]
            assert [(i, token.id, token.finish) for i, token in await second.next()] == [(0, 20, "length")]

    engine, worker = scripted(2, clients)
    assert engine.cancelled == []  # all were finished when their tickets were left
    assert worker.load == Load(0, 0, 0, 9, Stats(prefill_tokens=5))
    assert worker._tickets == {}


def test_leaving_cancels_what_is_unfinished_and_one_can_be_cancelled_alone():
    async def clients(engine, worker) -> None:
        with worker.submit([ONE, ONE, ONE]) as ticket, worker.submit([ONE]) as other:
            while engine.count < 4:
                await asyncio.sleep(0.001)
            engine.gate.release()
            assert [i for i, _ in await ticket.next()] == [0, 1, 2]
            ticket.cancel(1)
            while not engine.cancelled:
                await asyncio.sleep(0.001)
            engine.gate.release()
            assert [i for i, _ in await ticket.next()] == [0, 2]
            assert engine.cancelled == [1]
            ticket.cancel(1)  # a second time is ignored
            await other.next()

    engine, _ = scripted(50, clients)
    assert sorted(engine.cancelled) == [0, 1, 2, 3]


def test_a_refused_request_cancels_its_siblings_and_no_other():
    async def clients(engine, worker) -> None:
        with worker.submit([ONE]) as other:
            refused = worker.submit([ONE, dataclasses.replace(ONE, max_new_tokens=101), ONE])
            with refused, pytest.raises(RequestError, match="too long"):
                await refused.next()
            assert engine.cancelled == [1]
            engine.gate.release()
            assert [i for i, _ in await other.next()] == [0]

    engine, _ = scripted(50, clients)
    assert engine.count == 2


def test_a_stopping_worker_raises():
    async def clients(engine, worker) -> None:
        with worker.submit([ONE]) as ticket:
            while not engine.count:
                await asyncio.sleep(0.001)
            worker.post(worker._stop)
            with pytest.raises(Stopped, match="shutting down"):
                await ticket.next()

    _, worker = scripted(50, clients)
    assert worker.failure is None


class Asker:
    """A request whose client disconnects after some seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    async def receive(self) -> dict:
        await asyncio.sleep(self.seconds)
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("stays", "works", "limit", "status"), [(9, 0, 9, None), (0, 9, 9, 499), (9, 9, 0.01, 504), (9, 0.01, 9, None)]
)
def test_work_ends_with_its_client_or_its_time(stays, works, limit, status):
    ended = []

    async def work() -> str:
        try:
            await asyncio.sleep(works)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return "done"

    if status is None:
        assert asyncio.run(while_connected(Asker(stays), work(), limit)) == "done"
        assert ended == []
        return
    with pytest.raises(Refused) as refused:
        asyncio.run(while_connected(Asker(stays), work(), limit))
    assert refused.value.status == status
    assert ended == ["cancelled"]
