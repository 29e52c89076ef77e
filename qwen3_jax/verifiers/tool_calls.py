"""Tool calls against a reference.

verify("tool_calls", answer, [{"name": "weather", "arguments": {"city": "Paris"}}])
verify("tool_calls", answer, [{"name": "weather", "allowed": {"city": ["Paris", "paris"], "unit": ["C", ""]}}])
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.text.parsers import parse
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded, right, unparsable, wrong


@dataclass(frozen=True)
class ToolCallSettings:
    """Of `verify_tool_calls`.

    Attributes:
        ordered: calls must come in the reference's order.
        ignore_case: texts among the arguments are equal in either case.
        loose: compare as the Berkeley Function Calling Leaderboard does: of texts, case, space, the characters ,./-_*^ and the
            kind of quotes do not count, and an object among the allowed values holds the list of right values of each key.
    """

    ordered: bool = False
    ignore_case: bool = False
    loose: bool = False


def verify_tool_calls(answer: str, reference: Any, settings: ToolCallSettings) -> Verdict:
    """Whether the answer makes the calls of the reference and no others. The score is the share of calls that fit.

    Calls are read as the server reads them (`qwen3_jax.text.parse`): Hermes' JSON and Qwen3-Coder's XML. Numbers are equal by
    value (5 and 5.0), not to texts or booleans; texts in Unicode's form NFC.

    Args:
        reference: a list of calls; the empty list: no call must be made. Each has `name` and either `arguments`, which must be
            equal, or `allowed`: for each argument the list of its right values, where "" says that it may be left out (the form
            of the Berkeley Function Calling Leaderboard). Or an object of such `calls` and the `tools` in OpenAI's form, which
            give the arguments of XML calls their types.
    """
    tools: Any = True
    if isinstance(reference, Mapping) and reference.keys() == {"calls", "tools"}:
        reference, tools = reference["calls"], reference["tools"]
    expected = _calls(reference)
    parsed = parse(answer, tools=tools)
    found = [(call.name, call.arguments_dict()) for call in parsed.tool_calls]
    if not expected:
        return right("no call is made") if not found else wrong(f"{found[0][0]} is called, where no call is right")
    if not found:
        if "<tool_call>" in parsed.content:
            return unparsable("the answer's tool call is no JSON or XML call with a name and arguments")
        return unparsable("the answer calls no tool")
    fits = [[_difference(call, want, settings) for want in expected] for call in found]
    pairs = _pairs([[difference is None for difference in row] for row in fits], settings.ordered)
    score = len(pairs) / max(len(found), len(expected))
    if score == 1:
        return right(f"the answer makes the {len(expected)} calls of the reference")
    free = [place for place in range(len(found)) if place not in pairs]
    if not free:
        missing = [want["name"] for place, want in enumerate(expected) if place not in pairs.values()]
        return wrong(f"no call fits {', '.join(missing)}", score)
    nearest = min(fits[free[0]], key=lambda difference: (difference or "").startswith("it calls"))
    reason = nearest or "the calls come in another order, or once too often"
    return graded(score, f"call {free[0] + 1}: {reason}")


def _calls(reference: Any) -> list[Mapping[str, Any]]:
    if not isinstance(reference, list):
        raise BadReference(f"'tool_calls' needs a list of calls, got {type(reference).__name__}")
    for call in reference:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise BadReference(f"a call needs a name, got {call!r:.200}")
        if ("arguments" in call) == ("allowed" in call):
            raise BadReference(f"the call of {call['name']} needs either arguments or allowed")
        values = call.get("arguments", call.get("allowed"))
        if not isinstance(values, Mapping) or (
            "allowed" in call and not all(isinstance(v, list) for v in values.values())
        ):
            raise BadReference(f"the call of {call['name']}: arguments are an object, allowed an object of lists")
    return reference


def _difference(call: tuple[str, dict[str, Any]], want: Mapping[str, Any], settings: ToolCallSettings) -> str | None:
    """Why the call is not the one that is wanted; None if it is."""
    name, arguments = call
    if name != want["name"]:
        return f"it calls {name!r}, not {want['name']!r}"
    allowed = want.get("allowed")
    if allowed is None:
        allowed = {key: [value] for key, value in want["arguments"].items()}
        optional: set[str] = set()
    else:
        optional = {key for key, values in allowed.items() if "" in values}
    for key in arguments:
        if key not in allowed:
            return f"{name} has no argument {key!r} in the reference"
    for key, values in allowed.items():
        if key not in arguments:
            if key not in optional:
                return f"the argument {key!r} of {name} is missing"
        elif not any(_equal(arguments[key], value, settings) for value in values):
            return f"the argument {key!r} of {name} is {arguments[key]!r:.200}, not {values[0]!r:.200}"
    return None


def _equal(value: Any, other: Any, settings: ToolCallSettings) -> bool:
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        if settings.loose and all(isinstance(values, list) for values in other.values()):
            return _keys_allowed(value, other, settings)
        return value.keys() == other.keys() and all(_equal(value[key], other[key], settings) for key in value)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(_equal(a, b, settings) for a, b in zip(value, other, strict=True))
    if isinstance(value, str) and isinstance(other, str):
        value, other = (unicodedata.normalize("NFC", text) for text in (value, other))
        if settings.loose:
            return _without_marks(value) == _without_marks(other)
        if settings.ignore_case:
            return value.casefold() == other.casefold()
    return value == other


def _keys_allowed(value: Mapping[str, Any], allowed: Mapping[str, list[Any]], settings: ToolCallSettings) -> bool:
    """Whether an object has a right value for each key; a key whose list holds "" may be missing."""
    if not value.keys() <= allowed.keys():
        return False
    return all(
        any(_equal(value[key], other, settings) for other in values) if key in value else "" in values
        for key, values in allowed.items()
    )


_MARKS = str.maketrans({**dict.fromkeys(" ,./-_*^"), "'": '"'})


def _without_marks(text: str) -> str:
    return text.translate(_MARKS).lower()


def _pairs(fits: list[list[bool]], ordered: bool) -> dict[int, int]:
    """The most pairs (call, wanted call) that fit, each used once."""
    if ordered:
        return {place: place for place, row in enumerate(fits) if place < len(row) and row[place]}
    taken: dict[int, int] = {}  # wanted call -> call

    def place_call(call: int, tried: set[int]) -> bool:
        for want, fit in enumerate(fits[call]):
            if fit and want not in tried:
                tried.add(want)
                if want not in taken or place_call(taken[want], tried):
                    taken[want] = call
                    return True
        return False

    for call in range(len(fits)):
        place_call(call, set())
    return {call: want for want, call in taken.items()}
