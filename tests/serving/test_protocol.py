"""From the fields of a body to the options of `resolve`, field by field; checks of a server that is never started."""

import dataclasses
import re

import pytest

from qwen3_jax import Engine, Sampling
from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation import STOP_TEXT, Options
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.guard import Limits
from qwen3_jax.serving.protocol import EFFORTS, ChatRequest, CompletionRequest, Defaults, TokenizeRequest
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
TOOL = tiny_models.TOOLS[0]


def options(supports_thinking=True, **body) -> dict:
    """Return the options of a chat request that differ from those of an empty one."""
    of, plain = (
        ChatRequest(messages=ASK, **fields).options(None, Defaults(supports_thinking)) for fields in (body, {})
    )
    assert plain == Options(fit_budget=True, fit_limit=True)
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
        (dict(stop_token_ids=[3, 4]), dict(sampling=Sampling(stop_token_ids=(3, 4)))),
        (dict(stop_token_ids=3), dict(sampling=Sampling(stop_token_ids=(3,)))),
        (dict(max_tokens=5.0, top_k=4.0, seed=9.0, n=2.0, stop_token_ids=[3.0]),
         dict(max_new_tokens=5, sampling=Sampling(top_k=4, seed=9, n=2, stop_token_ids=(3,)))),
        (dict(thinking_budget=5.0), dict(thinking_budget=5, fit_budget=False)),
        (dict(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"}), dict(tools=[TOOL])),
        (dict(max_tokens=-1), {}),
        (dict(max_completion_tokens=-1, max_tokens=-1), {}),
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
        (dict(thinking={"type": "enabled"}), dict(enable_thinking=True)),
        (dict(thinking={"type": "adaptive", "budget_tokens": 5}), dict(thinking_budget=5, fit_budget=False)),
        (dict(thinking={"type": "disabled"}), dict(enable_thinking=False)),
        (dict(thinking={"type": "adaptive"}), {}),
        (dict(reasoning={"max_tokens": 5}), dict(thinking_budget=5, fit_budget=False)),
        (dict(reasoning={"effort": "low", "exclude": False}), dict(thinking_budget=1024)),
        (dict(reasoning={"enabled": False}), dict(enable_thinking=False)),
        (dict(reasoning_effort="low", reasoning={"effort": "low"}), dict(thinking_budget=1024)),
        (dict(reasoning_effort="max"), {}),
        (dict(chat_template_kwargs={"thinking_budget": 5}), dict(thinking_budget=5, fit_budget=False)),
        (dict(preserve_thinking=True), dict(preserve_thinking=True)),
        (dict(chat_template_kwargs={"preserve_thinking": True}), dict(preserve_thinking=True)),
        (dict(chat_template_kwargs={"preserve_thinking": False, "enable_thinking": None}), dict(preserve_thinking=False)),
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
    of = ChatRequest(messages=turn, continue_final_message=True, add_generation_prompt=False).options(
        int, Defaults(max_tokens=77)
    )
    assert (of.continue_final_message, of.constraint, of.default_limit) == (True, int, 77)
    body = CompletionRequest(prompt="x", logprobs=2, max_tokens=4, thinking_budget=3)
    assert body.options(int, Defaults(max_tokens=78)) == Options(
        sampling=Sampling(logprobs=2), max_new_tokens=4, thinking_budget=3, default_limit=78, constraint=int, raw=True,
        fit_limit=True,
    )  # fmt: skip
    free = CompletionRequest(prompt="x", thinking_budget=-1).options(None, Defaults())
    assert free == Options(raw=True, fit_limit=True)


@pytest.mark.parametrize(
    ("default", "most", "body", "enable", "budget", "fits"),
    [
        (9, None, {}, None, 9, True),
        (9, None, dict(thinking_budget=20), None, 20, False),
        (9, None, dict(thinking_budget=-1), None, None, False),
        (9, None, dict(reasoning_effort="low"), None, 1024, True),
        (9, None, dict(enable_thinking=False), False, None, True),
        (9, None, dict(enable_thinking=True), True, 9, True),
        (0, None, {}, None, 0, True),
        (0, None, dict(enable_thinking=True), True, None, True),
        (None, 9, {}, None, 9, True),
        (None, 9, dict(thinking_budget=20), None, 9, True),
        (None, 9, dict(thinking_budget=5), None, 5, False),
        (None, 9, dict(thinking={"type": "enabled", "budget_tokens": 20}), True, 9, True),
        (None, 9, dict(reasoning_effort="xhigh"), None, 9, True),
        (None, 9, dict(thinking_budget=-1), None, 9, True),
        (None, 9, dict(enable_thinking=False), False, None, True),
        (4, 9, {}, None, 4, True),
        (None, 0, {}, None, 0, True),
    ],
    ids=str,
)
def test_the_servers_budgets(default, most, body, enable, budget, fits):
    """Its default is for requests that name none; its largest bounds every request, as a budget bounds an answer."""
    of = ChatRequest(messages=ASK, **body).options(None, Defaults(thinking_budget=default, max_thinking_budget=most))
    assert (of.enable_thinking, of.thinking_budget, of.fit_budget) == (enable, budget, fits)
    if not set(body) - {"thinking_budget"}:
        text = CompletionRequest(prompt="x", **body).options(None, Defaults(True, None, default, most))
        assert (text.thinking_budget, text.fit_budget) == (budget, fits)


def test_budgets_that_a_server_cannot_have():
    with pytest.raises(RequestError, match="this server allows no thinking"):
        ChatRequest(messages=ASK, enable_thinking=True).options(None, Defaults(max_thinking_budget=0))
    engine = Engine(tiny_models.model(0), rows=2, cache_tokens=512)
    with pytest.raises(UserError, match="thinking_budget is 9, above max_thinking_budget, which is 8"):
        Server(engine, TOK, "tiny", thinking_budget=9, max_thinking_budget=8, warm_up=False)
    plain = tiny_models.tokenizer("{{ messages[0].content }}")
    if not plain.supports_thinking:
        with pytest.raises(UserError, match="this model does not think"):
            Server(engine, plain, "tiny", thinking_budget=9, warm_up=False)


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
        (dict(max_tokens=5, max_completion_tokens=6), "give the limit once", "max_tokens"),
        (dict(enable_thinking=True, chat_template_kwargs={"enable_thinking": False}), "the switch once", "enable_thinking"),
        (dict(enable_thinking=True, thinking={"type": "disabled"}), "thinking.type=False", "enable_thinking"),
        (dict(thinking_budget=5, reasoning={"max_tokens": 6}), "reasoning.max_tokens=6", "thinking_budget"),
        (dict(reasoning_effort="low", reasoning={"effort": "high"}), "give the effort once", "reasoning_effort"),
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
        (dict(add_generation_prompt=False), dict(add_generation_prompt=False)),
    ):
        expected = TOK.apply_chat_template(messages, tokenize=True, **template)
        assert TokenizeRequest(messages=messages, **fields).tokens(TOK) == expected
    assert TokenizeRequest(prompt="<think>").tokens(TOK) == TOK.encode("<think>")


# ---- a server that is never started ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Server:
    engine = Engine(tiny_models.model(0), rows=2, cache_tokens=512)
    return Server(engine, TOK, "tiny", limits=Limits(max_tokens=9, messages=3, n=4, requests=2, waiting=5))


@pytest.fixture(scope="module")
def roomy() -> Server:
    """A server without a limit of its own."""
    return Server(Engine(tiny_models.model(0), rows=2, cache_tokens=512), TOK, "tiny")


def test_the_servers_limit_applies_to_requests_without_one(server):
    for body in (ChatRequest(messages=ASK), CompletionRequest(prompt="Hi")):
        assert [request.max_new_tokens for request in server._resolve(body)] == [9]
    (request,) = server._resolve(ChatRequest(messages=ASK, max_tokens=4))
    assert request.max_new_tokens == 4


def test_max_tokens_is_a_cap(server, roomy):
    """Editors send 32,000: what fits is generated, up to the server's limit or to the end of the context."""
    assert [request.max_new_tokens for request in server._resolve(ChatRequest(messages=ASK, max_tokens=32_000))] == [9]
    full = 512 - len(TOK.encode("Hi"))
    for asked in (full, full + 1, 100_000, -1):
        (request,) = roomy._resolve(CompletionRequest(prompt="Hi", max_tokens=asked))
        assert request.max_new_tokens == full
    (request,) = roomy._resolve(ChatRequest(messages=ASK, max_completion_tokens=100_000, thinking_budget=16))
    assert (request.max_new_tokens, request.budget) == (512 - len(request.prompt), 16)
    long = [{"role": "user", "content": "no " * 900}]
    with pytest.raises(RequestError, match="the maximum context length is 512 tokens") as caught:
        roomy._resolve(ChatRequest(messages=long, max_tokens=100_000))
    body = Refused.of(caught.value).body()["error"]
    assert (body["param"], body["code"]) == (None, "context_length_exceeded")
    with pytest.raises(ValueError, match="an answer has at least one token"):
        CompletionRequest(prompt="Hi", max_tokens=0)


def test_the_advice_of_a_refused_budget_can_be_followed(roomy):
    def refused(**body) -> dict:
        with pytest.raises(RequestError) as caught:
            roomy._resolve(ChatRequest(messages=ASK, **body))
        return Refused.of(caught.value).body()["error"]

    def numbers(message: str) -> list[int]:
        return [int(each) for each in re.findall(r"at (?:least|most) (\d+)", message)]

    for body in (dict(), dict(max_tokens=100_000), dict(max_tokens=60)):
        message = refused(thinking_budget=100_000, **body)["message"]
        (most,) = numbers(message)
        assert "max_new_tokens" not in message
        (request,) = roomy._resolve(ChatRequest(messages=ASK, thinking_budget=most, **body))
        assert request.budget == most
    least, most = numbers(refused(thinking_budget=50, max_tokens=60)["message"])
    assert roomy._resolve(ChatRequest(messages=ASK, thinking_budget=50, max_tokens=least))[0].budget == 50
    assert roomy._resolve(ChatRequest(messages=ASK, thinking_budget=most, max_tokens=60))[0].budget == most


def test_an_effort_is_fitted_exactly_and_a_budget_is_not(roomy):
    stop = len(TOK.encode(STOP_TEXT))
    (request,) = roomy._resolve(ChatRequest(messages=ASK, max_tokens=stop + 2 + 30, reasoning_effort="low"))
    assert request.budget == 30
    with pytest.raises(RequestError, match="at most 30"):
        roomy._resolve(ChatRequest(messages=ASK, max_tokens=stop + 2 + 30, thinking_budget=31))


def test_stop_tokens_end_this_answer_only(roomy):
    (request,) = roomy._resolve(ChatRequest(messages=ASK, stop_token_ids=[5, 6, 5]))
    assert request.eos == {TOK.im_end_id, 5, 6}
    assert roomy._resolve(ChatRequest(messages=ASK))[0].eos == {TOK.im_end_id}
    for body, words in (
        (dict(stop_token_ids=[480]), "has token 480; the last one is 479"),
        (dict(stop_token_ids=list(range(20, 37))), "has 17 tokens; the most is 16"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            roomy._resolve(ChatRequest(messages=ASK, **body))
        assert caught.value.param == "stop_token_ids"


def test_thinking_of_earlier_turns_is_kept_if_asked_for(roomy):
    turns = [
        *ASK,
        {"role": "assistant", "content": "5", "reasoning_content": "2+3"},
        {"role": "user", "content": "why"},
    ]
    for body, kept in (({}, False), (dict(preserve_thinking=True), True)):
        (request,) = roomy._resolve(ChatRequest(messages=turns, **body))
        assert ("<think>\n2+3\n</think>\n\n5" in TOK.decode(list(request.prompt))) == kept
        assert list(request.prompt) == TokenizeRequest(messages=turns, **body).tokens(TOK)


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
        (dict(tools=[TOOL], response_format={"type": "json_object"}), True),
        (dict(tools=[TOOL], response_format={"type": "text"}), False),
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
    may_call, may_answer = "tools" in body, "response_format" in body
    call, brace = TOK.encode("<tool_call>")[0], TOK.encode("{")[0]
    words = first.allowed()
    assert [bool(words[token // 32] >> token % 32 & 1) for token in (call, brace)] == [may_call, may_answer]
    first.take(call if may_call else brace)
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
        (dict(n=5), "n"), (dict(messages=ASK * 4), "messages"),
        (dict(stream_options={"include_usage": True}), "stream_options"),
        (dict(stream_options={"continuous_usage_stats": True}), "stream_options"),
    ):  # fmt: skip
        refused = check(server, **body)
        assert (refused.status, refused.param) == (400, param)
    assert check(server, model="other").body()["error"]["code"] == "model_not_found"
    assert check(server, stream=True, stream_options={"include_usage": True}) is None
    assert check(server, stream_options={}, max_tokens=10) is None
    for requests, answers, status in ((1, 0, None), (2, 0, 429), (0, 6, None), (0, 7, 429)):  # 2 rows, 5 may wait
        server._open, server._open_answers = requests, answers
        refused = check(server)
        assert (refused and refused.status) == status
        assert refused is None or int(refused.headers["retry-after"]) > 0
    server._open = server._open_answers = 0
