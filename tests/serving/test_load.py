"""Many clients at once, of all APIs, most of them well-behaved."""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.helpers import tiny_models
from tests.helpers.served import Running, raw_chat, serve

CLIENTS = 64
CHAT, RESPONSES, MESSAGES = ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "seconds", [pytest.param(8, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.soak)]
)
def test_many_clients(tiny_folder, tmp_path, seconds):
    load(tiny_folder, tmp_path, seconds)


def load(folder: Path, work: Path, seconds: float) -> None:
    """Whatever else clients do, each finished answer is what the same request gets alone, and nothing is left behind."""
    # Each size of a batch and of a prompt's parts is a program to compile.
    sizes = ("--rows", "16", "--cache-tokens", "3072", "--prefill-chunk", "64")
    if seconds < 60:
        sizes = ("--rows", "8", "--cache-tokens", "1536", "--prefill-chunk", "16")
    with serve(folder, work, *sizes, "--max-body", "100000", "--lookup", "3") as server:
        references = [answered(server, request) for request in requests(np.random.default_rng(0), 30)]
        server.wait_until_idle()
        done = asyncio.run(crowd(server, references, seconds))
        server.wait_until_idle()
        print(json.dumps(done))
        assert server.process.poll() is None
        assert "Traceback" not in server.log, server.log[-5000:]
        assert done["answers"] > seconds
        assert server.meter("qwen3_preemptions_total") > 0
        assert (
            min(done[kind] for kind in (*ROUTES, "left", "malformed", "too large", "too long", "slow")) > seconds / 20
        )
        memory = done["memory"]
        assert memory[-1] - memory[len(memory) // 2] < 32 * MEGABYTE, memory


def requests(random: np.random.Generator, count: int) -> list[dict]:
    words = ["What", "is", "the", "sum", "of", "2", "and", "3", "and", "7,", "step", "by", "step?"]
    bodies = []
    for seed in range(count):
        text = " ".join(random.choice(words, random.integers(3, 60)))
        budget = dict(thinking_budget=int(random.integers(0, 8))) if seed % 3 == 0 else {}
        message = {"role": "user", "content": text}
        # An answer that grows by several pages is sure to take some that another one counted on.
        most = int(random.integers(300, 500) if seed % 6 == 5 else random.integers(40, 120))
        endless = dict(logit_bias={str(tiny_models.tokenizer().im_end_id): -100}) if seed % 2 else {}
        bodies.append(dict(messages=[message], seed=seed, temperature=1, max_tokens=most) | budget | endless)
    return bodies


def answered(server: Running, request: dict) -> tuple[dict, tuple]:
    got = server.post("/v1/chat/completions", **request).json()
    message, finish = got["choices"][0]["message"], got["choices"][0]["finish_reason"]
    return request, (
        message.get("reasoning_content") or "",
        message["content"] or "",
        finish,
        got["usage"]["completion_tokens"],
    )


async def crowd(server: Running, references: list, seconds: float) -> dict:
    done = {
        **dict.fromkeys(ROUTES, 0),
        "answers": 0,
        "left": 0,
        "malformed": 0,
        "too large": 0,
        "too long": 0,
        "slow": 0,
        "busy": 0,
        "memory": [],
    }
    ends = time.monotonic() + seconds

    async def watch() -> None:
        statm = Path(f"/proc/{server.process.pid}/statm")
        while time.monotonic() < ends:
            done["memory"].append(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            await asyncio.sleep(seconds / 40)

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        clients = [one(client, server, references, np.random.default_rng(seed), done, ends) for seed in range(CLIENTS)]
        await asyncio.gather(watch(), *clients)
    return done


async def one(client: httpx.AsyncClient, server: Running, references: list, random, done: dict, ends: float) -> None:
    while time.monotonic() < ends:
        request, expected = references[random.integers(len(references))]
        what = random.choice(
            ["ask", "leave", "malformed", "too large", "too long", "slow"], p=[0.7, 0.1, 0.05, 0.05, 0.05, 0.05]
        )
        route = random.choice(ROUTES)
        url, body = f"{server.url}{route}", json.dumps(of_route(route, request)).encode()
        if what in ("ask", "leave"):
            leaves_after = random.integers(0, 12) if what == "leave" else None
            got = await stream(client, url, route, body, leaves_after)
            if got is None:
                done["left"] += 1
            elif got == "busy":
                done["busy"] += 1
                await asyncio.sleep(0.2)
            else:
                assert got == expected, (request, got, expected)
                done["answers"] += 1
                done[route] += 1
        elif what == "slow":
            await read_slowly(server, json.dumps(of_route(CHAT, request)).encode(), random)
            done["slow"] += 1
        else:
            bad, status = {
                "malformed": (body[: random.integers(1, len(body) - 1)], 400),
                "too large": (json.dumps(of_route(route, said("x" * 200_000))).encode(), 413),
                "too long": (json.dumps(of_route(route, said("no " * 3000))).encode(), 400),
            }[what]
            with contextlib.suppress(httpx.WriteError):  # the server may hang up before it has read all
                response = await client.post(url, content=bad, headers={"Content-Type": "application/json"})
                assert response.status_code == status, response.text
                assert response.json()["error"]["message"]
            done[what] += 1


def said(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 9}


def of_route(route: str, request: dict) -> dict:
    """The body that asks another API for the same answer, as a stream."""
    if route == CHAT:
        return request | {"stream": True, "stream_options": {"include_usage": True}}
    if route == MESSAGES:
        return request | {"stream": True}
    renamed = {"messages": "input", "max_tokens": "max_output_tokens"}
    return {renamed.get(name, name): value for name, value in request.items()} | {"stream": True}


async def stream(client: httpx.AsyncClient, url: str, route: str, body: bytes, leaves_after: int | None):
    """The parts of a streamed answer, or None if the client leaves after some lines of it."""
    answer, lines = {"thinking": "", "content": "", "finish": None, "tokens": None}, 0
    async with client.stream("POST", url, content=body, headers={"Content-Type": "application/json"}) as response:
        if response.status_code in (429, 529):
            return "busy"
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if leaves_after is not None and (lines := lines + 1) > leaves_after:
                return None
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            {CHAT: read_chunk, RESPONSES: read_response, MESSAGES: read_message}[route](event, answer)
    return tuple(answer.values())


def read_chunk(event: dict, answer: dict) -> None:
    answer["tokens"] = event["usage"]["completion_tokens"] if event["usage"] else answer["tokens"]
    for choice in event["choices"]:
        answer["thinking"] += choice["delta"].get("reasoning_content") or ""
        answer["content"] += choice["delta"].get("content") or ""
        answer["finish"] = choice["finish_reason"] or answer["finish"]


def read_response(event: dict, answer: dict) -> None:
    if event["type"] in ("response.reasoning_text.delta", "response.output_text.delta"):
        answer["thinking" if "reasoning" in event["type"] else "content"] += event["delta"]
    elif event["type"] in ("response.completed", "response.incomplete"):
        answer["finish"] = "stop" if event["type"] == "response.completed" else "length"
        answer["tokens"] = event["response"]["usage"]["output_tokens"]


def read_message(event: dict, answer: dict) -> None:
    if event["type"] == "content_block_delta":
        answer["thinking"] += event["delta"].get("thinking", "")
        answer["content"] += event["delta"].get("text", "")
    elif event["type"] == "message_delta":
        answer["finish"] = {"end_turn": "stop", "max_tokens": "length"}[event["delta"]["stop_reason"]]
        answer["tokens"] = event["usage"]["output_tokens"]


async def read_slowly(server: Running, body: bytes, random) -> None:
    """A client that takes 200 bytes every now and then, and then leaves."""
    reader, writer = await asyncio.open_connection(*server.address, limit=256)
    writer.write(raw_chat(body))
    with contextlib.suppress(ConnectionError):
        for _ in range(random.integers(5, 20)):
            if not await reader.read(200):
                break
            await asyncio.sleep(0.1)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
