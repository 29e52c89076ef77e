"""Command lines that fill a configuration (a dataclass): `--config FILE`, and a flag for every key by its dotted name.

Built on jsonargparse; added here: every unknown name, in a file or on the command line, is refused with the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import docstring_parser
import jsonargparse
import yaml

from qwen3_jax.cli.value_types import wrong_value
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.shipped import configuration_file
from qwen3_jax.yaml_files import read_yaml

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
    _describe({action.dest: action for action in parser._actions}, kind, "")
    _drop_item_help(parser)
    return parser


def _drop_item_help(parser: jsonargparse.ArgumentParser) -> None:
    """Take out `--stages.help`, which lists flags (`--stages.name`) that there are not; `--help` describes the items."""
    for action in list(parser._actions):
        if any(option.endswith(".help") for option in action.option_strings):
            for holder in parser._action_groups:
                if action in holder._group_actions:
                    holder._group_actions.remove(action)
            parser._actions.remove(action)
            for option in action.option_strings:
                del parser._option_string_actions[option]


def _describe(actions: Mapping[str, Any], kind: type, prefix: str) -> None:
    """Give every key the description in its dataclass's docstring, where "beta1, beta2: of Adam" describes two."""
    hints, described = typing.get_type_hints(kind), descriptions(kind)
    for field in dataclasses.fields(kind):
        action = actions.get(prefix + field.name)
        if action is not None and field.name in described:
            action.help = described[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            _describe(actions, hints[field.name], f"{prefix}{field.name}.")


def _item_keys(kind: type, prefix: str) -> Iterator[str]:
    """Yield a section of help for every key that holds a dataclass which is no group of flags: in a list, or optional."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, inner = prefix + field.name, _dataclass_in(hints[field.name])
        if inner is None:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _item_keys(inner, f"{name}.")
            continue
        form = "'[{KEY: VALUE, ...}, ...]'" if typing.get_origin(hints[field.name]) is list else "'{KEY: VALUE, ...}'"
        rows = list(_rows(inner, ""))
        width = max(len(key) for key, _ in rows)
        lines = [
            textwrap.fill(f"{key:<{width}}  {text}", 110, initial_indent="  ", subsequent_indent=" " * (width + 4))
            for key, text in rows
        ]
        yield "\n".join([f"{name}, in the file or as --{name}={form}:", *lines, ""])


def _rows(kind: type, prefix: str) -> Iterator[tuple[str, str]]:
    hints, described = typing.get_type_hints(kind), descriptions(kind)
    for field in dataclasses.fields(kind):
        yield prefix + field.name, described.get(field.name, "")
        inner = _dataclass_in(hints[field.name])
        if inner is not None:
            yield from _rows(inner, f"{prefix}{field.name}.")


def descriptions(kind: type) -> dict[str, str]:
    """Return what a dataclass's docstring says of each field, under "Attributes"."""
    parsed = docstring_parser.parse(kind.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return {
        name.strip(): " ".join((param.description or "").split())
        for param in parsed.params
        for name in param.arg_name.split(",")
    }


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

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.files: list[tuple[Path, Any]] = []  # that were read, with what they hold

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The usual help, and behind it the keys of what a configuration file lists (`stages`, `data.sources`)."""
        lists = [] if self.kind is None else list(_item_keys(self.kind, ""))
        return "\n".join([super().format_help(*args, **kwargs), *lists])

    def instance(self, namespace: jsonargparse.Namespace) -> Any:
        """Return the dataclass filled with parsed values; options that are not its fields are left out.

        Raises:
            UserError: a dataclass refuses its values, or a value is no dataclass; jsonargparse would report every alternative.
        """
        assert self.kind is not None
        try:
            values = vars(self.instantiate(namespace))
        except (TypeError, ValueError) as error:
            reason = _user_error(error) or self._wrong_value()
            if reason is None:
                raise
            raise reason from None
        return self.kind(**{field.name: values[field.name] for field in dataclasses.fields(self.kind)})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError: the one that caused this, or one that names an unknown option, or the message itself."""
        if (reason := _user_error(ex)) is not None:
            raise reason
        if (
            self.kind is None
        ):  # a parser that jsonargparse creates for a nested type; it hands its error to the outer one
            super().error(message, ex)
        for word in self.args:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                own = [name[2:] for name in self._option_string_actions if name.startswith("--") and "." not in name]
                check_option(self.kind, option[2:].split("."), "--", own)
        if (reason := self._wrong_value()) is not None:
            raise reason
        sentence = " ".join(message.split())
        raise UserError(sentence if sentence.endswith(".") else sentence + ".")

    def _wrong_value(self) -> UserError | None:
        """Return an error about the first value, in a file or of an option, that is not of its type; None for none."""
        for path, content in self.files:
            if sentence := wrong_value(self.kind, content):
                return UserError(f"{path}: {sentence}")
        words = list(self.args)
        for place, word in enumerate(words):
            option, has_value, text = word.partition("=")
            text = text if has_value else "".join(words[place + 1 : place + 2])
            kind = _kind_of(self.kind, option[2:].split(".")) if option.startswith("--") else None
            if kind is None:
                continue
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                value = text
            if sentence := wrong_value(kind, value, option):
                return UserError(sentence)
        return None


def _user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError that caused an error, if one did."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


class _ConfigFile(jsonargparse.ActionConfigFile):
    """`--config FILE`: the names in the file are checked before jsonargparse reads it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = configuration_file(values)
        parser.files.append((path, check_file(parser.kind, path)))
        super().__call__(parser, cfg, str(path), option_string)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of the description, and writes types as a configuration file has them."""

    def _get_type_str(self, action: Any) -> str | None:
        if isinstance(action, jsonargparse.ActionYesNo):
            return "bool"
        text = super()._get_type_str(action)
        if text is None or text.startswith("<"):  # a function
            return None
        return re.sub(r"Optional\[(.+)\]$", r"\1 | null", text)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def check_file(kind: Any, path: Path) -> dict[Any, Any]:
    """Return what a YAML file holds; refuse one that is broken, or has a key that `kind` (a dataclass) has not.

    Raises:
        UserError: one of these.
    """
    content = read_yaml(path)
    _check_keys(kind, content, "", path)
    return content


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


def _kind_of(kind: Any, parts: Sequence[str]) -> Any:
    """The type of the key of a dotted name, given in parts; None where there is no such key."""
    for part in parts:
        inner = _dataclass_in(kind)
        kind = None if inner is None else typing.get_type_hints(inner).get(part)
        if kind is None:
            return None
    return kind


def _dataclass_in(kind: Any) -> Any:
    """The dataclass inside a type such as `list[X]` or `X | None`, or None."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (list, typing.Union, types.UnionType):
        inner_types = [inner for inner in map(_dataclass_in, typing.get_args(kind)) if inner is not None]
        return inner_types[0] if inner_types else None
    return None
