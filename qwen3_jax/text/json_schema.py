"""What a JSON schema says of a value: references, types and properties, in the spellings that generators have."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urljoin

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# Names of Python and other languages, which people write by hand.
OTHER_TYPES = {
    "str": "string", "text": "string", "float": "number", "double": "number", "int": "integer", "bool": "boolean",
    "dict": "object", "map": "object", "list": "array", "tuple": "array", "none": "null",
}  # fmt: skip
COMBINED = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH = 32  # of references and alternatives


def pointed(root: Mapping[str, Any], reference: str) -> Any:
    """The part of a schema that a reference leads to: a pointer, an anchor, or the `$id` of a part; None if there is none.

    Pointers may be percent-encoded (`#/$defs/List%5Bint%5D`) and go through lists (`#/properties/x/anyOf/0`).
    """
    own = root["$id"] if isinstance(root.get("$id"), str) else ""
    base, hash_mark, fragment = reference.partition("#")
    part: Any = root
    if base and base not in (own, own.partition("#")[0]):
        whole = urljoin(own, base)
        part = next((each for each in _objects(root) if _identity(each, own) in (base, whole)), None)
    if not hash_mark or not fragment:
        return part
    if not fragment.startswith("/"):
        names = {"$anchor": fragment, "$id": f"#{fragment}", "id": f"#{fragment}"}
        return next(
            (each for each in _objects(part) if any(each.get(key) == name for key, name in names.items())), None
        )
    for key in unquote(fragment)[1:].split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list):
            part = part[int(key)] if key.isdecimal() and int(key) < len(part) else None
        else:
            part = part.get(key) if isinstance(part, Mapping) else None
    return part


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind its references, which are looked up in `root`; empty if there is none."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = pointed(root, schema["$ref"])
    return {}


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema names, through references, alternatives, constants and enumerations."""
    schema = resolved(schema, root)
    if depth > _MAX_DEPTH:
        return set()
    nullable = {"null"} if schema.get("nullable") is True else set()
    named = schema.get("type")
    named = [named] if isinstance(named, str) else named
    if isinstance(named, list) and named:
        return nullable | {OTHER_TYPES.get(each.lower(), each.lower()) for each in named if isinstance(each, str)}
    if "const" in schema:
        return nullable | {_type(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return nullable | {_type(value) for value in schema["enum"]}
    if "properties" in schema:
        return nullable | {"object"}
    if "items" in schema or "prefixItems" in schema:
        return nullable | {"array"}
    return nullable.union(*(types_of(part, root, depth + 1) for part in _parts(schema)))


def types_of_property(name: str, schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types of an object's property: by its name, else by a pattern, else as any further property."""
    schema = resolved(schema, root)
    if depth > _MAX_DEPTH:
        return set()
    properties, patterns = schema.get("properties"), schema.get("patternProperties")
    own = properties.get(name) if isinstance(properties, Mapping) else None
    if own is None and isinstance(patterns, Mapping):
        own = next((each for pattern, each in patterns.items() if _matches(pattern, name)), None)
    types = types_of(own, root) if own is not None else set()
    types |= set().union(*(types_of_property(name, part, root, depth + 1) for part in _parts(schema)))
    return types or types_of(schema.get("additionalProperties"), root)


def property_names(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The names of an object's properties, those of its parts and alternatives included."""
    schema = resolved(schema, root)
    properties = schema.get("properties")
    names = set(properties) if isinstance(properties, Mapping) else set()
    return names if depth > _MAX_DEPTH else names.union(*(property_names(p, root, depth + 1) for p in _parts(schema)))


def _parts(schema: Mapping[str, Any]) -> list[Any]:
    return [part for key in COMBINED if isinstance(schema.get(key), list) for part in schema[key]]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _identity(schema: Mapping[str, Any], base: str) -> str | None:
    return urljoin(base, schema["$id"]) if isinstance(schema.get("$id"), str) else None


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
