"""Hypothesis strategies from the parameter types of a client's package, such as openai's: typed dictionaries in each other."""

import collections.abc
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import typing_extensions
from hypothesis import strategies as st

WORD = st.integers(0, 10**9).map("word{}".format)  # can be found again in a prompt, and in no other place
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORD,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORD, inner, max_size=2),
    max_leaves=4,
)
_LISTS = (list, collections.abc.Iterable, collections.abc.Sequence)


def bodies(kind: type, *, always: Mapping[str, Any], by_name: Mapping[str, Any], most: int) -> st.SearchStrategy[dict]:
    """Return a strategy of typed dictionaries.

    Args:
        kind: the TypedDict.
        always: fields that every dictionary has, with their strategies.
        by_name: strategies of fields by their name, at any depth, instead of those of their types.
        most: of the other fields that one dictionary has.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in always}
    chosen = st.lists(st.sampled_from(sorted(hints)), max_size=most, unique=True)
    others = chosen.flatmap(
        lambda names: st.fixed_dictionaries({n: by_name.get(n, values(hints[n], by_name)) for n in names})
    )
    return st.builds(lambda own, more: own | more, st.fixed_dictionaries(dict(always)), others)


def values(hint: Any, by_name: Mapping[str, Any]) -> st.SearchStrategy:
    """Return a strategy of the values of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([values(each, by_name) for each in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if typing_extensions.is_typeddict(hint):
        return _dictionaries(hint, by_name)
    if origin in (dict, collections.abc.Mapping):
        return st.dictionaries(WORD, values(arguments[1], by_name), max_size=2)
    if origin in _LISTS or getattr(origin, "__name__", "") == "SequenceNotStr":
        return st.lists(values(arguments[0], by_name), max_size=2)
    leaves = {
        str: WORD, int: st.integers(-2, 40), float: st.integers(-3, 3).map(lambda n: n / 2), bool: st.booleans(),
        type(None): st.none(), object: JSON,
    }  # fmt: skip
    return leaves[hint]


def _dictionaries(kind: Any, by_name: Mapping[str, Any]) -> st.SearchStrategy:
    required, optional = {}, {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        is_required = get_origin(hint) in (typing.Required, typing_extensions.Required)
        plain = get_args(hint)[0] if is_required else hint
        (required if is_required else optional)[name] = by_name[name] if name in by_name else values(plain, by_name)
    return st.fixed_dictionaries(required, optional=optional)


def words(value: Any, under: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts in a value that stand under one of these names, at any depth below it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item) if name in under else words(item, under)
    elif isinstance(value, list):
        for item in value:
            yield from words(item, under)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("type", "prompt_cache_breakpoint"):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
