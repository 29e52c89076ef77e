"""What the commands of experiments share: how they start, the configuration that they change, and how a file is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli.common import BAD_INPUT, guarded
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.text.folder import replace_file

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def run(argv: list[str] | None, prog: str, command: str, doc: str, action: Callable[[list[str]], int]) -> int:
    """Run `PROG COMMAND ...`, the one command of its kind; return the exit code.

    Args:
        action: is given what follows the command.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {prog} {command} --config FILE\n\n{doc}\n{prog} {command} --help lists every key.")
        return 0 if argv else BAD_INPUT

    def work() -> int:
        if argv[0] != command:
            raise UserError(f"unknown command {argv[0]!r}; there is {command}.{nearest(argv[0], [command])}")
        return action(argv[1:])

    return guarded(prog, work)


def training(path: str, changes: Mapping[str, Any], what: str) -> TrainConfig:
    """Return a training configuration with changes by dotted name.

    Raises:
        UserError: the file or a name is at fault; `what` says whose.
    """
    from qwen3_jax.cli import train

    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    try:
        return train.parse(["--config", path, *flags])
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def write(path: Path, text: str) -> Path:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    return path
