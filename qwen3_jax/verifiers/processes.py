"""Function calls in processes that can be ended: a call that hangs costs its own time and nothing else.

    call_in_process("package.module:function", {"answer": ..., "reference": ..., "settings": {...}}, seconds=5)

Each worker (worker.py) loads a verifier's packages once and runs the calls in a child, forked from it. A child that does not
answer in time is killed, and the next one starts with everything loaded; children are replaced after some hundred calls. No
signal is used in this process, so calls may come from any thread; no JAX state is forked, since workers are new programs.
"""

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError

_START = 60.0  # seconds for a worker to load a verifier's packages
_GRACE = 5.0  # seconds for a worker to answer that a child did not


class TimedOut(Exception):
    """No answer in time; the text says at what step, if it is known."""


class Crashed(Exception):
    """The process that made the call ended; says how."""


def child_environment() -> dict[str, str]:
    """Variables of a process that imports what this one does, and in which sets have the same order every time."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}


class _Worker:
    """One worker process, used by one thread at a time."""

    def __init__(self) -> None:
        environment = child_environment()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_jax.verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the process that started this one
        )
        self._loaded: set[str] = set()
        self._rest = b""

    def call(self, function: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply of the worker; raises Crashed if there is none."""
        if function not in self._loaded:
            reply = self._ask({"load": function}, _START)
            if "refused" in reply:
                return reply
            self._loaded.add(function)
        return self._ask({"function": function, "arguments": arguments, "seconds": seconds}, seconds + _GRACE)

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Crashed("it was gone") from None
        lines: list[bytes] = []
        while not lines:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                raise Crashed("it did not answer")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise Crashed(f"exit code {self._process.wait()}")
            *lines, self._rest = (self._rest + data).split(b"\n")
        return json.loads(lines[0])

    def close(self) -> None:
        """End the worker and its child: they end when their input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Pool:
    """Workers, started when they are needed.

    Args:
        most: of them at one time; further calls wait for one that is free.
    """

    def __init__(self, most: int):
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(most):
            self._free.put(None)
        self._most = most

    def call(self, function: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        """See `call_in_process`."""
        worker = self._free.get()
        try:
            worker = worker or _Worker()
            reply = worker.call(function, arguments, seconds)
        except Crashed:
            if worker is not None:
                worker.close()
                worker = None
            raise
        finally:
            self._free.put(worker)
        if "refused" in reply:
            raise UserError(reply["refused"])
        if "timed_out" in reply:
            raise TimedOut(reply["timed_out"])
        if "crashed" in reply:
            raise Crashed(reply["crashed"])
        return reply["verdict"]

    def close(self) -> None:
        """End all workers; waits for calls that are running."""
        for _ in range(self._most):
            worker = self._free.get()
            if worker is not None:
                worker.close()


_pool: Pool | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    """In a fork of this process, whose workers are the other's."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)


def call_in_process(function: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The fields of the verdict of a verifier's function, which is called in another process.

    Args:
        function: "module:name".
        arguments: `answer`, `reference` and `settings`, JSON values.
        seconds: of time for the call, without that for starting a process.

    Raises:
        TimedOut: no answer in time. Crashed: the process ended, of memory for example. UserError: a package is missing.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(max(1, min(os.cpu_count() or 1, 8)))
            atexit.register(_pool.close)
        pool = _pool
    return pool.call(function, arguments, seconds)
