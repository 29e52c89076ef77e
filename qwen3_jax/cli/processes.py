"""One of several processes of a run: the options that say which it is, and what is said when another one is lost.

Schedulers announce the options by themselves. A process learns of a lost peer in one of two ways: the collective it waits in
fails (an exception), or the coordination service's heartbeats stop and JAX ends the process from C++, where no Python runs any
more. So a small child process waits beside it, and speaks when it ended without a word.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qwen3_jax.cli.common import Parser, whole_number

FLAGS = ("coordinator", "process_count", "process_index")
LOST = 3  # exit code: another process of the run is gone
_ADVICE = (
    "look for the first error among the processes, then start all of them with the same command: the run resumes from its "
    "last checkpoint."
)
_SPEAK_IF_SILENT = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr, flush=True)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, when there are several processes")
    parser.add_argument("--process_count", metavar="N", type=whole_number(1), help="processes in the run")
    parser.add_argument("--process_index", metavar="I", type=whole_number(0), help="this process, from 0")


def take(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], list[str]]:
    """Take the options out of a command line; return the arguments of `sharding.initialize` and the rest."""
    parser = Parser(prog=prog, add_help=False)
    add_flags(parser)
    found, rest = parser.parse_known_args(list(argv))
    return vars(found), rest


def until_lost(prog: str, work: Callable[[], object]) -> int:
    """Run the work of one process; when another process is gone, say so and end, rather than wait for it."""
    import jax

    import sharding

    who = f"{prog}: error: process {jax.process_index()} of {jax.process_count()}"
    try:
        with _last_words(f"{who} was ended, most likely because another one was lost; {_ADVICE}"):
            work()
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        if not sharding.lost_process(error):
            raise
        reason = str(error).splitlines()[0][:200]
        print(f"{who} lost another one ({reason}); {_ADVICE}", file=sys.stderr, flush=True)
        # Leaving in the usual way would wait for the lost process once more, in JAX's own clean-up.
        os._exit(LOST)
    return 0


@contextmanager
def _last_words(text: str) -> Iterator[None]:
    """Have `text` printed if this process dies inside, in whatever way."""
    import jax

    if jax.process_count() == 1:
        yield
        return
    command = [sys.executable, "-S", "-E", "-c", _SPEAK_IF_SILENT, text]
    # In a session of its own, so that Ctrl-C and a scheduler's signal to the group reach the worker alone.
    speaker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert speaker.stdin is not None
    try:
        yield
    finally:
        speaker.stdin.write(b"ended by itself")
        speaker.stdin.close()
        speaker.wait()
