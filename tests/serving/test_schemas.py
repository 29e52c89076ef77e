"""JSON schemas of real generators in forced calls and response formats: what they allow can be written, the rest not."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.protocol import Function
from tests.helpers.grammar_checks import GRAMMARS, answered, called
from tests.helpers.schema_models import Address, Colour, Node, models

STRICT = (int, bool, Node, Address, Address | None, Colour, list[Node])  # no word is a value of them


def by_openai(model: type[BaseModel]) -> dict[str, Any] | None:
    """The parameters of its strict tool; None where it refuses the model itself."""
    openai = pytest.importorskip("openai")
    try:
        return openai.pydantic_function_tool(model)["function"]["parameters"]
    except (TypeError, ValueError):
        return None


def by_langchain(model: type[BaseModel]) -> dict[str, Any]:
    convert = pytest.importorskip("langchain_core.utils.function_calling").convert_to_openai_tool
    return convert(model)["function"]["parameters"]


@settings(max_examples=120)
@given(st.data())
def test_what_a_pydantic_model_takes_can_be_written_and_what_it_does_not_take_cannot(data: st.DataObject):
    """Titles, descriptions, defaults, definitions, alternatives with null, discriminators, tuples, formats; by several
    generators: pydantic's own, OpenAI's strict form, in which every field is required, and LangChain's."""
    model, whole, some, kinds = data.draw(models())
    generators = {
        "pydantic": lambda: model.model_json_schema(),
        "openai": lambda: by_openai(model),
        "langchain": lambda: by_langchain(model),
    }
    generator = data.draw(st.sampled_from(sorted(generators)))
    schema = generators[generator]()
    if schema is None:
        return
    value = whole if generator == "openai" else some
    functions = [Function(name="f", parameters=schema)]
    before = json.dumps(schema)
    if generator != "openai":  # whose strict form has every field of nested models too
        assert called("f", value, functions)
        assert answered(value, schema)
    wrong = {name: 5 if isinstance(value.get(name), str) else "no" for name in whole}
    if any(kind in STRICT for kind in kinds):
        assert not called("f", wrong, functions)
        assert not answered(wrong, schema)
    assert json.dumps(schema) == before


class Item(BaseModel):
    name: str = "x"
    size: float | None = None


class Order(BaseModel):
    """An order with all that OpenAI's strict form has to rewrite."""

    items: list[Item]
    parent: "Order | None" = None
    colour: Colour = Colour.RED


def test_openais_strict_form_of_nested_and_recursive_models():
    openai = pytest.importorskip("openai")
    schema = openai.pydantic_function_tool(Order)["function"]["parameters"]
    item = {"name": "a", "size": None}
    order = {"items": [item], "parent": {"items": [], "parent": None, "colour": "blue"}, "colour": "red"}
    functions = [Function(name="Order", parameters=schema)]
    assert called("Order", order, functions)
    assert answered(order, schema)
    for wrong in (order | {"colour": "green"}, {"items": [item]}, order | {"parent": {"items": []}}, order | {"x": 1}):
        assert not called("Order", wrong, functions)
        assert not answered(wrong, schema)


def test_schemas_of_pydantic_1():
    v1 = pytest.importorskip("pydantic.v1")

    class Old(v1.BaseModel):
        street: v1.constr(regex="^[a-z]+$", min_length=1)  # type: ignore[valid-type]
        colour: Colour = Colour.RED

    class Parent(v1.BaseModel):
        old: Old = v1.Field(..., description="allOf with a reference")
        pair: tuple[int, str]
        more: dict[str, Old] | None = None
        amount: v1.conint(gt=0, le=9) = 1  # type: ignore[valid-type]

    schema = Parent.schema()
    value = {"old": {"street": "a", "colour": "red"}, "pair": [1, "x"], "more": {"k": {"street": "b"}}, "amount": 9}
    assert called("f", value, [Function(name="f", parameters=schema)])
    assert answered(value, schema)
    for wrong in (value | {"old": {"street": "A"}}, value | {"pair": ["x", 1]}, value | {"amount": 0}):
        assert not answered(wrong, schema)


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
