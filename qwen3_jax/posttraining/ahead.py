"""Rounds that are sampled one ahead, on devices of their own, while the others train (`rl.rollouts.mesh`).

    train     | round 0, none sampled yet |  updates of round 0  |  updates of round 1  |
    rollouts  | sample round 0            |  sample round 1      |  sample round 2      |

Round k + 1 is sampled with the weights that the updates of round k begin with, so it is as many updates old as a round has when
it is learned from; importance sampling corrects for that (`rl.policy.importance_cap`).

Invariant: a checkpoint that is written during a round waits until the next one is on the disk, so a run that is killed resumes
with the same answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """At most one call that runs in a thread beside the caller."""

    def __init__(self) -> None:
        self._running: tuple[Future[T], threading.Thread] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether there is a call whose result was not taken."""
        return self._running is not None

    def begin(self, call: Callable[[], T]) -> None:
        """Start a call; the result of the last one has been taken."""
        assert self._running is None
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # raised where the result is taken
                future.set_exception(error)

        thread = threading.Thread(target=run, name="rollouts", daemon=True)
        self._running = future, thread
        thread.start()

    def wait(self) -> float:
        """Wait for the end of the call, if there is one; return the seconds.

        Raises:
            What the call raised.
        """
        started = time.perf_counter()
        if self._running is not None:
            self._running[0].result()
        return time.perf_counter() - started

    def take(self) -> T:
        """Wait for the result and return it."""
        assert self._running is not None
        (future, thread), self._running = self._running, None
        result = future.result()
        thread.join()
        return result

    def join(self) -> None:
        """Wait for the end of the call, whatever it gives."""
        if self._running is not None:
            self._running[1].join()
            self._running = None
