"""The start of a server: what it says, when it accepts requests, and that it hears signals meanwhile."""

import asyncio
import functools
import io
import re
import signal
import threading
import time

import httpx
import pytest

from qwen3_jax import Engine, Request, Sampling
from qwen3_jax.generation import Stats
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.startup import CLEAR, Startup
from qwen3_jax.serving.worker import Worker
from tests.helpers import tiny_models
from tests.helpers.served import serve


class Idle:
    """An engine without requests."""

    busy, running, waiting, cache_usage, stats = False, 0, 0, (0, 1), Stats()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def started(out, programs: int, first: int, hold: threading.Event | None = None) -> tuple[list, Startup]:
    """Run a start to its end; return what was done in order."""
    done: list = []
    worker = Worker(Idle())  # type: ignore[arg-type] # all that a worker asks for
    calls = [functools.partial(done.append, number) for number in range(1, programs + 1)]
    if hold is not None:
        calls[-1] = lambda: (hold.wait(10), done.append(programs))
    startup = Startup(worker, calls, first, out)

    async def run() -> None:
        startup.begin(lambda: done.append("accepting"))
        worker.start()
        reporting = asyncio.create_task(startup.report())
        while startup.left or "accepting" not in done or "ready" not in out.getvalue():
            await asyncio.sleep(0.01)
            if hold is not None and f"compiling {programs} of" in out.getvalue():
                hold.set()
        await reporting

    asyncio.run(asyncio.wait_for(run(), 20))
    worker.stop()
    return done, startup


def without_times(out: io.StringIO) -> list[str]:
    return re.sub(r"\d+ s\b", "N s", out.getvalue()).splitlines()


def test_requests_are_accepted_once_the_first_programs_exist_and_every_program_is_counted():
    out = io.StringIO()
    done, startup = started(out, 5, 2)
    assert done == [1, 2, "accepting", 3, 4, 5]
    assert startup.left == 0
    assert without_times(out) == [
        "compiling 1 of 5", "compiling 2 of 5", "requests are accepted after N s", "compiling 3 of 5", "compiling 4 of 5",
        "compiling 5 of 5", "ready after N s",
    ]  # fmt: skip


def test_without_programs_it_is_ready_at_once():
    out = io.StringIO()
    assert started(out, 0, 2)[0] == ["accepting"]
    assert without_times(out) == ["ready after N s"]


def test_a_terminal_gets_one_line_that_is_redrawn_during_a_compilation():
    out = Terminal()
    done, _ = started(out, 17, 2, threading.Event())
    assert done[-1] == 17
    drawn = out.getvalue()
    assert re.search(rf"{re.escape(CLEAR)}compiling 17 of 17, \d+ s", drawn)
    assert re.search(rf"{re.escape(CLEAR)}ready after \d+ s\n", drawn)
    assert "\ncompiling" not in drawn


@pytest.mark.slow
def test_an_engine_compiles_while_it_answers():
    """Programs that are compiled between two steps change no answer; the first ones are those of a short prompt."""
    sizes = dict(rows=2, cache_tokens=512, slots_per_page=4, prefill_chunk=16, decode_steps=1)
    prompt = tuple(tiny_models.tokenizer().encode("What is 2 + 3?"))
    request = Request(prompt, Sampling(temperature=1, seed=3, repetition_penalty=1.3), 12)
    answers = []
    for compiling in (False, True):
        engine = Engine(tiny_models.model(2, eos=False), **sizes)
        programs = engine.programs(constraints=True)
        assert len(programs) > Engine.FIRST_PROGRAMS
        engine.submit(request)
        tokens = []
        while engine.busy:
            tokens += [token.id for token in engine.step()]
            if compiling and programs:
                programs.pop()()
        answers.append(tokens)
    assert len(answers[0]) == 12
    assert answers[0] == answers[1]


def test_a_server_says_that_it_is_starting():
    server = Server(Engine(tiny_models.model(0), rows=2, cache_tokens=512), tiny_models.tokenizer(), "tiny")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/ready")

    response = asyncio.run(ask())
    assert response.status_code == 503
    assert "the server is starting; retry later" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, -signal.SIGTERM), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_during_the_start_is_heard(tiny_folder, tmp_path, sent, code):
    """With many programs ahead, and a compilation running: the process ends within seconds."""
    options = ("--rows", "64", "--cache-tokens", "4096")
    with serve(tiny_folder, tmp_path, *options, wait=False) as server:
        deadline = time.monotonic() + 60
        while "compiling 2 of " not in server.log:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.02)
        server.process.send_signal(sent)
        asked = time.monotonic()
        assert server.process.wait(20) == code
        assert time.monotonic() - asked < 15
        assert "Traceback" not in server.log, server.log
        assert "ready after" not in server.log


def test_a_server_reports_its_start(server):
    deadline = time.monotonic() + 120
    while not re.search(r"ready after \d+ s\n", log := server.log):
        assert time.monotonic() < deadline, log
        time.sleep(0.1)
    count = re.findall(r"compiling (\d+) of (\d+)\n", log)
    assert [int(number) for number, _ in count] == list(range(1, int(count[0][1]) + 1))
    assert re.search(r"requests are accepted after \d+ s\n", log)
