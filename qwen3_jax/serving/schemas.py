"""JSON schemas as generators write them (pydantic, zod, OpenAPI, MCP servers), made ready for the grammar.

Every keyword is held by the grammar, is an annotation, is relaxed, or is refused by name and place:

- Annotations (`title`, `description`, `default`, `examples`, ... and unknown keywords) constrain nothing and are left out.
- `RELAXED` keywords are left out as well: the answer may break them, and who validates it against the schema, as pydantic
  does, still finds out. So are patterns that look around, formats that the grammar does not know, bounds that are too large
  for it, and numbers of properties where not all of these are required.
- `REFUSED` keywords would change what the answer may be, so a request with one cannot be met.

Older and other spellings are rewritten: draft 4's and 7's tuples and exclusive bounds, OpenAPI's `nullable`, null keywords
and PHP's empty lists for objects, references of any form, `not: {}`, and `unevaluatedProperties` where it is the same as
`additionalProperties`.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from qwen3_jax.errors import RequestError
from qwen3_jax.text.json_schema import COMBINED, OTHER_TYPES, TYPES, pointed

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
_OBJECTS = ("properties", "patternProperties")
_COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LOOKS_AROUND = re.compile(r"\(\?(?:[=!>]|<[=!]|P=|\()|\\[1-9]")
# Keywords that are refused -> whether a value changes nothing in its schema.
_EFFECTLESS: dict[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "not": lambda value, _: value is False,
    "if": lambda _, schema: not schema.keys() & {"then", "else"},
    "then": lambda _, schema: "if" not in schema,
    "else": lambda _, schema: "if" not in schema,
    "minContains": lambda _, schema: "contains" not in schema,
    "maxContains": lambda _, schema: "contains" not in schema,
    "unevaluatedProperties": lambda value, _: value in (True, {}),
    "unevaluatedItems": lambda value, _: value in (True, {}),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), lambda value, _: value in ({}, [])),
}
_PLAIN = re.compile(r"-?\d{1,9}(\.\d{1,3})?")  # a bound that the grammar certainly holds
_MANY = 100  # parts of a schema, which are not tried one by one
_APPLIED_IN_PLACE = frozenset({*COMBINED, "$ref", "if", "then", "else", "not", "dependentSchemas", "dependencies"})

Check = Callable[[dict[str, Any]], str | None]
"""Says what is wrong with a schema; None if the grammar holds it."""


def for_grammar(schema: Mapping[str, Any], name: str, field: str, check: Check) -> dict[str, Any]:
    """Return a schema that the grammar holds.

    Args:
        schema: as the client sent it; unchanged.
        name: of the schema, for messages.
        field: of the request.
        check: of the grammar's library.

    Raises:
        RequestError: a keyword cannot be held, or a reference leads nowhere; names the place and the keyword.
    """
    return _Rewriter(schema, name, field, check).whole()


class _Rewriter:
    """Rewrites a schema. What its references lead to is rewritten once and kept in `$defs` under names of its own."""

    def __init__(self, root: Mapping[str, Any], name: str, field: str, check: Check):
        self._root, self._name, self._field, self._check = root, name, field, check
        self._names: dict[int, str] = {}  # by the identity of what a reference leads to
        self._definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        """Rewrite the root."""
        schema = self.schema(self._root, "")
        if not isinstance(schema, dict):
            raise self._error("", "no value fits it")
        return schema | ({"$defs": self._definitions} if self._definitions else {})

    def schema(self, schema: Any, place: str) -> Any:
        """Rewrite one schema; `place` is its path from the root."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(place, f"must be a schema (an object), not {schema!r}")
        schema = _plain(schema)
        if schema.get("not") in ({}, True) and "not" in schema:
            return False  # no value fits: zod's never and undefined
        kept: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in REFUSED and not (keyword in _EFFECTLESS and _EFFECTLESS[keyword](value, schema)):
                reason = f"the keyword {keyword!r} is not supported; leave it out, and validate the answer yourself"
                raise self._error(place, reason)
            if keyword == "additionalItems" and isinstance(schema.get("items"), list):
                kept["items"] = self.schema(value, f"{place}.{keyword}")
            elif keyword in ENFORCED:
                self._keep(keyword, value, schema, f"{place}.{keyword}", kept)
        self._relax(kept)
        if schema.get("nullable") is True:
            kept = {"anyOf": [kept, {"type": "null"}]}
        return kept

    def _relax(self, kept: dict[str, Any]) -> None:
        """Leave out what the grammar could hold by itself, but not beside its neighbours."""
        if not set(kept.get("properties", ())) <= set(kept.get("required", ())):
            kept.pop("minProperties", None)
            kept.pop("maxProperties", None)
        bounds = {keyword: kept[keyword] for keyword in _BOUNDS if keyword in kept}
        least, most = (bounds.get(key, bounds.get(f"exclusive{key.capitalize()}")) for key in ("minimum", "maximum"))
        is_plain = all(_PLAIN.fullmatch(repr(bound)) for bound in bounds.values())
        if is_plain or (least is not None and most is not None and least > most):
            return
        kind = "integer" if kept.get("type") == "integer" else "number"
        for keyword in sorted(bounds, key=lambda keyword: -abs(bounds[keyword])):
            if self._check({"type": kind, **bounds}) is None:
                break
            del bounds[keyword], kept[keyword]

    def _keep(self, keyword: str, value: Any, schema: Mapping[str, Any], place: str, kept: dict[str, Any]) -> None:
        if keyword == "$ref":
            kept[keyword] = self._reference(value, place)
        elif keyword in _OBJECTS:
            if not isinstance(value, Mapping):
                raise self._error(place, f"must be an object of schemas, not {value!r}")
            kept[keyword] = {key: self.schema(each, f"{place}.{key}") for key, each in value.items()}
        elif keyword in (*COMBINED, "prefixItems") or (keyword == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise self._error(place, f"must be a list of schemas, not {value!r}")
            parts = [self.schema(each, f"{place}[{i}]") for i, each in enumerate(value)]
            kept["prefixItems" if keyword == "items" else keyword] = parts
        elif keyword in ("items", "additionalProperties"):
            kept[keyword] = self.schema(value, place)
        elif keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            limit = "minimum" if keyword == "exclusiveMinimum" else "maximum"
            if value and limit in schema:
                kept[keyword] = self._checked(limit, schema[limit], place)
        elif keyword == "format":
            if not isinstance(value, str):
                raise self._error(place, f"must be a text, not {value!r}")
            if value in FORMATS:
                kept[keyword] = value
        elif keyword == "pattern":
            self._pattern(value, place, kept)
        elif not (keyword == "required" and isinstance(value, bool)):  # draft 3's
            kept[keyword] = self._checked(keyword, value, place)

    def _checked(self, keyword: str, value: Any, place: str) -> Any:
        """A keyword's value that is no schema, after a check of its form."""
        if keyword == "type":
            for each in value if isinstance(value, list) and value else [value]:
                if each not in TYPES:
                    name = each.lower() if isinstance(each, str) else ""
                    meant = OTHER_TYPES.get(name, name if name in TYPES else None)
                    hint = "" if meant is None else f". Did you mean {meant!r}?"
                    raise self._error(place, f"{each!r} is none of JSON schema's types ({', '.join(TYPES)}){hint}")
        elif keyword == "enum" and not (isinstance(value, list) and value):
            raise self._error(place, f"must be a list with at least one value, not {value!r}")
        elif keyword == "required" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise self._error(place, f"must be a list of names, not {value!r}")
        elif keyword in _COUNTS or keyword in _BOUNDS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise self._error(place, f"must be a number, not {value!r}")
            if keyword in _COUNTS:
                if value < 0 or value != int(value):
                    raise self._error(place, f"must be a whole number of 0 or more, not {value!r}")
                value = int(value)
        return value

    def _pattern(self, value: Any, place: str, kept: dict[str, Any]) -> None:
        if not isinstance(value, str):
            raise self._error(place, f"must be a text, not {value!r}")
        problem = self._check({"type": "string", "pattern": value})
        if problem is None:
            kept["pattern"] = value
        elif not (_LOOKS_AROUND.search(value) or "lookaround" in problem):
            raise self._error(place.rpartition(".")[0], f"the pattern {value!r} cannot be compiled: {problem}")

    def _reference(self, value: Any, place: str) -> str:
        target = chained = self._target(value, place)
        seen = [target]
        while isinstance(chained, Mapping) and ENFORCED & chained.keys() == {"$ref"}:
            chained = self._target(chained["$ref"], place)
            if any(chained is each for each in seen):
                raise self._error(place, f"the reference {value!r} leads to itself")
            seen.append(chained)
        return self._definition(target, value)

    def _target(self, reference: Any, place: str) -> Any:
        found = pointed(self._root, reference) if isinstance(reference, str) else None
        if not isinstance(found, (Mapping, bool)):
            is_inside = isinstance(reference, str) and reference.startswith("#")
            reason = "leads nowhere" if is_inside else "leads out of the schema; give the definition in '$defs'"
            raise self._error(place, f"the reference {reference!r} {reason}")
        return found

    def _definition(self, target: Any, reference: str) -> str:
        """Rewrite what a reference leads to, unless it is; return the reference to the result."""
        if target is self._root:
            return "#"
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = f"d{len(self._names)}"
            self._definitions[name] = self.schema(
                target, "." + reference.partition("#")[2].strip("/").replace("/", ".")
            )
        return f"#/$defs/{name}"

    def _error(self, place: str, reason: str) -> RequestError:
        end = "" if reason.endswith("?") else "."
        return RequestError(f"{self._name}{f', {place[1:]}' if place else ''}: {reason}{end}", self._field)


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema in one spelling: without null keywords, and with `additionalProperties` for the same in other words."""
    plain = {key: value for key, value in schema.items() if value is not None or key == "const"}
    plain |= {key: {} for key in _OBJECTS if plain.get(key) == []}  # PHP's empty objects
    if not plain.keys() & _APPLIED_IN_PLACE:
        rest = plain.pop("unevaluatedProperties", True)
        if rest is not True:
            plain.setdefault("additionalProperties", rest)
        rest = plain.pop("unevaluatedItems", True)
        if rest is not True:
            plain.setdefault("additionalItems" if isinstance(plain.get("items"), list) else "items", rest)
    return plain


def innermost(schema: Any, check: Check, problem: str, definitions: Mapping[str, Any]) -> tuple[str, str]:
    """(path, problem) of the innermost part of a rewritten schema that the grammar does not hold.

    Args:
        problem: of the whole, which is the answer where no part has one of its own.
        definitions: of the root.
    """
    parts = {f".properties.{name}": part for name, part in schema.get("properties", {}).items()}
    parts |= {f".{key}": schema[key] for key in ("items", "additionalProperties") if key in schema}
    parts |= {f".{key}[{i}]": part for key in (*COMBINED, "prefixItems") for i, part in enumerate(schema.get(key, ()))}
    for path, part in parts.items() if len(parts) <= _MANY else ():
        own = check({**part, "$defs": dict(definitions)}) if isinstance(part, Mapping) else None
        if own is not None:
            inner, own = innermost(part, check, own, definitions)
            return path + inner, own
    return "", problem
