"""Errors of the text package. All are UserErrors."""

from qwen3_jax.errors import UserError


class TextError(UserError):
    """Something is wrong with a text, a conversation or a tokenizer."""


class TokenizerError(TextError):
    """A tokenizer's files are missing, damaged or contradictory, or a text or id cannot be converted."""


class ChatTemplateError(TextError):
    """A conversation cannot be rendered: the messages are malformed, or the template refused them."""
