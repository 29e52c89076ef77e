"""How long steps take, and how much of it is compilation."""

import time

import jax


class Clock:
    """Times one step, compilation apart: a call that compiles returns when it has, and then runs."""

    compilations = 0

    def __init__(self) -> None:
        self._seen = Clock.compilations
        self._started = self._running = time.perf_counter()

    def dispatched(self) -> None:
        """The step's call has returned."""
        if Clock.compilations > self._seen:
            self._running = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """The step's result is here: return (seconds running, seconds compiling)."""
        return time.perf_counter() - self._running, self._running - self._started

    @staticmethod
    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        """Called by JAX after every compilation, also one that the persistent cache spared."""
        Clock.compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(Clock.listen)
