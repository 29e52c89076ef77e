"""Bodies made of the real clients' own types: each is accepted with nothing lost, or refused naming the place."""

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.server.fastmcp import FastMCP
from openai.lib._parsing._completions import type_to_response_format_param
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.helpers import tiny_models
from tests.helpers.captured_server import Captured, check_place
from tests.helpers.client_types import JSON, WORD, bodies, values, words
from tests.helpers.schema_models import Address, models

TOK = tiny_models.tokenizer()
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
CALL = st.dictionaries(WORD, JSON, max_size=2)
BY_NAME = {"arguments": CALL.map(json.dumps) | st.sampled_from(["", "[1]", '{"x": ']), "parameters": st.just({})}
MESSAGE = values(ChatCompletionMessageParam, BY_NAME)
PLAIN = st.sampled_from(["user", "system", "developer"]).flatmap(
    lambda role: st.fixed_dictionaries({"role": st.just(role), "content": WORD})
)
MESSAGES = st.lists(PLAIN | MESSAGE, min_size=1, max_size=3)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Captured()


@FAST
@given(MESSAGES)
def test_messages(captured, messages):
    error = captured.ask("/v1/chat/completions", {"model": "tiny", "messages": messages})
    if error is not None:
        assert "messages[" in error["message"], error
        return
    (request,) = captured.requests
    prompt = TOK.decode(list(request.prompt))
    for message in messages:
        texts = [*words(message, ("content", "refusal", "function_call", "audio"))]
        for call in message.get("tool_calls") or ():
            texts += words(call, ("function", "custom"))
        for text in texts:
            is_object = text.startswith("{")
            pieces = list(json.loads(text)) if is_object else [text]
            assert all(piece in prompt for piece in pieces), (text, prompt)


@FAST
@given(bodies(chat_params.CompletionCreateParamsNonStreaming, always={"messages": st.lists(PLAIN, min_size=1, max_size=1),
       "model": st.just("tiny")}, by_name=BY_NAME, most=3))  # fmt: skip
def test_chats(captured, body):
    error = captured.ask("/v1/chat/completions", body)
    if error is not None:
        check_place(error, body)
        return
    prompt = TOK.decode(list(captured.requests[0].prompt))
    shown = [] if body.get("tool_choice") == "none" else [*words(body.get("tools") or [], ("name", "description"))]
    for text in [body["messages"][0]["content"], *shown]:
        assert text in prompt
    given = {name: value for name, value in body.items() if value is not None}
    request = captured.requests[0]
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        assert getattr(request.sampling, name) == given.get(name, getattr(type(request.sampling)(), name))
    limits = {given[name] for name in ("max_tokens", "max_completion_tokens") if name in given} - {-1}
    assert not limits or request.max_new_tokens == min(limits)
    assert len(captured.requests) == given.get("n", 1)


@FAST
@given(bodies(text_params.CompletionCreateParamsNonStreaming, always={"prompt": WORD | st.lists(WORD, min_size=1, max_size=2),
       "model": st.just("tiny")}, by_name={}, most=3))  # fmt: skip
def test_texts(captured, body):
    error = captured.ask("/v1/completions", body)
    if error is not None:
        check_place(error, body)
        return
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    samples = body.get("n") or 1
    assert [TOK.decode(list(request.prompt)) for request in captured.requests[::samples]] == prompts
    stop = body.get("stop") or []
    assert list(captured.requests[0].sampling.stop) == ([stop] if isinstance(stop, str) else stop)


def shown(prompt: str, tools: list[dict]) -> bool:
    """Whether a prompt has each tool as it was sent."""
    return all(f"\n{json.dumps(tool, ensure_ascii=False)}\n" in prompt for tool in tools)


def by_openai(model: type[BaseModel]) -> dict:
    return openai.pydantic_function_tool(model, description="By openai.")


def by_langchain(model: type[BaseModel]) -> dict:
    return pytest.importorskip("langchain_core.utils.function_calling").convert_to_openai_tool(model)


def by_mcp(model: type[BaseModel]) -> dict:
    """A tool of an MCP server that takes the model, as agents hand it on."""

    def take(given: model, count: int = 1) -> str:  # type: ignore[valid-type]
        """Take it."""
        return f"{given} {count}"

    take.__annotations__["given"] = model
    listed = asyncio.run(_listed(take))
    return {"type": "function", "function": {"name": listed.name, "description": listed.description,
                                             "parameters": listed.inputSchema}}  # fmt: skip


async def _listed(function: Any) -> Any:
    server = FastMCP("server")
    server.add_tool(function)
    (tool,) = await server.list_tools()
    return tool


MAKERS = [by_openai, by_langchain, by_mcp]


@settings(FAST, max_examples=20)
@given(
    models(),
    st.lists(st.sampled_from(MAKERS), min_size=1, max_size=2, unique=True),
    st.sampled_from(["auto", "required"]),
)
def test_tools_of_generators_are_shown_as_sent(captured, drawn, makers, choice):
    tools = []
    for maker in makers:
        try:
            tools.append(maker(drawn[0]))
        except (TypeError, ValueError):  # the generator refuses the model itself
            return
    body = {"messages": [{"role": "user", "content": "word1"}], "tools": tools, "tool_choice": choice}
    error = captured.ask("/v1/chat/completions", body)
    assert error is None, error
    (request,) = captured.requests
    assert shown(TOK.decode(list(request.prompt)), tools)
    assert (request.constraint is not None) == (choice == "required")


@settings(FAST, max_examples=15)
@given(models())
def test_formats_of_openais_package(captured, drawn):
    model, *_ = drawn
    try:
        format = type_to_response_format_param(model)
    except (TypeError, ValueError):
        return
    error = captured.ask("/v1/chat/completions", {"messages": ASK, "response_format": format})
    assert error is None, error
    assert captured.requests[0].constraint is not None
    tools = [{"type": "function", "function": {"name": "f", "parameters": model.model_json_schema()}}]
    body = {"messages": ASK, "response_format": format, "tools": tools}  # a call stays possible
    for choice in ("auto", "required"):
        assert captured.ask("/v1/chat/completions", body | {"tool_choice": choice}) is None
        assert shown(TOK.decode(list(captured.requests[0].prompt)), tools)


@settings(FAST, max_examples=30)
@given(st.data())
def test_tools_and_messages_of_anthropics_package(captured, data):
    """Its tools have another form: refused by place, and right once they are in this one. Blocks that are text are read."""
    types = pytest.importorskip("anthropic.types")
    tool = data.draw(values(types.ToolParam, {"input_schema": SCHEMA_OF_ANTHROPIC, "name": WORD}))
    error = captured.ask("/v1/chat/completions", {"messages": ASK, "tools": [tool]})
    assert error is not None
    assert error["param"] == "tools.0"
    function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": tool["input_schema"]}
    tools = [{"type": "function", "function": function}]
    assert captured.ask("/v1/chat/completions", {"messages": ASK, "tools": tools, "tool_choice": "required"}) is None
    assert shown(TOK.decode(list(captured.requests[0].prompt)), tools)
    block = data.draw(st.sampled_from([types.TextBlockParam, types.ThinkingBlockParam, types.ToolUseBlockParam,
                                       types.ToolResultBlockParam, types.ImageBlockParam]))  # fmt: skip
    part = data.draw(values(block, BLOCK_FIELDS))
    messages = [*ASK, {"role": "assistant", "content": [part]}]
    error = captured.ask("/v1/chat/completions", {"messages": messages})
    if block in (types.TextBlockParam, types.ThinkingBlockParam):
        assert error is None, error
        assert part.get("text", part.get("thinking")) in TOK.decode(list(captured.requests[0].prompt))
    else:
        assert error is not None
        assert "messages[1].content[0] is of type" in error["message"]


BLOCK_FIELDS = {
    "text": WORD,
    "thinking": WORD,
    "citations": st.none(),
    "content": WORD,
    "source": st.just({"type": "url"}),
}
SCHEMA_OF_ANTHROPIC = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={"properties": st.none() | st.dictionaries(WORD, st.sampled_from([{"type": "string"}, {}]), max_size=2),
              "required": st.none() | st.just([])},
)  # fmt: skip


def test_the_packages_themselves(captured):
    """With the headers that they send."""
    transport = httpx2.ASGITransport(captured.server.app)

    async def ask() -> None:
        async with httpx2.AsyncClient(transport=transport) as http:
            own = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="any", max_retries=0, http_client=http)
            with pytest.raises(openai.InternalServerError, match="captured"):
                await own.chat.completions.parse(model="tiny", messages=ASK, response_format=Address)
            assert (await own.models.retrieve("tiny")).id == "tiny"
            with pytest.raises(openai.NotFoundError, match="model 'org/nope' does not exist"):
                await own.models.retrieve("org/nope")
            anthropic = pytest.importorskip("anthropic")
            theirs = anthropic.AsyncAnthropic(
                base_url="http://localhost", api_key="any", max_retries=0, http_client=http
            )
            body = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
            with pytest.raises(anthropic.InternalServerError, match="captured"):
                await theirs.messages.create(**body)
            del body["max_tokens"]
            counted = await theirs.messages.count_tokens(**body)
            assert counted.input_tokens == len(captured.requests[0].prompt)
            with pytest.raises(openai.InternalServerError, match="captured"):
                await own.responses.create(model="tiny", input="hi")
            captured.server._open = captured.server.limits.requests
            try:
                with pytest.raises(openai.RateLimitError, match="server at capacity") as limited:
                    await own.responses.create(model="tiny", input="hi")
                with pytest.raises(anthropic.InternalServerError, match="server at capacity") as overloaded:
                    await theirs.messages.create(**body, max_tokens=9)
            finally:
                captured.server._open = 0
            assert (limited.value.status_code, overloaded.value.status_code) == (429, 529)
            assert overloaded.value.body["error"]["type"] == "overloaded_error"

    asyncio.run(ask())
