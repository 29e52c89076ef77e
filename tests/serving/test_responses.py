"""/v1/responses with OpenAI's own client, against a real server: the documented order of events, and the answers of
/v1/chat/completions."""

import asyncio
import json
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.helpers import tiny_models
from tests.helpers.agent_events import once, response_of

TOK = tiny_models.tokenizer()
ASK = "What is 2 + 3?"
THINKS = {str(TOK.think_start_id): 8}  # an answer is likely to begin with <think>
PARAMETERS = {
    "type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": True} for name in ("read_file", "run")]
NESTED = [{"type": "function", "function": {"name": tool["name"], "parameters": PARAMETERS}} for tool in TOOLS]
KINDS = {
    "thinking": (dict(reasoning={"summary": "auto"}), {}, dict(logit_bias=THINKS)),
    "budget": (dict(reasoning={"effort": "low"}), {}, dict(logit_bias=THINKS, thinking_budget=5)),
    "plain": (dict(reasoning={"effort": "none"}), dict(reasoning_effort="none"), {}),
    "calls": (dict(tools=TOOLS, tool_choice="required"), dict(tools=NESTED, tool_choice="required"), dict(thinking_budget=6)),
}  # fmt: skip


def parts(response) -> tuple[str, str, list]:
    """Thinking, text and calls of a response."""
    thinking = "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content)
    calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
    return thinking, response.output_text, calls


def without_ids(response) -> list[dict]:
    return [item.model_dump(exclude={"id", "call_id"}) for item in response.output]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_response_and_the_chat(server, kind, seed):
    """Joined deltas, the response without a stream, and /v1/chat/completions with the same seed have the same tokens."""
    client, (own, of_chat, both) = server.client(), KINDS[kind]
    extra = both | {"seed": seed}
    options = dict(model=server.model, input=ASK, temperature=1, max_output_tokens=300 if kind == "calls" else 40)
    options |= dict(extra_body=extra, parallel_tool_calls=kind != "calls", **own)
    streamed, types = response_of(client.responses.create(**options, stream=True))
    whole = client.responses.create(**options)
    assert without_ids(streamed) == without_ids(whole)
    assert (streamed.status, streamed.incomplete_details) == (whole.status, whole.incomplete_details)
    limit = options["max_output_tokens"]
    chat = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": ASK}], temperature=1, max_tokens=limit, extra_body=extra,
        parallel_tool_calls=kind != "calls", **of_chat,
    )  # fmt: skip
    (choice,) = chat.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    assert parts(whole) == (
        getattr(choice.message, "reasoning_content", None) or "",
        choice.message.content or "",
        calls,
    )
    assert whole.status == ("incomplete" if choice.finish_reason == "length" else "completed")
    counts, expected = whole.usage, chat.usage
    assert (counts.input_tokens, counts.output_tokens) == (expected.prompt_tokens, expected.completion_tokens)
    assert counts.output_tokens_details.reasoning_tokens == expected.completion_tokens_details.reasoning_tokens
    assert counts.total_tokens == counts.input_tokens + counts.output_tokens
    assert ("reasoning_summary_text.delta" in types) <= (kind == "thinking")
    assert bool(calls) == ("function_call_arguments.done" in types) == (kind == "calls")


def test_a_response_repeats_the_request(server):
    metadata, text = {"topic": "sums"}, {"format": {"type": "json_object"}}
    options = dict(instructions="Be brief.", metadata=metadata, text=text, tools=TOOLS, tool_choice="none", store=True)
    options |= dict(
        reasoning={"effort": "low"}, max_output_tokens=4, temperature=0.5, top_p=0.5, parallel_tool_calls=False
    )
    got = server.client().responses.create(model=server.model, input=ASK, **options)
    assert got.id.startswith("resp_")
    assert (got.instructions, got.metadata, got.text.format.type, got.tool_choice) == (
        "Be brief.",
        metadata,
        "json_object",
        "none",
    )
    assert [tool.name for tool in got.tools] == ["read_file", "run"]
    assert (got.max_output_tokens, got.temperature, got.top_p, got.parallel_tool_calls) == (4, 0.5, 0.5, False)
    assert (got.reasoning.effort, got.model, got.object) == ("low", server.model, "response")
    assert got.store is False  # nothing is kept
    assert got.error is None
    assert got.incomplete_details.reason == "max_output_tokens"


def test_asynchronous_clients(server):
    async def ask(client, seed: int, stream: bool):
        options = dict(model=server.model, input=ASK, temperature=1, max_output_tokens=30, extra_body={"seed": seed})
        if not stream:
            return parts(await client.responses.create(**options))
        return parts(response_of([event async for event in await client.responses.create(**options, stream=True)])[0])

    async def all_of() -> list:
        async with server.asynchronous() as client:
            return await asyncio.gather(*(ask(client, seed % 6, seed % 2 == 0) for seed in range(12)))

    got = asyncio.run(all_of())
    assert got[:6] == got[6:]
    assert len(set(map(str, got))) > 3


class Sum(BaseModel):
    parity: Literal["even", "odd"]
    sum: int = Field(ge=0, le=99)


@pytest.mark.parametrize("budget", [0, 6])
def test_structured_output(server, budget):
    options = dict(model=server.model, input=ASK, temperature=1, max_output_tokens=300)
    client, done = server.client(), 0
    for seed in range(4):
        extra = {"seed": seed, "thinking_budget": budget}
        got = client.responses.parse(**options, text_format=Sum, extra_body=extra)
        with client.responses.stream(**options, text_format=Sum, extra_body=extra) as stream:
            streamed = list(stream)[-1].response
        if got.status == "completed":
            jsonschema.validate(json.loads(got.output_text), Sum.model_json_schema())
            assert got.output_parsed == streamed.output_parsed
            done += 1
    assert done >= 2


def test_a_session_of_a_coding_agent(server):
    """Two turns with a tool call in each, as Codex sends them: all items go back, with the results."""
    client = server.client()
    codex = dict(
        model=server.model, instructions="You edit code.", tools=TOOLS, parallel_tool_calls=False, store=False, stream=True,
        reasoning={"effort": "low", "summary": "auto"}, include=["reasoning.encrypted_content"], prompt_cache_key="session",
        extra_body={"seed": 1, "client_metadata": {"a": "b"}, "logit_bias": THINKS, "thinking_budget": 5, "temperature": 1},
    )  # fmt: skip
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Ask before you write."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix the sum in a.py."}]},
    ]
    chat = [{"role": "system", "content": "You edit code."}]
    chat += [{"role": item["role"], "content": item["content"][0]["text"]} for item in items]
    recorded, cached = [], []
    for name, output in (("read_file", "2 + 3 = 6"), ("run", "failed")):
        response, types = response_of(
            client.responses.create(**codex, input=items, tool_choice={"type": "function", "name": name})
        )
        recorded.append(once(types))
        cached.append(response.usage.input_tokens_details.cached_tokens)
        ids = server.post("/tokenize", messages=chat, tools=NESTED).json()
        assert response.usage.input_tokens == ids["count"]
        thought, call = response.output
        assert (call.name, response.status) == (name, "completed")
        assert 0 <= json.loads(call.arguments)["x"] <= 9
        # Of the thinking goes back what a client keeps: the whole item, or only what it cannot read.
        back = thought.model_dump(exclude_none=True)
        items.append(
            back if name == "run" else {key: back[key] for key in ("id", "type", "encrypted_content")} | {"summary": []}
        )
        items.append(call.model_dump(exclude_none=True))
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
        function = {"name": call.name, "arguments": call.arguments}
        turn = {
            "role": "assistant",
            "reasoning_content": thought.content[0].text,
            "tool_calls": [{"function": function}],
        }
        chat += [turn, {"role": "tool", "content": output}]
    expected = [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_summary_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert recorded == [expected, expected]
    assert cached[1] > 0


def test_tools_of_a_namespace(server):
    space = {"type": "namespace", "name": "files", "description": "Files.", "tools": [TOOLS[0]]}
    options = dict(model=server.model, tools=[space], tool_choice="required", parallel_tool_calls=False, temperature=1)
    options |= dict(extra_body={"seed": 0, "thinking_budget": 4}, max_output_tokens=300)
    response, _ = response_of(server.client().responses.create(**options, input=ASK, stream=True))
    call = response.output[-1]
    assert (call.namespace, call.name) == ("files", "read_file")
    items = [{"role": "user", "content": ASK}, *(item.model_dump(exclude_none=True) for item in response.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "5"})
    again = server.client().responses.create(**options, input=items)
    assert again.output[-1].type == "function_call"


@pytest.mark.parametrize(
    ("kind", "words", "param", "code", "body"),
    [
        (openai.NotFoundError, "model 'nope' does not exist", "model", "model_not_found", dict(model="nope")),
        (openai.BadRequestError, "maximum context length", None, "context_length_exceeded", dict(input="no " * 2000)),
        (openai.BadRequestError, "send all the items so far in 'input'", None, None, dict(previous_response_id="resp_1")),
        (openai.BadRequestError, "tools[0] is of type 'web_search'", "tools", None, dict(tools=[{"type": "web_search"}])),
        (openai.BadRequestError, "set max_output_tokens to at least", "thinking_budget", None,
         dict(max_output_tokens=20, reasoning={"max_tokens": 19})),
        (openai.BadRequestError, "the keyword 'not' is not supported", "text.format", None,
         dict(text={"format": {"type": "json_schema", "name": "n", "schema": {"not": {"type": "string"}}}})),
    ],
)  # fmt: skip
def test_errors(server, kind, words, param, code, body):
    for stream in (False, True):
        with pytest.raises(kind, match=words.replace("[", r"\[")) as caught:
            server.client().responses.create(**dict(model=server.model, input=ASK) | body, stream=stream)
        assert (caught.value.param, caught.value.code) == (param, code)


def test_an_error_behind_the_first_event(hasty):
    """The time is over while the answer is streamed: the response has failed, with the items so far."""
    server, limit = hasty
    extra = {"logit_bias": {str(TOK.im_end_id): -100}, "enable_thinking": False}
    options = dict(model=server.model, input=ASK, max_output_tokens=900, stream=True, temperature=1, extra_body=extra)
    failed, types = response_of(server.client().responses.create(**options))
    assert (types[-1], failed.status, failed.error.code) == ("failed", "failed", "server_error")
    assert failed.error.message == f"the request took longer than {limit} seconds."
    assert failed.output[-1].status == "incomplete"
    server.wait_until_idle()
