"""What a call in a process of its own does at the moment: what is said when it does not end in time."""

from collections.abc import Callable


def _nowhere(text: str) -> None:
    del text


send: Callable[[str], None] = _nowhere
"""Where steps are sent to; worker.py sets it."""


def step(text: str) -> None:
    """Say what is done next: "while comparing"."""
    send(text)
