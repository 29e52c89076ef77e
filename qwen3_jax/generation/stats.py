"""What an engine has done and how long it took, compilation apart."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import jax


@dataclass
class Stats:
    """Totals of one engine.

    Attributes:
        prefill_tokens, prefill_seconds: prompt tokens computed, and the time it took.
        cached_tokens: prompt tokens read from the cache instead.
        decode_tokens, decode_seconds: tokens generated after each prompt's first, and the time it took.
        compile_seconds: time spent compiling; in neither of the two.
        guessed, accepted: tokens proposed by speculation, and how many of them were accepted.
        preemptions: how often a running request was preempted.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    cached_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    compile_seconds: float = 0.0
    guessed: int = 0
    accepted: int = 0
    preemptions: int = 0

    def since(self, before: Stats) -> Stats:
        """Return the difference to an earlier copy."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return Stats(*(now - then for now, then in pairs))


class Clock:
    """Times one step. A call that compiles returns once it has compiled, so its compilation and run time can be told apart."""

    compilations = 0

    def __init__(self) -> None:
        self._before = Clock.compilations
        self._started = self._running = time.perf_counter()

    def dispatched(self) -> None:
        """Note that the step's call has returned."""
        if Clock.compilations > self._before:
            self._running = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Return (seconds running, seconds compiling), once the step's result is on the host."""
        return time.perf_counter() - self._running, self._running - self._started

    @staticmethod
    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        """JAX calls this after every compilation, including those served by the persistent cache."""
        Clock.compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(Clock.listen)
