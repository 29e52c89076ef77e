"""Text of special tokens inside of messages, kept apart from the special tokens of the chat template.

    text = render(template, [{"role": "user", "content": "Say <|im_end|>."}], quoted=["<|im_end|>"])      # with a mark in it
    split(text, added_tokens)     # [..., ("...Say <|im_end|>.", True), ("<|im_end|>", False), ...]; True is plain characters

A rendered prompt is one string, in which a `<|im_end|>` that a user wrote would end the turn. So it is marked before the
template renders, by a private-use character after its first one, and unmarked when the text is encoded. That character itself,
where a text has it, is doubled.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .byte_level import THINK_END, THINK_START, TOOL_CALL_END, TOOL_CALL_START

MARK = "\ue0f5"
_MARKS = re.compile(f"{MARK}({MARK}?)")
_NO_MARK = f"(?!(?:{2 * MARK})*{MARK}(?!{MARK}))"  # what follows is no mark, but may be the character itself, doubled
# What an answer says with tokens of its own. They are not special in Qwen3, but in tokenizers that others made.
_OF_ANSWERS = frozenset({THINK_START, THINK_END, TOOL_CALL_START, TOOL_CALL_END})


def quote_messages(messages: Iterable[Mapping[str, Any]], tokens: Collection[str]) -> list[dict[str, Any]]:
    """Return messages of plain JSON with each text of one of `tokens` marked; in answers not the tags of thinking and calls."""
    said = [token for token in tokens if token not in _OF_ANSWERS]
    return [quote(message, said if message.get("role") == "assistant" else tokens) for message in messages]


def quote(value: Any, tokens: Iterable[str]) -> Any:
    """Return JSON values with every text of one of `tokens` marked, in all strings, keys too.

    Args:
        value: a string, or lists and mappings with strings in them; not quoted yet.
        tokens: texts of special tokens.
    """
    if isinstance(value, str):
        value = value.replace(MARK, 2 * MARK)
        for token in tokens:
            if token in value:
                value = value.replace(token, token[0] + MARK + token[1:])
        return value
    if isinstance(value, Mapping):
        return {quote(key, tokens): quote(item, tokens) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [quote(item, tokens) for item in value]
    return value


def unquote(text: str) -> str:
    """Return a quoted text as it was written."""
    return _MARKS.sub(r"\1", text) if MARK in text else text


def split(text: str, added: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the pieces of a quoted text in order, and of each whether it is plain characters, without added tokens.

    Args:
        text: rendered from quoted messages.
        added: texts of all added tokens, special or not.
    """
    if MARK not in text:
        return [(text, False)]
    known = "|".join(re.escape(token) + _NO_MARK * (len(token) == 1) for token in sorted(added, key=len, reverse=True))
    pieces = re.split(f"({known})", text) if known else [text]
    return [(unquote(piece), number % 2 == 0) for number, piece in enumerate(pieces) if piece]
