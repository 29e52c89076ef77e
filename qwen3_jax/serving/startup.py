"""The start of a server: its programs are compiled one by one, and it says how far it is.

Requests are accepted once the first programs exist; the engine's thread compiles the rest while it has no request. A request
that needs another program has it compiled at once.
"""

import asyncio
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from qwen3_jax.serving.worker import Worker

_SECONDS = 0.5  # between two redraws on a terminal
CLEAR = "\r\x1b[K"  # the terminal's current line


class Startup:
    """Compiles an engine's programs, and reports it.

    Args:
        worker: the engine's thread.
        programs: each call compiles one; none of them means that requests compile what they need.
        first: how many of them a first request needs.
        out: where to report; a terminal gets one line that is redrawn, anything else a line per program.

    Attributes:
        state: what the server is doing, for those who have to wait.
    """

    def __init__(self, worker: Worker, programs: Sequence[Callable[[], None]], first: int, out: TextIO | None = None):
        self.state = "starting"
        self._worker, self._programs, self._first = worker, programs, min(first, len(programs))
        self._out = sys.stderr if out is None else out
        self._terminal = self._out.isatty()
        self._compiled = 0
        self._started = time.perf_counter()

    @property
    def left(self) -> int:
        """Programs that are not compiled yet."""
        return len(self._programs) - self._compiled

    def begin(self, accept: Callable[[], None]) -> None:
        """Let the engine's thread compile; it calls `accept` once requests can be answered."""
        self._started = time.perf_counter()
        if not self._programs:
            self._worker.when_idle(accept)
            self._worker.when_idle(self._finished)
        for place, program in enumerate(self._programs, start=1):
            self._worker.when_idle(functools.partial(self._compile, place, program, accept))

    async def report(self) -> None:
        """Redraw the line of a terminal until all is compiled; a compilation may take longer than one likes to wait."""
        while self._terminal and self.left:
            self._say(f"{CLEAR}{self._progress()}, {self._seconds()}", end="")
            await asyncio.sleep(_SECONDS)

    def _compile(self, place: int, program: Callable[[], None], accept: Callable[[], None]) -> None:
        self.state = self._progress()
        if not self._terminal:
            self._say(self.state)
        program()
        self._compiled = place
        if place == self._first:
            self._line(f"requests are accepted after {self._seconds()}")
            accept()
        if not self.left:
            self._finished()

    def _progress(self) -> str:
        return f"compiling {min(self._compiled + 1, len(self._programs))} of {len(self._programs)}"

    def _finished(self) -> None:
        self._line(f"ready after {self._seconds()}")

    def _seconds(self) -> str:
        return f"{time.perf_counter() - self._started:.0f} s"

    def _line(self, text: str) -> None:
        self._say(f"{CLEAR if self._terminal else ''}{text}")

    def _say(self, text: str, end: str = "\n") -> None:
        self._out.write(text + end)  # at once: other threads write there too
        self._out.flush()
