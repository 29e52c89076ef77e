"""`train.py --config FILE [--any.key=value]`: from YAML and flags to a typed `TrainConfig`.

An unknown key is refused with the nearest valid name, wherever it stands.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.training.config import TrainConfig
from sharding import ShardingError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, and turn a user's mistakes into one line on standard error; returns the exit status."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        from qwen3_jax.training.loop import train  # noqa: PLC0415 - so that --help and mistakes answer at once

        train(config)
    except (UserError, ShardingError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise UserError(_with_suggestion(" ".join(message.split())))


def parser() -> jsonargparse.ArgumentParser:
    """The command line: `--config`, and every key of `TrainConfig`."""
    made = _Parser(
        prog="train.py",
        description="Pre-train or fine-tune a Qwen3 model: python train.py --config configs/quickstart.yaml",
        exit_on_error=True,
    )
    made.add_argument("--config", action="config", help="a YAML file with any of the keys below; flags come after it")
    made.add_class_arguments(TrainConfig)
    return made


def parse(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration of a command line.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    argv = list(argv)
    for place, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (argv[place + 1] if place + 1 < len(argv) else "")
            _check_file(Path(path).expanduser(), path)
    made = parser()
    if not argv:
        raise UserError("give --config FILE (configs/quickstart.yaml needs no download), or --help.")
    for word in argv:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name not in ("config", "help", "print_config"):
            _check_name(TrainConfig, name.split("."), "--")
    values = vars(made.instantiate(made.parse_args(argv)))
    return TrainConfig(**{f.name: values[f.name] for f in dataclasses.fields(TrainConfig)})


def _check_file(path: Path, written: str) -> None:
    if not path.is_file():
        raise UserError(f"the config file {written!r} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values.")
    _check_keys(TrainConfig, content, "", path)


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
