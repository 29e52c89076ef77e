"""Values that one host computes for all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")


def from_first(compute: Callable[[], T]) -> T:
    """Return what `compute` returns on the first process, on all of them.

    The others wait. The value crosses between processes of one run, pickled; an exception of the first process is raised on
    all of them.
    """
    if jax.process_count() == 1:
        return compute()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    raw = b""
    if jax.process_index() == 0:
        try:
            raw = pickle.dumps((True, compute()))
        except Exception as error:
            raw = pickle.dumps((False, error))
    size = int(broadcast_one_to_all(np.asarray(len(raw), np.int32)))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(raw)] = np.frombuffer(raw, np.uint8)
    done, value = pickle.loads(np.asarray(broadcast_one_to_all(buffer)).astype(np.uint8).tobytes())
    if not done:
        raise value
    return value
