"""The process behind processes.py: reads calls from standard input, one JSON object a line, and answers on standard output.

This process loads packages and never touches an answer. Its child, forked after loading, makes the calls and is killed when one
takes too long.
"""

import dataclasses
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
from qwen3_jax.verifiers import steps

CALLS = 500  # of one child; caches and leaks end with it
MEMORY = 2 << 30  # bytes of a child's address space


class _Child:
    """A forked process that makes calls."""

    def __init__(self) -> None:
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        self.calls = 0
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(self._replies)
            _serve(request_end, reply_end)
        os.close(request_end)
        os.close(reply_end)
        self._rest = b""

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """One call; `timed_out` or `crashed` in the reply if the child is to be ended."""
        self.calls += 1
        deadline = time.monotonic() + message["seconds"]
        step = ""
        try:
            data = json.dumps(message).encode() + b"\n"
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            return {"crashed": self._end()}
        while True:
            ready = select.select([self._replies, 0], [], [], max(0.0, deadline - time.monotonic()))[0]
            if 0 in ready:  # no request comes before this reply: the process that asked has ended
                self.kill()
                os._exit(0)
            if not ready:
                self.kill()
                return {"timed_out": step}
            data = os.read(self._replies, 1 << 16)
            if not data:
                return {"crashed": self._end()}
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if "step" not in line:
                    return line
                step = line["step"]

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


def _serve(requests: int, replies: int) -> None:
    """Make calls until the requests end. Does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _end_with_parent()

    def send(fields: dict[str, Any]) -> None:
        data = json.dumps(fields).encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    steps.send = lambda text: send({"step": f", {text}"})
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            send(_call(json.loads(line)))
    os._exit(0)


def _call(message: dict[str, Any]) -> dict[str, Any]:
    from qwen3_jax.verifiers.registry import Verifier, settings_class
    from qwen3_jax.verifiers.verdict import BadReference, Verdict

    function, arguments = _function(message["function"]), message["arguments"]
    settings = settings_class(Verifier(function), function.__name__)(**arguments["settings"])
    try:
        verdict = function(arguments["answer"], arguments["reference"], settings)
    except BadReference as error:
        verdict = Verdict(0.0, "error", f"the reference is at fault: {error}")
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:
        verdict = Verdict(0.0, "error", f"the verifier failed: {type(error).__name__}: {error}"[:500])
    return {"verdict": dataclasses.asdict(verdict)}


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _load(name: str) -> dict[str, Any]:
    """Import the verifier's module, and run its `preload`, if it has one."""
    try:
        module = importlib.import_module(name.partition(":")[0])
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
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what packages print is no reply
    child: _Child | None = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "load" in message:
            if child is not None:
                child.kill()
                child = None
            reply = _load(message["load"])
        else:
            child = child or _Child()
            reply = child.call(message)
            if "timed_out" in reply or "crashed" in reply:
                child = None
            elif child.calls >= CALLS:
                child.kill()
                child = None
        out.write(json.dumps(reply).encode() + b"\n")
    if child is not None:
        child.kill()


if __name__ == "__main__":
    main()
