"""A real `qwen3 serve` in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from tests.helpers import quick_xla

ROOT = Path(__file__).parents[2]
# For a tiny model. One size of a prompt's parts, because a warm-up compiles every size.
SMALL = ("--rows", "4", "--cache-tokens", "4096", "--prefill-chunk", "16")


@dataclass
class Running:
    """A running server: its process, address, model name, log and the key that requests are sent with."""

    process: subprocess.Popen
    url: str
    model: str
    log_file: Path
    key: str = "any"

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **options)

    def asynchronous(self, **options) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **options)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120)

    def meter(self, name: str) -> float:
        """A number of /metrics."""
        key = {"Authorization": f"Bearer {self.key}"}
        lines = httpx.get(f"{self.url}/metrics", headers=key, timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Wait until no answer is running or queued, and no page is held."""
        names = ("qwen3_answers_running", "qwen3_answers_waiting", "qwen3_cache_pages_held")
        deadline = time.monotonic() + seconds
        while any(held := [self.meter(name) for name in names]):
            assert time.monotonic() < deadline, f"still {dict(zip(names, held, strict=True))}"
            time.sleep(0.1)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def log_entries(self, path: str, *, count: int, start: int = 0, seconds: float = 20) -> list[dict]:
        """The log entries of requests for `path` after character `start`. An entry is written after the answer is sent, so
        wait until there are `count`."""
        deadline = time.monotonic() + seconds
        while True:
            entries = [json.loads(line) for line in self.log[start:].splitlines() if line.startswith("{")]
            entries = [entry for entry in entries if entry["path"] == path]
            if len(entries) >= count:
                return entries
            assert time.monotonic() < deadline, f"{len(entries)} of {count} entries: {entries}"
            time.sleep(0.05)


def raw_chat(body: bytes) -> bytes:
    """Return a raw HTTP request, for clients that behave as no library does."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def serve(folder: Path, work: Path, *options: str, environment: dict[str, str] | None = None, wait: bool = True):
    """Start `qwen3 serve` and wait until it listens, or until it is ready."""
    log_file = work / "server.log"
    command = [sys.executable, "-m", "qwen3_jax.cli", "serve", "--model", str(folder), "--port", "0", *options]
    flags = {"XLA_FLAGS": quick_xla.FLAGS, "PYTHONPATH": str(ROOT)}
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, env=os.environ | flags | (environment or {}), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), log_file.read_text()[-3000:]
        _, name, _, url = line.split()
        deadline = time.monotonic() + 240
        while wait:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            assert process.poll() is None, log_file.read_text()[-3000:]
            assert time.monotonic() < deadline, "never ready"
            time.sleep(0.2)
        yield Running(process, url, name, log_file)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
