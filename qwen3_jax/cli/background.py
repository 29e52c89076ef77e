"""One thread for all work with JAX, so that the main thread hears Ctrl-C at any time.

Python runs signal handlers in the main thread, between two bytecodes. Importing JAX, loading weights and compiling hold it up
for up to minutes, and an exception raised inside of JAX's callbacks is lost. Here the main thread only waits.

    model = background.call(lambda: load(...))
    with background.ctrl_c() as stopped:
        for delta in background.iterate(stream(...), stopped): ...
    background.leave(code)      # at the end: an interpreter that ends while a thread compiles may crash
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qwen3_jax.progress import show_cursor

T = TypeVar("T")

_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 1.5  # that a step in progress gets before the process ends without it


class _Thread:
    """Does jobs in order, in one daemon thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def post(self, job: Callable[[], None]) -> None:
        """Queue a job, which must not raise."""
        with self._changed:
            self._open += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="background", daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def idle(self, seconds: float) -> bool:
        """Wait at most `seconds` for all jobs; return whether all are done."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            finally:
                del job
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()


_thread = _Thread()


def call(work: Callable[[], T]) -> T:
    """Return `work()`, done in the background thread; what it raises is raised here."""
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def job() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    _thread.post(job)
    value, error = _wait(results, lambda: False)
    if error is not None:
        raise error
    return value


def iterate(items: Iterator[T], stopped: Callable[[], bool]) -> Iterator[T]:
    """Yield the items, each computed in the background thread while the one before is used.

    Ends early when `stopped` is true, at once; the item in progress is finished and dropped, and the iterator is closed.
    """
    results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()
    cancelled = threading.Event()

    def job() -> None:
        try:
            for item in items:
                if cancelled.is_set():
                    break
                results.put((item, None))
            results.put((_END, None))
        except BaseException as error:
            results.put((None, error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    _thread.post(job)
    try:
        while True:
            received = _wait(results, stopped)
            if received is None:
                return
            item, error = received
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        cancelled.set()


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed since; a second Ctrl-C raises KeyboardInterrupt.

    Asked between two pieces of an answer, it never leaves half a line or half a step behind. In a thread other than the main
    one signals cannot be caught, and the function always says no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def leave(code: int) -> int:
    """Return the exit code; if work is still in progress after a few seconds, end the process here with that code."""
    if not settle():
        show_cursor()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


def settle() -> bool:
    """Wait a moment for the work in progress, with Ctrl-C ignored; return whether it is done."""
    if threading.current_thread() is not threading.main_thread():
        return _thread.idle(_LEAVE_SECONDS)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _thread.idle(_LEAVE_SECONDS)
    finally:
        signal.signal(signal.SIGINT, previous)


_END = object()


def _wait(results: Any, stopped: Callable[[], bool]) -> Any:
    """Return the next result, or None once `stopped` is true."""
    while not stopped():
        try:
            return results.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
    return None
