"""What a grammar lets a model write: whole answers, token by token."""

import json
from typing import Any

from qwen3_jax.serving.grammars import Grammars
from qwen3_jax.serving.objects import Function, ResponseFormat
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
GRAMMARS = Grammars(TOK, [TOK.im_end_id])


def matches(constraint, text: str) -> bool:
    """Whether a constraint lets an answer be exactly this text."""
    for token in [*TOK.encode(text), TOK.im_end_id]:
        words = constraint.allowed()
        if not words[token // 32] >> token % 32 & 1:
            return False
        constraint.take(token)
    return True


def called(name: str, arguments: Any, functions: list[Function], format: ResponseFormat | None = None) -> bool:
    """Whether the call of a tool with these arguments can be written, as the chat template writes calls.

    With `format` calls are optional.
    """
    body = (
        f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    )
    forced, optional = (functions, []) if format is None else ([], functions)
    return matches(GRAMMARS.of(format, forced, optional, several=False)(), f"<tool_call>\n{body}\n</tool_call>")


def answered(value: Any, schema: dict) -> bool:
    """Whether a value can be written as an answer of this schema."""
    of = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
    return matches(GRAMMARS.of(of, [], several=False)(), json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))
