"""Text of special tokens inside of messages, kept apart from the special tokens of the chat template.

    marked = quote("Say <|im_end|>.", ["<|im_end|>"])     # what a template may render
    split(marked, added_tokens)                           # [("Say <|im_end|>.", True)]: plain characters

A rendered prompt is one string, in which a `<|im_end|>` that a user wrote would end the turn. So it is marked before the
template renders, by a private-use character after its first one, and unmarked when the text is encoded.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MARK = "\ue0f5"


def quote(value: Any, tokens: Iterable[str]) -> Any:
    """Return JSON values with every text of one of `tokens` marked, in all strings but keys.

    Args:
        value: a string, or lists and mappings with strings in them.
        tokens: texts of special tokens.
    """
    if isinstance(value, str):
        for token in tokens:
            if token in value:
                value = value.replace(token, token[0] + MARK + token[1:])
        return value
    if isinstance(value, Mapping):
        return {key: quote(item, tokens) for key, item in value.items()}
    if isinstance(value, list):
        return [quote(item, tokens) for item in value]
    return value


def unquote(text: str, tokens: Iterable[str]) -> str:
    """Return a text with the marks of `tokens` taken out."""
    for token in tokens:
        text = text.replace(token[0] + MARK + token[1:], token)
    return text


def split(text: str, added: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the pieces of a marked text in order, and of each whether it is plain characters, without added tokens.

    Args:
        text: rendered.
        added: texts of all added tokens, special or not.
    """
    if MARK not in text:
        return [(text, False)]
    known = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
    pieces = re.split(f"({known})", text) if known else [text]
    return [(unquote(piece, added), number % 2 == 0) for number, piece in enumerate(pieces) if piece]
