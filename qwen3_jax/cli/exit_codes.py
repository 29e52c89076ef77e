"""Exit codes of all commands, and the function that turns errors into them.

0 done, 2 bad input (one sentence on standard error), 3 another process of a run is lost, 130 stopped by Ctrl-C, 143 ended by
SIGTERM with everything saved. A traceback is a bug.
"""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qwen3_jax.cli import background
from qwen3_jax.errors import Interrupted, UserError
from qwen3_jax.progress import clear_status, status_line

BAD_INPUT = 2
LOST_PROCESS = 3
INTERRUPTED = 130
TERMINATED = 143
_REPEATED_AFTER = 0.01  # seconds


def guarded(prog: str, work: Callable[[], int]) -> int:
    """Run a command, with a status line for what takes long; turn user errors, Ctrl-C and a closed pipe into exit codes."""
    try:
        with _interrupts_repeated(), status_line():
            code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        clear_status()
        print(f"\n{prog}: stopped.", file=sys.stderr, flush=True)
        return background.leave(INTERRUPTED)
    except Interrupted as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return INTERRUPTED if error.reason == "Ctrl-C" else TERMINATED
    except BrokenPipeError:  # `... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return background.leave(0)
    except ValueError as error:
        if not _is_user_error(error):
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return code


@contextmanager
def _interrupts_repeated() -> Iterator[None]:
    """Repeat an interrupt that was raised where Python cannot pass an exception on, a moment later.

    A signal's handler runs between any two instructions of the main thread, also in a callback of the garbage collector (JAX
    has one), of a weak reference, or in `__del__`. An exception there only reaches `sys.unraisablehook`: the program would
    print a traceback and not stop.
    """
    before = sys.unraisablehook

    def repeat(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt | Interrupted):
            terminated = isinstance(error, Interrupted) and error.reason != "Ctrl-C"
            number = signal.SIGTERM if terminated else signal.SIGINT
            timer = threading.Timer(_REPEATED_AFTER, _thread.interrupt_main, (number,))
            timer.daemon = True
            timer.start()
        else:
            before(unraisable)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        if sys.unraisablehook is repeat:  # an import may have put its own before it
            sys.unraisablehook = before


def _is_user_error(error: ValueError) -> bool:
    if isinstance(error, UserError):
        return True
    from sharding import ShardingError  # imports JAX

    return isinstance(error, ShardingError)
