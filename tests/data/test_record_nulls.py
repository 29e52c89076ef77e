"""Null in records: columnar files fill it in for what is absent; where it was meant it stays."""

import json

from qwen3_jax.data import Record, documents
from qwen3_jax.data.messages import read_tools
from tests.helpers.byte_tokenizer import ByteTokenizer

HI, YO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
RESULT = {"role": "tool", "content": "4"}


def learned(body):
    """The text that is learned."""
    made = documents(Record("f:1", body), ByteTokenizer(), loss_on="assistant")
    return "".join(segment.text for document in made for segment in document.segments if segment.loss)


def test_nulls_of_a_tools_schema_are_dropped_where_they_are_fill_and_nowhere_else():
    """Columnar files fill keywords that other tools have; null as a default, in an enum, in unknown keywords is meant."""
    meant = {
        "type": "object",
        "properties": {
            "a": {
                "type": ["string", "null"],
                "default": None,
                "enum": ["x", None],
                "examples": [None],
                "x-of": {"k": None},
            },
            "default": {"const": None},
            "items": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/D"}]}},
        },
        "$defs": {"D": {"type": "object", "properties": {"enum": {"type": "string"}}}},
    }
    filled = json.loads(json.dumps(meant)) | {"required": None, "$schema": None}
    filled["properties"] |= {"b": None, "const": None}
    filled["properties"]["a"] |= {"description": None, "properties": None}
    filled["properties"]["items"]["items"]["anyOf"][0]["description"] = None
    filled["$defs"]["D"]["properties"]["enum"]["description"] = None
    filled["$defs"]["E"] = None
    (tool,) = read_tools([{"name": "f", "description": None, "parameters": filled}])
    assert tool == {"type": "function", "function": {"name": "f", "parameters": meant}}
    assert read_tools([{"name": "f", "parameters": meant}])[0]["function"]["parameters"] == meant
    assert "parameters" not in read_tools([{"function": {"name": "f", "parameters": None}}])[0]["function"]


def test_nulls_of_arguments_are_dropped_where_the_tool_has_no_such_parameter():
    """`datasets` writes the arguments of all calls into each call, as JSON Lines too; null for a parameter is what was said."""
    place = {"type": "object", "properties": {"city": {"type": "string"}}}
    properties = {"a": {"type": ["integer", "null"]}, "places": {"type": "array", "items": place}}
    tools = [{"name": "add", "parameters": {"type": "object", "properties": properties}}]

    def messages(arguments, **more):
        return {
            "messages": [
                HI,
                {"role": "assistant", "tool_calls": [{"name": "add", "arguments": arguments}]},
                RESULT,
                YO,
            ],
            **more,
        }

    filled = {"a": None, "b": None, "places": [{"city": "x", "zip": None}]}
    meant = {"a": None, "places": [{"city": "x"}]}
    assert learned(messages(filled, tools=tools)) == learned(messages(meant, tools=tools))
    assert '"b": null' in learned(messages(filled)), "without the tool nothing is known"
    assert '"b": null' in learned(messages(json.dumps(filled), tools=tools)), "text is what was written"
