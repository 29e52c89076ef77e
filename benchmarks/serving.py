"""The overhead of HTTP and streaming over the bare engine, and the waiting time of clients under load.

    python -m benchmarks.serving                       # Qwen3-0.6B's shapes in float32, random weights
    python -m benchmarks.serving --model moe --clients 1 32

One process has the engine, first by itself and then behind `qwen3_jax.serving.app.Server` and uvicorn, in turn; the
clients, which read their streams to the end, are a process of their own. Both sides answer the same requests: `--clients` at
a time, with prompts of 64 tokens and 64 new tokens.

| figure | what it is                                                               | goal   |
|--------|--------------------------------------------------------------------------|--------|
| overhead | time of all answers through HTTP against the bare engine               | <= 5 % |
| outside | share of that time in which no program of the engine ran; larger on a faster device | |
| TTFT   | p50 and p99 of the time to a stream's first chunk, with clients that arrive at random |  |
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import multiprocessing
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.common import show
from benchmarks.inference import MODELS

PROMPT, NEW = 64, 64


def bodies(count: int, seed: int) -> list[dict]:
    """Return bodies of requests to /v1/completions, each with random token ids as its prompt."""
    random = np.random.default_rng(seed)
    prompts = random.integers(1000, 30_000, (count, PROMPT)).tolist()
    return [dict(prompt=prompt, max_tokens=NEW, temperature=0, seed=0, stream=True) for prompt in prompts]


async def ask_all(url: str, requests: list[dict], gaps: list[float]) -> list[float]:
    """Send each request `gaps` seconds after the one before; return the seconds to the first chunk of each."""

    async def one(client: httpx.AsyncClient, body: dict, start: float) -> float:
        await asyncio.sleep(start)
        started, first = time.perf_counter(), None
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for _ in response.aiter_lines():
                first = first or time.perf_counter() - started
        assert first is not None
        return first

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        starts = np.cumsum(gaps).tolist()
        return await asyncio.gather(*(one(client, *each) for each in zip(requests, starts, strict=True)))


def clients(pipe) -> None:
    """The clients' process: (url, requests, gaps) in, (seconds of all, seconds to each first chunk) out."""
    while (task := pipe.recv()) is not None:
        started = time.perf_counter()
        firsts = asyncio.run(ask_all(*task))
        pipe.send((time.perf_counter() - started, firsts))


@contextlib.contextmanager
def served(engine, tokenizer):
    """Serve the engine over HTTP in this process; yield the address."""
    import uvicorn

    from qwen3_jax.serving.app import Server

    server = Server(engine, tokenizer, "benchmark", warm_up=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", access_log=False, lifespan="on"))
        thread = threading.Thread(target=http.run, kwargs=dict(sockets=[listener]))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            time.sleep(0.05)
        try:
            yield url
        finally:
            http.should_exit = True
            thread.join()


def bare(engine, requests: list[dict]) -> float:
    """Return the seconds of all answers by the engine alone."""
    from qwen3_jax import Request, Sampling

    started = time.perf_counter()
    for body in requests:
        engine.submit(Request(tuple(body["prompt"]), Sampling(temperature=0, seed=0), body["max_tokens"]))
    while engine.busy:
        engine.step()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="0.6b", help="shapes (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="compute type (default: %(default)s)"
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 32], help="numbers of clients (default: 1 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: %(default)s)")
    parser.add_argument(
        "--load", type=int, default=48, help="requests that arrive at random, at 70%% of the throughput"
    )
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=clients, args=(theirs,), daemon=True)
    process.start()
    import jax.numpy as jnp
    from flax import nnx

    from qwen3_jax import Engine, Qwen3

    dtype = jnp.dtype(options.dtype)
    model = Qwen3(MODELS[options.model], rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype, scan_layers=False)
    rows_of_engine = max(options.clients)
    engine = Engine(model, rows=rows_of_engine, cache_tokens=rows_of_engine * 2 * (PROMPT + NEW), prefix_cache=False)
    engine.warm_up()
    rows, rate = [], 0.0
    for count in options.clients:
        seconds: dict[str, list[float]] = {"bare": [], "http": [], "outside": []}
        for turn in range(
            options.rounds * min(rows_of_engine // count, 6)
        ):  # with few clients a turn is short and noisier
            requests = bodies(count, turn)
            seconds["bare"].append(bare(engine, requests))
            before = dataclasses.replace(engine.stats)
            with served(engine, tokenizer()) as url:
                ours.send((url, requests, [0.0] * count))
                http_seconds, _ = ours.recv()
            spent = engine.stats.since(before)
            seconds["http"].append(http_seconds)
            seconds["outside"].append(http_seconds - spent.prefill_seconds - spent.decode_seconds)
        alone, whole, outside = map(statistics.median, seconds.values())
        rate = count / whole
        per_second = [f"{count * NEW / s:,.1f} tokens/s" for s in (alone, whole)]
        rows.append([
            f"{count} clients", *per_second, f"{100 * (whole / alone - 1):+.1f} %", f"{100 * outside / whole:.1f} %"
        ])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    gaps = np.random.default_rng(0).exponential(1 / (0.7 * rate), options.load).tolist()
    with served(engine, tokenizer()) as url:
        ours.send((url, bodies(options.load, 99), gaps))
        _, firsts = ours.recv()
    p50, p99 = np.percentile(firsts, [50, 99])
    rows.append(["TTFT, Poisson at 70 %", f"p50 {p50:.2f} s", f"p99 {p99:.2f} s", "", ""])
    ours.send(None)
    process.join()
    show(f"Serving, {options.model} {options.dtype}", ["", "bare engine", "HTTP", "overhead", "outside"], rows)


@functools.cache
def tokenizer():
    """Return Qwen3's tokenizer, as the tests build it: nearly every token has a text, as with real weights."""
    from qwen3_jax import Tokenizer
    from tests.helpers.real_tokenizer import build_real_tokenizer

    return Tokenizer.from_pretrained(build_real_tokenizer(Path(tempfile.mkdtemp())))


if __name__ == "__main__":
    main()
