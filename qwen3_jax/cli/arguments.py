"""The argument parser of commands without a configuration file: exact names, errors of one sentence."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qwen3_jax.cli.exit_codes import BAD_INPUT
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.paths import local_path


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
        """Exit with one sentence."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message.rstrip('.')}{'' if message.endswith('?') else '.'}\n")


def local_target(text: str) -> Path:
    """An argparse type for what is written to a local disk; a URL is refused."""
    try:
        return local_path(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for integers from `minimum` to `maximum`, both included; None is no upper bound."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            bounds = f"of {minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return value

    return parse


def above_0(what: str) -> Callable[[str], float]:
    """Return an argparse type for finite numbers above 0; `what` they are, for the message."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what} above 0")
        return value

    return parse


def number_or_none(minimum: int, hint: str = "or none") -> Callable[[str], int | None]:
    """Return an argparse type for integers of `minimum` or more, and "none", "null" or "unlimited", which are None."""

    def parse(text: str) -> int | None:
        if text.lower() in ("none", "null", "unlimited"):
            return None
        try:
            return whole_number(minimum)(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, {hint}") from None

    return parse


def json_object(text: str) -> dict[str, Any]:
    """An argparse type for an object in JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
