"""The process behind pool.py: reads calls from standard input, one JSON object a line, and answers on standard output.

This process imports modules and never touches an argument. Its child, forked after that, makes the calls and is killed when one
takes too long.
"""

import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.processes import steps

CALLS = 500  # of one child; caches and leaks end with it
_STEP = b'{"step": '  # how a line begins that is no reply


class _Child:
    """A forked process that makes calls."""

    def __init__(self, memory: int) -> None:
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        self.calls = 0
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(self._replies)
            _serve(request_end, reply_end, memory)
        os.close(request_end)
        os.close(reply_end)

    def call(self, message: dict[str, Any]) -> tuple[bytes, bool]:
        """One call: (the reply, whether the child is still there)."""
        self.calls += 1
        deadline = time.monotonic() + message["seconds"]
        step = ""
        try:
            data = _line(message)
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            return _line({"crashed": self._end()}), False
        pieces: list[bytes] = []
        while True:
            ready = select.select([self._replies, 0], [], [], max(0.0, deadline - time.monotonic()))[0]
            if 0 in ready:  # no request comes before this reply: the process that asked has ended
                self.kill()
                os._exit(0)
            if not ready:
                self.kill()
                return _line({"timed_out": step}), False
            pieces.append(os.read(self._replies, 1 << 16))
            if not pieces[-1]:
                return _line({"crashed": self._end() + step}), False
            if not pieces[-1].endswith(b"\n"):
                continue
            lines = b"".join(pieces).split(b"\n")[:-1]
            pieces = []
            told = [line for line in lines if line.startswith(_STEP)]
            step = json.loads(told[-1])["step"] if told else step
            if not lines[-1].startswith(_STEP):
                return lines[-1] + b"\n", True

    def _end(self) -> str:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._close()
        return f"signal {-code}, most likely for memory" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._close()

    def _close(self) -> None:
        os.close(self._requests)
        os.close(self._replies)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _serve(requests: int, replies: int, memory: int) -> None:
    """Make calls until the requests end. Does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _end_with_parent()

    def send(fields: dict[str, Any]) -> None:
        data = memoryview(_line(fields))
        while data:
            data = data[os.write(replies, data) :]

    steps.send = lambda text: send({"step": f", {text}"})
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            send(_call(json.loads(line)))
    os._exit(0)


def _call(message: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": _function(message["function"])(**message["arguments"])}
    except UserError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"crashed": "memory ran out"}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _load(name: str) -> dict[str, Any]:
    """Import a module, and run its `preload`, if it has one."""
    try:
        module = importlib.import_module(name)
        getattr(module, "preload", lambda: None)()
    except UserError as error:
        return {"refused": str(error)}
    return {"loaded": name}


def _end_with_parent() -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer until standard input ends."""
    memory = int(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what packages print is no reply
    child: _Child | None = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "load" in message:
            if child is not None:
                child.kill()
                child = None
            reply = _line(_load(message["load"]))
        else:
            child = child or _Child(memory)
            reply, is_there = child.call(message)
            if is_there and child.calls >= CALLS:
                child.kill()
                is_there = False
            child = child if is_there else None
        data = memoryview(reply)
        while data:
            data = data[out.write(data) or 0 :]
    if child is not None:
        child.kill()


if __name__ == "__main__":
    main()
