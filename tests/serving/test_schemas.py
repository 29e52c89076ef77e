"""JSON schemas of real generators in forced calls and response formats: what they allow can be written, the rest not."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.objects import Function, ResponseFormat
from qwen3_jax.serving.schemas import ENFORCED, REFUSED
from qwen3_jax.text import parse
from tests.helpers.grammar_checks import GRAMMARS, answered, called
from tests.helpers.schema_models import Address, Colour, Node, models

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
DEFINITIONS = {
    "A": {"type": "object", "properties": {"s": STRING}}, "List[int]": {"type": "array", "items": INTEGER},
    "a/b": INTEGER, "B": {"$id": "b.json", "type": "boolean"},
}  # fmt: skip
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
        # zod
        ({"type": "object", "properties": {"a": INTEGER, "b": {"not": {}}}, "additionalProperties": False}, {"a": 1},
         {"a": 1, "b": 1}),
        ({"type": "string", "const": "a"}, "a", "b"), ({"type": ["string", "number"], "enum": ["a", 1]}, 1, 2),
        ({"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}, 5, "5"),
        ({"type": "array", "items": {"type": "array", "items": [STRING, INTEGER], "minItems": 2, "maxItems": 2}}, [["a", 1]],
         [["a"]]),
        ({"type": "object", "additionalProperties": INTEGER, "propertyNames": STRING}, {"a": 1}, {"a": "x"}),
        ({"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                    {"type": "object", "properties": {"b": INTEGER}, "required": ["b"]}]}, {"a": 1, "b": 2}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"type": "object", "properties": {"s": STRING}},
                                           "b": {"$ref": "#/properties/x/properties/a"}}}, {"b": {"s": "q"}}, {"b": {"s": 1}}),
        ({"type": "array", "items": [], "maxItems": 0}, [], [1]), ({"type": "string", "pattern": r"^\bab\b$"}, "ab", 1),
        # servers in Go and PHP, protocol buffers, OpenAPI
        ({"type": "array", "items": INTEGER, "minItems": None, "required": None, "enum": None}, [1], ["a"]),
        ({"type": "object", "properties": []}, {}, "a"), ({"type": "string", "enum": ["a"], "nullable": True}, None, "b"),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, 5, "a"),
        ({"type": "integer", "format": "int32"}, 1, "a"),
        ({"type": "number", "minimum": 1e-10, "maximum": 1e30}, 0.5, "a"),
        ({"type": "object", "discriminator": {"propertyName": "k"}, "oneOf": [{"$ref": "#/$defs/A"}]}, {"s": "x"}, 1),
        # references of all forms, with neighbours
        ({"$ref": "#/$defs/A", "description": "d", "default": None}, {"s": "x"}, 1), ({"$ref": "#/$defs/a~1b"}, 1, "a"),
        ({"$ref": "#/$defs/List%5Bint%5D"}, [1], ["a"]), ({"$ref": "b.json"}, True, 1),
        ({"$ref": "#/$defs/A", "nullable": True}, None, 1), ({"$ref": "#/$defs/A", "required": ["s"]}, {"s": "x"}, {}),
        ({"allOf": [{"$ref": "#/$defs/A"}], "title": "t"}, {"s": "x"}, 1),
        # what others say in other words, or without effect
        ({"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
        ({"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False}, [1], [1, 2]),
        ({"if": {"type": "string"}, "minContains": 1, "dependentRequired": {}, "type": "integer"}, 1, "a"),
        ({"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
         {"a": 1}, {}),
        ({"type": "object", "properties": {"a": INTEGER}, "minProperties": 1}, {"a": 1}, {"a": "x"}),  # relaxed
        ({"type": "string", "maxLength": 10**7}, "a", 1), ({"type": "array", "items": STRING, "maxItems": 10**6}, ["a"], [1]),
        ({"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5}, "abc", "a"),
        ({"type": "string", "format": "email", "maxLength": 254}, "a@b.org", "a"), ({"const": None}, None, 1),
    ],
)  # fmt: skip
def test_keywords_that_are_held_relaxed_or_only_notes(schema: Any, yes: Any, no: Any):
    """Whatever the generator and its age; a relaxed keyword leaves the rest of its schema in force."""
    root = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": DEFINITIONS}
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
        ({"type": "int"}, "properties.x.type: 'int' is none of JSON schema's types (string, number, integer, boolean, object, "
         "array, null). Did you mean 'integer'?"),
        ({"type": "STRING"}, "properties.x.type: 'STRING' is none of"), ({"type": []}, "properties.x.type: [] is none of"),
        ({"enum": []}, "properties.x.enum: must be a list with at least one"),
        ({"required": "a"}, "properties.x.required: must"),
        ({"minItems": "1"}, "properties.x.minItems: must be a number"), ({"maxLength": 1.5}, "properties.x.maxLength: must be"),
        ({"anyOf": {}}, "properties.x.anyOf: must be a list of schemas"),
        ({"pattern": 5}, "properties.x.pattern: must be a text"),
        ({"properties": ["a"]}, "properties.x.properties: must be an object of schemas"),
        ({"items": {"minLength": 5, "maxLength": 1, "type": "string"}, "type": "array", "minItems": 1},
         "properties.x.items: it cannot be compiled: Unsatisfiable schema: minLength (5) is greater"),
        ({"$ref": "#/$defs/Loop"}, "properties.x.$ref: the reference '#/$defs/Loop' leads to itself"),
    ],
)  # fmt: skip
def test_what_the_grammar_cannot_hold_is_refused_by_place_and_keyword(schema: dict, words: str):
    used = {"allOf": [{"type": "object"}], "unevaluatedProperties": False}
    definitions = {"Used": used, "Loop": {"$ref": "#/$defs/Pool"}, "Pool": {"$ref": "#/$defs/Loop"}}
    root = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": definitions}
    with pytest.raises(RequestError, match=re.escape(f"the tool 'f', {words}")) as caught:
        GRAMMARS.of(None, [Function(name="f", parameters=root)], several=False)
    assert caught.value.param == "tools"
    with pytest.raises(RequestError, match=re.escape(f"the schema, {words}")) as caught:
        answered({}, root)
    assert caught.value.param == "response_format"


def test_what_a_call_can_have_as_arguments():
    """An object; a schema that no grammar holds leaves a call of a choice free, and refuses a forced one by its tool."""
    as_json = ResponseFormat(type="json_object")
    good = Function(name="g", parameters={"type": "object", "properties": {"x": INTEGER}, "required": ["x"]})
    for parameters, words in (
        ({"type": "array"}, "the tool 'f': the arguments of a call are an object, not of type ['array']"),
        (
            {"$ref": "#/$defs/S", "$defs": {"S": STRING}},
            "the arguments of a call are an object, not of type ['string']",
        ),
        ({"properties": {"x": {"type": "text"}}}, "the tool 'f', properties.x.type: 'text' is none of"),
        ({"not": {}}, "the tool 'f': no value fits it"),
        (
            {"properties": {"x": {"enum": [1], "type": "string"}}, "required": ["x"]},
            "the tool 'f', properties.x: it cannot be",
        ),
        ({"if": {}, "then": {}}, "the tool 'f': the keyword 'if' is not supported"),
    ):
        both = [good, Function(name="f", parameters=parameters)]
        with pytest.raises(RequestError, match=re.escape(words)) as caught:
            called("g", {"x": 1}, both)
        assert caught.value.param == "tools"
        assert called("f", {"x": ["anything"]}, both, as_json)
        assert called("g", {"x": 1}, both, as_json)
        assert not called("g", {"x": "1"}, both, as_json)
    for parameters in (
        None,
        [],
        {},
        {"type": "object"},
        {"type": ["object", "null"]},
        {"$ref": "#/$defs/O", "$defs": {"O": {}}},
    ):
        assert called("f", {}, [Function.model_validate({"name": "f", "parameters": parameters})])


KEYWORDS = st.sampled_from(sorted({*ENFORCED, *REFUSED, "$defs", "$id", "$anchor", "nullable", "definitions", "title"}))
PLAIN = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#a", "object", "string", "integer", "^a", "http://[", "a"])
)  # fmt: skip
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYWORDS, inner, max_size=4)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.dictionaries(KEYWORDS, ANYTHING, max_size=5))
def test_any_object_is_a_schema_or_is_refused_in_one_sentence(schema: dict):
    """And arguments in XML are read under it."""
    said = "the tool 'f'."
    try:
        GRAMMARS.of(None, [Function(name="f", parameters=schema)], several=False)
    except RequestError as error:
        said = str(error)
    assert "the tool 'f'" in said
    assert said.endswith((".", "?"))
    assert "\n" not in said
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = "<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>"
    assert parse(text, tools=tools).tool_calls
