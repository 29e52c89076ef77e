"""Calls in threads, each with a time limit, that are started one by one while this thread does something else.

A call that does not return in time is left behind: its thread is replaced, and ends with the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from qwen3_jax.posttraining.jobs import TimeIsUp

_LOOK = 0.1  # seconds between two looks at what is running


class Ended(NamedTuple):
    """A call that is over.

    Attributes:
        tag: of the call.
        value: what it returned, or the exception that it raised; `TimeIsUp` where it did not return.
        seconds: that it took.
    """

    tag: Any
    value: Any
    seconds: float


class _Call:
    def __init__(self, tag: Hashable, function: Callable[[], Any], limit: float):
        self.tag, self.function, self.limit = tag, function, limit
        self.began: float | None = None
        self.is_left = False


class TimedCalls:
    """Runs calls; used by one thread.

    Args:
        threads: calls at work at the same time.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str):
        self._most, self._name = threads, name
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[_Call, Any, float]] = queue.SimpleQueue()
        self._open: dict[Hashable, _Call] = {}
        self._threads = 0

    @property
    def open(self) -> int:
        """Calls that are not over."""
        return len(self._open)

    def start(self, tag: Hashable, function: Callable[[], Any], seconds: float) -> None:
        """Queue a call.

        Args:
            tag: of the call; no other open call has it.
            seconds: that it may take, from its beginning on.
        """
        assert tag not in self._open
        self._open[tag] = call = _Call(tag, function, seconds)
        self._waiting.put(call)
        if self._threads < min(self._most, len(self._open)):
            self._start_thread()

    def ended(self, *, wait: bool) -> list[Ended]:
        """Return the calls that ended since the last call of this method.

        Args:
            wait: for one at least, if any is open.
        """
        out: list[Ended] = []
        while self._open:
            try:
                call, value, seconds = self._done.get(timeout=_LOOK) if wait and not out else self._done.get_nowait()
            except queue.Empty:
                out += self._overdue()
                if out or not wait:
                    break
                continue
            if self._open.get(call.tag) is call:  # else it was left behind
                del self._open[call.tag]
                out.append(Ended(call.tag, value, seconds))
        return out

    def stop(self) -> None:
        """Start no further call; threads end when the calls that they run do."""
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                break
        self._open.clear()
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0

    def _overdue(self) -> list[Ended]:
        now = time.monotonic()
        late = [call for call in self._open.values() if call.began is not None and now - call.began > call.limit]
        for call in late:
            del self._open[call.tag]
            call.is_left = True
            self._start_thread(replaces=True)
        return [Ended(call.tag, TimeIsUp(), now - (call.began or now)) for call in late]

    def _start_thread(self, *, replaces: bool = False) -> None:
        self._threads += not replaces
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            call.began = time.monotonic()
            try:
                value = call.function()
            except BaseException as error:  # an environment may raise anything, SystemExit too
                value = error
            self._done.put((call, value, time.monotonic() - call.began))
            if call.is_left:  # another thread has taken this one's place
                return
