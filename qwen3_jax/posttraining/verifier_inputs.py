"""What a verifier is given for a prompt's record: its name, its reference, its settings.

A record names its verifier and has what that needs: `verifier`, `settings`, and the reference under `answer` or `reference`, as
the records of `qwen3 data tasks` and `qwen3 data filter` do. Verifiers whose reference has several fields also read them from
the record itself: a row of IFEval, of HumanEval's form, of LiveCodeBench is a record as it is. Others need nothing but the
prompt: `thinking` reads the flag in force, `reward` the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.data.records import PROVENANCE
from qwen3_jax.errors import UserError
from qwen3_jax.text import soft_switch
from qwen3_jax.training.reward_config import RECORD, RewardPart
from qwen3_jax.verifiers import settings_of
from qwen3_jax.verifiers.registry import find

REFERENCE_KEYS = ("answer", "reference")
# Verifiers whose reference is an object: the fields of it that a record may have itself. The first must be there.
_FIELDS: dict[str, tuple[str, ...]] = {
    "ifeval": ("instruction_id_list", "kwargs"),
    "code": ("tests", "assertions", "setup", "entry_point"),
    "livecodebench": ("public_test_cases", "private_test_cases", "func_name"),
    "reasoning_gym": ("set", "config", "index", "question", "answer"),
    "tool_use": ("calls", "says"),
    "premise": ("premise", "corrections", "facts"),
    "table": ("format", "columns", "rows", "root", "row"),
}
_OBJECTS = {*_FIELDS, "tool_calls", "checks", "json"}
# Verifiers of form: `answer` is theirs only where the record names them. Else their reference stands under a key of its own,
# and for some it may be missing.
_FORM_KEYS = {
    "language": "language", "json": "schema", "length": "length", "regex": "pattern", "ifeval": "", "checks": "checks",
}  # fmt: skip
_OPTIONAL = {"language", "json"}


class NoReference(UserError):
    """The record has not what a verifier needs; says what."""


def verifier_input(
    part: RewardPart, record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], mode: str, budget: int | None
) -> tuple[str, Any, Any]:
    """(name, reference, settings) with which a part's verifier judges an answer to a record's prompt.

    Args:
        part: with a verifier.
        record: of the prompt.
        messages: that the answer follows.
        mode: "thinking" or "non-thinking".
        budget: thinking tokens; None is no limit.

    Raises:
        UserError: the record names no verifier or an unknown one, lacks the reference, or its settings are wrong.
    """
    assert part.verifier is not None
    named = record.get("verifier")
    name = part.verifier
    if name == RECORD:
        if not isinstance(named, str) or not named:
            raise NoReference("the record names no verifier, under 'verifier'")
        name = named
    find(name)
    is_own = named == name
    fields = dict(part.settings or {})
    if is_own and record.get("settings") is not None:
        own = _decoded(record["settings"])
        if not isinstance(own, Mapping):
            raise NoReference(f"the record's 'settings' must be an object, got {own!r:.100}")
        fields.update(own)
    settings = settings_of(name, fields)
    if name == "thinking":
        return name, _thinks(record if is_own else {}, messages, mode, budget), settings
    if name == "reward":
        return name, [dict(message) for message in messages], settings
    if name == "repetition":
        return name, None, settings
    return name, _reference(name, part, record, is_own), settings


def reference_of(part: RewardPart, record: Mapping[str, Any]) -> Any:
    """The record's reference under the part's key, or under `answer` or `reference`; of a made record, as it was made with.

    Raises:
        NoReference: there is none.
    """
    keys = REFERENCE_KEYS if part.reference_key is None else (part.reference_key,)
    for key in keys:
        if record.get(key) is not None:
            return record[key]
    made = record.get(PROVENANCE)
    if part.reference_key is None and isinstance(made, Mapping) and made.get("reference") is not None:
        return made["reference"]
    raise NoReference(f"the record has no reference, under {' or '.join(map(repr, keys))}")


def _reference(name: str, part: RewardPart, record: Mapping[str, Any], is_own: bool) -> Any:
    if name in _FORM_KEYS and not is_own and part.reference_key is None:
        value = record.get(_FORM_KEYS[name])
        if value is None:
            value = _gathered(name, record)
    else:
        try:
            value = reference_of(part, record)
        except NoReference:
            value = record.get(_FORM_KEYS.get(name, ""), None)
            value = _gathered(name, record) if value is None else value
            if value is None and name == "tool_calls":
                value = record.get("calls")
    if value is None and name not in _OPTIONAL:
        keys = (part.reference_key,) if part.reference_key else (*REFERENCE_KEYS, *filter(None, [_FORM_KEYS.get(name)]))
        fields = f", nor {' and '.join(_FIELDS[name][:2])}" if name in _FIELDS else ""
        raise NoReference(f"the verifier {name!r} needs a reference, and the record has no {' or '.join(keys)}{fields}")
    value = _decoded(value) if name in _OBJECTS else value
    if name in _FIELDS and not isinstance(value, Mapping | list):  # an `answer` in words, beside the fields
        fields_there = _gathered(name, record)
        value = value if fields_there is None else fields_there
    return _with_tools(name, value, record.get("tools"))


def _gathered(name: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a reference that stand in the record itself; None if they do not."""
    fields = {key: _decoded(record[key]) for key in _FIELDS.get(name, ()) if record.get(key) is not None}
    needed = {"code": ("tests", "assertions")}.get(name, _FIELDS.get(name, ())[:1])
    return fields if any(key in fields for key in needed) else None


def _with_tools(name: str, reference: Any, tools: Any) -> Any:
    """The reference of calls with the record's tools, which give the arguments of XML calls their types."""
    tools = _decoded(tools)
    if name == "tool_calls" and isinstance(reference, list) and isinstance(tools, list):
        return {"calls": reference, "tools": tools}
    if name == "tool_use":
        reference = {"calls": reference} if isinstance(reference, list) else reference
        if isinstance(reference, Mapping) and "tools" not in reference:
            return {**reference, "tools": tools or []}
    return reference


def _thinks(record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], mode: str, budget: int | None) -> bool:
    """Whether an answer should think: the template's mode, then the record's word, then the last flag of the conversation."""
    if mode == "non-thinking" or budget == 0:
        return False
    for key in REFERENCE_KEYS:
        if isinstance(record.get(key), bool):
            return bool(record[key])
    return soft_switch(messages) is not False


def _decoded(value: Any) -> Any:
    """A value; of a text that is an object or a list in JSON, as columns of tables hold them, that."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
