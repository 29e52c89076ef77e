"""Calls in threads, each with a time limit: one that does not return in time is left behind and costs nothing but itself."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

_LOOK = 0.2  # seconds between two looks at what is running


class TimeIsUp(Exception):
    """A call did not return within its time."""


class Jobs:
    """Calls that have been started; `results` waits for them.

    Args:
        calls: by tag.
        threads: at work at the same time. One whose call does not return is replaced, and ends with the process.
        seconds: that one call may take.
        name: of the threads.
    """

    def __init__(self, calls: Mapping[Hashable, Callable[[], Any]], threads: int, seconds: float, name: str):
        self._waiting: queue.SimpleQueue[tuple[Hashable, Callable[[], Any]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Hashable, Any]] = queue.SimpleQueue()
        self._began: dict[Hashable, float] = {}
        self._lock = threading.Lock()
        self._open = set(calls)
        self._seconds, self._name = seconds, name
        self._stopped = threading.Event()
        for entry in calls.items():
            self._waiting.put(entry)
        for _ in range(min(threads, len(calls))):
            self._start_thread()

    def results(self) -> dict[Hashable, Any]:
        """Wait for all; by tag what each call returned, or the exception that it raised; `TimeIsUp` where it did not return."""
        results: dict[Hashable, Any] = {}
        while self._open:
            try:
                tag, value = self._done.get(timeout=_LOOK)
            except queue.Empty:
                for tag in self._overdue():
                    self._open.discard(tag)
                    results[tag] = TimeIsUp()
                    self._start_thread()
                continue
            if tag in self._open:  # else it was left behind
                self._open.discard(tag)
                results[tag] = value
        return results

    def stop(self) -> None:
        """Start no further call."""
        self._stopped.set()

    def _overdue(self) -> list[Hashable]:
        now = time.monotonic()
        with self._lock:
            return [tag for tag in self._open if now - self._began.get(tag, now) > self._seconds]

    def _start_thread(self) -> None:
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                tag, call = self._waiting.get_nowait()
            except queue.Empty:
                return
            with self._lock:
                self._began[tag] = time.monotonic()
            try:
                value = call()
            except BaseException as error:
                value = error
            with self._lock:
                is_late = tag not in self._open
            if is_late:  # another thread has taken this one's place
                return
            self._done.put((tag, value))
