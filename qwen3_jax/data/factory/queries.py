"""The query of a record: what is asked, its tools, the reference for a verifier; and the response that it has."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from qwen3_jax.data.forms import Conversation, read_form
from qwen3_jax.data.messages import FormError
from qwen3_jax.data.records import DataError, Record
from qwen3_jax.data.rendering import END_OF_TURN
from qwen3_jax.errors import nearest
from qwen3_jax.text import parse

_FLAG = re.compile(r"\s*/(?:no_)?think\s*\Z")
_QUESTIONS = ("question", "problem", "query", "prompt", "instruction", "input")


@dataclass(frozen=True)
class Query:
    """What is asked.

    Attributes:
        messages: up to the last message of the user.
        tools: in OpenAI's form.
        reference: for the verifier; None where the record has none.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    reference: Any = None

    @property
    def id(self) -> str:
        """16 hexadecimal digits, equal for equal messages and tools."""
        plain = json.dumps([self.messages, self.tools], sort_keys=True).encode()
        return hashlib.blake2b(plain, digest_size=8).hexdigest()

    @property
    def text(self) -> str:
        """What the user says last."""
        return str(self.messages[-1].get("content", ""))


def query_of(record: Record, reference_key: str | None = None, system: str = "") -> Query:
    """The query of a record in any form of `qwen3_jax.data.forms`, or of one question under any of its names.

    Args:
        reference_key: the record's key with the reference; a record without it has the reference None.
        system: a system message for queries that have none.

    Raises:
        DataError: there is no question.
    """
    body = {key: value for key, value in record.body.items() if value is not None}
    messages, tools = _asked(record, body)
    if system and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return Query(messages, tools, None if reference_key is None else body.get(reference_key))


def _asked(record: Record, body: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    try:
        form, _ = read_form(body)
    except FormError as error:
        form, reason = None, str(error)
    else:
        reason = "it has no question of a user"
    if isinstance(form, Conversation):
        messages = form.turns.messages
        last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is not None:
            return tuple(messages[: last + 1]), tuple(form.tools or ())
    elif not any(key in body for key in ("messages", "conversations", "conversation")):
        for key in _QUESTIONS:
            if isinstance(body.get(key), str) and body[key].strip():
                more = body.get("input") if key == "instruction" else None
                text = f"{body[key]}\n{more}" if isinstance(more, str) and more else body[key]
                return ({"role": "user", "content": text},), ()
        reason = f"it has no question under any of {', '.join(_QUESTIONS)}, or messages"
        reason += "".join(nearest(key, list(_QUESTIONS)) for key in list(body)[:1])
    raise DataError(f"{record.location}: {reason}")


def without_flag(text: str) -> str:
    """A query without the flag that a training sample carries."""
    return _FLAG.sub("", text)


def response_of(record: Record) -> tuple[str, str]:
    """(thinking, answer) of a record's last response; thinking is "" where there is none.

    Raises:
        DataError: there is no response.
    """
    try:
        form, _ = read_form(record.body)
    except FormError as error:
        raise DataError(f"{record.location}: {error}") from None
    if isinstance(form, Conversation) and form.completion is not None:
        segments = form.completion
        text = segments if isinstance(segments, str) else "".join(str(segment.get("text", "")) for segment in segments)
        parsed = parse(text.removesuffix(END_OF_TURN), tools=False)
        return parsed.thinking or "", parsed.content
    if not isinstance(form, Conversation) or form.turns.messages[-1]["role"] != "assistant":
        raise DataError(f"{record.location}: it has no answer of an assistant at its end")
    message = form.turns.messages[-1]
    content, thinking = message.get("content", ""), message.get("reasoning_content")
    if thinking is None:
        parsed = parse(content, tools=False)
        thinking, content = parsed.thinking or "", parsed.content
    return thinking, content
