"""A program that runs in the sandbox: its start, its limits of time and output, its end.

Invariant: when `wait` returns, no process of the program is left, however it ended.
"""

import json
import marshal
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from qwen3_jax.errors import UserError
from qwen3_jax.sandbox.commands import BOX, Isolation, command, python, start, visible_files
from qwen3_jax.sandbox.limits import Ended, Limits, Outcome
from qwen3_jax.sandbox.seccomp import filter_program

_GRACE = 5.0  # seconds for the end of processes that were killed
_MAIN = "main.py"


class SandboxFailed(UserError):
    """The sandbox did not start the program; says why."""


class Program:
    """A program that has been started; call `wait` in the thread that started it.

    Args:
        files: further files of its working folder, text by name.
        pipes: descriptors that it inherits; their numbers are its arguments. The caller closes its own copies.

    Raises:
        SandboxFailed: a process could not be started.
    """

    def __init__(
        self,
        program: str,
        isolation: Isolation,
        *,
        stdin: str = "",
        limits: Limits | None = None,
        files: Mapping[str, str] | None = None,
        pipes: Sequence[int] = (),
    ):
        self._limits = limits or Limits()
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._control: int | None
        self._folder = tempfile.mkdtemp(prefix="sandbox-") if isolation.kind == "none" else None
        reading, writing = os.pipe()
        control, self._control = os.pipe()  # its end asks for the program's
        self._report = os.fdopen(reading, "rb", buffering=0)
        opened = [writing, control]
        try:
            plan = self._plan(isolation, {**(files or {}), _MAIN: program}, pipes)
            plan |= {"report": writing, "control": control}
            opened += [_memory_file(marshal.dumps(plan)), _memory_file(stdin.encode("utf-8", "surrogatepass"))]
            arguments = command(isolation.kind, opened[2], self._limits.file_mb)
            self._process = start(arguments, opened[3], [*opened[:3], *pipes])
        except OSError as error:
            self._report.close()
            os.close(self._control)
            self._remove_folder()
            raise SandboxFailed(f"the sandbox could not be started: {error}") from None
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _plan(self, isolation: Isolation, files: dict[str, str], pipes: Sequence[int]) -> dict[str, Any]:
        limits = asdict(self._limits)
        limits["cpu_seconds"] = self._limits.cpu_seconds or max(1, -int(-self._limits.seconds // 1))
        code = filter_program() if isolation.seccomp else None
        box = self._folder or BOX
        environment = {"PATH": "/usr/bin:/bin", "HOME": box, "TMPDIR": box, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        return {
            "isolation": isolation.kind,
            "as_root": isolation.nobody,
            "parent": os.getpid(),
            "keep": list(pipes),
            "box": box,
            "files": files,
            "command": [python(), "-s", "-B", _MAIN, *map(str, pipes)],
            "environment": environment,
            "limits": limits,
            "filter": code,
            **visible_files(),
        }

    def stop(self) -> None:
        """End the program, from any thread."""
        self._stopped.set()
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        with self._lock:
            if self._control is not None:
                os.close(self._control)
                self._control = None

    def wait(self) -> Outcome:
        """Wait for the end of the program and of all that it started.

        Raises:
            SandboxFailed: the sandbox did not start it.
        """
        texts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        try:
            ended = self._read(texts)
            seconds = time.monotonic() - self._began
        finally:
            self._end()
        report = _last_report(texts["report"])
        stdout, stderr = (_text(texts[name], self._limits.output_kb << 10) for name in ("stdout", "stderr"))
        if "failed" in report:
            raise SandboxFailed(f"the sandbox could not be built: {report['failed']}")
        if not report and ended is None and not self._stopped.is_set():
            raise SandboxFailed(f"the sandbox ended by itself: {stderr.strip()[-300:] or 'it gave no reason'}")
        status = report.get("status")
        return Outcome(
            ended or self._ended(report),
            -1 if status is None else abs(os.waitstatus_to_exitcode(status)),
            stdout,
            stderr,
            round(seconds, 3),
            report.get("cpu", 0.0),
            report.get("memory_kb", 0),
            self._limits,
        )

    def _ended(self, report: dict[str, Any]) -> Ended:
        status = report.get("status")
        if self._stopped.is_set() and (status is None or not os.WIFEXITED(status)):
            return "stopped"
        if status is None:
            return "watcher"
        if report["limit"]:
            return report["limit"]
        if not os.WIFSIGNALED(status):
            return "exit"
        number = os.WTERMSIG(status)
        over = report["cpu"] >= (self._limits.cpu_seconds or self._limits.seconds)
        return "cpu" if number == signal.SIGXCPU or (number == signal.SIGKILL and over) else "signal"

    def _read(self, texts: dict[str, bytearray]) -> Ended | None:
        """Read until every process has closed its ends; gives the limit that was reached on the way."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        streams: dict[str, IO[bytes]] = {
            "stdout": self._process.stdout,
            "stderr": self._process.stderr,
            "report": self._report,
        }
        most = self._limits.output_kb << 10
        ended: Ended | None = None
        deadline = self._began + self._limits.seconds
        with selectors.DefaultSelector() as selector:
            for name, stream in streams.items():
                selector.register(stream, selectors.EVENT_READ, name)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    if ended is not None:  # killed, and still not ended
                        break
                    ended, deadline = "time", time.monotonic() + _GRACE
                    self._ask_to_end()
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif len(texts[key.data]) <= most:
                        texts[key.data] += data
                    if key.data != "report" and len(texts[key.data]) > most and ended is None:
                        ended, deadline = "output", time.monotonic() + _GRACE
                        self._ask_to_end()
        return ended

    def _end(self) -> None:
        self._ask_to_end()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr, self._report):
            assert stream is not None
            stream.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _memory_file(content: bytes) -> int:
    """A descriptor that reads `content`; no file has it."""
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _last_report(data: bytearray) -> dict[str, Any]:
    """The last report of launch.py; in bubblewrap the program can write here too, so that a line may be anything."""
    for line in reversed(bytes(data).split(b"\n")):
        try:
            report = json.loads(line)
            known = {
                "status": int,
                "limit": str | None,
                "cpu": float | int,
                "memory_kb": int,
                "failed": str,
                "started": bool,
            }
            if isinstance(report, dict) and all(isinstance(value, known[key]) for key, value in report.items()):
                if report.get("limit") not in (None, "memory", "processes", "stopped"):
                    continue
                if "status" in report:
                    os.waitstatus_to_exitcode(report["status"])
                return {"limit": None, "cpu": 0.0, **report}
        except (ValueError, KeyError, RecursionError, OverflowError):
            continue
    return {}


def _text(data: bytearray, most: int) -> str:
    return bytes(data[:most]).decode("utf-8", "replace")
