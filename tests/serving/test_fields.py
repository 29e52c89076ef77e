"""Fields that change nothing, and what clients are told about fields, bodies and routes that are refused."""

import asyncio
import io
import json
from typing import get_args

import httpx
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import chat_completion_stream_options_param as stream_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.shared_params import reasoning_effort

from qwen3_jax import Engine
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.fields import IGNORED, REFUSED
from qwen3_jax.serving.objects import StreamOptions
from qwen3_jax.serving.protocol import EFFORTS, ChatRequest, CompletionRequest, Defaults, TokenizeRequest
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
ASK = [{"role": "user", "content": "What is 2 + 3?"}]


def harmless() -> list[tuple[str, object]]:
    return [(name, value) for name, refusal in REFUSED.items() for value in (None, *refusal.harmless)]


@pytest.mark.parametrize(
    "body",
    [
        dict(harmless()), dict.fromkeys(IGNORED, "anything"), {"functions": []}, {"best_of": 1}, {"best_of": 2, "n": 2},
        {"suffix": "", "min_tokens": 0, "ignore_eos": False, "modalities": ["text"], "length_penalty": 1.0},
        {"top_logprobs": 0}, {"stream_options": {}}, {"tools": []}, {"logit_bias": {}}, {"stop": []}, {"stop_token_ids": []},
        {"stream_options": {"include_obfuscation": False, "include_usage": None}}, {"response_format": {"type": "text"}},
        {"chat_template_kwargs": {}}, {"reasoning": {}}, {"custom_params": {}}, {"parallel_tool_calls": True},
        {"tool_choice": "none"}, {"tool_choice": "auto"}, {"xtc_threshold": 0.1, "mirostat_tau": 5.0, "dry_base": 1.75},
        {"repeat_last_n": 64}, {"guided_decoding_backend": "xgrammar"},
        {"search_options": {"forced_search": True}, "enable_search": False}, {"logprobs": False},
    ],
    ids=lambda body: str(body)[:60],
)  # fmt: skip
def test_a_field_at_the_value_that_changes_nothing_is_accepted(body):
    n = body.get("n", 1)
    expected = ChatRequest(messages=ASK, n=n).options(None, Defaults())
    assert ChatRequest(messages=ASK, **body).options(None, Defaults()) == expected
    expected = CompletionRequest(prompt="x", n=n).options(None, Defaults())
    # Fields of chats that are empty there.
    body = {name: value for name, value in body.items() if name not in ("parallel_tool_calls", "top_logprobs")}
    assert CompletionRequest(prompt="x", **body).options(None, Defaults()) == expected
    for name in (
        "best_of",
        "n",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "response_format",
        "custom_params",
        "stream_options",
        "tool_choice",
        "logprobs",
    ):
        body.pop(name, None)
    tokens = TokenizeRequest(messages=ASK).tokens(TOK)
    assert TokenizeRequest(messages=ASK, **{k: v for k, v in body.items() if k != "reasoning"}).tokens(TOK) == tokens


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_would_change_something_is_refused_by_name(name):
    value = {"modalities": ["text", "audio"], "best_of": 3, "function_call": {"name": "f"}}.get(name, "anything")
    needed = REFUSED[name].needs[:1]  # without it the field changes nothing
    for kind, fields in ((ChatRequest, dict(messages=ASK)), (CompletionRequest, dict(prompt="x"))):
        body = fields | {name: value} | dict.fromkeys(needed, 0.5)
        with pytest.raises(ValueError, match=rf"the field '({'|'.join((name, *needed))})' is not supported: \w"):
            kind(**body)
        if needed:
            kind(**fields, **{name: value})


@pytest.mark.parametrize("value", [0, 1], ids=str)
def test_a_number_is_not_a_switch(value):
    with pytest.raises(ValueError, match="'return_full_text' is not supported"):
        CompletionRequest(prompt="x", return_full_text=value)


def test_every_field_of_openais_client_is_known():
    """Its own types are the list: a field of theirs takes effect, is ignored, or is refused with what to do instead."""
    for kind, types in ((ChatRequest, chat_params), (CompletionRequest, text_params)):
        theirs = set(types.CompletionCreateParamsBase.__annotations__) | {"stream"}
        assert theirs - kind.names() - set(IGNORED) - set(REFUSED) == set()
    theirs = set(stream_params.ChatCompletionStreamOptionsParam.__annotations__)
    assert theirs <= StreamOptions.names()
    assert set(REFUSED) & (ChatRequest.names() | CompletionRequest.names() | set(IGNORED)) == set()
    (efforts,) = (get_args(each) for each in get_args(reasoning_effort.ReasoningEffort) if get_args(each))
    assert set(efforts) == set(EFFORTS)


# ---- a server that is never started ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idle() -> Server:
    return Server(Engine(tiny_models.model(0), rows=2, cache_tokens=512), TOK, "tiny")


@pytest.mark.parametrize(
    ("body", "text", "param"),
    [
        (dict(top_p=-1), "the field 'top_p': input should be greater than 0.", "top_p"),
        (dict(x=1), "there is no field 'x'.", None),
        (dict(temprature=1), "there is no field 'temprature'. Did you mean 'temperature'?", None),
        (dict(temperature="hot"),
         "the field 'temperature': input should be a valid integer, or input should be a valid number.", "temperature"),
        (dict(stop=[1]), "the field 'stop': input should be a valid string.", "stop"),
        (dict(tools=[{"type": "custom"}]), "the field 'tools.0.type': input should be 'function'.", "tools.0.type"),
        (dict(tools=[{"function": {}}]), "the field 'tools.0.function.name': field required.", "tools.0.function.name"),
        (dict(tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}}]),
         "the field 'tools.0': it is a function, or a tool of another API; the form here is "
         "{'type': 'function', 'function': {'name', 'description', 'parameters'}}.", "tools.0"),
        (dict(tools=[{"type": "function", "name": "f", "parameters": {}}]),  # of the Responses API
         "the field 'tools.0': it is a function, or a tool of another API; the form here is "
         "{'type': 'function', 'function': {'name', 'description', 'parameters'}}.", "tools.0"),
        (dict(tools=[{"function": {"name": "f", "inputSchema": {"type": "object"}}}]),
         "the field 'tools.0.function': it has 'inputSchema'; name it 'parameters'.", "tools.0.function"),
        (dict(tool_choice={"type": "tool", "name": "f"}),  # Anthropic's
         "the field 'tool_choice': it must be 'auto', 'none', 'required' or {'type': 'function', 'function': {'name': NAME}}; "
         "to allow some tools only, give these in 'tools'.", "tool_choice"),
        (dict(extra_body={"top_k": 1}), "the field 'extra_body' is not supported: it belongs to OpenAI's client; give its "
         "fields in the body itself.", None),
        (dict(stream_options={"usage": 1}), "the field 'stream_options': there is no field 'usage' in it. "
         "Did you mean 'include_usage'?", "stream_options"),
        (dict(reasoning={"exclude": True}), "the field 'reasoning.exclude': input should be False.", "reasoning.exclude"),
        (dict(prompt="x"), "the field 'prompt' is one of POST /v1/completions.", None),
        (b'{"messages": [', "the body is not valid JSON: Expecting value at character 14.", None),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_fields_are_named(idle, body, text, param):
    """Through the routes, without an engine: each is one sentence that names the place, in the answer and in the log."""
    content = body if isinstance(body, bytes) else json.dumps(dict(messages=ASK) | body).encode()
    log = io.StringIO()
    idle.app._log = log
    response = asyncio.run(post(idle, content))
    error = response.json()["error"]
    assert (response.status_code, error["message"], error["param"]) == (400, text, param)
    assert error["type"] == "invalid_request_error"
    assert json.loads(log.getvalue())["reason"] == text


async def post(
    server: Server, content: bytes, path: str = "/v1/chat/completions", method: str = "POST"
) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as http:
        return await http.request(method, path, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/api/embed", 404, "not Ollama's API; use POST /v1/embeddings"),
        ("GET", "/v1/responses/resp_1", 404, "this server keeps no responses; POST /v1/responses gives one"),
        ("POST", "/v1/messages/batches", 404, "`qwen3 infer` works through a file"),
        ("POST", "/v1/responses/input_tokens", 404, "use POST /tokenize"),
        ("POST", "/v1/conversations", 404, "this server keeps no conversations"),
        ("GET", "/v1/messages", 405, "the method is POST"),
        ("POST", "/messages", 404, "Did you mean '/v1/messages'?"),
        ("POST", "/openai/deployments/T/chat/completions", 404, "not Azure's API"),
        ("POST", "/api/show", 404, "use GET /v1/models"),
        ("POST", "/v1/audio/transcriptions", 404, "text only"),
        ("POST", "/infill", 404, "fill in the middle"),
        ("POST", "/v1/moderations", 404, "this server moderates nothing"),
        ("POST", "/v1/images/generations", 404, "text only"),
        ("POST", "/v1/files", 404, "this server keeps no files"),
        ("POST", "/v1/batches", 404, "`qwen3 infer` works through a file"),
        ("POST", "/v1/score", 404, "use POST /v1/rerank"),
        ("POST", "/embeddings", 404, "Did you mean '/v1/embeddings'?"),
        ("POST", "/v1/fine_tuning/jobs", 404, "train.py does"),
        ("POST", "/generate", 404, "use POST /v1/completions"),
        ("GET", "/props", 404, "use GET /v1/models"),
        ("GET", "/ping", 404, "use GET /health"),
        ("GET", "/v1/models/", 200, '"object":"list"'),
        ("POST", "/responses", 404, "Did you mean '/v1/responses'?"),
        ("POST", "/chat/completions", 404, "Did you mean '/v1/chat/completions'?"),
        ("GET", "/api/tags", 404, "use GET /v1/models"),
        ("GET", "/v1/chat/completions", 405, "the method is POST"),
        ("GET", "/v1/models/tiny", 200, '"id":"tiny"'),
        ("GET", "/v1/models/nope", 404, "model 'nope' does not exist; this server has 'tiny'"),
        ("GET", "/v1/models/org%2Ftiny", 404, "model 'org/tiny' does not exist"),
        ("GET", "/v1/models/org/tiny", 404, "model 'org/tiny' does not exist"),
    ],
)
def test_routes_that_are_not_there_say_what_to_use(idle, method, path, status, words):
    response = asyncio.run(post(idle, b"{}", path, method))
    assert response.status_code == status
    assert words in response.json()["error"]["message"] if status != 200 else words in response.text


def test_a_model_whose_name_has_slashes():
    server = Server(Engine(tiny_models.model(0), rows=2, cache_tokens=512), TOK, "org/tiny", thinking_budget=7)
    for path in ("/v1/models/org/tiny", "/v1/models/org%2Ftiny"):
        described = asyncio.run(post(server, b"", path, "GET")).json()
        assert (described["id"], described["object"]) == ("org/tiny", "model")
        assert (described["thinking_budget"], described["max_thinking_budget"]) == (7, None)
    listed = asyncio.run(post(server, b"", "/v1/models", "GET")).json()
    assert listed == {"object": "list", "data": [described]}
