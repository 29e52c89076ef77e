"""How long to wait before a request that failed in passing is sent again."""

from __future__ import annotations

import random

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds


def pause(tries: int, asked: float | None, first: float = FIRST_PAUSE) -> float:
    """Seconds before the next try: what the server asked for, else twice as long each time, with some chance in it.

    Args:
        tries: that have failed, 1 or more.
        asked: seconds of the server's Retry-After, or None.
        first: seconds after the first failure.
    """
    if asked is None:
        asked = first * 2.0 ** min(tries - 1, 30) * random.uniform(0.75, 1.25)
    return min(asked, LONGEST_PAUSE)
