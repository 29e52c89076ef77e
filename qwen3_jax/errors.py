"""One exception type for everything a user can fix: bad configs, checkpoints, requests, data and device counts.

The message is one sentence that names the culprit and says what to do instead. `train.py`, `infer.py` and the `qwen3`
command print it without a traceback; library callers can catch it apart from bugs.
"""

import sys
from collections.abc import Sequence

from qwen3_jax.progress import clear_status


class Interrupted(Exception):
    """The program was asked to stop, by "SIGTERM" or "Ctrl-C" (`reason`), and has saved what it needs to resume."""

    def __init__(self, text: str, reason: str = "SIGTERM"):
        super().__init__(text)
        self.reason = reason


class UserError(ValueError):
    """The input is at fault, not the program: the message names the field, file or option."""


class RequestError(UserError):
    """A generation request cannot be met. Callers word it for their users from the fields.

    Attributes:
        reason: what is wrong, in one sentence that does not number the prompt.
        param: the option at fault, under its name in `qwen3_jax.generate`; None if several are.
        prompt: index of the prompt in the call; None if the call has one prompt.
        too_long: the prompt, or the prompt and its answer, exceed the maximum context length.
    """

    def __init__(self, reason: str, param: str | None = None, *, too_long: bool = False):
        super().__init__(reason)
        self.reason, self.param, self.too_long = reason, param, too_long
        self.prompt: int | None = None

    def __str__(self) -> str:
        return self.reason if self.prompt is None else f"prompt {self.prompt}: {self.reason}"


class Diverged(UserError):
    """Training diverged: too many consecutive steps were skipped."""


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """Return " Did you mean 'x'?" for the valid name closest to `name`, or "" when none is close."""
    from difflib import get_close_matches

    matches = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that stands more than once, or None."""
    return None if len(set(names)) == len(names) else next(name for name in names if names.count(name) > 1)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    clear_status()
    print(f"warning: {text}", file=sys.stderr, flush=True)
