"""Train a Qwen3 model from a configuration file.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --run_dir runs/wide --model.config.hidden_size=192
    python train.py --config configs/scale/qwen3-8b.yaml --plan v5p:2x2x1

Every key of the file is also a flag, by its dotted name. An unknown key is refused with the nearest valid one, wherever it
stands. The same command resumes a run that was interrupted. `--plan` trains nothing: it compiles the step for TPUs that are
not here (see `qwen3 plan --help`). `--profile` also writes a trace for xprof.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse
import yaml

from qwen3_jax.cli import plan, processes
from qwen3_jax.cli.common import guarded
from qwen3_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 train") -> int:
    """Train; return the exit code."""

    def work() -> int:
        options, rest = plan.take(sys.argv[1:] if argv is None else argv, prog)
        if options is not None:
            return plan.run(options, rest, prog)
        which, rest = processes.take(rest, prog)
        config = parse(rest, prog)
        import sharding
        from qwen3_jax.training.loop import train

        sharding.initialize(**which)  # one process, or what the scheduler announces
        return processes.until_lost(prog, lambda: train(config))

    return guarded(prog, work)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise UserError(_with_suggestion(" ".join(message.split())))


def _parser(prog: str) -> jsonargparse.ArgumentParser:
    """The command line: `--config`, and every key of `TrainConfig`."""
    from qwen3_jax.training.config import TrainConfig

    made = _Parser(prog=prog, description=__doc__, formatter_class=_HelpFormatter)
    made.add_argument("--config", action="config", help="a YAML file with any of the keys below; flags come after it")
    plan.add_flags(made)  # for --help; `main` has taken these and the next off the command line
    processes.add_flags(made)
    made.add_class_arguments(TrainConfig)
    return made


def parse(argv: Sequence[str], prog: str = "train.py") -> TrainConfig:
    """Return the configuration of a command line.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    from qwen3_jax.training.config import TrainConfig

    argv = ["--profile=true" if word == "--profile" else word for word in argv]
    for place, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (argv[place + 1] if place + 1 < len(argv) else "")
            _check_file(TrainConfig, Path(path).expanduser(), path)
    made = _parser(prog)
    if not argv:
        raise UserError("give --config FILE (configs/quickstart.yaml needs no download), or --help.")
    for word in argv:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name not in ("config", "help", "print_config", *plan.FLAGS, *processes.FLAGS):
            _check_name(TrainConfig, name.split("."), "--")
    values = vars(made.instantiate(made.parse_args(argv)))
    return TrainConfig(**{f.name: values[f.name] for f in dataclasses.fields(TrainConfig)})


def _check_file(kind: Any, path: Path, written: str) -> None:
    if not path.is_file():
        raise UserError(f"the config file {written!r} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values.")
    _check_keys(kind, content, "", path)


def _check_keys(kind: Any, content: Any, prefix: str, path: Path) -> None:
    """Compare the keys of nested mappings with the fields of nested dataclasses."""
    if isinstance(content, list):
        for item in content:
            _check_keys(kind, item, prefix, path)
        return
    dataclass_type = _dataclass_in(kind)
    if dataclass_type is None or not isinstance(content, dict):
        return
    hints = typing.get_type_hints(dataclass_type)
    names = [f.name for f in dataclasses.fields(dataclass_type)]
    for key, value in content.items():
        if key not in names:
            raise UserError(f"{path}: there is no key {prefix}{key}.{nearest(str(key), names)}")
        _check_keys(hints[key], value, f"{prefix}{key}.", path)


def _check_name(kind: Any, parts: list[str], prefix: str) -> None:
    """The same for one dotted name of the command line."""
    dataclass_type = _dataclass_in(kind)
    if dataclass_type is None:
        return
    names = [f.name for f in dataclasses.fields(dataclass_type)]
    name = re.sub(r"\+$", "", parts[0])
    if name not in names:
        raise UserError(f"there is no option {prefix}{name}.{nearest(name, names)}")
    if len(parts) > 1:
        _check_name(typing.get_type_hints(dataclass_type)[name], parts[1:], f"{prefix}{name}.")


def _dataclass_in(kind: Any) -> Any:
    """The dataclass inside a type such as `list[X]` or `X | None`, or None."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (list, typing.Union, types.UnionType):
        found = [inner for inner in map(_dataclass_in, typing.get_args(kind)) if inner is not None]
        return found[0] if found else None
    return None


def _with_suggestion(message: str) -> str:
    return message if message.endswith(".") else message + "."
