"""What a JSON schema says of a value: references, types and properties, in the spellings that generators have."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urljoin

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# Names of Python and other languages, which people write by hand.
OTHER_TYPES = {
    "str": "string", "text": "string", "float": "number", "double": "number", "int": "integer", "bool": "boolean",
    "dict": "object", "map": "object", "list": "array", "tuple": "array", "none": "null",
}  # fmt: skip
COMBINED = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH = 32  # of references to references


def pointed(root: Mapping[str, Any], reference: str) -> Any:
    """The part of a schema that a reference leads to: a pointer, an anchor, or the `$id` of a part; None if it leads
    nowhere.

    Pointers may be percent-encoded (`#/$defs/List%5Bint%5D`) and go through lists (`#/properties/x/anyOf/0`).
    """
    own = root["$id"] if isinstance(root.get("$id"), str) else ""
    base, hash_mark, fragment = reference.partition("#")
    part: Any = root
    if base and base not in (own, own.partition("#")[0]):
        whole = _joined(own, base)
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
            part = part[int(key)] if re.fullmatch("[0-9]{1,9}", key) and int(key) < len(part) else None
        else:
            part = part.get(key) if isinstance(part, Mapping) else None
    return part


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind its references, which are looked up in `root`; empty if a reference leads nowhere."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = pointed(root, schema["$ref"])
    return {}


def types_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names, through references, alternatives, constants and enumerations."""
    types: set[str] = set()
    for each in _reached(schema, root, through=lambda each: not _own_types(each)):
        types |= _own_types(each) | ({"null"} if each.get("nullable") is True else set())
    return types


def types_of_property(name: str, schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types of an object's property: by its name, else of those by a pattern, else of any further property.

    Names are not matched with patterns: a request's pattern could take for ever.
    """
    reached = _reached(schema, root)
    named = [_mapping(each.get("properties"))[name] for each in reached if name in _mapping(each.get("properties"))]
    by_pattern = [part for each in reached for part in _mapping(each.get("patternProperties")).values()]
    further = [each.get("additionalProperties") for each in reached]
    for parts in (named, by_pattern, further):
        types = set().union(*(types_of(part, root) for part in parts))
        if types or (parts is named and named):
            return types
    return set()


def property_names(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The names of an object's properties, those of its parts and alternatives included."""
    return {name for each in _reached(schema, root) for name in _mapping(each.get("properties"))}


def _reached(
    schema: Any, root: Mapping[str, Any], through: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> list[Mapping[str, Any]]:
    """A schema, and its parts and alternatives at any depth, each once; those of a schema that `through` refuses are not."""
    reached: list[Mapping[str, Any]] = []
    seen: set[int] = set()
    ahead = [schema]
    while ahead:
        each = resolved(ahead.pop(0), root)
        if each and id(each) not in seen:
            seen.add(id(each))
            reached.append(each)
            ahead += _parts(each) if through(each) else []
    return reached


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    named = schema.get("type")
    named = [named] if isinstance(named, str) else named
    if isinstance(named, list) and named:
        return {OTHER_TYPES.get(each.lower(), each.lower()) for each in named if isinstance(each, str)}
    if "const" in schema:
        return {_type(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return {_type(value) for value in schema["enum"]}
    if "properties" in schema:
        return {"object"}
    return {"array"} if schema.keys() & {"items", "prefixItems"} else set()


def _parts(schema: Mapping[str, Any]) -> list[Any]:
    return [part for key in COMBINED if isinstance(schema.get(key), list) for part in schema[key]]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _identity(schema: Mapping[str, Any], base: str) -> str | None:
    return _joined(base, schema["$id"]) if isinstance(schema.get("$id"), str) else None


def _joined(base: str, url: str) -> str:
    try:
        return urljoin(base, url)
    except ValueError:  # no address
        return url


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
