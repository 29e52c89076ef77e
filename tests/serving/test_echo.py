"""Completions that repeat their prompt, with its log probabilities: against a plain forward pass, and as lm-eval reads them."""

import asyncio

import httpx
import numpy as np
import pytest

import qwen3_jax
from qwen3_jax import Engine
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.protocol import ChatRequest, CompletionRequest, Defaults
from tests.helpers import harness_tasks, tiny_models

TOK = tiny_models.tokenizer()
GREEDY = dict(temperature=0, seed=1)
NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return qwen3_jax.load(tiny_folder)[0]


def ask(server, **body) -> dict:
    answer = server.post("/v1/completions", **(GREEDY | body))
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(model, ids: list[int]) -> tuple[list[float | None], np.ndarray]:
    logits = tiny_models.next_token_logits(model, ids[:1], ids[1:]).astype(np.float64)
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    return [None, *(float(log[token]) for log, token in zip(logs, ids[1:], strict=True))], logs


@pytest.mark.parametrize("limit", [0, 1, 6])
def test_prompt_tokens_come_first(server, model, limit):
    """Several prompts, as texts and as ids; the first log probability is null; offsets fit the text."""
    texts = ["What is 2 + 3?", "one <|im_end|> é two", "a"]
    plain = ask(server, prompt=texts, max_tokens=max(limit, 1), logprobs=2)
    for prompts in (texts, [TOK.encode(text) for text in texts]):
        got = ask(server, prompt=prompts, max_tokens=limit, logprobs=2, echo=True)
        assert [choice["index"] for choice in got["choices"]] == [0, 1, 2]
        for text, choice, other in zip(texts, got["choices"], plain["choices"], strict=True):
            ids, of = TOK.encode(text), choice["logprobs"]
            answer = other["logprobs"] if limit else {name: [] for name in NAMES}
            assert choice["text"] == text + other["text"] * (limit > 0)
            assert [len(of[name]) for name in NAMES] == [len(ids) + len(answer["tokens"])] * 4
            assert choice["finish_reason"] == (other["finish_reason"] if limit else "length")
            values, logs = expected(model, ids)
            assert of["token_logprobs"][0] is of["top_logprobs"][0] is None
            assert of["token_logprobs"][1 : len(ids)] == pytest.approx(values[1:], abs=1e-4)
            assert of["token_logprobs"][len(ids) :] == pytest.approx(answer["token_logprobs"], abs=1e-4)
            for log, top, value in zip(logs, of["top_logprobs"][1:], of["token_logprobs"][1:], strict=False):
                assert max(top.values()) == pytest.approx(log.max(), abs=1e-4)
                assert 1 <= len(top) <= 3
                assert value in top.values() or "\ufffd" in top  # parts of characters have one text
            for token, place in list(zip(of["tokens"], of["text_offset"], strict=True))[: len(ids)]:
                assert choice["text"][place:].startswith(token) or "\ufffd" in token
            assert of["text_offset"][len(ids) :] == [len(text) + place for place in answer["text_offset"]]
        usage = got["usage"]
        assert usage["prompt_tokens"] == sum(len(TOK.encode(text)) for text in texts)
        assert (usage["completion_tokens"] == 0) == (limit == 0)


def test_tokens_are_spelled_as_ids(server, model):
    """Of prompt and answer; every alternative is there, also parts of characters, which have one text."""
    ids = TOK.encode("one é two 🙂")
    plain = ask(server, prompt=ids, max_tokens=2, logprobs=5, echo=True)["choices"][0]
    got = ask(server, prompt=ids, max_tokens=2, logprobs=5, echo=True, return_tokens_as_token_ids=True)["choices"][0]
    assert got["text"] == plain["text"]
    of = got["logprobs"]
    assert of["tokens"][: len(ids)] == [f"token_id:{token}" for token in ids]
    assert [TOK.decode([int(token.removeprefix("token_id:"))]) for token in of["tokens"][len(ids) :]] == plain[
        "logprobs"
    ]["tokens"][len(ids) :]
    assert [of[name] for name in ("token_logprobs", "text_offset")] == [
        plain["logprobs"][name] for name in ("token_logprobs", "text_offset")
    ]
    _, logs = expected(model, ids)
    for token, log, top in zip(ids[1:], logs, of["top_logprobs"][1:], strict=False):
        best = {f"token_id:{i}" for i in (*np.argsort(-log)[:5], token)}
        assert top.keys() == best
    refused = server.post(
        "/v1/chat/completions", messages=[dict(role="user", content="a")], return_tokens_as_token_ids=True
    )
    assert refused.status_code == 400
    assert "is one of POST /v1/completions" in refused.text


def test_a_stream_and_several_answers(server):
    """The chunks of a choice, joined, are what the whole object has."""
    body = dict(prompt=["What is", "2 + 3?"], n=2, max_tokens=5, logprobs=1, echo=True, temperature=1, seed=4)
    whole = ask(server, **body)
    client = server.client()
    chunks = [chunk.choices[0] for chunk in client.completions.create(model=server.model, **body, stream=True)]
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk.index == choice["index"]]
        assert "".join(chunk.text for chunk in own) == choice["text"]
        assert own[0].text.startswith(body["prompt"][choice["index"] // 2])
        for name in NAMES:
            joined = [entry for chunk in own for entry in getattr(chunk.logprobs, name)]
            assert joined == choice["logprobs"][name], name
    (alone,) = [*client.completions.create(model=server.model, prompt="one", max_tokens=0, echo=True, stream=True)]
    assert (alone.choices[0].text, alone.choices[0].finish_reason, alone.choices[0].logprobs) == ("one", "length", None)


def test_the_text_alone(server):
    """Without `logprobs`; a prompt that the tokenizer normalises is repeated as it came, with places in it."""
    text = "e\u0301 + e\u0301"
    assert ask(server, prompt=text, max_tokens=0, echo=True)["choices"] == [
        {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
    ]
    with_answer = ask(server, prompt=text, max_tokens=3, echo=True)["choices"][0]["text"]
    assert with_answer == text + ask(server, prompt=text, max_tokens=3)["choices"][0]["text"]
    of = ask(server, prompt=text, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    assert of["text_offset"] == TOK.offsets(text)
    assert len(of["tokens"]) == len(TOK.encode(text))
    assert [sorted(top.values()) for top in of["top_logprobs"][1:]] == [[value] for value in of["token_logprobs"][1:]]


def test_what_fits_and_what_is_refused(server):
    most = server.client().models.retrieve(server.model).max_model_len
    full = TOK.encode("a") * most
    of = ask(server, prompt=[full], max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert len(of["tokens"]) == most
    for body, words in (
        (dict(prompt=[full + full[:1]], max_tokens=0), f"the maximum context length is {most} tokens."),
        (dict(prompt=[full], max_tokens=1), "and the answer needs at least one."),
        (dict(prompt="a", max_tokens=0, echo=False), "'max_tokens' is 0; an answer has at least one token"),
        (dict(prompt="a", max_tokens=-2), "'max_tokens'"),
        (dict(prompt="", max_tokens=0), "the prompt is empty"),
        (dict(prompt="a", prompt_logprobs=1), "POST /v1/completions with 'echo' and 'logprobs'"),
    ):
        answer = server.post("/v1/completions", **(dict(echo=True, logprobs=1) | body))
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}], echo=True)
    assert "'echo' is one of POST /v1/completions" in chat.json()["error"]["message"]


def test_echo_at_the_value_that_changes_nothing():
    plain = CompletionRequest(prompt="x").options(None, Defaults())
    for value in (False, None):
        assert CompletionRequest(prompt="x", echo=value).options(None, Defaults()) == plain
        chat = dict(messages=[{"role": "user", "content": "x"}])
        assert ChatRequest(**chat, echo=value) == ChatRequest(**chat)
    for value in (0, 1, "yes"):
        with pytest.raises(ValueError, match="echo"):
            CompletionRequest(prompt="x", echo=value)


def test_a_budget_of_the_server_is_no_obstacle():
    """The server's budget is for answers, and a request for none has none."""
    engine = Engine(tiny_models.model(0), rows=2, cache_tokens=512)
    server = Server(engine, TOK, "tiny", thinking_budget=8, warm_up=False)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with (
            server.app._app.router.lifespan_context(None),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            body = {"prompt": "<think>", "echo": True, "logprobs": 0, "max_tokens": 0}
            return await http.post("/v1/completions", json=body)

    answer = asyncio.run(run()).json()
    assert answer["choices"][0]["text"] == "<think>"


@pytest.mark.parametrize(
    "names",
    [("local_choice", "local_last_word", "local_pages"), ("local_answers",)],
)
@pytest.mark.slow
def test_lm_eval_over_http(server, tiny_folder, tmp_path, names):
    """`lm_eval --model local-completions` gives what the engine gives in this process."""
    pytest.importorskip("lm_eval")
    from qwen3_jax.evaluation.harness import HarnessModel

    tasks = harness_tasks.write(tmp_path)
    length = 200
    arguments = dict(
        model=server.model, tokenizer=str(tiny_folder), base_url=f"{server.url}/v1/completions", max_length=length + 1,
        num_concurrent=3, tokenizer_backend="huggingface",
    )  # fmt: skip
    theirs = harness_tasks.evaluate("local-completions", tasks, names, arguments)
    # lm-eval leaves room for a generated token, and sends no token that is scored alone.
    own = HarnessModel(str(tiny_folder), max_length=length - ("local_answers" not in names))
    ours = harness_tasks.evaluate(own, tasks, names)
    for task in names:
        expected, got = harness_tasks.responses(ours, task), harness_tasks.responses(theirs, task)
        if task == "local_answers":
            assert got == expected
            continue
        for one, other in zip(expected, got, strict=True):
            if task == "local_pages":
                assert other == pytest.approx(one, rel=1e-6, abs=1e-4)
            else:
                assert [value for value, _ in other] == pytest.approx([value for value, _ in one], abs=1e-4)
                assert [greedy for _, greedy in other] == [greedy for _, greedy in one]
