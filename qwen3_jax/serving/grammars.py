"""Constraints on answers: JSON, a JSON schema, or tool calls, compiled by llguidance.

The grammar begins after the thinking. Qwen3 writes newlines between `</think>` and its answer, so up to four whitespace
characters may come first.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.serving.objects import Function, ResponseFormat
from qwen3_jax.serving.schemas import for_grammar, innermost
from qwen3_jax.text import Tokenizer
from qwen3_jax.text.json_schema import types_of

_SPACE = "SPACE: /[ \\n]{1,4}/\n"
# Unlimited whitespace is valid JSON, and models in a degenerate loop write it.
_INDENTED = {"whitespace_pattern": r"(\n {0,64}| )?", "coerce_one_of": True}
# As the chat template writes calls.
_ON_ONE_LINE = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True,
}  # fmt: skip
_COMPILER = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # where in the grammar, which nobody sent
_MAX_CALLS = 16  # of one answer that must call


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

    def of(
        self,
        format: ResponseFormat | None,
        forced: Sequence[Function],
        optional: Sequence[Function] = (),
        *,
        several: bool,
    ) -> Callable[[], "Matcher"] | None:
        """Return a factory of constraints, one per answer; None if any text is allowed.

        Args:
            format: required form of the content.
            forced: if there are any, one of them must be called.
            optional: may be called instead of an answer in this form.
            several: more than one call is allowed.

        Raises:
            RequestError: a schema cannot be compiled; says why.
        """
        if forced:  # an answer is calls alone: `format` is of an answer in text
            return self._compile(f"start: SPACE? calls\n{self._calls(forced, several)}{_SPACE}", "tools")
        if format is None or format.type == "text":
            return None
        schema = {"type": "object"}
        if format.json_schema is not None:
            schema = for_grammar(format.json_schema.schema_, "the schema", "response_format", self._check)
        text = _dump(schema | {"x-guidance": _INDENTED})
        self._must_compile(schema, text, "the schema", "response_format")
        answer = f"answer: %json {text}\n{_SPACE}"
        alone = self._compile(f"start: SPACE? answer\n{answer}", "response_format")
        if not optional:
            return alone
        return self._compile(
            f"start: SPACE? (answer | calls)\n{answer}{self._calls(optional, several, strict=False)}", "tools"
        )

    def _calls(self, functions: Sequence[Function], several: bool, *, strict: bool = True) -> str:
        """Return the rules of one or more calls whose arguments fit the functions' schemas.

        Without `strict`, arguments whose schema no grammar can hold are any object, as they are without `response_format`.
        """
        rules, names = [], []
        for place, function in enumerate(functions):
            # A grammar of its own for each tool's parameters: references are looked up in the schema that has them.
            try:
                arguments = self._arguments(function)
            except RequestError:
                if strict:
                    raise
                arguments = _dump({"type": "object", "x-guidance": _ON_ONE_LINE})
            head = f'{{"name": {json.dumps(function.name, ensure_ascii=False)}, "arguments": '
            names.append(f"call{place}")
            rules.append(f'call{place}: {json.dumps(head, ensure_ascii=False)} arguments{place} "}}"\n')
            rules.append(f"arguments{place}: %json {arguments}\n")
        more = f' ("\\n" call){{0,{_MAX_CALLS - 1}}}' if several else ""
        call = f'call: <tool_call> "\\n" ({" | ".join(names)}) "\\n" </tool_call>\n'
        return f"calls: call{more}\n{call}{''.join(rules)}"

    def _arguments(self, function: Function) -> str:
        """Return the schema of a call's arguments as the grammar takes it; RequestError names the tool."""
        name = f"the tool {function.name!r}"
        schema = for_grammar(function.parameters, name, "tools", self._check)
        if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"}:
            schema = {"type": "object"} | schema
        text = _dump(schema | {"x-guidance": _ON_ONE_LINE})
        types = types_of(schema, schema)
        if types and "object" not in types:
            raise RequestError(f"{name}: the arguments of a call are an object, not of type {sorted(types)}.", "tools")
        self._must_compile(schema, text, name, "tools")
        return text

    def _must_compile(self, schema: dict[str, Any], text: str, name: str, field: str) -> None:
        """Raise a RequestError that names the place at fault unless a schema (with its options: `text`) compiles."""
        problem = self._problem(f"start: %json {text}\n")
        if problem is not None:
            place, problem = innermost(schema, self._check, problem, schema.get("$defs", {}))
            raise RequestError(f"{name}{place and f', {place[1:]}'}: it cannot be compiled: {problem}.", field)

    def _check(self, schema: dict[str, Any]) -> str | None:
        return self._problem(f"start: %json {_dump(schema)}\n")

    @functools.lru_cache(maxsize=256)  # noqa: B019 - there is one object per server
    def _problem(self, grammar: str) -> str | None:
        """What is wrong with a grammar; None if it compiles."""
        try:
            matcher = self._library.LLMatcher(self._tokenizer, self._library.LLMatcher.grammar_from_lark(grammar))
        except ValueError as error:
            return _first_line(error)
        return _first_line(matcher.get_error()) if matcher.is_error() else None

    def _compile(self, grammar: str, field: str) -> Callable[[], "Matcher"]:
        problem: object = None
        try:
            matcher = self._library.LLMatcher(self._tokenizer, self._library.LLMatcher.grammar_from_lark(grammar))
            if matcher.is_error():
                problem = matcher.get_error()
        except ValueError as error:
            problem = error
        if problem is not None:
            raise RequestError(f"{field!r} cannot be compiled: {_first_line(problem)}", field)
        return lambda: Matcher(matcher.deep_copy(), self._eos)


class Matcher:
    """One answer's `qwen3_jax.generation.Constraint`."""

    def __init__(self, matcher: Any, eos: Sequence[int]):
        self._matcher, self._eos = matcher, eos

    def allowed(self) -> np.ndarray:
        """Return the allowed tokens, as bits in uint32 words."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32).copy()
        if self._matcher.is_accepting() or self._matcher.is_stopped() or not words.any():
            for token in self._eos:  # llguidance takes a single end token
                words[token // 32] |= np.uint32(1 << token % 32)
        return words

    def take(self, token: int) -> None:
        """Advance by a token."""
        if token not in self._eos:
            self._matcher.consume_token(token)


def _first_line(problem: object) -> str:
    text = str(problem).strip().partition("\n")[0][:300]
    return _COMPILER.sub("", text).rstrip(".")


def _dump(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=True)
