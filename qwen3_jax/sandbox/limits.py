"""What a program may use, and how it ended."""

from dataclasses import dataclass
from typing import Literal

from qwen3_jax.bounds import above, check_bounds, whole

Ended = Literal["exit", "signal", "time", "cpu", "memory", "processes", "output", "stopped", "watcher"]


@dataclass(frozen=True)
class Limits:
    """Of one program and all processes that it starts.

    Attributes:
        seconds: of wall time, from the start of the sandbox on.
        cpu_seconds: of processor time, of each process; None: as many as `seconds`, rounded up.
        memory_mb: of all processes together, in MiB; the address space of each may be 256 MiB larger.
        processes: processes and threads at one time.
        file_mb: of the working folder, which lies in memory, and of each file, in MiB.
        open_files: file descriptors of each process.
        output_kb: of standard output and of standard error, in KiB.
    """

    seconds: float = 10.0
    cpu_seconds: int | None = None
    memory_mb: int = 512
    processes: int = 32
    file_mb: int = 16
    open_files: int = 64
    output_kb: int = 1024

    def __post_init__(self) -> None:
        check_bounds(
            vars(self),
            "limits.",
            seconds=above(0, finite=True),
            cpu_seconds=whole(1),
            memory_mb=whole(16),
            processes=whole(1),
            file_mb=whole(1),
            open_files=whole(8),
            output_kb=whole(1),
        )


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ended: "exit" by itself, "signal" by one, or the limit that it was ended for; "stopped" by the caller; "watcher": it
            ended the process that watched it, and with it itself.
        code: the exit code, or the signal's number; -1 if it was ended before it gave one.
        stdout: what it wrote, cut at the limit; bytes that are no UTF-8 are replaced.
        stderr: the same of its errors.
        seconds: of wall time.
        cpu_seconds: of processor time.
        memory_kb: the largest resident size of one of its processes.
        limits: that it had.
    """

    ended: Ended
    code: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    memory_kb: int
    limits: Limits

    @property
    def ok(self) -> bool:
        """It ended by itself with exit code 0."""
        return self.ended == "exit" and self.code == 0

    @property
    def reason(self) -> str:
        """How it ended, in a sentence."""
        limits = self.limits
        ends = {
            "time": f"it ran longer than {limits.seconds:g} s",
            "cpu": f"it used more than {limits.cpu_seconds or limits.seconds:g} s of processor time",
            "memory": f"it used more than {limits.memory_mb} MiB of memory",
            "processes": f"it had more than {limits.processes} processes and threads at one time",
            "output": f"it wrote more than {limits.output_kb} KiB",
            "stopped": "it was stopped",
            "watcher": "it ended the process that watched it",
            "signal": f"signal {self.code} ended it",
        }
        if self.ended != "exit":
            return ends[self.ended]
        last = self.stderr.rstrip().rpartition("\n")[2][:300]
        text = f"it ended with exit code {self.code}" + (f": {last}" if last and self.code else "")
        if self.code and last.startswith("MemoryError"):
            text += f" (it may use {limits.memory_mb} MiB)"
        elif self.code and ("can't start new thread" in last or last.startswith("BlockingIOError: [Errno 11]")):
            text += f" (it may have {limits.processes} processes and threads)"
        return text
