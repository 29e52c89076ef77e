"""Answers of a form: a regular expression, JSON of a schema."""

import json
import re
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.fences import fenced_blocks
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong


@dataclass(frozen=True)
class RegexSettings:
    """Of `verify_regex`.

    Attributes:
        whole: the pattern must match all of the answer (without space at its ends), not a part of it.
        ignore_case: letters of either case match.
        seconds: of time for one answer.
    """

    whole: bool = True
    ignore_case: bool = False
    seconds: float = 2.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'regex': ", seconds=above(0, finite=True))


def verify_regex(answer: str, reference: Any, settings: RegexSettings) -> Verdict:
    """Whether the answer matches a regular expression (Python's `re`).

    Args:
        reference: the pattern. A dot matches no line break; start it with "(?s)" where it should.
    """
    if not isinstance(reference, str):
        raise BadReference(f"'regex' needs a pattern, got {type(reference).__name__}")
    try:
        pattern = re.compile(reference, re.IGNORECASE if settings.ignore_case else 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadReference(f"{reference[:200]!r} is no regular expression ({error})") from None
    match = pattern.fullmatch(answer.strip()) if settings.whole else pattern.search(answer)
    if match:
        return right(f"the pattern matches {match[0][:200]!r}")
    return wrong(f"the pattern {reference[:200]!r} does not match" + (" the whole answer" if settings.whole else ""))


_JSON = ("json", "jsonc", "json5")  # languages of a fenced block


@dataclass(frozen=True)
class JsonSettings:
    """Of `verify_json`.

    Attributes:
        fenced: the answer may hold the JSON in one fenced block of Markdown that is JSON's or names no language, with text and
            blocks of other languages around it.
        formats: `format` of the schema counts ("date", "email", ...), as far as jsonschema checks it without other packages.
        seconds: of time for one answer.
    """

    fenced: bool = True
    formats: bool = True
    seconds: float = 2.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'json': ", seconds=above(0, finite=True))


def verify_json(answer: str, reference: Any, settings: JsonSettings) -> Verdict:
    """Whether the answer is JSON, and of a schema. JSON is RFC 8259's: no NaN, no key twice in an object.

    Args:
        reference: a JSON Schema (its `$schema` names the draft, 2020-12 otherwise); None or true: any JSON.
    """
    validator = _validator(reference, settings)
    fenced = fenced_blocks(answer) if settings.fenced else []
    blocks = [block.text for block in fenced if block.language in _JSON] or [
        block.text for block in fenced if not block.language
    ]
    if len(blocks) > 1:
        return unparsable(f"the answer holds {len(blocks)} fenced blocks of JSON")
    try:
        value = json.loads(blocks[0] if blocks else answer.strip(), parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return unparsable(f"the answer is no JSON: {error}"[:300])
    failure = None if validator is None else min(_errors(validator, value), key=lambda one: len(one.path), default=None)
    if failure is None:
        return right("the answer is JSON" + ("" if validator is None else " of the schema"))
    place = "".join(f"[{part!r}]" for part in failure.absolute_path) or "the top"
    return wrong(f"at {place}: {failure.message}"[:300])


def _validator(schema: Any, settings: JsonSettings) -> Any:
    if schema is None or schema is True:
        return None
    if not isinstance(schema, dict):
        raise BadReference(f"'json' needs a schema, an object, got {type(schema).__name__}")
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise UserError("the verifier 'json' needs the package jsonschema: pip install \"qwen3-jax[eval]\".") from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BadReference(f"the schema is not valid: {error.message}"[:300]) from None
    checker = kind.FORMAT_CHECKER if settings.formats else None
    return kind(schema, format_checker=checker, registry=referencing.Registry())  # fetches no schema from elsewhere


def _errors(validator: Any, value: Any) -> list[Any]:
    import referencing.exceptions

    try:
        return list(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable as error:
        raise BadReference(f"the schema refers to {error.ref!r}, which it does not hold; nothing is fetched") from None
    except Exception as error:
        if type(error).__name__ == "_WrappedReferencingError":
            raise BadReference(f"the schema refers to something that it does not hold ({error})") from None
        raise


def preload() -> None:
    """Import jsonschema, if it is there."""
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        return


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object holds a key twice")
    return value
