"""Progress bars of one form (description, bar, count, elapsed and remaining time), and a status line for work without a count.

On a terminal they redraw; elsewhere (a log file, CI) nothing is drawn, callers print lines of their own.

    with status_line(), doing("loading weights"):
        ...
        with doing("compiling prefill, 512 tokens"):     # anywhere below, in any thread
            ...
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")


class Bar:
    """A running progress bar."""

    def __init__(self, progress: "Progress", task: "TaskID"):
        self._progress, self._task = progress, task

    @property
    def visible(self) -> bool:
        """Whether anything is drawn."""
        return not self._progress.disable

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Move on by `amount` of the total; `note` is shown at the end of the line."""
        self._progress.update(self._task, advance=amount)
        if note is not None:
            self._progress.update(self._task, note=note)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(
    description: str, total: float, *, unit: str = "", visible: bool | None = None, done: int = 0
) -> Iterator[Bar]:
    """Yield a bar on standard error; by default it is drawn only on a terminal.

    Args:
        description: what is being done.
        total: amount of work, in `unit`.
        unit: "GB" or "" for a plain count.
        visible: True draws, False does not, None draws only on a terminal.
        done: amount that was done before, by a run that is resumed.
    """
    from rich.console import Console  # a command that draws no bar starts without it
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    count = "{task.completed:.1f}/{task.total:.1f} " + unit if unit else "{task.completed:.0f}/{task.total:.0f}"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn(count),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    shown = sys.stderr.isatty() if visible is None else visible
    # Bound to the current stream: a later redirection of sys.stderr does not move the bar.
    console = Console(file=sys.stderr)
    with (
        _line.paused() if shown else contextlib.nullcontext(),
        Progress(*columns, console=console, disable=not shown, transient=True) as progress,
    ):
        yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))


def with_progress(results: Iterable[T], description: str, total: int, *, visible: bool | None = None) -> Iterator[T]:
    """Yield `results` under a bar that counts them; see `progress_bar`."""
    with progress_bar(description, total, visible=visible) as bar:
        for result in results:
            yield result
            bar.advance()


class _StatusLine:
    """What is being done and for how long, drawn behind the cursor, which stays where it is. One for the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tasks: list[tuple[str, float]] = []  # innermost last, each with its start
        self._pauses = 0
        self._users = 0
        self._is_drawn = False
        self._quiet_since = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                threading.Thread(target=self._run, name="status", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self.clear()

    @contextmanager
    def task(self, text: str) -> Iterator[None]:
        entry = text, time.monotonic()
        with self._lock:
            self._tasks.append(entry)
        try:
            yield
        finally:
            with self._lock:
                self._tasks.remove(entry)
                self._erase()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:
            self._pauses += 1
            self._erase()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1

    def clear(self) -> None:
        with self._lock:
            self._erase()
            self._quiet_since = time.monotonic()

    def _run(self) -> None:
        while True:
            time.sleep(_REDRAW_SECONDS)
            with self._lock:
                if not self._users:
                    return
                self._draw()

    def _draw(self) -> None:
        if self._pauses or not self._tasks:
            return
        text, started = self._tasks[-1]
        now = time.monotonic()
        if now - max(started, self._quiet_since) >= _QUIET_SECONDS:
            self._write(f"\x1b7\x1b[J\x1b[2m{text} ... {now - started:.0f} s\x1b[0m\x1b8")
            self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._write("\x1b[J")
            self._is_drawn = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or the stream closed
            sys.stderr.write(text)
            sys.stderr.flush()


_REDRAW_SECONDS = 0.25
_QUIET_SECONDS = 0.75  # what takes less is not worth a line
_line = _StatusLine()


@contextmanager
def status_line(visible: bool | None = None) -> Iterator[None]:
    """Draw what `doing` names, on standard error.

    Args:
        visible: True draws, False does not, None draws only on a terminal.
    """
    with _line.shown() if (sys.stderr.isatty() if visible is None else visible) else contextlib.nullcontext():
        yield


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Name the work of a block; it is drawn if it takes a while and a `status_line` is on. The innermost name is shown."""
    with _line.task(text):
        yield


def clear_status() -> None:
    """Take the status line off the terminal, before text is written there."""
    _line.clear()


def no_status() -> contextlib.AbstractContextManager[None]:
    """Keep the status line off the terminal for a block, while the user types."""
    return _line.paused()


def show_cursor() -> None:
    """Show the cursor, which a progress bar hides; for a process that ends without closing its bar."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")
            sys.stderr.flush()
