"""The forms in which data sets write a preference down: one prompt, and two answers of which one is better.

| keys                                                         | read as                                                   |
|--------------------------------------------------------------|-----------------------------------------------------------|
| `prompt`, `chosen`, `rejected` as texts (TRL)                | raw text; nothing is added to it                          |
| `prompt`, `chosen`, `rejected` as messages (TRL)             | a conversation with two ends                              |
| `chosen`, `rejected` as whole conversations (implicit prompt)| the messages that they share at the beginning are the prompt |
| `chosen`, `rejected` as whole texts (implicit prompt)        | raw text; what they share at the beginning is the prompt  |
| `conversations` or `messages`, `chosen`, `rejected`          | a conversation with two ends (ShareGPT, LLaMA-Factory)    |
| a question other than `prompt`, `chosen`, `rejected`         | one question with two answers                             |
| `messages`, `rejected_response` or `rejected_messages`       | the last answer of the messages is the chosen one (ms-swift) |
| `input`, `preferred_output`, `non_preferred_output`          | OpenAI's                                                  |

Each side is turned into a record with one answer and read by `qwen3_jax.data.forms`: system messages, tools, histories and
modes are as there. Only what differs between the two is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwen3_jax.data.forms import LISTS, QUESTIONS, Continuation, Conversation, is_messages, read_form
from qwen3_jax.data.messages import FormError, decoded, read_messages

_KEYS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("messages", "rejected_response"),
    ("messages", "rejected_messages"),
)
_TEXT = "\0"  # the key of plain text: no record has it


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A preference; both sides have one prompt."""

    chosen: Conversation | Continuation
    rejected: Conversation | Continuation


def read_pair(body: Mapping[str, Any]) -> tuple[Pair, set[str]]:
    """Return the preference that a record states, and the keys of it that were read.

    Args:
        body: the record's JSON object; null values count as absent.

    Raises:
        FormError: no form that is read, a broken part, a key that changes the meaning and is not read, or equal answers.
    """
    body = {key: value for key, value in body.items() if value is not None}
    names = _names(body)
    rest = {key: value for key, value in body.items() if key not in names}
    used: set[str] = set(names)
    if "margin" in rest:
        raise FormError("'margin' is not read: every preference has the same weight; remove it")
    if names[0] == "preferred_output":
        rest, used = _openai_input(rest, used)
    ends = [_answer(body[name], name) for name in names]
    if names[0] == "messages":
        last = len(ends[0]) - 1 if isinstance(ends[0], list) else -1
        if last < 1 or not isinstance(ends[1], list | str):
            raise FormError(f"'messages' must end with the answer that is better than {names[1]!r}")
        rest |= {"prompt": ends[0][:last]}
        ends[0] = ends[0][last:]
        if isinstance(ends[1], str):
            ends[1] = [{"role": "assistant", "content": ends[1]}]
        used.add("prompt")
    if isinstance(ends[0], str) != isinstance(ends[1], str):
        raise FormError(f"{names[0]!r} and {names[1]!r} must both be texts, or both messages")
    sides = _of_texts(rest, ends, names) if isinstance(ends[0], str) else _of_messages(rest, ends, names)
    forms = [_side(side, used) for side in sides]
    if _said(forms[0]) == _said(forms[1]):
        raise FormError(f"{names[0]!r} and {names[1]!r} are the same answer, so there is nothing to learn")
    return Pair(*forms), used


def _names(body: Mapping[str, Any]) -> tuple[str, str]:
    given = [pair for pair in _KEYS if pair[1] in body]
    if len(given) > 1:
        raise FormError(f"the record has {[pair[1] for pair in given]}; keep one of them")
    if not given:
        half = next((pair for pair in _KEYS[:2] if pair[0] in body), None)
        raise FormError(
            f"the record has {half[0]!r} and no {half[1]!r}"
            if half
            else f"the record is no preference: it has {sorted(body)}, and neither 'chosen' and 'rejected' nor another form "
            "that docs/posttraining.md lists"
        )
    if given[0][0] not in body:
        raise FormError(f"the record has {given[0][1]!r} and no {given[0][0]!r}")
    return given[0]


def _openai_input(rest: dict[str, Any], used: set[str]) -> tuple[dict[str, Any], set[str]]:
    """OpenAI's form: the prompt and its tools are under `input`."""
    held = decoded(rest.pop("input", None), "'input'")
    if not isinstance(held, dict) or "messages" not in held:
        raise FormError("'input' must be an object with the 'messages' of the prompt")
    if twice := sorted(held.keys() & rest.keys()):
        raise FormError(f"{twice[0]!r} is both in the record and in its 'input'; keep one of them")
    return rest | held, used | {"input"}


def _answer(value: Any, name: str) -> str | list[Any]:
    """The text or messages of one answer."""
    if is_messages(value):
        value = decoded(value, repr(name))
    if isinstance(value, dict):
        if any(isinstance(value.get(key), list) for key in ("role", "from")):
            return read_messages(value, name).messages
        value = [value]
    if isinstance(value, list) and is_messages(value):
        return value
    if not isinstance(value, str) or not value:
        raise FormError(f"{name!r} must be a text or messages, and not empty")
    return value


def _of_texts(rest: dict[str, Any], ends: list[Any], names: tuple[str, str]) -> list[dict[str, Any]]:
    """The records of two answers that are texts."""
    if (key := next((key for key in LISTS if key in rest), None)) is not None:
        rest = {name: value for name, value in rest.items() if name != key} | {"prompt": rest[key]}
    if is_messages(rest.get("prompt")):
        return [rest | {"completion": [{"role": "assistant", "content": end}]} for end in ends]
    if "prompt" in rest:
        return [rest | {"completion": end} for end in ends]
    if any(rest.get(key) for key in QUESTIONS):
        return [rest | {"response": end} for end in ends]
    shared = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
    if shared and ends[0][shared - 1] == " ":  # a word's space belongs to its token (TRL's extract_prompt)
        shared -= 1
    if not shared:
        raise FormError(f"the record has no 'prompt', and {names[0]!r} and {names[1]!r} share no beginning")
    return [rest | {"prompt": end[:shared], "completion": end[shared:]} for end in ends]


def _of_messages(rest: dict[str, Any], ends: list[Any], names: tuple[str, str]) -> list[dict[str, Any]]:
    """The records of two answers that are messages."""
    lists = [key for key in LISTS if key in rest]
    keys = [*lists, *(key for key in QUESTIONS if is_messages(rest.get(key)))]
    if len(keys) > 1:
        raise FormError(f"the record has messages under {keys}; keep one of them")
    read = [read_messages(end, name).messages for end, name in zip(ends, names, strict=True)]
    # Some forms write several messages as one.
    ends = [end if len(end) == len(messages) else messages for end, messages in zip(ends, read, strict=True)]
    shared = next((i for i, (a, b) in enumerate(zip(*read, strict=False)) if a != b), min(map(len, read)))
    if keys:
        prompt = decoded(rest[keys[0]], repr(keys[0]))
        rest = {name: value for name, value in rest.items() if name != keys[0]}
        before = read_messages(prompt, keys[0]).messages
        # Whole conversations may stand beside their prompt.
        starts = [len(before) if side[: len(before)] == before else 0 for side in read]
        ends = [end[start:] for end, start in zip(ends, starts, strict=True)]
    else:
        question = next((key for key in QUESTIONS if rest.get(key)), None)
        if read[0][0]["role"] == "assistant" and question is not None:
            if "input" in rest and question != "input":
                raise FormError(
                    f"{question!r} and 'input' beside messages are not read; write them as 'prompt', in messages"
                )
            prompt = [{"role": "user", "content": rest[question]}]
        else:
            prompt, ends = ends[0][:shared], [end[shared:] for end in ends]
            texts = [message.get("content") for message in read[0][:shared]]
            if question is not None and rest[question] not in texts:
                raise FormError(
                    f"{question!r} is not in the messages that {names[0]!r} and {names[1]!r} share; keep one prompt"
                )
        rest = {name: value for name, value in rest.items() if name != question}
    if not prompt:
        raise FormError(f"{names[0]!r} and {names[1]!r} share no message at the beginning, and there is no 'prompt'")
    for end, name in zip(ends, names, strict=True):
        if not end:
            raise FormError(f"{name!r} has no answer after the messages of the prompt")
    return [rest | {"prompt": prompt, "completion": end} for end in ends]


def _side(body: dict[str, Any], used: set[str]) -> Conversation | Continuation:
    form, keys = read_form(body, _TEXT)
    used |= keys
    if isinstance(form, Continuation):
        if not isinstance(form.prompt, str) or not isinstance(form.completion, str):
            raise FormError("the prompt and the answers must be texts, or all of them messages")
        return form
    assert isinstance(form, Conversation)
    # What stands before the answer is not learned, also where the record was read as question and answer.
    return form if form.context else dataclasses.replace(form, context=len(form.turns.messages) - 1)


def _said(form: Conversation | Continuation) -> Any:
    if isinstance(form, Continuation):
        return form.completion
    return form.turns.messages[form.context :]
