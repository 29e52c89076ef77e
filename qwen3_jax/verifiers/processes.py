"""Verifiers that may hang or take all memory, called in a process of their own (`qwen3_jax.processes`)."""

import atexit
import os
import threading
from typing import Any

from qwen3_jax.processes import Pool

_pool: Pool | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    """In a fork of this process, whose workers are the other's."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)


def call_in_process(function: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The fields of the verdict of a verifier's function, which is called in another process.

    Args:
        function: "module:name".
        arguments: `answer`, `reference` and `settings`, JSON values.
        seconds: of time for the call, without that for starting a process.

    Raises:
        TimedOut: no answer in time.
        Crashed: the process ended, of memory for example.
        UserError: a package is missing.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(max(1, min(os.cpu_count() or 1, 8)))
            atexit.register(_pool.close)
        pool = _pool
    named = {"function": function, **arguments}
    return pool.call("qwen3_jax.verifiers.judging:judge", named, seconds, load=function.partition(":")[0])
