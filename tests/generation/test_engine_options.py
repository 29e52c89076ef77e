"""Options of an engine: 8-bit caches, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import qwen3_jax
from qwen3_jax import DraftModel, Engine, PromptLookup, Request, Sampling, UserError
from tests.helpers import tiny_models
from tests.helpers.engine_runs import LOOKUP, SMALL_SHAPE, ids, leave, run


@pytest.mark.parametrize("cache_type", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_quantised_cache_is_near(cache_type):
    """Log probabilities of the same tokens, with 8-bit keys and values."""
    model = tiny_models.model(1, eos=False)
    prompt = tuple(np.random.default_rng(0).integers(0, tiny_models.VOCABULARY, 100).tolist())
    request = Request(prompt, Sampling(temperature=0, logprobs=0), 8)
    (exact,) = run(Engine(model, rows=1, cache_tokens=256), [request])
    (near,) = run(Engine(model, rows=1, cache_tokens=256, cache_type=cache_type), [request])
    same = next((i for i, pair in enumerate(zip(exact, near, strict=True)) if pair[0].id != pair[1].id), 8)
    assert same >= 1
    error = [abs(exact[i].logprob.logprob - near[i].logprob.logprob) for i in range(same)]
    assert 0 < max(error) < (0.05 if cache_type == "int8" else 0.3)
    pages = Engine(model, rows=1, cache_tokens=256, cache_type=cache_type)._runner.state.groups[0]
    assert pages.k.dtype.itemsize == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(rows=0), "engine option rows is 0; it must be at least 1"),
        (dict(prefill_chunk=100), "prefill_chunk is 100; it must be a power of two"),
        (dict(max_length=5000), "max_length is 5000; it must be between 2 and 1024"),
        (dict(decode_steps=True), "decode_steps is True; it must be a whole number"),
    ],
)
def test_what_an_engine_refuses(options, words):
    with pytest.raises(UserError, match=words):
        Engine(tiny_models.model(0), **options)


def test_what_speculation_refuses():
    with pytest.raises(UserError, match="speculation option guesses is 0; it must be between 1 and 32"):
        PromptLookup(0)
    with pytest.raises(UserError, match="1 <= shortest <= longest; got 2 and 1"):
        PromptLookup(2, longest=1)
    other = qwen3_jax.Qwen3(dataclasses.replace(tiny_models.model(0).config, vocab_size=99), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="the draft model has 99 vocabulary rows and the model 480"):
        Engine(tiny_models.model(0), speculation=DraftModel(other))


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (dict(prompt=()), "at least one token"),
        (dict(prompt=(10**6,)), "ids from 0 to"),
        (dict(prompt=(-1,)), "ids from 0 to"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(prompt=(1,) * 100, max_new_tokens=100), "100 tokens and .* is 100; the maximum context length is 128"),
        (dict(budget=3), "needs `thinking_tokens`"),
        (dict(eos=frozenset(range(25))), "25 end tokens"),
    ],
)  # fmt: skip
def test_what_a_request_may_not_be(request_of, words):
    engine = Engine(tiny_models.model(0), rows=1, cache_tokens=128)
    with pytest.raises(UserError, match=words):
        engine.submit(Request(**(dict(prompt=(1,), sampling=Sampling(), max_new_tokens=1) | request_of)))
    assert not engine.busy
    assert jax.tree.leaves(engine._runner.state)  # not donated


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"speculation": LOOKUP}], ids=["plain", "guessed"])
def test_the_last_token_reports_the_experts_of_all(options):
    """Those of a plain pass, also where a beginning is shared, and where a preempted request computes its tokens again."""
    model = tiny_models.model(experts=8)
    random = np.random.default_rng(0)
    prefix = random.integers(0, 400, 21).tolist()
    requests = [
        Request((*prefix, *random.integers(0, 400, length).tolist()), Sampling(temperature=1, seed=length), 24)
        for length in (1, 5, 9, 30, 2, 40, 3, 7)
    ]
    engine = Engine(model, **SMALL_SHAPE, **options, report_experts=True)
    leave(engine, 144)
    got = run(engine, requests, arrivals=[0, 0, 0, 2, 4, 6, 8, 8])
    assert engine.stats.preemptions
    assert engine.stats.cached_tokens
    same = []
    for request, tokens in zip(requests, got, strict=True):
        read = [*request.prompt, *ids(tokens)][:-1]
        padded = np.pad(np.asarray(read), (0, -len(read) % 128))[None]
        own = np.asarray(model.hidden(padded, report_experts=True).experts)[0, : len(read)]
        assert tokens[-1].experts.shape == own.shape
        same.append((np.sort(tokens[-1].experts) == np.sort(own)).all(axis=-1).mean())
        assert all(token.experts is None for token in tokens[:-1])
    assert np.mean(same) > 0.999
    with pytest.raises(UserError, match="engine option report_experts: this model is dense; leave it out"):
        Engine(tiny_models.model(), rows=1, report_experts=True)
