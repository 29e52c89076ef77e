"""JSON schemas as generators write them (pydantic, zod, OpenAPI), made ready for the grammar.

Every keyword is held by the grammar, is an annotation, is relaxed, or is refused by name and place:

- Annotations (`title`, `description`, `default`, `examples`, ... and unknown keywords) constrain nothing and are left out.
- `RELAXED` keywords are left out as well: the answer may break them, and who validates it against the schema, as pydantic
  does, still finds out. So are patterns that look around and formats that the grammar does not know.
- `REFUSED` keywords would change what the answer may be, so a request with one cannot be met.

Older spellings (draft 4's and 7's tuples and exclusive bounds, OpenAPI's `nullable`) are rewritten.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from qwen3_jax.errors import RequestError

ENFORCED = frozenset({
    "$ref", "type", "const", "enum", "anyOf", "oneOf", "allOf", "properties", "patternProperties",
    "additionalProperties", "required", "minProperties", "maxProperties", "items", "prefixItems", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
})  # fmt: skip
RELAXED = frozenset({"uniqueItems", "propertyNames"})
REFUSED = frozenset({
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas",
    "dependencies", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
FORMATS = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_LOOKS_AROUND = re.compile(r"\(\?(?:[=!>]|<[=!]|P=|\()|\\[1-9]")
_EFFECTLESS: dict[str, tuple[Any, ...]] = {
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "not": (False,),
}

CheckPattern = Callable[[str], str | None]
"""Says what is wrong with a regular expression; None if it can be held."""


def for_grammar(schema: Mapping[str, Any], name: str, field: str, check_pattern: CheckPattern) -> dict[str, Any]:
    """Return a schema that the grammar holds.

    Args:
        schema: as the client sent it; unchanged.
        name: of the schema, for messages.
        field: of the request.
        check_pattern: of the grammar's library.

    Raises:
        RequestError: a keyword cannot be held, or a reference leads nowhere; names the place and the keyword.
    """
    return _Rewriter(schema, name, field, check_pattern).schema(schema, "")


class _Rewriter:
    def __init__(self, root: Mapping[str, Any], name: str, field: str, check_pattern: CheckPattern):
        self._root, self._name, self._field, self._check_pattern = root, name, field, check_pattern
        self._id = root.get("$id") if isinstance(root.get("$id"), str) else None

    def schema(self, schema: Any, place: str) -> Any:
        """Rewrite one schema; `place` is its path from the root."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(place, f"must be a schema (an object), not {schema!r}")
        kept: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in REFUSED and value not in _EFFECTLESS.get(keyword, ()):
                reason = f"the keyword {keyword!r} is not supported; leave it out, and validate the answer yourself"
                raise self._error(place, reason)
            if keyword in _DEFINITIONS and isinstance(value, Mapping):
                kept[keyword] = {key: self._definition(each, f"{place}.{keyword}.{key}") for key, each in value.items()}
            elif keyword == "additionalItems" and isinstance(schema.get("items"), list):
                kept["items"] = self.schema(value, f"{place}.{keyword}")
            elif keyword in ("$anchor",):
                kept[keyword] = value
            elif keyword in ENFORCED:
                self._keep(keyword, value, schema, f"{place}.{keyword}", kept)
        if schema.get("nullable") is True:
            kept = {"anyOf": [kept, {"type": "null"}]}
        return kept

    def _definition(self, schema: Any, place: str) -> Any:
        """A definition may hold what no reference leads to; only what is used is refused."""
        try:
            return self.schema(schema, place)
        except RequestError:
            if self._used(place):
                raise
            return True

    def _used(self, place: str) -> bool:
        pointer = "#/" + place.lstrip(".").replace(".", "/")
        return any(reference == pointer or reference.startswith(f"{pointer}/") for reference in _references(self._root))

    def _keep(self, keyword: str, value: Any, schema: Mapping[str, Any], place: str, kept: dict[str, Any]) -> None:
        if keyword == "$ref":
            kept[keyword] = self._reference(value, place)
        elif keyword in ("properties", "patternProperties") and isinstance(value, Mapping):
            kept[keyword] = {key: self.schema(each, f"{place}.{key}") for key, each in value.items()}
        elif keyword == "items" and isinstance(value, list):
            kept["prefixItems"] = [self.schema(each, f"{place}[{i}]") for i, each in enumerate(value)]
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            kept[keyword] = [self.schema(each, f"{place}[{i}]") for i, each in enumerate(value)]
        elif keyword in ("items", "additionalProperties"):
            kept[keyword] = self.schema(value, place)
        elif keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            limit = "minimum" if keyword == "exclusiveMinimum" else "maximum"
            if value and limit in schema:
                kept[keyword] = schema[limit]
        elif keyword == "format":
            if value in FORMATS:
                kept[keyword] = value
        elif keyword == "pattern":
            self._pattern(value, place, kept)
        elif not (keyword == "required" and isinstance(value, bool)):  # draft 3's
            kept[keyword] = value

    def _pattern(self, value: Any, place: str, kept: dict[str, Any]) -> None:
        problem = self._check_pattern(value) if isinstance(value, str) else "it is no text"
        if problem is None:
            kept["pattern"] = value
        elif not (isinstance(value, str) and _LOOKS_AROUND.search(value)):
            raise self._error(place.rpartition(".")[0], f"the pattern {value!r} cannot be compiled: {problem}")

    def _reference(self, value: Any, place: str) -> str:
        reference = value.removeprefix(self._id) if isinstance(value, str) and self._id else value
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self._error(place, f"the reference {value!r} leads out of the schema; give the definition in '$defs'")
        target: Any = self._root
        if reference[1:2] != "/":
            is_anchor = reference == "#" or any(each == reference[1:] for each in _anchors(self._root))
            target = {} if is_anchor else None
        else:
            for key in reference[2:].split("/"):
                key = key.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list):
                    target = target[int(key)] if key.isdecimal() and int(key) < len(target) else None
                else:
                    target = target.get(key) if isinstance(target, Mapping) else None
        if not isinstance(target, (Mapping, bool)):
            raise self._error(place, f"the reference {value!r} leads nowhere")
        return reference

    def _error(self, place: str, reason: str) -> RequestError:
        return RequestError(f"{self._name}{f', {place[1:]}' if place else ''}: {reason}.", self._field)


def _references(value: Any) -> list[str]:
    return _values(value, "$ref")


def _anchors(value: Any) -> list[str]:
    return _values(value, "$anchor")


def _values(value: Any, keyword: str) -> list[str]:
    """All texts that stand under a keyword."""
    if isinstance(value, list):
        return [each for item in value for each in _values(item, keyword)]
    if not isinstance(value, Mapping):
        return []
    own = [value[keyword]] if isinstance(value.get(keyword), str) else []
    return own + [each for item in value.values() for each in _values(item, keyword)]
