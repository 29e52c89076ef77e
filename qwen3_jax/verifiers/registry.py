"""The verifiers by name, and the one way to call them.

A verifier is a function of (answer, reference, settings) whose third parameter is annotated with a dataclass of its settings:

    @dataclass(frozen=True)
    class Settings:
        ignore_case: bool = False

    def starts_with(answer: str, reference: str, settings: Settings) -> Verdict:
        ...

    register("starts_with", starts_with)
"""

import dataclasses
import importlib
import os
import threading
import typing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.json_fields import check_types
from qwen3_jax.processes import Crashed, Failed, TimedOut
from qwen3_jax.text.parsers import parse
from qwen3_jax.verifiers import (
    choice,
    content,
    exact,
    ifeval,
    livecodebench,
    mathematics,
    number,
    patterns,
    programs,
    reasoning_gym,
    style,
    tables,
    tool_calls,
    tool_use,
)
from qwen3_jax.verifiers.processes import call_in_process
from qwen3_jax.verifiers.verdict import BadReference, Verdict, unparsable

Function = Callable[[str, Any, Any], Verdict]


@dataclass(frozen=True)
class Verifier:
    """An entry of the registry.

    Attributes:
        function: of (answer, reference, settings); a module's function, so that a process can find it.
        reads: "content", what follows the thinking section, or "text", all that the model wrote.
        killable: the function runs in a process that is ended after `settings.seconds`; for what an answer can make hang.
    """

    function: Function
    reads: Literal["content", "text"] = "content"
    killable: bool = False


_VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(mathematics.verify_math, killable=True),
    "exact": Verifier(exact.verify_exact),
    "number": Verifier(number.verify_number),
    "choice": Verifier(choice.verify_choice),
    "regex": Verifier(patterns.verify_regex, killable=True),
    "json": Verifier(patterns.verify_json, killable=True),
    "ifeval": Verifier(ifeval.verify_ifeval, killable=True),
    "code": Verifier(programs.verify_code),
    "livecodebench": Verifier(livecodebench.verify_livecodebench),
    "tool_calls": Verifier(tool_calls.verify_tool_calls),
    "tool_use": Verifier(tool_use.verify_tool_use),
    "recall": Verifier(content.verify_recall),
    "premise": Verifier(content.verify_premise),
    "reasoning_gym": Verifier(reasoning_gym.verify_reasoning_gym, killable=True),
    "thinking": Verifier(style.verify_thinking, reads="text"),
    "repetition": Verifier(style.verify_repetition, reads="text"),
    "language": Verifier(style.verify_language, reads="text"),
    "length": Verifier(style.verify_length),
    "table": Verifier(tables.verify_table, killable=True),
}
_LOCK = threading.Lock()


def names() -> list[str]:
    """The names of all verifiers."""
    return sorted(_VERIFIERS)


def register(
    name: str, function: Function, *, reads: Literal["content", "text"] = "content", killable: bool = False
) -> None:
    """Add a verifier; see `Verifier` for the fields.

    Raises:
        UserError: the name is taken by another function, or the function has no settings of the form above.
    """
    verifier = Verifier(function, reads, killable)
    fields = {field.name for field in dataclasses.fields(settings_class(verifier, name))}
    if killable and "seconds" not in fields:
        raise UserError(f"the verifier {name!r} is killable; its settings need the field `seconds`.")
    if killable and _importable(function) is not function:
        raise UserError(f"the verifier {name!r} is killable; it must be a function of a module that can be imported.")
    with _LOCK:
        if _VERIFIERS.setdefault(name, verifier) != verifier:
            raise UserError(f"there is a verifier {name!r} already; choose another name.")


def verify(
    name: str, answer: str | None, reference: Any = None, settings: Any = None, *, in_thinking: bool = False
) -> Verdict:
    """Judge one answer. May be called from several threads; an answer never raises.

    Args:
        name: of a verifier.
        answer: all that the model wrote, its thinking section included; None, as of a message with tool calls alone, is "".
        reference: what the verifier compares it with; JSON values.
        settings: an instance of the verifier's settings, or their fields as a mapping; None: the defaults.
        in_thinking: the prompt had opened `<think>`.

    Raises:
        UserError: an unknown name, a wrong setting, a package that is missing.
    """
    verifier = find(name)
    chosen = settings_of(name, settings)
    if not isinstance(answer, str | None):
        raise UserError(f"an answer must be text, got {type(answer).__name__}.")
    text = answer = answer or ""
    if verifier.reads == "content":
        parsed = parse(answer, in_thinking, tools=False)
        text = parsed.content
        if not text.strip() and parsed.thinking is not None and "</think>" not in answer:
            return unparsable("the thinking section does not end, so there is no answer")
    elif in_thinking:
        text = "<think>\n" + answer
    try:
        if verifier.killable:
            return _verify_in_process(verifier.function, text, reference, chosen)
        return verifier.function(text, reference, chosen)
    except BadReference as error:
        return Verdict(0.0, "error", f"the reference is at fault: {error}")
    except UserError:
        raise
    except Exception as error:
        return Verdict(0.0, "error", f"the verifier {name!r} failed: {type(error).__name__}: {error}"[:500])


def verify_all(
    name: str,
    pairs: Iterable[tuple[str | None, Any]],
    settings: Any = None,
    *,
    in_thinking: bool = False,
    threads: int | None = None,
) -> list[Verdict]:
    """Judge many (answer, reference) pairs, `threads` at a time (None: one for each core, up to 8); the verdicts in order.

    Raises as `verify`.
    """
    chosen = settings_of(name, settings)
    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(lambda pair: verify(name, pair[0], pair[1], chosen, in_thinking=in_thinking), pairs))


def find(name: str) -> Verifier:
    """The verifier of this name; a UserError if there is none."""
    if name not in _VERIFIERS:
        raise UserError(f"there is no verifier {name!r}; there are {', '.join(names())}.{nearest(name, names())}")
    return _VERIFIERS[name]


def settings_class(verifier: Verifier, name: str) -> type:
    """The dataclass that the verifier's third parameter is annotated with."""
    hints = typing.get_type_hints(verifier.function)
    kinds = [hint for parameter, hint in hints.items() if parameter != "return"]
    if not kinds or not dataclasses.is_dataclass(kinds[-1]):
        raise UserError(f"the verifier {name!r} must annotate its settings with a dataclass.")
    return typing.cast(type, kinds[-1])


def settings_of(name: str, settings: Any = None) -> Any:
    """The verifier's settings from an instance, a mapping of their fields, or None.

    Raises:
        UserError: an unknown field, a wrong type, a value out of bounds.
    """
    kind = settings_class(find(name), name)
    if isinstance(settings, kind):
        return settings
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"settings of the verifier {name!r} must be a mapping, got {type(settings).__name__}.")
    fields = dict(settings or {})
    known = [field.name for field in dataclasses.fields(kind)]
    for field in fields:
        if field not in known:
            raise UserError(
                f"the verifier {name!r} has no setting {field!r}; it has {', '.join(known)}.{nearest(str(field), known)}"
            )
    check_types(kind, fields, f"settings of {name!r}:")
    for field in dataclasses.fields(kind):
        if field.name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"the verifier {name!r} needs the setting {field.name!r}.")
    return kind(**fields)


def _verify_in_process(function: Function, answer: str, reference: Any, settings: Any) -> Verdict:
    try:
        fields = call_in_process(
            f"{function.__module__}:{function.__qualname__}",
            {"answer": answer, "reference": reference, "settings": dataclasses.asdict(settings)},
            settings.seconds,
        )
    except TimedOut as error:
        return Verdict(0.0, "timed_out", f"no verdict within {settings.seconds:g} s{error}")
    except (Crashed, Failed) as error:
        return Verdict(0.0, "error", f"the verifier's process ended: {error}")
    return Verdict(**{**fields, "parts": tuple(fields["parts"])})


def _importable(function: Function) -> Any:
    try:
        value: Any = importlib.import_module(function.__module__)
        for part in function.__qualname__.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return None
    return None if function.__module__ == "__main__" else value
