"""Progress bars of one form: description, bar, count, elapsed and remaining time.

On a terminal the bar redraws; elsewhere (a log file, CI) nothing is drawn, callers print lines of their own.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: TaskID):
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
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))
