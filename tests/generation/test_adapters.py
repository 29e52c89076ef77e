"""Several adapters in one batch: each request is answered as by its adapter alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

import qwen3_jax
import sharding
from qwen3_jax import DraftModel, Engine, Sampling, UserError
from qwen3_jax.checkpoint.adapters.several import with_adapters
from qwen3_jax.endpoints.chat import ChatRequest
from qwen3_jax.evaluation.engine_source import EngineSource
from qwen3_jax.evaluation.plan import Item
from qwen3_jax.evaluation.task import Problem
from qwen3_jax.generation import STOP_TEXT, Request, program
from qwen3_jax.generation.backend import EngineBackend
from qwen3_jax.model import RewardModel
from tests.helpers import adapters, tiny_models
from tests.helpers.adapters import AdapterConfig
from tests.helpers.engine_runs import LOOKUP, SHAPE, SMALL_SHAPE, ids, run

NAMES = ("one", "two", "three")
PROMPT = tuple(range(5, 45))


def settings(config, index: int) -> AdapterConfig:
    """Other ranks, scalings and weights for each: attention; all weights; two layers' MLP and the output projection."""
    targets = [("q_proj", "v_proj", "o_proj"), adapters.names(config), ("gate_proj", "up_proj", "lm_head")][index]
    return AdapterConfig((2, 4, 3)[index], (4.0, 8.0, 16.0)[index], targets)


@pytest.fixture(scope="module")
def folders(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny_models.model(eos=False, experts=request.param)
    base = qwen3_jax.save(model, tiny_models.tokenizer(), folder / "base")
    saved = {
        name: adapters.saved(model, settings(model.config, index), folder / name, seed=index)[0]
        for index, name in enumerate(NAMES)
    }
    return base, saved


def requests(score=None):
    """The same prompt, which fills pages, for each adapter and none; greedy."""
    greedy = Sampling(temperature=0, logprobs=0)
    return [Request(PROMPT, greedy, 12, adapter=index, score_from=score) for index in range(len(NAMES) + 1)]


def logprobs(tokens) -> list[float]:
    return [token.logprob.logprob for token in tokens if token.logprob is not None]


@pytest.mark.slow
@pytest.mark.parametrize("folders", [0, 8], ids=["dense", "moe"], indirect=True)
def test_a_batch_of_three_adapters_and_none_is_each_alone(folders):
    base, saved = folders
    model, _ = qwen3_jax.load(base, adapter=saved)
    assert model.lora.names == NAMES
    slow = bool(model.config.num_experts)  # guesses and prompts' log probabilities have programs of their own
    score = 20 if slow else None
    engine, asked = Engine(model, **SMALL_SHAPE, speculation=LOOKUP if slow else None), requests(score)
    engine.warm_up(prompt_logprobs=slow)
    sizes = [getattr(program, name)._cache_size() for name in ("prefill", "decode", "verify", "score")]
    # Twice: the second time every prompt is in the prefix cache, under its own adapter.
    first, second = run(engine, asked), run(engine, asked[::-1])[::-1]
    assert [getattr(program, name)._cache_size() for name in ("prefill", "decode", "verify", "score")] == sizes
    for tokens, again in zip(first, second, strict=True):
        assert ids(tokens) == ids(again)
        np.testing.assert_allclose(logprobs(again), logprobs(tokens), atol=1e-4)
    assert [tokens[0].cached for tokens in first] == [0, 0, 0, 0]
    assert all(tokens[0].cached > 0 for tokens in second)
    assert len({tuple(ids(tokens)) for tokens in first}) == 4
    for index, tokens in enumerate(first):
        alone, _ = qwen3_jax.load(base, adapter=saved[NAMES[index - 1]] if index else None)
        (expected,) = run(Engine(alone, **SHAPE), [Request(PROMPT, asked[0].sampling, 12, score_from=score)])
        assert ids(tokens) == ids(expected)
        np.testing.assert_allclose(logprobs(tokens), logprobs(expected), atol=2e-4)
    for needs_one, words in ((qwen3_jax.merged, "one alone can be merged"), (DraftModel, "guesses with one model")):
        with pytest.raises(UserError, match=f"several adapters side by side .'one', 'two', 'three'.*{words}"):
            needs_one(model)
    with pytest.raises(UserError, match="one alone can be saved: load it alone"):
        qwen3_jax.save(model, None, base.parent / "never")
    np.testing.assert_array_equal(
        np.asarray(model(np.asarray([PROMPT]))), np.asarray(qwen3_jax.load(base)[0](np.asarray([PROMPT])))
    )


@pytest.mark.parametrize("folders", [0], ids=["dense"], indirect=True)
def test_whatever_takes_a_model_takes_one_of_its_adapters_or_refuses_the_name(folders):
    """Log probabilities, evaluations, the data factory: what the adapter alone gives, not the base."""
    base, saved = folders
    (model, tokenizer), (alone, _) = qwen3_jax.load(base, adapter=saved), qwen3_jax.load(base, adapter=saved["two"])
    engine, expected = Engine(model, **SHAPE), qwen3_jax.score(Engine(alone, **SHAPE), None, PROMPT)[0].logprobs
    plain, two, again = qwen3_jax.score(engine, None, [PROMPT] * 3, adapter=[None, "two", "two"])
    np.testing.assert_allclose(two.logprobs, expected, atol=2e-4)
    np.testing.assert_array_equal(again.logprobs, two.logprobs)
    assert np.nanmax(np.abs(plain.logprobs - two.logprobs)) > 0.1
    backend = EngineBackend(engine, tokenizer, "tiny", adapter="two")
    source = EngineSource(engine, tokenizer, {"model": "tiny"}, adapter="two")
    assert backend.fingerprint != EngineBackend(engine, tokenizer, "tiny").fingerprint
    assert source.describe() == {"model": "tiny", "adapter": "two"}
    assert backend._resolve(ChatRequest(({"role": "user", "content": "Hi"},), 8)).adapter == 2
    question, key = SimpleNamespace(problem=Problem("one", "Hi")), SimpleNamespace(budget=None)
    item = Item(key, question, Sampling(), max_new_tokens=8, enable_thinking=None, stop_text=STOP_TEXT)
    assert source._request(item, None).adapter == 2
    for use in (
        lambda: qwen3_jax.score(engine, None, PROMPT, adapter="four"),
        lambda: EngineSource(engine, tokenizer, adapter="four"),
        lambda: EngineBackend(engine, tokenizer, "tiny", adapter="four"),
        lambda: qwen3_jax.generate(engine, tokenizer, ["a"], adapter="four"),
        lambda: next(iter(qwen3_jax.stream(engine, tokenizer, ["a"], adapter="four"))),
    ):
        with pytest.raises(UserError, match="no adapter 'four'; it has 'one', 'two', 'three'"):
            use()
    rewarding = RewardModel(model.config, rngs=nnx.Rngs(0), scan_layers=False)
    with pytest.raises(UserError, match="a reward model takes no adapter"):
        with_adapters(rewarding, saved)
    with pytest.raises(UserError, match="adapter has 2 entries for 1 texts"):
        qwen3_jax.score(engine, None, PROMPT, adapter=["one", "two"])


@pytest.mark.parametrize(
    ("folders", "kind", "axes", "compared"),
    [
        pytest.param(8, "int4", None, (2,), marks=pytest.mark.slow),
        pytest.param(8, "int8", dict(data=2, tensor=2), (0, 3), marks=pytest.mark.slow),
        pytest.param(8, "int4", None, (0, 1, 3), marks=pytest.mark.soak),
        pytest.param(8, "int8", dict(data=2, tensor=2), (1, 2), marks=pytest.mark.soak),
        pytest.param(0, "int4", None, range(4), marks=pytest.mark.soak),
        pytest.param(0, "int8", dict(data=2, tensor=2), range(4), marks=pytest.mark.soak),
    ],
    indirect=["folders"],
)
def test_quantised_bases_and_meshes(folders, kind, axes, compared):
    """Logits of a batch with an adapter per row are those of each adapter alone over the same base.

    `compared` are the rows that are computed alone as well: each compiles a model of another structure.
    """
    base, saved = folders
    mesh = None if axes is None else sharding.make_mesh(**axes)
    model, _ = qwen3_jax.load(base, adapter=saved, quantize=kind, mesh=mesh)
    engine = Engine(model, **SHAPE)
    got = run(engine, requests(score=4))
    for index in compared:
        tokens = got[index]
        alone, _ = qwen3_jax.load(base, adapter=saved[NAMES[index - 1]] if index else None, quantize=kind)
        # The same tokens, since rounding may choose another among equal ones.
        (expected,) = run(
            Engine(alone, **SHAPE),
            [Request((*PROMPT, *ids(tokens)[-12:]), Sampling(temperature=0, logprobs=0), 0, score_from=4)],
        )
        np.testing.assert_allclose(logprobs(tokens), logprobs(expected), atol=5e-4)
