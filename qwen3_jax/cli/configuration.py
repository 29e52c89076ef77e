"""Command lines that fill a configuration (a dataclass): `--config FILE`, and a flag for every key by its dotted name.

Built on jsonargparse; added here: every unknown name, in a file or on the command line, is refused with the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.text_files import read_text

T = TypeVar("T")


def configuration_parser(kind: type, prog: str, about: str) -> ConfigurationParser:
    """Return a parser of `--config FILE` and the keys of the dataclass `kind`; options may be added to it."""
    parser = ConfigurationParser(
        prog=prog, description=about, formatter_class=_HelpFormatter, print_config="--print-config", allow_abbrev=False
    )
    parser.kind = kind
    parser.add_argument(
        "--config", action=_ConfigFile, metavar="FILE",
        help="a YAML file with any of the keys below; flags come after it, as do further files",
    )  # fmt: skip
    flags = [field.name for field in dataclasses.fields(kind) if field.default is False]
    parser.add_class_arguments(kind, skip=set(flags))
    for name in flags:  # `--profile` alone is `--profile=true`
        parser.add_argument(f"--{name}", action=jsonargparse.ActionYesNo(no_prefix="no-"), nargs="?")
    return parser


def parse_configuration(kind: type[T], argv: Sequence[str], prog: str, about: str) -> T:
    """Return the dataclass that `--config FILE` and the flags after it fill.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    parser = configuration_parser(kind, prog, about)
    return parser.instance(parser.parse_args(argv))


class ConfigurationParser(jsonargparse.ArgumentParser):
    """jsonargparse whose errors are `UserError`s of one sentence; `kind` is the dataclass to fill."""

    kind: type | None = None

    def instance(self, namespace: jsonargparse.Namespace) -> Any:
        """Return the dataclass filled with parsed values; options that are not its fields are left out."""
        assert self.kind is not None
        values = vars(self.instantiate(namespace))
        return self.kind(**{field.name: values[field.name] for field in dataclasses.fields(self.kind)})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError: the one that caused this, or one that names an unknown option, or the message itself."""
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        if (
            self.kind is None
        ):  # a parser that jsonargparse creates for a nested type; it hands its error to the outer one
            super().error(message, ex)
        for word in self.args:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                own = [name[2:] for name in self._option_string_actions if name.startswith("--") and "." not in name]
                check_option(self.kind, option[2:].split("."), "--", own)
        sentence = " ".join(message.split())
        raise UserError(sentence if sentence.endswith(".") else sentence + ".")


class _ConfigFile(jsonargparse.ActionConfigFile):
    """`--config FILE`: the names in the file are checked before jsonargparse reads it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        check_file(parser.kind, Path(values).expanduser(), values)
        super().__call__(parser, cfg, values, option_string)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def check_file(kind: Any, path: Path, written: str) -> None:
    """Refuse a YAML file that is missing, broken, or has a key that `kind` (a dataclass) has not, by name.

    Raises:
        UserError: one of these; `written` is the path as the user wrote it.
    """
    if not path.is_file():
        raise UserError(f"the config file {written!r} does not exist.")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
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


def check_option(kind: Any, parts: list[str], prefix: str, others: Sequence[str] = ()) -> None:
    """Refuse a dotted name, given in parts, that is neither a key of `kind` nor one of `others`.

    Raises:
        UserError: names the nearest valid one; `prefix` stands before the name.
    """
    dataclass_type = _dataclass_in(kind)
    if dataclass_type is None:
        return
    names = list(dict.fromkeys([*(f.name for f in dataclasses.fields(dataclass_type)), *others]))
    name = parts[0].removesuffix("+")  # `--data.sources+=...` appends
    if name not in names:
        raise UserError(f"there is no option {prefix}{name}.{nearest(name, names)}")
    if len(parts) > 1:
        check_option(typing.get_type_hints(dataclass_type).get(name), parts[1:], f"{prefix}{name}.")


def _dataclass_in(kind: Any) -> Any:
    """The dataclass inside a type such as `list[X]` or `X | None`, or None."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (list, typing.Union, types.UnionType):
        inner_types = [inner for inner in map(_dataclass_in, typing.get_args(kind)) if inner is not None]
        return inner_types[0] if inner_types else None
    return None
