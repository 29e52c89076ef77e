"""A trace of a few steps, for xprof (TensorBoard's profile plugin)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.paths import WorkingCopy

_PROFILED = 5  # steps in a trace, after as many to warm up


class Profiler:
    """Writes a trace of five steps of a stage, after five to warm up (fewer in a short stage).

    Args:
        wanted: False does nothing.
        folder: of the trace.
        first: steps taken before the stage's remaining ones.
        last: the last step of the stage.
        report: called with a sentence when the trace is written.
    """

    def __init__(self, wanted: bool, folder: Path, first: int, last: int, report: Callable[[str], None]):
        self._folder, self._report, self._running = folder, report, False
        self._from = min(first + _PROFILED, last - 1) if wanted else -1
        self._to = min(self._from + _PROFILED, last)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def before(self, step: int) -> None:
        """Call before the step that follows `step`."""
        if step == self._from:
            self._copy = WorkingCopy(self._folder)
            jax.profiler.start_trace(self._copy.folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Call after step `step` was dispatched; `result` is its metrics."""
        if self._running and step == self._to:
            jax.block_until_ready(result)
            self._stop()
            self._report(f"a trace of steps {self._from + 1} to {self._to} is in {self._folder}")

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._copy.close()
        self._running = False
