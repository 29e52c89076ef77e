"""From the fields of a body to the options of `resolve`, field by field; checks of a server that is never started."""

import dataclasses

import pytest
from fastapi.exceptions import RequestValidationError

from qwen3_jax import Engine, Sampling
from qwen3_jax.errors import RequestError
from qwen3_jax.generation import STOP_TEXT, Options
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.errors import Refused, _invalid
from qwen3_jax.serving.guard import Limits
from qwen3_jax.serving.protocol import EFFORTS, ChatRequest, CompletionRequest, TokenizeRequest
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
TOOL = tiny_models.TOOLS[0]


def options(supports_thinking=True, **body) -> dict:
    """Return the options of a chat request that differ from those of an empty one."""
    of, plain = (ChatRequest(messages=ASK, **fields).options(None, supports_thinking, None) for fields in (body, {}))
    assert plain == Options(fit_budget=True)
    return {
        f.name: getattr(of, f.name) for f in dataclasses.fields(of) if getattr(of, f.name) != getattr(plain, f.name)
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (dict(max_tokens=5), dict(max_new_tokens=5)),
        (dict(max_completion_tokens=6), dict(max_new_tokens=6)),
        (dict(max_tokens=6, max_completion_tokens=6), dict(max_new_tokens=6)),
        (dict(temperature=0.5), dict(sampling=Sampling(temperature=0.5))),
        (dict(top_p=0.5), dict(sampling=Sampling(top_p=0.5))),
        (dict(top_k=5), dict(sampling=Sampling(top_k=5))),
        (dict(top_k=-1), dict(sampling=Sampling(top_k=0))),
        (dict(min_p=0.5), dict(sampling=Sampling(min_p=0.5))),
        (dict(presence_penalty=0.5), dict(sampling=Sampling(presence_penalty=0.5))),
        (dict(frequency_penalty=0.5), dict(sampling=Sampling(frequency_penalty=0.5))),
        (dict(repetition_penalty=1.5), dict(sampling=Sampling(repetition_penalty=1.5))),
        (dict(logit_bias={"7": -3, "8": 1.5}), dict(sampling=Sampling(logit_bias={7: -3, 8: 1.5}))),
        (dict(seed=9), dict(sampling=Sampling(seed=9))),
        (dict(seed=-1), dict(sampling=Sampling(seed=2**63 - 1))),
        (dict(stop="a"), dict(sampling=Sampling(stop="a"))),
        (dict(stop=["a", "b"]), dict(sampling=Sampling(stop=["a", "b"]))),
        (dict(n=3), dict(sampling=Sampling(n=3))),
        (dict(logprobs=True), dict(sampling=Sampling(logprobs=0))),
        (dict(logprobs=True, top_logprobs=4), dict(sampling=Sampling(logprobs=4))),
        (dict(logprobs=False), {}),
        (dict(tools=[TOOL]), dict(tools=[TOOL])),
        (dict(tools=[TOOL], tool_choice="auto"), dict(tools=[TOOL])),
        (dict(tools=[TOOL], tool_choice="required"), dict(tools=[TOOL])),
        (dict(tools=[TOOL], tool_choice="none"), {}),
        (dict(tools=[]), {}),
        (dict(parallel_tool_calls=False), dict(one_call=True)),
        (dict(parallel_tool_calls=True), {}),
        (dict(separate_reasoning=False), dict(raw=True)),
        (dict(separate_reasoning=True), {}),
        (dict(thinking_budget=5), dict(thinking_budget=5, fit_budget=False)),
        (dict(thinking_token_budget=5), dict(thinking_budget=5, fit_budget=False)),
        (dict(custom_params={"thinking_budget": 5}), dict(thinking_budget=5, fit_budget=False)),
        (dict(thinking_budget=5, thinking_token_budget=5), dict(thinking_budget=5, fit_budget=False)),
        (dict(thinking_budget=-1), dict(fit_budget=False)),
        (dict(thinking_budget=-1, reasoning_effort="low"), dict(fit_budget=False)),
        (dict(thinking_budget=7, reasoning_effort="low"), dict(thinking_budget=7, fit_budget=False)),
        (dict(reasoning_effort="low"), dict(thinking_budget=1024)),
        (dict(reasoning_effort="none"), dict(thinking_budget=0)),
        (dict(reasoning_effort="xhigh"), {}),
        (dict(reasoning_effort="low", enable_thinking=False), dict(enable_thinking=False)),
        (dict(reasoning_effort="low", enable_thinking=True), dict(enable_thinking=True, thinking_budget=1024)),
        (dict(enable_thinking=False), dict(enable_thinking=False)),
        (dict(chat_template_kwargs={"enable_thinking": True}), dict(enable_thinking=True)),
        (dict(enable_thinking=True, chat_template_kwargs={}), dict(enable_thinking=True)),
        (dict(user="me", store=True, functions=None), {}),
    ],
    ids=str,
)  # fmt: skip
def test_every_field_of_a_chat_takes_effect(body, expected):
    assert options(**body) == expected


def test_an_effort_has_no_effect_on_a_model_that_does_not_think():
    assert [options(supports_thinking=False, reasoning_effort=effort) for effort in EFFORTS] == [{}] * len(EFFORTS)
    assert options(supports_thinking=False, thinking_budget=5) == dict(thinking_budget=5, fit_budget=False)


def test_continuing_a_turn_and_the_options_of_a_server():
    turn = [*ASK, {"role": "assistant", "content": "It"}]
    of = ChatRequest(messages=turn, continue_final_message=True, add_generation_prompt=False).options(int, True, 77)
    assert (of.continue_final_message, of.constraint, of.default_limit) == (True, int, 77)
    text = CompletionRequest(prompt="x", logprobs=2, max_tokens=4, thinking_budget=3).options(int, True, 78)
    assert text == Options(
        sampling=Sampling(logprobs=2), max_new_tokens=4, thinking_budget=3, default_limit=78, constraint=int, raw=True
    )
    assert CompletionRequest(prompt="x", thinking_budget=-1).options(None, True, None) == Options(raw=True)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]]), ([], [])],
    ids=str,
)
@pytest.mark.parametrize("n", [None, 3])
def test_prompts_and_answers_are_counted(prompt, prompts, n):
    of = CompletionRequest(prompt=prompt, n=n)
    assert (of.prompts, of.answers) == (prompts, (n or 1) * len(prompts))
    chat = ChatRequest(messages=ASK, n=n)
    assert (chat.prompts, chat.answers) == ([ASK], n or 1)


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (dict(max_tokens=5, max_completion_tokens=6), "differ", "max_tokens"),
        (dict(enable_thinking=True, chat_template_kwargs={"enable_thinking": False}), "differ", "enable_thinking"),
        (dict(thinking_budget=5, custom_params={"thinking_budget": 6}), "give the thinking budget once", "thinking_budget"),
        (dict(logit_bias={"-1": 1}), "its keys are token ids", "logit_bias"),
        (dict(stop=""), "non-empty", "stop"),
    ],
    ids=str,
)  # fmt: skip
def test_contradictory_fields_are_named(body, words, param):
    with pytest.raises(RequestError, match=words) as caught:
        options(**body)
    assert caught.value.param == param


def test_tokenize_applies_the_template_as_a_chat_does():
    messages, tools = [*ASK, {"role": "assistant", "content": "It"}], [TOOL]
    for fields, template in (
        ({}, {}),
        (dict(enable_thinking=False), dict(enable_thinking=False)),
        (dict(chat_template_kwargs={"enable_thinking": False}), dict(enable_thinking=False)),
        (dict(tools=tools), dict(tools=tools)),
        (dict(continue_final_message=True), dict(continue_final_message=True, add_generation_prompt=False)),
    ):
        expected = TOK.apply_chat_template(messages, tokenize=True, **template)
        assert TokenizeRequest(messages=messages, **fields).tokens(TOK) == expected
    assert TokenizeRequest(prompt="<think>").tokens(TOK) == TOK.encode("<think>")


# ---- a server that is never started ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Server:
    engine = Engine(tiny_models.model(0), rows=2, cache_tokens=512)
    return Server(engine, TOK, "tiny", limits=Limits(max_tokens=9, messages=3, n=4, requests=2, waiting=5))


def test_the_servers_limit_applies_to_requests_without_one(server):
    for body in (ChatRequest(messages=ASK), CompletionRequest(prompt="Hi")):
        assert [request.max_new_tokens for request in server._resolve(body)] == [9]
    (request,) = server._resolve(ChatRequest(messages=ASK, max_tokens=4))
    assert request.max_new_tokens == 4
    full = 512 - len(TOK.encode("Hi"))
    (request,) = server._resolve(CompletionRequest(prompt="Hi", max_tokens=full))
    assert request.max_new_tokens == full
    with pytest.raises(RequestError, match="the maximum context length is 512 tokens") as caught:
        server._resolve(CompletionRequest(prompt="Hi", max_tokens=full + 1))
    body = Refused.of(caught.value).body["error"]
    assert (body["param"], body["code"]) == ("max_tokens", "context_length_exceeded")


def test_an_effort_is_fitted_exactly_and_a_budget_is_not(server):
    stop = len(TOK.encode(STOP_TEXT))
    (request,) = server._resolve(ChatRequest(messages=ASK, max_tokens=stop + 2 + 30, reasoning_effort="low"))
    assert request.budget == 30
    with pytest.raises(RequestError, match="at most 30"):
        server._resolve(ChatRequest(messages=ASK, max_tokens=stop + 2 + 30, thinking_budget=31))


def test_several_prompts_and_choices_are_numbered(server):
    requests = server._resolve(CompletionRequest(prompt=["a", "b"], n=2))
    assert [(request.prompt_index, request.sample_index) for request in requests] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [list(request.prompt) for request in requests[::2]] == [TOK.encode("a"), TOK.encode("b")]
    with pytest.raises(RequestError, match=r"^prompt 1: the prompt is empty"):
        server._resolve(CompletionRequest(prompt=["a", ""]))
    with pytest.raises(RequestError, match=r"^the prompt is empty"):
        server._resolve(CompletionRequest(prompt=""))


@pytest.mark.parametrize(
    ("body", "constrained"),
    [
        ({}, False),
        (dict(response_format={"type": "text"}), False),
        (dict(response_format={"type": "json_object"}), True),
        (dict(tools=[TOOL]), False),
        (dict(tools=[TOOL], tool_choice="required"), True),
        (dict(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "add"}}), True),
        (dict(tools=[TOOL], tool_choice="none"), False),
    ],
    ids=str,
)  # fmt: skip
def test_which_requests_have_a_constraint_of_their_own(server, body, constrained):
    first, second = (request.constraint for request in server._resolve(ChatRequest(messages=ASK, n=2, **body)))
    assert (first is not None) == (second is not None) == constrained
    assert first is None or first is not second
    if not constrained:
        return
    opens = TOK.encode("<tool_call>" if "tools" in body else "{")[0]
    words = first.allowed()
    first.take(opens)
    assert words[opens // 32] >> opens % 32 & 1
    assert not words[TOK.im_end_id // 32] >> TOK.im_end_id % 32 & 1
    assert (second.allowed() == words).all()


def check(server, **body) -> Refused | None:
    try:
        server._check(ChatRequest(**(dict(messages=ASK) | body)))
    except Refused as refused:
        return refused
    return None


def test_limits_are_exact(server):
    assert check(server).status == 503  # not ready
    server.ready = True
    assert check(server, n=4, max_tokens=9, messages=ASK * 3, model="tiny") is None
    for body, param in (
        (dict(n=5), "n"), (dict(max_tokens=10), "max_tokens"), (dict(max_completion_tokens=10), "max_tokens"),
        (dict(messages=ASK * 4), "messages"), (dict(stream_options={}), "stream_options"),
    ):  # fmt: skip
        refused = check(server, **body)
        assert (refused.status, refused.param) == (400, param)
    assert check(server, model="other").body["error"]["code"] == "model_not_found"
    assert check(server, stream=True, stream_options={}) is None
    for requests, answers, status in ((1, 0, None), (2, 0, 429), (0, 6, None), (0, 7, 429)):  # 2 rows, 5 may wait
        server._open, server._open_answers = requests, answers
        refused = check(server)
        assert (refused and refused.status) == status
        assert refused is None or int(refused.headers["retry-after"]) > 0
    server._open = server._open_answers = 0


@pytest.mark.parametrize(
    ("error", "text", "param"),
    [
        (dict(loc=("body", "top_p"), msg="Input should be above 0"), "the field 'top_p': input should be above 0.", "top_p"),
        (dict(loc=("body",), msg="Value error, there is no field 'x'. Did you mean 'y'?"),
         "there is no field 'x'. Did you mean 'y'?", None),
        (dict(loc=("body", "tools", 0, "type"), msg="Input should be 'a'"), "Input should be 'a'.", "tools.0.type"),
        (dict(loc=("body", 3), msg="JSON decode error"), "the field '3': jSON decode error.", "3"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_fields_are_named(error, text, param):
    import asyncio
    import json

    response = asyncio.run(_invalid(None, RequestValidationError([error])))
    body = json.loads(response.body)["error"]
    assert (response.status_code, body["message"], body["param"]) == (400, text, param)
    assert body["type"] == "invalid_request_error"
