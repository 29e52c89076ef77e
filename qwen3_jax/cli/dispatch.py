"""Commands by name: the first argument chooses one, which gets the others."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence

from qwen3_jax.cli.exit_codes import BAD_INPUT
from qwen3_jax.errors import nearest

Command = Callable[[list[str], str], int]  # (argv, prog) -> exit code


def dispatch(
    prog: str, about: str, commands: Mapping[str, tuple[str | Command, str]], argv: Sequence[str] | None
) -> int:
    """Run the command that the first argument names; return its exit code.

    Args:
        prog: what to call the program in messages.
        about: its description for `--help`.
        commands: by name: a function, or a module whose `main` is that function, imported when used; and a line of help.
        argv: the command line; None is this process's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, commands))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in commands.items())
    if not argv or argv[0] in ("-h", "--help"):
        out = sys.stdout if argv else sys.stderr
        print(
            f"usage: {prog} COMMAND ...\n\n{about.strip()}\n\n{listing}\n\n{prog} COMMAND --help says more.", file=out
        )
        return 0 if argv else BAD_INPUT
    name = argv[0]
    if name not in commands:
        listed = ", ".join(commands)
        print(
            f"{prog}: error: unknown command {name!r}; the commands are {listed}.{nearest(name, list(commands))}",
            file=sys.stderr,
        )
        return BAD_INPUT
    command, _ = commands[name]
    if isinstance(command, str):
        command = importlib.import_module(command).main
    return command(argv[1:], f"{prog} {name}")
