"""Function calls in processes that can be ended: a call that hangs costs its own time and nothing else.

    pool = Pool(most=4, memory=2 << 30)
    pool.call("package.module:function", {"answer": ..., "reference": ...}, seconds=5)

Each worker (worker.py) imports the function's module once and runs the calls in a child, forked from it. A child that does not
answer in time is killed, and the next one starts with everything loaded; children are replaced after some hundred calls. No
signal is used in this process, so calls may come from any thread; no JAX state is forked, since workers are new programs.
"""

import json
import os
import queue
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError

_START = 60.0  # seconds for a worker to import a module
_GRACE = 5.0  # seconds for a worker to answer that a child did not


class TimedOut(Exception):
    """No answer in time; the text says at what step, if it is known."""


class Crashed(Exception):
    """The process that made the call ended; says how."""


class Failed(Exception):
    """The function raised an exception that is no `UserError`; gives its type and text."""


def child_environment() -> dict[str, str]:
    """Variables of a process that imports what this one does, and in which sets have the same order every time."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}


class _Worker:
    """One worker process, used by one thread at a time."""

    def __init__(self, memory: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_jax.processes.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the process that started this one
        )
        self._loaded: set[str] = set()

    def call(self, function: str, arguments: dict[str, Any], seconds: float, load: str) -> dict[str, Any]:
        """The reply of the worker; raises Crashed if there is none."""
        if load not in self._loaded:
            reply = self._ask({"load": load}, _START)
            if "refused" in reply:
                return reply
            self._loaded.add(load)
        return self._ask({"function": function, "arguments": arguments, "seconds": seconds}, seconds + _GRACE)

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Crashed("it was gone") from None
        pieces: list[bytes] = []
        while not pieces or not pieces[-1].endswith(b"\n"):  # one line is one reply
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                raise Crashed("it did not answer")
            pieces.append(os.read(self._process.stdout.fileno(), 1 << 16))
            if not pieces[-1]:
                raise Crashed(f"exit code {self._process.wait()}")
        return json.loads(b"".join(pieces))

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
        memory: bytes of address space of a call.
    """

    def __init__(self, most: int, memory: int = 2 << 30):
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(most):
            self._free.put(None)
        self._most, self._memory = most, memory

    def call(self, function: str, arguments: dict[str, Any], seconds: float, *, load: str | None = None) -> Any:
        """What a function returns that is called in another process: a JSON value.

        Args:
            function: "module:name".
            arguments: by name, JSON values.
            seconds: of time for the call, without that for starting a process.
            load: a module that a worker imports, and whose `preload` it calls, before it forks; by default the function's.

        Raises:
            TimedOut: no answer in time.
            Crashed: the process ended, of memory for example.
            Failed: the function raised an exception.
            UserError: the function, or `preload`, raised one: a package is missing.
        """
        worker = self._free.get()
        try:
            worker = worker or _Worker(self._memory)
            reply = worker.call(function, arguments, seconds, load or function.partition(":")[0])
        except Crashed:
            if worker is not None:
                worker.close()
                worker = None
            raise
        finally:
            self._free.put(worker)
        if "refused" in reply:
            raise UserError(reply["refused"])
        for name, kind in (("timed_out", TimedOut), ("crashed", Crashed), ("failed", Failed)):
            if name in reply:
                raise kind(reply[name])
        return reply["value"]

    def close(self) -> None:
        """End all workers; waits for calls that are running."""
        for _ in range(self._most):
            worker = self._free.get()
            if worker is not None:
                worker.close()
