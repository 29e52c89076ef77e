"""How an answer is read: four kinds of parser, declared in a recipe. What cannot be read is never kept.

parser: {kind: text}                                        {"text": ...}
parser: {kind: json}                                        the JSON value, checked against the recipe's schema
parser: {kind: tags, tags: [title, text]}                   <title>...</title> <text>...</text>
parser: {kind: regex, pattern: 'Q: (?P<question>.+)', many: true}     the named groups; with `many` {"items": [...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.data import json_values
from qwen3_jax.errors import UserError, nearest

KINDS = ("text", "json", "tags", "regex")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


class Unreadable(ValueError):
    """An answer that the parser cannot read; says why."""


@dataclass(frozen=True)
class Parser:
    """One way to read answers.

    Attributes:
        kind: text, json, tags or regex.
        tags: names of the tags, each once in the answer.
        pattern: with named groups; `.` matches newlines, `^` and `$` at lines.
        many: every match of the pattern, at least one, and not the first alone.
        least: fewest characters of the answer.
        strip: taken from the beginning of a text: "Here is the ...:" (a pattern).
    """

    kind: str = "text"
    tags: tuple[str, ...] = ()
    pattern: str = ""
    many: bool = False
    least: int = 1
    strip: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"parser.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        check_bounds(vars(self), "parser.", least=whole(1))
        for name, kind in (("tags", "tags"), ("pattern", "regex"), ("many", "regex")):
            if getattr(self, name) and self.kind != kind:
                raise UserError(f"parser.{name} belongs to the kind {kind}, not to {self.kind}.")
        if self.kind in ("tags", "regex") and not (self.tags or self.pattern):
            raise UserError(f"parser.{'tags' if self.kind == 'tags' else 'pattern'} is empty.")
        for name in ("pattern", "strip"):
            try:
                compiled = re.compile(getattr(self, name))
            except re.error as error:
                raise UserError(f"parser.{name} is not a pattern of Python's re ({error}).") from None
            if name == "pattern" and self.kind == "regex" and not compiled.groupindex:
                raise UserError("parser.pattern has no named group, (?P<name>...).")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Parser:
        """From the fields of a recipe's file.

        Raises:
            UserError: an unknown field, or a wrong value.
        """
        for name in values:
            if name not in cls.__dataclass_fields__:
                raise UserError(f"a parser has no field {name!r}.{nearest(str(name), list(cls.__dataclass_fields__))}")
        kinds = {"kind": str, "tags": list, "pattern": str, "many": bool, "least": int, "strip": str}
        for name, value in values.items():
            if not isinstance(value, kinds[name]):
                raise UserError(f"parser.{name} is {value!r}; it must be {kinds[name].__name__}.")
        return cls(**{**values, "tags": tuple(values.get("tags", ()))})

    def read(self, answer: str, schema: Mapping[str, Any] | None = None) -> Any:
        """What an answer says.

        Raises:
            Unreadable: says why not.
        """
        text = answer.strip()
        if len(text) < self.least:
            raise Unreadable(f"the answer has {len(text)} characters, fewer than {self.least}")
        match self.kind:
            case "text":
                text = re.sub(f"\\A(?:{self.strip})", "", text).strip() if self.strip else text
                if not text:
                    raise Unreadable("nothing is left of the answer")
                return {"text": text}
            case "json":
                return _read_json(text, schema)
            case "tags":
                return {tag: _tagged(text, tag) for tag in self.tags}
            case _:
                return self._matched(text)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.DOTALL | re.MULTILINE)

    def _matched(self, text: str) -> dict[str, Any]:
        found = [
            {name: value.strip() if value else "" for name, value in match.groupdict().items()}
            for match in self._compiled.finditer(text)
        ]
        if not found:
            raise Unreadable("nothing in the answer matches the recipe's pattern")
        return {"items": found} if self.many else found[0]


def _read_json(text: str, schema: Mapping[str, Any] | None) -> Any:
    fenced = _FENCED.findall(text)
    source = fenced[0] if len(fenced) == 1 else text
    try:
        value = json_values.load(source)
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise Unreadable(f"the answer is not valid JSON ({error})"[:300]) from None
    if schema is not None:
        reason = _against(value, schema)
        if reason is not None:
            raise Unreadable(f"the answer breaks the schema: {reason}"[:300])
    return value


def _against(value: Any, schema: Mapping[str, Any]) -> str | None:
    try:
        import jsonschema
    except ImportError:
        raise UserError('recipes with a schema need the package jsonschema: pip install "qwen3-jax[eval]"') from None
    validator = jsonschema.validators.validator_for(schema)(schema)
    error = next(iter(validator.iter_errors(value)), None)
    return None if error is None else error.message


def _tagged(text: str, tag: str) -> str:
    found = re.findall(f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    if len(found) != 1:
        raise Unreadable(f"the answer has {len(found)} parts <{tag}>...</{tag}>, not one")
    if not found[0].strip():
        raise Unreadable(f"<{tag}> is empty")
    return str(found[0]).strip()
