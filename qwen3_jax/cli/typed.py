"""Command lines and YAML files that fill a dataclass: jsonargparse, with every wrong name refused by the nearest valid one."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from qwen3_jax.errors import UserError, nearest

T = TypeVar("T")


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class TypedParser(jsonargparse.ArgumentParser):
    """jsonargparse whose errors are `UserError`s of one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise UserError(_sentence(" ".join(message.split())))


def parse_into(kind: type[T], argv: Sequence[str], prog: str, about: str) -> T:
    """Return the dataclass that `--config FILE` and the flags after it fill; `--help` says what there is.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    argv = list(argv)
    for place, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (argv[place + 1] if place + 1 < len(argv) else "")
            check_file(kind, Path(path).expanduser(), path)
        elif word.startswith("--") and word[2:].partition("=")[0] not in ("help", "print_config"):
            check_name(kind, word[2:].partition("=")[0].split("."), "--")
    parser = TypedParser(prog=prog, description=about, formatter_class=HelpFormatter)
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below; flags come after it")
    parser.add_class_arguments(kind)
    values = vars(parser.instantiate(parser.parse_args(argv)))
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})  # type: ignore[arg-type]


def check_file(kind: Any, path: Path, written: str) -> None:
    """Refuse a YAML file that is missing, broken, or has a key that `kind` (a dataclass) has not, by name."""
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


def check_name(kind: Any, parts: list[str], prefix: str) -> None:
    """The same for one dotted name of the command line."""
    dataclass_type = _dataclass_in(kind)
    if dataclass_type is None:
        return
    names = [f.name for f in dataclasses.fields(dataclass_type)]
    name = re.sub(r"\+$", "", parts[0])
    if name not in names:
        raise UserError(f"there is no option {prefix}{name}.{nearest(name, names)}")
    if len(parts) > 1:
        check_name(typing.get_type_hints(dataclass_type)[name], parts[1:], f"{prefix}{name}.")


def _dataclass_in(kind: Any) -> Any:
    """The dataclass inside a type such as `list[X]` or `X | None`, or None."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (list, typing.Union, types.UnionType):
        found = [inner for inner in map(_dataclass_in, typing.get_args(kind)) if inner is not None]
        return found[0] if found else None
    return None


def _sentence(message: str) -> str:
    return message if message.endswith(".") else message + "."
