"""Histories built from a client's own types: read with nothing lost, or refused naming file and line."""

import json
import re
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import DataError, Record, documents
from tests.helpers import tiny_models
from tests.helpers.byte_tokenizer import ByteTokenizer

FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
TOK = ByteTokenizer()
pydantic = pytest.importorskip("pydantic")


class Place(pydantic.BaseModel):
    """Somewhere."""

    city: str
    country: str | None = None


class Add(pydantic.BaseModel):
    """Adds a place; its schema has definitions, and a default of null that is meant."""

    a: str
    places: list[Place] = pydantic.Field(default_factory=list)
    note: Literal["x", "y"] | None = None


# Histories as clients build them: every text is a mark of its own, so that it can be found again.
def histories():
    """Lists of OpenAI messages from the client's own types, with the marks that they hold."""
    chat = pytest.importorskip("openai.types.chat")
    tool_call = pytest.importorskip("openai.types.chat.chat_completion_message_function_tool_call")

    @st.composite
    def build(draw):
        marks = iter(f"mark{i:03}." for i in range(999))
        messages: list[dict] = [{"role": "system", "content": next(marks)}] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(1, 3))):
            content = draw(st.sampled_from(["text", "parts"]))
            mark = next(marks)
            messages.append(
                {"role": "user", "content": mark if content == "text" else [{"type": "text", "text": mark}]}
            )
            for _ in range(draw(st.integers(0, 2))):
                calls = [
                    tool_call.ChatCompletionMessageFunctionToolCall(
                        id=f"c{n}",
                        type="function",
                        function=tool_call.Function(name="add", arguments=json.dumps({"a": next(marks)})),
                    )
                    for n in range(draw(st.integers(1, 2)))
                ]
                answer = chat.ChatCompletionMessage(
                    role="assistant", content=draw(st.sampled_from([None, ""])), tool_calls=calls
                )
                messages.append(answer.model_dump(exclude_none=draw(st.booleans())))
                messages += [{"role": "tool", "tool_call_id": call.id, "content": next(marks)} for call in calls]
            answer = chat.ChatCompletionMessage(role="assistant", content=next(marks))
            messages.append(
                answer.model_dump() | draw(st.sampled_from([{}, {"weight": 1}, {"reasoning": next(marks)}]))
            )
        wrapped = {"type": "function", "function": {"name": "add", "parameters": Add.model_json_schema()}}
        body = {"messages": messages, "tools": draw(st.sampled_from([TOOLS, [wrapped]]))}
        for key in draw(st.sets(st.sampled_from(["messages", "tools"]))):
            body[key] = json.dumps(body[key])
        extra = st.sampled_from([{}, {"id": 7}, {"parallel_tool_calls": True}, {"system": "mark.system"}, {"images": ["a"]},
                                 {"text": "mark.text"}, {"functions": [FUNCTION]}, {"weight": 3}])  # fmt: skip
        return body | draw(extra)

    return build()


@settings(max_examples=80)
@given(data=st.data())
def test_histories_of_a_client_are_read_with_nothing_lost_or_refused_by_file_and_line(data):
    body = data.draw(histories())
    record = Record("chats.jsonl:12", body)
    tokenizer = data.draw(st.sampled_from([TOK, tiny_models.tokenizer()]))
    refused = {"images", "text", "functions", "weight"} & body.keys()
    if refused or ("system" in body and '"system"' in json.dumps(body["messages"]).replace("\\", "")):
        with pytest.raises(DataError, match=r"^chats\.jsonl:12: "):
            documents(record, tokenizer, loss_on="assistant")
        return
    made = documents(record, tokenizer, loss_on="assistant")
    whole = "".join(segment.text for document in made for segment in document.segments)
    tools = json.loads(body["tools"]) if isinstance(body["tools"], str) else body["tools"]
    if tokenizer is not TOK:  # whose filter escapes quotes for HTML
        assert all(json.dumps(tool) in whole for tool in tools)
    for mark in re.findall(r"mark[\w]*\.\w*", json.dumps(body)):
        assert mark in whole
    answers = "".join(segment.text for document in made for segment in document.segments if segment.loss)
    messages = json.loads(body["messages"]) if isinstance(body["messages"], str) else body["messages"]
    said = [m for m in messages if m["role"] == "assistant"]
    assert answers.count("<|im_end|>") == len(said)
    assert all(mark in answers for mark in re.findall(r"mark\d+\.", json.dumps(said)))
