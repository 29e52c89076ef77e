"""What Ctrl-C and SIGTERM ask of a run.

- Before the first step nothing can be lost, and the program ends.
- From then on the run is asked to end: it saves a checkpoint after the step in progress.
- A second Ctrl-C ends the program. Checkpoints are whole or absent, so the run resumes from the one before.

Python runs a signal's handler in the main thread, between two instructions. So that it is heard at once, whatever the program
computes, the main thread of a command only waits (`cli.background`), and the run is another thread's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from qwen3_jax.progress import clear_status, show_cursor

_ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit codes


class StopSignals:
    """What the signals ask for. A context: outside of it they do what they did before.

    Args:
        prog: the program's name, for messages. None is a library call, in a notebook perhaps: Ctrl-C stays Python's, and
            SIGTERM only asks the run to end.

    Attributes:
        reason: "Ctrl-C" or "SIGTERM" once the run was asked to end.
        saves: whether the run ends by itself when asked; until then a signal ends the program.
        before_exit: called before the program is ended.
    """

    def __init__(self, prog: str | None = None):
        self.prog, self.saves = prog, prog is None
        self.reason: str | None = None
        self.before_exit: list[Callable[[], None]] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        if self.prog is None:
            self._handle(signal.SIGTERM, lambda number, _: self._ask(number))
            return self
        for number in _ENDED:
            self._handle(number, lambda number, _: self._heard(signal.Signals(number)))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _handle(self, number: signal.Signals, handler: Callable[[int, Any], None]) -> None:
        before = signal.signal(number, handler)
        self._undo.callback(signal.signal, number, signal.SIG_DFL if before is None else before)

    def _heard(self, number: signal.Signals) -> None:
        if not self.saves or (self.reason and number == signal.SIGINT):
            self._end(number)
        if self.reason is None:
            self._ask(number)
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            more = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            clear_status()
            _print(f"{self.prog}: {name}: saving a checkpoint after this step{more}.")
            jax = sys.modules.get("jax")
            if number == signal.SIGINT and jax is not None and jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # which JAX passes on to the other processes

    def _ask(self, number: int) -> None:
        self.reason = self.reason or ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")

    def _end(self, number: signal.Signals) -> None:
        for call in self.before_exit:
            with contextlib.suppress(Exception):
                call()
        show_cursor()
        clear_status()
        resumes = " The run resumes from its last checkpoint." if self.saves else ""
        _print(f"\n{self.prog}: stopped.{resumes}")
        os._exit(_ENDED[number])  # a usual exit would wait for the run


def _print(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
