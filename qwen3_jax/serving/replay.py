"""Thinking that a client carries without reading it: text in a form that comes back unchanged.

Some clients return only the opaque field of thinking (`encrypted_content` of OpenAI, `signature` of Anthropic). Nothing is
secret: whoever has the field can decode it.
"""

import base64

_PREFIX = "qwen3-jax:"


def packed(text: str) -> str:
    """Return a text as an opaque field."""
    return _PREFIX + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode("ascii")


def unpacked(field: str) -> str | None:
    """Return the text of an opaque field; None if it is not one of `packed`."""
    if not field.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(field.removeprefix(_PREFIX), altchars=b"-_", validate=True).decode("utf-8")
    except ValueError:  # not its alphabet, or not UTF-8
        return None
