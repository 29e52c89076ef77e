"""The text room's errors. All are ValueErrors with one sentence that names the culprit."""


class TextError(ValueError):
    """Something is wrong with a text, a conversation or a tokenizer."""


class TokenizerError(TextError):
    """A tokenizer's files are missing, damaged or contradictory, or a text or id cannot be converted."""


class ChatTemplateError(TextError):
    """A conversation cannot be rendered: the messages are malformed, or the template refused them."""
