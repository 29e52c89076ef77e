"""Threads that a process may leave behind: those of `concurrent.futures` hold up its end until their last job is done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Tag = TypeVar("Tag")
Value = TypeVar("Value")


class Done(NamedTuple, Generic[Tag, Value]):
    """A finished job: its tag, and its value or what it raised."""

    tag: Tag
    value: Value | None
    error: BaseException | None


class Workers(Generic[Tag, Value]):
    """Daemon threads that take jobs in order; one thread hands them out and takes their results.

    Args:
        count: threads; each starts with the first job that finds the others busy.
        name: of the threads.

    Attributes:
        pending: jobs whose result has not been taken.
    """

    def __init__(self, count: int, name: str):
        self.pending = 0
        self._count, self._name = count, name
        self._jobs: queue.SimpleQueue[tuple[Tag, Callable[[], Value]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done[Tag, Value]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, tag: Tag, job: Callable[[], Value]) -> None:
        """Queue a job."""
        self.pending += 1
        self._jobs.put((tag, job))
        if len(self._threads) < min(self._count, self.pending):
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self, seconds: float | None = None) -> Done[Tag, Value] | None:
        """Return the next finished job; None if no job is pending, or none has finished within `seconds` (None: waits)."""
        if not self.pending:
            return None
        try:
            done = self._done.get(timeout=seconds) if seconds is None or seconds > 0 else self._done.get_nowait()
        except queue.Empty:
            return None
        self.pending -= 1
        return done

    def close(self) -> None:
        """Let the threads end after the jobs that are queued; waits for none."""
        for _ in self._threads:
            self._jobs.put(None)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            tag, job = entry
            try:
                self._done.put(Done(tag, job(), None))
            except BaseException as error:
                self._done.put(Done(tag, None, error))
