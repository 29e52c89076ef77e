"""What all commands share: a parser whose errors are one sentence, sub-commands by name, exit codes.

Exit codes: 0 done, 2 bad input (one sentence on standard error), 130 stopped by Ctrl-C. A traceback is a bug.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from qwen3_jax.errors import Interrupted, UserError, nearest

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143  # asked to end by SIGTERM; what was done is saved


class Parser(argparse.ArgumentParser):
    """argparse with exact option names, the nearest name for a mistyped one, and no usage dump before an error."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; an unknown option is refused with the nearest valid one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            kind = "option" if name.startswith("-") else "argument"
            self.error(f"unknown {kind} {name!r}.{nearest(name, options) if kind == 'option' else ''}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Leave with one sentence."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message.rstrip('.')}{'' if message.endswith('?') else '.'}\n")


def dispatch(prog: str, about: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str] | None) -> int:
    """Hand the rest of the command line to the module of the command that comes first."""
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, commands))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in commands.items())
    if not argv or argv[0] in ("-h", "--help"):
        out = sys.stdout if argv else sys.stderr
        print(f"usage: {prog} COMMAND ...\n\n{about}\n\n{listing}\n\n{prog} COMMAND --help says more.", file=out)
        return 0 if argv else BAD_INPUT
    name = argv[0]
    if name not in commands:
        known = ", ".join(commands)
        print(
            f"{prog}: error: unknown command {name!r}; the commands are {known}.{nearest(name, list(commands))}",
            file=sys.stderr,
        )
        return BAD_INPUT
    return importlib.import_module(commands[name][0]).main(argv[1:], f"{prog} {name}")


def guarded(prog: str, work: Callable[[], int]) -> int:
    """Run a command; turn user errors, Ctrl-C and a closed pipe into exit codes."""
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped.", file=sys.stderr)
        return INTERRUPTED
    except Interrupted as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:  # `... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        if not _is_users(error):
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return code


def _is_users(error: ValueError) -> bool:
    if isinstance(error, UserError):
        return True
    from sharding import ShardingError

    return isinstance(error, ShardingError)


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed since; a second Ctrl-C raises KeyboardInterrupt.

    Asked between two pieces of an answer, it never leaves half a line or half a step behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def whole_number(least: int) -> Callable[[str], int]:
    """Return an argparse type for integers of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return value

    return parse
