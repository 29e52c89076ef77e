"""Adapters as models of their own over HTTP, and `qwen3 serve --adapter`."""

import asyncio
import contextlib

import httpx
import pytest

import qwen3_jax
from qwen3_jax import Engine, UserError
from qwen3_jax.cli.main import main
from qwen3_jax.serving.app import Server
from tests.helpers import adapters, tiny_models
from tests.helpers.adapters import AdapterConfig
from tests.helpers.engine_runs import SMALL_SHAPE

TOK = tiny_models.tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny_models.model(0)
    base = qwen3_jax.save(model, TOK, folder / "base")
    config = AdapterConfig(4, 16.0, ("q_proj", "v_proj", "down_proj"))
    return base, {name: adapters.saved(model, config, folder / name, seed)[0] for seed, name in enumerate(("a", "b"))}


def test_requests_choose_an_adapter_by_the_name_of_the_model(folders):
    base, saved = folders
    model, _ = qwen3_jax.load(base, adapter=saved)
    greedy = dict(temperature=0, max_tokens=8)
    texts = ["What is 2 + 3?"] * 3
    alone = qwen3_jax.generate(
        Engine(model, **SMALL_SHAPE), TOK, texts, adapter=["a", "b", None], max_new_tokens=8,
        sampling=qwen3_jax.Sampling(temperature=0),
    )  # fmt: skip
    server = Server(Engine(model, **SMALL_SHAPE), TOK, "tiny", warm_up=False)

    async def run():
        transport = httpx.ASGITransport(server.app)
        async with (
            server.app._app.router.lifespan_context(None),
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as http,
        ):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            listed = (await http.get("/v1/models")).json()["data"]
            assert [(one["id"], one["parent"]) for one in listed] == [("tiny", None), ("a", "tiny"), ("b", "tiny")]
            assert (await http.get("/v1/models/b")).json() == listed[2]
            bodies = [dict(prompt=text, model=name) for text, name in zip(texts, ("a", "b", "tiny"), strict=True)]
            bodies.append(dict(prompt=texts[0]))
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body | greedy) for body in bodies))
            unknown = {"model": "c", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
            for path, drop in (
                ("/v1/completions", "messages"),
                ("/v1/chat/completions", "prompt"),
                ("/tokenize", "messages"),
            ):
                refused = await http.post(path, json={name: unknown[name] for name in unknown if name != drop})
                assert refused.status_code == 404, path
                assert refused.json()["error"]["code"] == "model_not_found"
                assert "'tiny', 'a', 'b'" in refused.json()["error"]["message"]
            assert (await http.get("/v1/models/c")).status_code == 404
            described = (await http.get("/openapi.json")).json()["components"]["schemas"]["ChatRequest"]
            assert described["properties"]["model"]["enum"] == ["tiny", "a", "b"]
            return [answer.json() for answer in answers]

    answers = asyncio.run(run())
    assert [answer["model"] for answer in answers] == ["a", "b", "tiny", "tiny"]
    got = [answer["choices"][0]["text"] for answer in answers]
    assert got == [one.text for one in (*alone, alone[-1])]
    assert len(set(got)) == 3
    with pytest.raises(UserError, match="'a' has the name of the model"):
        Server(Engine(model, **SMALL_SHAPE), TOK, "a", warm_up=False)


def test_bad_adapters_are_refused_at_the_start_by_name(folders, tmp_path, capsys):
    base, saved = folders
    other = tiny_models.drawn(tiny_models.TINY, scan_layers=False)
    misfit, _ = adapters.saved(other, AdapterConfig(4, 16.0, ("lm_head",)), tmp_path / "misfit")
    for given, words in [
        ([f"x={tmp_path}"], "adapter 'x': "),
        ([f"a={saved['a']}", f"x={misfit}"], "adapter 'x': "),
        ([f"a={saved['a']}", f"a={saved['b']}"], "'a' names both"),
        ([str(saved["a"])], "is no NAME=DIR"),
        ([f"={saved['a']}"], "is no NAME=DIR"),
        ([f"tiny={saved['a']}"], "'tiny' has the name of the model"),
    ]:
        options = [part for one in given for part in ("--adapter", one)]
        command = [
            "serve",
            "--model",
            str(base),
            "--port",
            "0",
            "--name",
            "tiny",
            "--rows",
            "2",
            "--cache-tokens",
            "512",
        ]
        with pytest.raises(SystemExit) if "NAME=DIR" in words else contextlib.nullcontext():
            assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="has no adapter 'c'; it has 'a', 'b'"):
        qwen3_jax.generate(qwen3_jax.load(base, adapter=saved)[0], TOK, ["x"], adapter="c")
    with pytest.raises(UserError, match="loaded without any by name"):
        qwen3_jax.generate(tiny_models.model(0), TOK, ["x"], adapter="c")
