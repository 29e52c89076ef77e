"""JSON schemas of real generators in forced calls and response formats: what they allow can be written, the rest not."""

import datetime
import decimal
import enum
import json
import re
import uuid
from typing import Annotated, Any, Literal, Union

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.grammars import Grammars
from qwen3_jax.serving.protocol import Function, ResponseFormat
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


def called(name: str, arguments: Any, functions: list[Function]) -> bool:
    """Whether the call of a tool with these arguments can be written, as the chat template writes calls."""
    body = (
        f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    )
    return matches(GRAMMARS.of(None, functions, several=False)(), f"<tool_call>\n{body}\n</tool_call>")


def answered(value: Any, schema: dict) -> bool:
    of = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
    return matches(GRAMMARS.of(of, [], several=False)(), json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


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


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float


WORD = st.text("abc xyzé", min_size=1, max_size=5)
WHOLE = st.integers(-99, 99)
ADDRESS = st.fixed_dictionaries({"street": WORD}, optional={"zip": WHOLE}).map(lambda a: dict(sorted(a.items())))
NODE = st.recursive(
    st.fixed_dictionaries({"value": WHOLE}),
    lambda inner: st.fixed_dictionaries({"value": WHOLE, "children": st.lists(inner, max_size=2)}),
    max_leaves=4,
).map(lambda node: json.loads(json.dumps(node), object_pairs_hook=lambda pairs: dict(sorted(pairs, reverse=True))))
# The type of a field, and values of it in JSON.
FIELDS: list[tuple[Any, st.SearchStrategy]] = [
    (str, WORD), (int, WHOLE), (float, st.sampled_from([0, 1.5, -2])), (bool, st.booleans()),
    (Colour, st.sampled_from(["red", "blue"])),
    (Address, ADDRESS), (Address | None, st.none() | ADDRESS), (Node, NODE), (list[Node], st.lists(NODE, max_size=2)),
    (dict[str, Address], st.dictionaries(WORD, ADDRESS, max_size=2)), (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (tuple[int, str], st.tuples(WHOLE, WORD).map(list)), (tuple[int, ...], st.lists(WHOLE, max_size=2)),
    (set[int], st.lists(WHOLE, max_size=2, unique=True)), (Any, st.sampled_from([None, 1, "x", [1], {"a": 1}])),
    (Annotated[Union[Cat, Dog], Field(discriminator="kind")],  # noqa: UP007 - as people write it
     st.sampled_from([{"kind": "cat", "lives": 9}, {"kind": "dog", "weight": 2.5}])),
    (Annotated[int, Field(ge=1, lt=10, multiple_of=2)], st.sampled_from([2, 4, 8])),
    (Annotated[list[str], Field(min_length=1, max_length=2)], st.lists(WORD, min_size=1, max_size=2)),
    (dict[Annotated[str, Field(pattern="^k")], int], st.dictionaries(WORD.map("k{}".format), WHOLE, max_size=2)),
    (datetime.date, st.just("2026-11-25")), (datetime.datetime, st.just("2026-11-25T10:00:00Z")),
    (uuid.UUID, st.uuids().map(str)),
    (bytes, WORD), (decimal.Decimal, st.sampled_from([1.5, "1.5"])), (pydantic.Json, WORD), (pydantic.SecretStr, WORD),
    (pydantic.AnyUrl, st.just("https://example.org/a")), (pydantic.IPvAnyAddress, st.just("::1")),
]  # fmt: skip


@settings(max_examples=80)
@given(st.data())
def test_what_a_pydantic_model_takes_can_be_written_and_what_it_does_not_take_cannot(data: st.DataObject):
    """Titles, descriptions, defaults, definitions, alternatives with null, discriminators, tuples, formats."""
    picked = data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4))
    names = [f"f{place}" for place in range(len(picked))]
    optional = [data.draw(st.booleans()) for _ in picked]
    fields: dict[str, Any] = {
        name: (kind, Field(default=None, title="T", description="D", examples=[1])) if is_optional else (kind, ...)
        for name, (kind, _), is_optional in zip(names, picked, optional, strict=True)
    }
    model = pydantic.create_model("Model", **fields)
    schema = model.model_json_schema()
    given_fields = [
        n for n, left_out in zip(names, optional, strict=True) if not (left_out and data.draw(st.booleans()))
    ]
    value = {name: data.draw(values) for name, (_, values) in zip(names, picked, strict=True) if name in given_fields}
    functions = [Function(name="f", parameters=schema)]
    before = json.dumps(schema)
    assert called("f", value, functions)
    assert answered(value, schema)
    wrong = {name: 5 if isinstance(value.get(name), str) else "no" for name in names}
    strict = [kind for kind, _ in picked if kind in (int, bool, Node, Address, Address | None, Colour, list[Node])]
    if strict:
        assert not called("f", wrong, functions)
        assert not answered(wrong, schema)
    assert json.dumps(schema) == before


def test_equal_names_of_two_tools_do_not_mix_and_recursive_ones_recur():
    def tool(name: str, address: dict) -> Function:
        parameters = {"type": "object", "properties": {"to": {"$ref": "#/$defs/Address"}}, "required": ["to"]}
        return Function(name=name, parameters=parameters | {"$defs": {"Address": address}})

    street = {"type": "object", "properties": {"street": {"type": "string"}}, "additionalProperties": False}
    place = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}
    both = [tool("post", street), tool("fly", place)]
    assert called("post", {"to": {"street": "a"}}, both)
    assert called("fly", {"to": {"x": 1}}, both)
    assert not called("post", {"to": {"x": 1}}, both)
    assert not called("fly", {"to": {"street": "a"}}, both)
    whole = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"]}
    anchored = {
        "$id": "https://example.org/tree", "type": "object", "properties": {"root": {"$ref": "#node"}},
        "definitions": {"n": {"$anchor": "node", "type": "object", "properties": {"up": {"$ref": "#/definitions/n"}}}},
    }  # fmt: skip
    for parameters, value in ((whole, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}), (anchored, {"root": {"up": {}}})):
        assert called("f", value, [Function(name="f", parameters=parameters)])
    assert not called("f", {"v": 1, "next": {"v": "2"}}, [Function(name="f", parameters=whole)])
    assert called('say "é"', {}, [Function(name='say "é"', parameters={})])


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "string", "format": "path", "x-order": 1, "deprecated": True, "$comment": "c"}, "a", 1),
        ({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}, "12.5", 12.5),  # pydantic's Decimal
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], ["a"]),
        ({"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": False}, [1, "a"], ["a"]),
        ({"type": "number", "minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"type": "number", "minimum": 1, "exclusiveMinimum": False}, 1, 0),
        ({"type": "string", "nullable": True}, None, 1),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 1.5, "a"),
        ({"allOf": [{"type": "integer"}], "description": "d"}, 1, "a"),
        ({"type": ["string", "null"], "default": None}, None, 1),
        ({"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "integer"}},
         {"a": 1}, {"a": "b"}),
        ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
        ({"type": "object", "properties": {"not": {"type": "integer"}, "$ref": {"type": "string"}}},
         {"not": 1, "$ref": "a"}, {"not": "a"}),
        ({"type": "integer", "unevaluatedProperties": True, "not": False}, 1, "a"),
        ({"enum": [{"$ref": "x", "not": 1}]}, {"$ref": "x", "not": 1}, {}),
        ({"$defs": {"Unused": {"not": {}}}, "type": "integer"}, 1, "a"),
        (True, "anything", None),
    ],
)  # fmt: skip
def test_keywords_that_are_held_relaxed_or_only_notes(schema: Any, yes: Any, no: Any):
    """Whatever the generator's age; a relaxed keyword leaves the rest of its schema in force."""
    root = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    assert called("f", {"x": yes}, [Function(name="f", parameters=root)])
    assert schema is True or not called("f", {"x": no}, [Function(name="f", parameters=root)])
    assert answered({"x": yes}, root)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {"type": "null"}}, "properties.x: the keyword 'not' is not supported"),
        ({"type": "array", "items": {"if": {}, "then": {}}}, "properties.x.items: the keyword 'if'"),
        ({"anyOf": [{}, {"contains": {}}]}, "properties.x.anyOf[1]: the keyword 'contains'"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "properties.x: the keyword 'dependentRequired'"),
        ({"$ref": "#/$defs/Nowhere"}, "properties.x.$ref: the reference '#/$defs/Nowhere' leads nowhere"),
        ({"$ref": "https://example.org/a.json"}, "properties.x.$ref: the reference 'https://example.org/a.json' leads out"),
        ({"$ref": "#/$defs/Used"}, "$defs.Used: the keyword 'unevaluatedProperties'"),
        ({"type": "string", "pattern": "(a"}, "properties.x: the pattern '(a' cannot be compiled"),
        ({"properties": {"y": 5}}, "properties.x.properties.y: must be a schema"),
    ],
)  # fmt: skip
def test_what_the_grammar_cannot_hold_is_refused_by_place_and_keyword(schema: dict, words: str):
    used = {"type": "object", "unevaluatedProperties": False}
    root = {"type": "object", "properties": {"x": schema}, "$defs": {"Used": used}}
    with pytest.raises(RequestError, match=re.escape(f"the tool 'f', {words}")) as caught:
        GRAMMARS.of(None, [Function(name="f", parameters=root)], several=False)
    assert caught.value.param == "tools"
    with pytest.raises(RequestError, match=re.escape(f"the schema, {words}")) as caught:
        answered({}, root)
    assert caught.value.param == "response_format"
