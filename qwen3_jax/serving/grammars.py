"""What an answer is held to: JSON, a JSON schema, or calls of tools, through llguidance.

The grammar begins where thinking has ended. Qwen3 puts newlines between `</think>` and its answer, so up to four characters of
white space may come first.
"""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.serving.protocol import Function, ResponseFormat
from qwen3_jax.text import Tokenizer

_SPACE = "SPACE: /[ \\n]{1,4}/\n"
# Space without end would be valid JSON, and models that have lost their way write it.
_INDENTED = {"whitespace_pattern": r"(\n {0,64}| )?"}
_ON_ONE_LINE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}  # as the template shows calls
_MOST_CALLS = 16  # in one answer that must call


class Grammars:
    """Compiles grammars for one vocabulary.

    Args:
        tokenizer: the model's.
        eos: tokens that end an answer.

    Raises:
        UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, eos: Collection[int]):
        try:
            import llguidance
        except ImportError as error:
            raise UserError("serving needs llguidance: pip install 'qwen3-jax[serve]'.") from error
        self._library = llguidance
        self._eos = sorted(token for token in eos if token < tokenizer.vocab_size)
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.to_json(), n_vocab=tokenizer.vocab_size, eos_token=self._eos[0] if self._eos else None
        )

    def of_format(self, format: ResponseFormat | None) -> Callable[[], "Held"] | None:
        """Return what makes the constraint of a response format; None for text.

        Raises:
            UserError: the schema cannot be compiled; says why.
        """
        if format is None or format.type == "text":
            return None
        schema = {"type": "object"} if format.json_schema is None else format.json_schema.schema_
        return self._made(
            f"start: SPACE? %json {_dump(schema | {'x-guidance': _INDENTED})}\n{_SPACE}", "response_format"
        )

    def of_calls(self, functions: Sequence[Function], several: bool) -> Callable[[], "Held"]:
        """Return what makes the constraint that one of the functions is called, or several calls are made.

        Raises:
            UserError: the parameters of one cannot be compiled; says why.
        """
        rules, names = [], []
        for place, function in enumerate(functions):
            schema = {
                "type": "object",
                "properties": {"name": {"const": function.name}, "arguments": function.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
                "x-guidance": _ON_ONE_LINE,
            }
            names.append(f"call{place}")
            rules.append(f"call{place}: %json {_dump(schema)}\n")
        more = f' ("\\n" call){{0,{_MOST_CALLS - 1}}}' if several else ""
        text = f'start: SPACE? call{more}\ncall: <tool_call> "\\n" ({" | ".join(names)}) "\\n" </tool_call>\n'
        return self._made(text + "".join(rules) + _SPACE, "tools")

    def _made(self, grammar: str, field: str) -> Callable[[], "Held"]:
        try:
            made = self._library.LLMatcher.grammar_from_lark(grammar)
            first = self._library.LLMatcher(self._tokenizer, made)
        except ValueError as error:
            raise UserError(f"{field!r} cannot be compiled: {_first_line(error)}") from None
        if first.is_error():
            raise UserError(f"{field!r} cannot be compiled: {_first_line(first.get_error())}")
        return lambda: Held(first.deep_copy(), self._eos)


class Held:
    """One answer's `qwen3_jax.generation.Constraint`."""

    def __init__(self, matcher: Any, eos: Sequence[int]):
        self._matcher, self._eos = matcher, eos

    def allowed(self) -> np.ndarray:
        """Return the tokens that may come next, as bits in uint32 words."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32).copy()
        if self._matcher.is_accepting() or self._matcher.is_stopped() or not words.any():
            for token in self._eos:  # llguidance knows one of them
                words[token // 32] |= np.uint32(1 << token % 32)
        return words

    def take(self, token: int) -> None:
        """Go on by a token."""
        if token not in self._eos:
            self._matcher.consume_token(token)


def _dump(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=True)


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]
