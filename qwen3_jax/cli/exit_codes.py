"""Exit codes of all commands, and the function that turns errors into them.

0 done, 2 bad input (one sentence on standard error), 3 another process of a run is lost, 130 stopped by Ctrl-C, 143 ended by
SIGTERM with everything saved. A traceback is a bug.
"""

import os
import sys
from collections.abc import Callable

from qwen3_jax.cli import background
from qwen3_jax.errors import Interrupted, UserError
from qwen3_jax.progress import clear_status, status_line

BAD_INPUT = 2
LOST_PROCESS = 3
INTERRUPTED = 130
TERMINATED = 143


def guarded(prog: str, work: Callable[[], int]) -> int:
    """Run a command, with a status line for what takes long; turn user errors, Ctrl-C and a closed pipe into exit codes."""
    try:
        with status_line():
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


def _is_user_error(error: ValueError) -> bool:
    if isinstance(error, UserError):
        return True
    from sharding import ShardingError  # imports JAX

    return isinstance(error, ShardingError)
