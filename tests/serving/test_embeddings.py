"""POST /v1/embeddings and /v1/rerank: an embedding model behind `qwen3 serve`, and a language model that does both."""

import asyncio
import base64
import dataclasses
import json
import re
import threading

import httpx
import numpy as np
import openai
import pytest
from flax import nnx

import qwen3_jax
from qwen3_jax import Engine, Qwen3Config, UserError
from qwen3_jax.cli import serve as command
from qwen3_jax.generation.headless import Headless
from qwen3_jax.model import RewardModel, Structure
from qwen3_jax.serving.app import Server
from qwen3_jax.serving.guard import Limits
from qwen3_jax.serving.worker import Stopped, Worker
from tests.helpers import embedding_folders, tiny_models
from tests.helpers.embedding_folders import TEXTS
from tests.helpers.served import ROOT, serve

TOLERANCE = 2e-5
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
JUDGE = dataclasses.replace(Qwen3Config(), **embedding_folders.FIELDS)
RANKED = {"query": "What is the capital?", "documents": ["Beijing.", {"text": "Gravity attracts."}, "yes"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = embedding_folders.write_model(tmp_path_factory.mktemp("embedder") / "Qwen3-Embedding", tied=False)
    return embedding_folders.write_layout(made, limits={"max_seq_length": 200})


@pytest.fixture(scope="module")
def embedder(folder, tmp_path_factory):
    with serve(folder, tmp_path_factory.mktemp("log"), "--rows", "4", "--log-text") as running:
        yield running
        assert running.process.poll() is None
        assert "Traceback" not in running.log, running.log[-3000:]


def judging(engine, tokenizer, **options) -> Server:
    """A server in this process, whose engine runs."""
    server = Server(engine, tokenizer, "judge", warm_up=False, **options)
    server.app._log = None
    server.worker.start()
    server.ready = True
    return server


@pytest.fixture(scope="module")
def judge():
    model = tiny_models.drawn(JUDGE, scan_layers=False)
    server = judging(Engine(model, rows=4, cache_tokens=512), embedding_folders.judging_tokenizer())
    yield server
    server.worker.stop()


@pytest.fixture(scope="module")
def judge_folder(judge, tmp_path_factory):
    return qwen3_jax.save(judge._engine.model, judge.tokenizer, tmp_path_factory.mktemp("judge") / "x")


def test_the_documentation_runs(embedder, folder, judge_folder, capsys):
    source = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/embeddings.md").read_text(), flags=re.DOTALL))
    for name, here in (
        ("Qwen/Qwen3-Embedding-0.6B", folder), ("Qwen/Qwen3-Reranker-0.6B", judge_folder),
        ("http://127.0.0.1:8000", embedder.url), ("Qwen3-Embedding-0.6B", embedder.model),
    ):  # fmt: skip
        assert name in source
        source = source.replace(name, str(here))
    exec(compile(source, "docs/embeddings.md", "exec"), {})
    assert capsys.readouterr().out.count("[") >= 2


def post(server: Server, path: str, body: dict) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post(path, json=body)

    return asyncio.run(send())


def test_openais_client_embeds(embedder, folder):
    model, tokenizer = qwen3_jax.load(folder)
    expected = qwen3_jax.embed(model, tokenizer, TEXTS)
    client = embedder.client()
    answer = client.embeddings.create(model="Qwen3-Embedding", input=TEXTS)  # as base64, which it decodes
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=TOLERANCE)
    ids = [tokenizer.encode_whole(text) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    floats = client.embeddings.create(model="Qwen3-Embedding", input=TEXTS[0], encoding_format="float", user="me")
    np.testing.assert_allclose(floats.data[0].embedding, expected[0], atol=TOLERANCE)
    same = client.embeddings.create(model="Qwen3-Embedding", input=ids)
    np.testing.assert_allclose([one.embedding for one in same.data], expected, atol=TOLERANCE)
    short = client.embeddings.create(model="Qwen3-Embedding", input=ids[0], dimensions=16)
    np.testing.assert_allclose(
        short.data[0].embedding, qwen3_jax.embed(model, tokenizer, TEXTS[:1], dimensions=16)[0], atol=TOLERANCE
    )
    raw = embedder.post("/v1/embeddings", input="yes", encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), expected[2], atol=TOLERANCE)
    for field, value in (("prompt_name", "query"), ("instruction", "Find it.")):
        given = embedder.post("/v1/embeddings", input="yes", **{field: value}).json()["data"][0]["embedding"]
        np.testing.assert_allclose(given, qwen3_jax.embed(model, tokenizer, "yes", **{field: value})[0], atol=TOLERANCE)

    async def many() -> list:
        async with embedder.asynchronous() as client:
            asked = (client.embeddings.create(model="Qwen3-Embedding", input=text) for text in TEXTS * 4)
            return [answer.data[0].embedding for answer in await asyncio.gather(*asked)]

    np.testing.assert_allclose(asyncio.run(many()), np.concatenate([expected] * 4), atol=TOLERANCE)
    assert embedder.meter("qwen3_read_tokens_total") > 0
    entries = embedder.log_entries("/v1/embeddings", count=1)
    assert any(entry.get("input") == TEXTS and entry["texts"] == len(TEXTS) for entry in entries)


def test_an_embedding_model_refuses_to_write_and_to_rank(embedder):
    client = embedder.client()
    words = "'Qwen3-Embedding' is an embedding model, which writes no text; use POST /v1/embeddings."
    for ask in (
        lambda: client.chat.completions.create(model="Qwen3-Embedding", messages=ASK),
        lambda: client.chat.completions.create(model="Qwen3-Embedding", messages=ASK, stream=True),
        lambda: client.completions.create(model="Qwen3-Embedding", prompt="a"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.body["message"] == words
        assert caught.value.body["param"] == "model"
    ranked = embedder.post("/v1/rerank", **RANKED)
    assert ranked.status_code == 400
    assert "an embedding model judges no documents; compare the embeddings" in ranked.json()["error"]["message"]
    assert client.models.list().data[0].id == "Qwen3-Embedding"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "field required"),
        ({"input": []}, "input", "'input' is empty; give at least one text."),
        ({"input": [""] * 2049}, "input", "'input' has 2049 entries; the limit is 2048."),
        ({"input": ["a", []]}, "input", "should be a valid string"),
        ({"input": [[]]}, "input", "input[0] has no tokens."),
        ({"input": [480]}, "input", "input[0] has the token 480; ids are from 0 to 479."),
        ({"input": [-1]}, "input", "greater than or equal to 0"),
        ({"input": "capital " * 300}, "input", "input[0] has"),
        ({"input": "a", "dimensions": 65}, "dimensions", "dimensions is 65; this model's embeddings have 1 to 64."),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "prompt_name": "qery"}, "prompt_name", "has no prompt 'qery'; it has 'query', 'document'. Did"),
        ({"input": "a", "prompt_name": "query", "instruction": "b"}, "prompt_name", "there is more than one prompt"),
        ({"input": "a", "add_special_tokens": False}, None, "send token ids, which get no end token"),
        ({"input": "a", "messages": []}, None, "there is no field 'messages'."),
        ({"input": "a", "truncate_prompt_tokens": 3}, None, "shorten the prompt yourself"),
        ({"input": "a", "model": "other"}, "model", "model 'other' does not exist"),
    ],
)
def test_a_bad_request_for_embeddings_is_one_sentence(embedder, body, param, words):
    response = embedder.post("/v1/embeddings", **body)
    assert response.status_code == (404 if body.get("model") else 400)
    error = response.json()["error"]
    assert words in error["message"], error
    assert (error["param"] or "").partition(".")[0] == (param or "")
    assert error["message"].endswith((".", "?"))
    assert "\n" not in error["message"]


def test_a_long_text_is_truncated_if_the_request_says_so(embedder, folder):
    model, tokenizer = qwen3_jax.load(folder)
    refused = embedder.post("/v1/embeddings", input="capital " * 300).json()["error"]
    assert "the maximum context length of a text is 200" in refused["message"]
    assert refused["code"] == "context_length_exceeded"
    given = embedder.post("/v1/embeddings", input="capital " * 300, truncate=True).json()
    expected = qwen3_jax.embed(model, tokenizer, "capital " * 300, truncate=True)[0]
    np.testing.assert_allclose(given["data"][0]["embedding"], expected, atol=TOLERANCE)
    assert given["usage"]["prompt_tokens"] == 200


def test_a_language_model_ranks_and_embeds(judge):
    model, tokenizer = judge._engine.model, judge.tokenizer
    texts = ["Beijing.", "Gravity attracts.", "yes"]
    expected = qwen3_jax.rerank(model, tokenizer, RANKED["query"], texts)
    for path in ("/v1/rerank", "/v2/rerank"):
        answer = post(judge, path, RANKED | {"return_documents": True, "model": "judge"}).json()
        scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
        np.testing.assert_allclose([scores[place] for place in range(3)], expected, atol=TOLERANCE)
        assert [one["index"] for one in answer["results"]] == np.argsort(-np.asarray(expected)).tolist()
        assert all(one["document"]["text"] == texts[one["index"]] for one in answer["results"])
        assert answer["model"] == "judge"
        assert answer["usage"]["total_tokens"] > 100
    best = post(judge, "/v1/rerank", RANKED | {"top_n": 1, "instruction": "Find it."}).json()["results"]
    other = qwen3_jax.rerank(model, tokenizer, RANKED["query"], texts, instruction="Find it.")
    assert [set(one) for one in best] == [{"index", "relevance_score"}]
    np.testing.assert_allclose(best[0]["relevance_score"], max(other), atol=TOLERANCE)
    given = post(judge, "/v1/embeddings", {"input": texts}).json()["data"]
    expected = qwen3_jax.embed(model, tokenizer, texts)
    np.testing.assert_allclose([one["embedding"] for one in given], expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"query": None}, "query", "field required"),
        ({"documents": []}, "documents", "'documents' is empty"),
        ({"documents": [{"image": "x"}]}, "documents", "should be a valid string"),
        ({"documents": ["a", "capital " * 600]}, "documents", "documents[1] with its query has"),
        ({"top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"texts": []}, None, "there is no field 'texts'."),
    ],
)
def test_a_bad_request_for_relevance_is_one_sentence(judge, body, param, words):
    response = post(judge, "/v1/rerank", RANKED | body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"], error
    assert (error["param"] or "").partition(".")[0] == (param or "")
    assert error["message"].endswith((".", "?"))


@pytest.mark.slow
def test_answers_go_on_while_texts_are_embedded(server):
    """The same server's answers are those that it gives without other load."""
    options = dict(messages=ASK, max_tokens=60, temperature=0, seed=1)
    alone = server.post("/v1/chat/completions", **options).json()["choices"]
    embedded: list[int] = []

    def embed() -> None:
        embedded.extend(server.post("/v1/embeddings", input=[ASK[0]["content"]] * 20).status_code for _ in range(5))

    thread = threading.Thread(target=embed)
    thread.start()
    beside = server.post("/v1/chat/completions", **options).json()["choices"]
    thread.join()
    assert beside[0]["message"] == alone[0]["message"]
    assert embedded == [200] * 5
    missing = server.post("/v1/rerank", **RANKED)  # its tokenizer is too small
    assert missing.status_code == 400
    assert "the tokenizer has no token 'yes'" in missing.json()["error"]["message"]


def test_a_reward_model_ranks_alone():
    tokenizer = embedding_folders.judging_tokenizer()
    structure = Structure(lambda: RewardModel(JUDGE, rngs=nnx.Rngs(0), scan_layers=False))
    random = np.random.default_rng(0)
    model = structure.merge(
        {name: np.asarray(random.normal(size=like.shape) / 6, np.float32) for name, like in structure.shapes.items()}
    )
    engine = Headless(model, tokenizer, rows=4)
    for compile_one in engine.programs()[:2]:
        compile_one()
    server = judging(engine, tokenizer)
    try:
        answer = post(server, "/v1/rerank", RANKED).json()["results"]
        expected = qwen3_jax.rerank(model, tokenizer, RANKED["query"], ["Beijing.", "Gravity attracts.", "yes"])
        np.testing.assert_allclose([one["relevance_score"] for one in answer], sorted(expected)[::-1], atol=TOLERANCE)
        refused = post(server, "/v1/chat/completions", {"messages": ASK}).json()["error"]["message"]
        assert refused == "'judge' is a reward model, which writes no text; use POST /v1/rerank."
        assert "this is a reward model" in post(server, "/v1/embeddings", {"input": "a"}).json()["error"]["message"]
        with pytest.raises(UserError, match="this is a reward model"):
            engine.submit(None)
        assert (engine.step(), engine.busy, engine.cache_usage) == ([], False, (0, 0))
    finally:
        server.worker.stop()


def test_limits_hold_and_a_failed_computation_is_an_error_of_the_server(judge, monkeypatch, capsys):
    tokenizer = judge.tokenizer
    server = judging(
        Headless(judge._engine.model, tokenizer, rows=2), tokenizer, limits=Limits(requests=1, body_bytes=900)
    )
    try:
        server.opened(1)
        full = post(server, "/v1/embeddings", {"input": "a"})
        assert (full.status_code, full.headers["retry-after"]) == (429, "2")
        server.opened(-1)
        assert post(server, "/v1/embeddings", {"input": "a" * 1000}).status_code == 413
        assert post(server, "/v1/embeddings", {"input": "a"}).status_code == 200

        def fail(*_):
            raise RuntimeError("RESOURCE_EXHAUSTED")

        monkeypatch.setattr(server._encoders._reader, "read", fail)
        failed = post(server, "/v1/embeddings", {"input": "a"})
        assert failed.status_code == 500
        assert (
            failed.json()["error"]["message"] == "the texts could not be computed (RuntimeError); see the server's log."
        )
        assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err
        monkeypatch.undo()
        assert post(server, "/v1/embeddings", {"input": "a"}).status_code == 200  # the engine's thread has gone on
        assert server.open_requests == 0
    finally:
        server.worker.stop()
    server.ready = False
    assert post(server, "/v1/embeddings", {"input": "a"}).status_code == 503


def test_calls_in_the_engines_thread_end_with_it(judge):
    worker = Worker(Headless(judge._engine.model, judge.tokenizer))

    async def calls() -> None:
        worker.start()
        assert await worker.call(lambda x: x + 1, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await worker.call(lambda: 1 / 0)
        began, go = threading.Event(), threading.Event()
        first = asyncio.ensure_future(worker.call(lambda: (began.set(), go.wait(30))))
        await asyncio.to_thread(began.wait, 30)
        worker.post(worker._stop)
        second = asyncio.ensure_future(worker.call(lambda: None))
        await asyncio.sleep(0)
        go.set()
        await first
        with pytest.raises(Stopped, match="shutting down"):
            await second

    asyncio.run(asyncio.wait_for(calls(), 60))
    worker.stop()


def test_options_that_are_about_text_are_refused(folder, capsys):
    assert command.main(["--model", str(folder), "--port", "0", "--lookup", "4"]) == 2
    err = capsys.readouterr().err
    assert "--lookup is for models that write text, which" in err
    assert json.dumps(str(folder))[1:-1] in err
