"""Several adapters in one batch: each request is answered as by its adapter alone."""

import numpy as np
import pytest

import qwen3_jax
import sharding
from qwen3_jax import Engine, Sampling, UserError
from qwen3_jax.generation import Request, program
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
    with pytest.raises(UserError, match="several adapters side by side"):
        qwen3_jax.merged(model)
    np.testing.assert_array_equal(
        np.asarray(model(np.asarray([PROMPT]))), np.asarray(qwen3_jax.load(base)[0](np.asarray([PROMPT])))
    )


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
