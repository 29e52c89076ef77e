"""Pydantic models as people write them, and values that they take."""

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union

import pydantic
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

T = TypeVar("T")


class Address(BaseModel):
    """Where someone lives."""

    street: str = Field(description="with the number", examples=["Main St 1"], min_length=1)
    zip: int = 12345


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 9


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Point(NamedTuple):
    x: int
    y: int


class Size(TypedDict):
    width: int


@dataclasses.dataclass
class Range:
    first: int
    last: int | None = None


class Named(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", title="A thing with a name")

    full_name: str = Field(alias="fullName", default="x", max_length=20)


WORD = st.text("abc xyzé", min_size=1, max_size=5)
WHOLE = st.integers(-99, 99)
ADDRESS = st.fixed_dictionaries({"street": WORD}, optional={"zip": WHOLE}).map(lambda a: dict(sorted(a.items())))
NODE = st.recursive(
    st.fixed_dictionaries({"value": WHOLE}),
    lambda inner: st.fixed_dictionaries({"value": WHOLE, "children": st.lists(inner, max_size=2)}),
    max_leaves=4,
).map(lambda node: json.loads(json.dumps(node), object_pairs_hook=lambda pairs: dict(sorted(pairs, reverse=True))))
PETS = [{"kind": "cat", "lives": 9}, {"kind": "dog", "weight": 2.5}]
# The type of a field, and values of it in JSON.
FIELDS: list[tuple[Any, st.SearchStrategy]] = [
    (str, WORD), (int, WHOLE), (float, st.sampled_from([0, 1.5, -2])), (bool, st.booleans()),
    (Colour, st.sampled_from(["red", "blue"])), (Level, st.sampled_from([1, 9])),
    (Address, ADDRESS), (Address | None, st.none() | ADDRESS), (Node, NODE), (list[Node], st.lists(NODE, max_size=2)),
    (dict[str, Address], st.dictionaries(WORD, ADDRESS, max_size=2)), (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (tuple[int, str], st.tuples(WHOLE, WORD).map(list)), (tuple[int, ...], st.lists(WHOLE, max_size=2)),
    (set[int], st.lists(WHOLE, max_size=2, unique=True)), (Any, st.sampled_from([None, 1, "x", [1], {"a": 1}])),
    (Annotated[Union[Cat, Dog], Field(discriminator="kind")], st.sampled_from(PETS)),  # noqa: UP007 - as people write it
    (list[Cat | Dog], st.lists(st.sampled_from(PETS), max_size=2)),
    (Annotated[int, Field(ge=1, lt=10, multiple_of=2)], st.sampled_from([2, 4, 8])),
    (Annotated[list[str], Field(min_length=1, max_length=2)], st.lists(WORD, min_size=1, max_size=2)),
    (dict[Annotated[str, Field(pattern="^k")], int], st.dictionaries(WORD.map("k{}".format), WHOLE, max_size=2)),
    (datetime.date, st.just("2026-11-25")), (datetime.datetime, st.just("2026-11-25T10:00:00Z")),
    (datetime.datetime | None, st.sampled_from(["2026-11-25T10:00:00+01:00", None])), (datetime.time, st.just("10:00:00Z")),
    (datetime.timedelta, st.just("P1DT2H")), (uuid.UUID, st.uuids().map(str)),
    (bytes, WORD), (decimal.Decimal, st.sampled_from([1.5, "1.5"])), (pydantic.Json, WORD), (pydantic.SecretStr, WORD),
    (Annotated[decimal.Decimal, Field(gt=0, max_digits=6, decimal_places=2)], st.sampled_from([1.5, "1.5"])),
    (pydantic.AnyUrl, st.just("https://example.org/a")), (pydantic.IPvAnyAddress, st.just("::1")),
    (int | str | None, WHOLE | WORD | st.none()), (frozenset[str], st.just(["a"])),
    (dict[str, list[int]], st.dictionaries(WORD, st.lists(WHOLE, max_size=2), max_size=2)),
    (dict[str, Any], st.just({"a": [1]})),
    (dict[str, Any], st.just({"a": [1]})),
    (Page[int], st.lists(WHOLE, max_size=2).map(lambda items: {"items": items})),
    (Page[Address], st.lists(ADDRESS, max_size=1).map(lambda items: {"items": items, "next": None})),
    (Point, st.tuples(WHOLE, WHOLE).map(list)), (Size, WHOLE.map(lambda n: {"width": n})),
    (Range, WHOLE.map(lambda n: {"first": n, "last": None})), (Named, WORD.map(lambda text: {"fullName": text})),
    (Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z]{2,4}$", min_length=2)], st.sampled_from(["ab", "abcd"])),
    (pydantic.PositiveInt, st.integers(1, 99)), (pydantic.NonNegativeFloat, st.sampled_from([0, 1.5])),
    (list[list[float]], st.just([[1.5], []])), (None, st.none()), (object, st.just("x")),
]  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> tuple[type[BaseModel], dict[str, Any], dict[str, Any], list[Any]]:
    """(a model, a value with all of its fields, one with those that it needs and some others, the types of its fields)."""
    picked = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4))
    names = [f"f{place}" for place in range(len(picked))]
    optional = {name for name in names if draw(st.booleans())}
    fields: dict[str, Any] = {
        name: (kind, Field(default=None, title="T", description="D", examples=[1])) if name in optional else (kind, ...)
        for name, (kind, _) in zip(names, picked, strict=True)
    }
    whole = {name: draw(values) for name, (_, values) in zip(names, picked, strict=True)}
    some = {name: value for name, value in whole.items() if not (name in optional and draw(st.booleans()))}
    return pydantic.create_model("Model", **fields), whole, some, [kind for kind, _ in picked]
