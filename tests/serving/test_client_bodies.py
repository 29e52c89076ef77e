"""Bodies made of the real clients' own types: each is accepted with nothing lost, or refused naming the place."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam

from qwen3_jax import Engine
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.worker import Stopped
from tests.helpers import tiny_models
from tests.helpers.client_types import JSON, WORD, bodies, values, words

TOK = tiny_models.tokenizer()
CALL = st.dictionaries(WORD, JSON, max_size=2)
BY_NAME = {"arguments": CALL.map(json.dumps) | st.sampled_from(["", "[1]", '{"x": ']), "parameters": st.just({})}
MESSAGE = values(ChatCompletionMessageParam, BY_NAME)
PLAIN = st.sampled_from(["user", "system", "developer"]).flatmap(
    lambda role: st.fixed_dictionaries({"role": st.just(role), "content": WORD})
)
MESSAGES = st.lists(PLAIN | MESSAGE, min_size=1, max_size=3)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Captured:
    """A server that accepts requests and generates nothing."""

    def __init__(self) -> None:
        self.server = Server(Engine(tiny_models.model(0), rows=2, cache_tokens=2048), TOK, "tiny")
        self.server.ready = True
        self.server.app._log = None
        self.server.worker.submit = self._submit  # type: ignore[method-assign]
        self.requests: list = []

    @contextlib.contextmanager
    def _submit(self, requests) -> Iterator[None]:
        self.requests = list(requests)
        raise Stopped("captured")
        yield

    def ask(self, path: str, body: dict) -> dict | None:
        """Send a body; return the error, or None if it was accepted."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.post(path, json=body)

        response = asyncio.run(send())
        error = response.json()["error"]
        if error["message"] == "captured.":
            return None
        assert response.status_code == 400, (response.status_code, error)
        return error


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Captured()


def check_place(error: dict, body: dict) -> None:
    """A refusal names a field of the body, in one sentence."""
    names = [name for name in body if name in error["message"]]
    assert error["param"] or names, error
    assert error["message"].endswith((".", "?"))
    assert "\n" not in error["message"]


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


def test_messages_of_langchain(captured):
    """As its OpenAI client sends them."""
    messages = pytest.importorskip("langchain_core.messages")
    call = {"name": "add", "args": {"a": 2}, "id": "call_1"}
    history = [
        messages.SystemMessage("Be brief."), messages.HumanMessage([{"type": "text", "text": "What is 2 + 3?"}]),
        messages.AIMessage("", tool_calls=[call]), messages.ToolMessage("five", tool_call_id="call_1"),
        messages.AIMessage("It is five."), messages.HumanMessage("Thanks."),
    ]  # fmt: skip
    body = {"messages": messages.convert_to_openai_messages(history), "parallel_tool_calls": None}
    assert captured.ask("/v1/chat/completions", body) is None
    prompt = TOK.decode(list(captured.requests[0].prompt))
    for text in ("Be brief.", "What is 2 + 3?", '"name": "add"', '{"a": 2}', "five", "It is five.", "Thanks."):
        assert text in prompt
