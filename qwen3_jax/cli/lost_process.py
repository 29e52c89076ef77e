"""Ending one process of a run when another one is lost, with a message.

A process learns of a lost peer in one of two ways: the collective it waits in fails (an exception), or the coordination
service's heartbeats stop and JAX ends the process from C++, where no Python runs any more. So a small child process waits
beside it, and prints the message if it ended without doing so.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen3_jax.cli.exit_codes import LOST_PROCESS
from qwen3_jax.training.stopping import StopSignals

_ADVICE = (
    "look for the first error among the processes, then start all of them with the same command: the run resumes from its "
    "last checkpoint."
)
_PRINT_IF_SILENT = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr, flush=True)"


def until_lost(prog: str, work: Callable[[], object], stop: StopSignals) -> int:
    """Run the work of one process; when another process is lost, print that and exit rather than wait for it.

    Args:
        prog: the program's name, for messages.
        work: what to run.
        stop: a process that a signal ends is not taken for one that a lost peer ended.
    """
    import jax

    import sharding

    process = f"{prog}: error: process {jax.process_index()} of {jax.process_count()}"
    try:
        with _message_if_killed(f"{process} was ended, most likely because another one was lost; {_ADVICE}", stop):
            work()
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        if not sharding.lost_process(error):
            raise
        reason = str(error).splitlines()[0][:200]
        print(f"{process} lost another one ({reason}); {_ADVICE}", file=sys.stderr, flush=True)
        # A usual exit would wait for the lost process once more, in JAX's own clean-up.
        os._exit(LOST_PROCESS)
    return 0


@contextmanager
def _message_if_killed(text: str, stop: StopSignals) -> Iterator[None]:
    """Have `text` printed if this process ends inside the context, however it ends."""
    import jax

    if jax.process_count() == 1:
        yield
        return
    command = [sys.executable, "-S", "-E", "-c", _PRINT_IF_SILENT, text]
    # In a session of its own, so that Ctrl-C and a scheduler's signal to the group reach the worker alone.
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    pipe = watcher.stdin
    assert pipe is not None

    def silence() -> None:
        pipe.write(b"ended by itself")
        pipe.close()
        watcher.wait()

    stop.before_exit.append(silence)
    try:
        yield
    finally:
        silence()
