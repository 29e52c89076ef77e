"""OpenAI's own client, against a real server."""

import asyncio
import json

import jsonschema
import numpy as np
import openai
import pytest

import qwen3_jax
from qwen3_jax.text import STOP_TEXT, built_in_template
from tests.helpers import tiny_models
from tests.helpers.served import SMALL, serve

THINKS = {str(tiny_models.tokenizer().think_start_id): 8}  # an answer is likely to begin with <think>
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
GREEDY = dict(temperature=0, seed=1)


def joined(chunks) -> dict:
    """Join the chunks of a stream, per choice."""
    out = {}
    for chunk in chunks:
        for choice in chunk.choices:
            of = out.setdefault(
                choice.index, {"content": "", "reasoning": "", "calls": [], "finish": None, "logprobs": []}
            )
            delta = choice.delta
            of["content"] += delta.content or ""
            of["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            of["calls"] += [(call.function.name, call.function.arguments) for call in delta.tool_calls or ()]
            of["finish"] = choice.finish_reason or of["finish"]
            of["logprobs"] += choice.logprobs.content if choice.logprobs else []
    return out


@pytest.mark.parametrize("tools", [None, tiny_models.TOOLS], ids=["no_tools", "tools"])
def test_the_chunks_of_a_stream_make_the_whole_answer(server, tools):
    client = server.client()
    options = dict(
        model=server.model, messages=ASK, n=6, seed=7, temperature=1, max_tokens=60, logprobs=True, top_logprobs=2,
        logit_bias=THINKS if tools is None else {},
        **({} if tools is None else dict(tools=tools, tool_choice="required")),
    )  # fmt: skip
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    pieces = joined(chunks)
    assert len(whole.choices) == len(pieces) == 6
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        of, message = pieces[choice.index], choice.message
        assert of["content"] == (message.content or "")
        assert of["reasoning"] == (getattr(message, "reasoning_content", None) or "")
        assert of["calls"] == [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        assert of["finish"] == choice.finish_reason
        assert of["logprobs"] == choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in of["logprobs"])
    ids = [call.id for choice in whole.choices for call in choice.message.tool_calls or ()]
    assert len(set(ids)) == len(ids)
    usage = chunks[-1].usage
    assert (
        usage.completion_tokens == whole.usage.completion_tokens == sum(len(of["logprobs"]) for of in pieces.values())
    )
    assert usage == whole.usage.model_copy(update={"prompt_tokens_details": usage.prompt_tokens_details})
    assert tools is not None or usage.completion_tokens_details.reasoning_tokens > 0
    assert tools is None or ids
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_asynchronous_clients_get_the_answers_they_would_get_alone(server):
    async def ask(client, seed: int, stream: bool):
        options = dict(model=server.model, messages=ASK, seed=seed, temperature=1, max_tokens=40)
        if not stream:
            message = (await client.chat.completions.create(**options)).choices[0].message
            return (getattr(message, "reasoning_content", None) or "") + message.content
        pieces = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]
        return joined(pieces)[0]["reasoning"] + joined(pieces)[0]["content"]

    async def all_of() -> list:
        async with server.asynchronous() as client:
            return await asyncio.gather(*(ask(client, seed % 12, seed % 2 == 0) for seed in range(24)))

    got = asyncio.run(all_of())
    assert got[:12] == got[12:]
    assert len(set(got)) > 6


def test_a_seed_a_bias_stop_texts_and_penalties_take_effect(server):
    client, tokenizer = server.client(), tiny_models.tokenizer()

    def ask(**options) -> str:
        extra = {
            name: options.pop(name)
            for name in ("top_k", "min_p", "repetition_penalty", "thinking_budget")
            if name in options
        }
        extra.setdefault("enable_thinking", False)
        words = {str(tokenizer.think_start_id): -100}  # which this model would write on and on
        options = (
            dict(model=server.model, messages=ASK, max_tokens=24, seed=3, temperature=1, logit_bias=words) | options
        )
        return client.chat.completions.create(**options, extra_body=extra).choices[0].message.content

    plain = ask()
    assert ask() == plain
    assert ask(seed=4) != plain
    greedy = ask(temperature=0)
    assert ask(top_k=1) == ask(min_p=1) == ask(top_p=1e-6) == greedy
    token = tokenizer.encode("7")[0]
    assert ask(logit_bias={str(token): 100}) == "7" * 24
    assert ask(logit_bias={str(token): 100}, stop="77777") == ""
    assert ask(logit_bias={str(token): 100}, stop=["x", "7" * 9]) == ""
    for penalty in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert ask(temperature=0, **{penalty: 2}) != greedy


def test_a_thinking_budget_by_all_its_names(server):
    client = server.client()

    def ask(budget_tokens=None, **extra):
        options = dict(model=server.model, messages=ASK, max_tokens=200, logit_bias=THINKS, **GREEDY)
        return client.chat.completions.create(**options, extra_body=extra)

    by_name = [
        ask(thinking_budget=5), ask(thinking_token_budget=5), ask(custom_params={"thinking_budget": 5}),
        ask(thinking={"type": "enabled", "budget_tokens": 5}), ask(reasoning={"max_tokens": 5}),
        ask(chat_template_kwargs={"thinking_budget": 5}),
    ]  # fmt: skip
    for answer in by_name:
        assert answer.usage.completion_tokens_details.reasoning_tokens == 5
        assert answer.choices[0].message == by_name[0].choices[0].message
    unlimited, free = ask(thinking_budget=-1), ask()
    assert unlimited.choices[0].message == free.choices[0].message
    assert free.usage.completion_tokens_details.reasoning_tokens > 5
    off = [
        ask(thinking_budget=0), ask(enable_thinking=False), ask(chat_template_kwargs={"enable_thinking": False}),
        ask(reasoning_effort="none"), ask(thinking={"type": "disabled"}), ask(reasoning={"enabled": False}),
    ]  # fmt: skip
    for answer in off:
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
        assert answer.choices[0].message == off[0].choices[0].message


def test_one_call_with_a_budget_is_the_two_calls_of_qwens_documentation(tmp_path):
    """Thinking cut off by max_tokens, the stop text after it, and the rest as a completion of the prompt so far."""
    opens = "{%- if add_generation_prompt and enable_thinking is not false %}{{- '<think>\\n' }}{%- endif %}"
    tokenizer = tiny_models.tokenizer(built_in_template().rstrip() + opens)  # as that of Qwen3-Thinking-2507
    qwen3_jax.save(tiny_models.model(0), tokenizer, tmp_path / "thinks")
    compared = 0
    with serve(tmp_path / "thinks", tmp_path, *SMALL, "--no-warm-up") as server:
        client = server.client()
        for number in range(12):
            question = [{"role": "user", "content": f"What is {number} + 3?"}]
            chat = dict(model=server.model, messages=question, **GREEDY)
            one = client.chat.completions.create(
                **chat, max_tokens=80, extra_body={"thinking_budget": 8, "separate_reasoning": False}
            )
            first = client.chat.completions.create(**chat, max_tokens=8, extra_body={"separate_reasoning": False})
            thought, prompt = first.choices[0].message.content, tokenizer.apply_chat_template(question)
            ids = tokenizer.encode(prompt + thought + STOP_TEXT)
            if "</think>" in thought or len(ids) != len(tokenizer.encode(prompt)) + 8 + len(
                tokenizer.encode(STOP_TEXT)
            ):
                continue  # it ended by itself, or its text is tokenized differently when it is encoded again
            left = 80 - 8 - one.usage.completion_tokens_details.forced_tokens
            second = client.completions.create(
                model=server.model, prompt=prompt + thought + STOP_TEXT, max_tokens=left, **GREEDY
            )
            # The second call may think again, which a budget does not allow.
            text, again, _ = second.choices[0].text.partition("<think>")
            whole = one.choices[0].message.content
            assert whole == thought + STOP_TEXT + text if not again else whole.startswith(thought + STOP_TEXT + text)
            compared += len(text)
    assert compared > 50


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "parity": {"enum": ["even", "odd"]},
        "steps": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "sum", "parity", "steps"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("extra", [{}, {"enable_thinking": False}, {"thinking_budget": 6}], ids=str)
def test_structured_output_is_valid_whatever_the_weights_are(server, extra):
    client = server.client()
    schema = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    options = dict(model=server.model, messages=ASK, n=12, seed=0, temperature=1, max_tokens=400, extra_body=extra)
    answer = client.chat.completions.create(**options, response_format=schema)
    finished = [choice.message.content for choice in answer.choices if choice.finish_reason == "stop"]
    for content in finished:
        jsonschema.validate(json.loads(content), SCHEMA)
    assert len(set(finished)) >= (8 if extra else 3)  # some think until the limit
    assert (answer.usage.completion_tokens_details.reasoning_tokens > 0) == (extra.get("enable_thinking") is not False)


def test_any_json_object(server):
    options = dict(
        model=server.model, messages=ASK, n=6, temperature=1, extra_body={"enable_thinking": False}, max_tokens=300
    )
    answer = server.client().chat.completions.create(**options, seed=0, response_format={"type": "json_object"})
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "ask")
]


def test_tool_choice(server):
    client = server.client()

    def ask(choice, seed=0, **more):
        options = dict(
            model=server.model, messages=ASK, tools=TOOLS, tool_choice=choice, seed=seed, temperature=1, max_tokens=700,
            extra_body={"thinking_budget": 20},
        )  # fmt: skip
        return client.chat.completions.create(**(options | more)).choices[0]

    for seed in range(4):
        choice = ask("required", seed)
        assert choice.finish_reason == "tool_calls"
        assert all(0 <= json.loads(call.function.arguments)["x"] <= 9 for call in choice.message.tool_calls)
        one = ask("required", seed, parallel_tool_calls=False)
        assert len(one.message.tool_calls) == 1
        assert one.message.tool_calls[0].function == choice.message.tool_calls[0].function
        named = ask({"type": "function", "function": {"name": "ask"}}, seed)
        assert {call.function.name for call in named.message.tool_calls} == {"ask"}
        assert ask("none", seed).message.tool_calls is None
    endless = {str(tiny_models.tokenizer().im_end_id): -100}
    calls = ask("required", max_tokens=700, logit_bias=endless).message.tool_calls
    assert len(calls) == 16
    assert len({call.id for call in calls}) == 16


def test_a_turn_is_continued(server):
    client = server.client()
    partial = [*ASK, {"role": "assistant", "content": "The sum is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    options = dict(model=server.model, max_tokens=10, **GREEDY)
    chat = client.chat.completions.create(messages=partial, **options, extra_body=extra | {"separate_reasoning": False})
    prompt = tiny_models.tokenizer().apply_chat_template(partial, continue_final_message=True)
    text = client.completions.create(prompt=prompt, **options)
    ids = client.completions.create(prompt=tiny_models.tokenizer().encode(prompt), **options)
    assert chat.choices[0].message.content == text.choices[0].text == ids.choices[0].text


def test_completions_of_several_prompts_with_log_probabilities(server):
    client, tokenizer = server.client(), tiny_models.tokenizer()
    specials = {tokenizer.decode([token]) for token in tokenizer.special_ids}  # no part of the text
    endless = {str(tokenizer.im_end_id): -100}
    options = dict(
        model=server.model,
        prompt=["one", "two"],
        n=2,
        max_tokens=6,
        logprobs=3,
        temperature=1,
        seed=5,
        logit_bias=endless,
    )
    answer = client.completions.create(**options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    for choice in answer.choices:
        of = choice.logprobs
        assert [len(getattr(of, name)) for name in names] == [6] * 4
        for token, place in zip(of.tokens, of.text_offset, strict=True):
            assert choice.text[place:].startswith(token) or "\ufffd" in token or token in specials
        assert np.all(np.asarray(of.token_logprobs) <= 0)
    prompts = len(tokenizer.encode("one")) + len(tokenizer.encode("two"))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompts, 24)
    chunks = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    for choice in answer.choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(chunk.text for chunk in own) == choice.text
        for name in names:
            joined_up = [entry for chunk in own for entry in getattr(chunk.logprobs, name)]
            assert joined_up == getattr(choice.logprobs, name), name


def test_cached_tokens_are_reported(server):
    client = server.client()
    messages = [{"role": "user", "content": "Say it again. " * 40}]
    answers = [client.chat.completions.create(model=server.model, messages=messages, max_tokens=4) for _ in range(2)]
    assert answers[1].usage.prompt_tokens_details.cached_tokens > 64
    assert answers[1].usage.prompt_tokens == answers[0].usage.prompt_tokens


def test_tokenize_and_detokenize(server):
    tokenizer = tiny_models.tokenizer()
    got = server.post("/tokenize", prompt="What is 2 + 3?").json()
    assert got["tokens"] == tokenizer.encode("What is 2 + 3?")
    assert got["count"] == len(got["tokens"])
    chat = server.post("/tokenize", messages=ASK, enable_thinking=False).json()
    assert chat["tokens"] == tokenizer.apply_chat_template(ASK, enable_thinking=False, tokenize=True)
    assert server.post("/detokenize", tokens=got["tokens"]).json() == {"prompt": "What is 2 + 3?"}
    model = server.client().models.list().data[0]
    assert model.id == server.model
    assert model.max_model_len == tiny_models.CONTEXT


WRONG_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (400, "there is no field 'temprature'. Did you mean 'temperature'?", dict(temprature=1)),
        (400, "the field 'functions' is not supported: use 'tools'", dict(functions=[{"name": "f"}])),
        (400, "'temperature'", dict(temperature=-1)),
        (400, "'messages'", dict(messages=[])),
        (400, "maximum context length is 1024 tokens", dict(messages=[{"role": "user", "content": "no " * 2000}])),
        (400, "no room for an answer in max_tokens=20", dict(max_tokens=20, thinking_budget=20)),
        (400, "to at most 9", dict(max_tokens=5000, thinking_budget=5000)),
        (400, "thinking_budget=3 and thinking_token_budget=4", dict(thinking_budget=3, thinking_token_budget=4)),
        (400, "enable_thinking=False and thinking_budget=5", dict(enable_thinking=False, thinking_budget=5)),
        (400, "'reasoning_effort' is 'huge'", dict(reasoning_effort="huge")),
        (400, "asks for 17 answers", dict(n=17)),
        (400, "'tool_choice' names 'f'", dict(tool_choice={"type": "function", "function": {"name": "f"}})),
        (400, "'tool_choice' is 'required'", dict(tool_choice="required")),
        (400, "'top_logprobs' needs 'logprobs'", dict(top_logprobs=2)),
        (400, "'stream_options' needs", dict(stream_options={"include_usage": True})),
        (400, "its keys are token ids", dict(logit_bias={"x": 1})),
        (400, "logit_bias", dict(logit_bias={"480": 1})),
        (400, "the schema, type: 'no' is none of JSON schema's types", dict(response_format=WRONG_SCHEMA)),
        (400, "role", dict(messages=[{"role": "wizard", "content": "hi"}])),
        (404, "model 'gpt-4' does not exist", dict(model="gpt-4")),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_invalid_requests(server, status, words, body):
    got = server.post("/v1/chat/completions", **(dict(messages=ASK, max_tokens=40) | body))
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert words in error["message"]
    streamed = server.post(
        "/v1/chat/completions",
        **(dict(messages=ASK, max_tokens=40) | body | ({} if "stream_options" in body else {"stream": True})),
    )
    assert streamed.status_code == status
    assert streamed.json()["error"]["message"] == error["message"]


def test_openais_client_raises_its_own_errors(server):
    with pytest.raises(openai.NotFoundError):
        server.client().chat.completions.create(model="gpt-4", messages=ASK)
    long = [{"role": "user", "content": "no " * 2000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        server.client().chat.completions.create(model=server.model, messages=long)
    with pytest.raises(openai.NotFoundError, match="this server keeps no responses"):
        server.client().responses.retrieve("resp_1")
    assert server.client().models.retrieve(server.model).id == server.model


def test_a_limit_beyond_the_context_ends_in_length(server):
    """Editors send max_tokens as a cap; the answer gets the room that the prompt leaves."""
    endless = {str(tiny_models.tokenizer().im_end_id): -100}
    options = dict(model=server.model, messages=ASK, max_tokens=100_000, logit_bias=endless, **GREEDY)
    answer = server.client().chat.completions.create(**options, extra_body={"thinking_budget": 16})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == tiny_models.CONTEXT
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 16


def test_a_developer_is_the_system(server):
    ids, answers = ([], [])
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, *ASK]
        ids.append(server.post("/tokenize", messages=messages).json()["tokens"])
        answer = server.client().chat.completions.create(model=server.model, messages=messages, max_tokens=8, **GREEDY)
        answers.append(answer.choices[0].message.content)
    assert ids[0] == ids[1]
    assert answers[0] == answers[1]


def test_a_stop_token_ends_the_answer(server):
    client, tokenizer = server.client(), tiny_models.tokenizer()
    seven = tokenizer.encode("7")[0]
    options = dict(model=server.model, messages=ASK, max_tokens=24, logit_bias={str(seven): 100}, temperature=0)
    answer = client.chat.completions.create(**options, extra_body={"enable_thinking": False, "stop_token_ids": [seven]})
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("stop", "")
    assert answer.usage.completion_tokens == 1


def test_token_counts_in_every_chunk(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = dict(model=server.model, messages=ASK, max_tokens=24, stream=True, stream_options=options, **GREEDY)
    counts = [chunk.usage.completion_tokens for chunk in server.client().chat.completions.create(**body)]
    assert counts == sorted(counts)
    assert 0 < counts[0] <= counts[-1] <= 24
    assert len(set(counts)) > 1


def test_tools_and_a_format_together(server):
    """A call stays possible; only an answer in text must have the format."""
    options = dict(model=server.model, messages=ASK, n=8, seed=0, temperature=1, max_tokens=300, tools=TOOLS)
    options |= dict(response_format={"type": "json_object"}, extra_body={"enable_thinking": False})
    calls_often = {str(tiny_models.tokenizer().tool_call_start_id): 100}
    answers = [server.client().chat.completions.create(**options, logit_bias=bias) for bias in ({}, calls_often)]
    calls = texts = 0
    for choice in (choice for answer in answers for choice in answer.choices):
        if choice.finish_reason == "tool_calls":
            calls += 1
            assert not choice.message.content
            assert all(0 <= json.loads(call.function.arguments)["x"] <= 9 for call in choice.message.tool_calls)
        elif choice.finish_reason == "stop":
            texts += 1
            assert isinstance(json.loads(choice.message.content), dict)
    assert calls
    assert texts
