"""A large model on a CPU is called layer by layer: equal layers are one program, and its answers those of whole programs."""

import jax
import numpy as np
import pytest

import qwen3_jax
import sharding
from qwen3_jax import Engine, Request, Sampling
from qwen3_jax.generation import layered
from tests.helpers import adapters, tiny_models
from tests.helpers.adapters import AdapterConfig
from tests.helpers.engine_runs import SMALL_SHAPE, ids, layered_engine, run

PROMPTS = [tuple(range(place, place + length)) for place, length in enumerate((3, 20, 41))]


def requests(**options):
    greedy = Sampling(temperature=0, logprobs=1)
    return [Request(prompt, greedy, 9, **options) for prompt in PROMPTS]


def answers(engine: Engine, **options) -> list[tuple[list[int], list[float]]]:
    got = run(engine, requests(**options))
    return [(ids(tokens), [token.logprob.logprob for token in tokens]) for tokens in got]


def check_equal(got, expected) -> None:
    for (tokens, values), (expected_tokens, expected_values) in zip(got, expected, strict=True):
        assert tokens == expected_tokens
        np.testing.assert_allclose(values, expected_values, atol=2e-5)


def test_equal_layers_are_compiled_once_and_new_weights_compile_nothing():
    """Nor does a second request, whose first step begins where another engine's ends."""
    first, second = (tiny_models.model(seed, eos=False) for seed in (0, 1))
    before, answered = layered._layer._cache_size(), layered._answer._cache_size()
    engine = layered_engine(first, **SMALL_SHAPE)
    run(engine, requests()[:1])
    # A prefill of 16 tokens and a decode step of one row.
    assert len(first.groups) == 2
    assert layered._layer._cache_size() == before + 2
    assert layered._answer._cache_size() == answered + 1  # of both
    programs = "_enter_prefill", "_leave_prefill", "_answer", "_start_steps", "_enter_decode", "_advance", "_layer"
    sizes = {name: getattr(layered, name)._cache_size() for name in programs}
    engine.take_weights(second)
    got = run(engine, requests()[:1])
    assert {name: getattr(layered, name)._cache_size() for name in programs} == sizes
    expected = run(Engine(second, **SMALL_SHAPE), requests()[:1])
    assert [ids(tokens) for tokens in got] == [ids(tokens) for tokens in expected]


@pytest.mark.slow
def test_experts_are_reported_and_layers_with_and_without_adapters_are_programs_of_their_own(tmp_path):
    model = tiny_models.model(eos=False, experts=8)
    options = dict(report_experts=True)
    engines = [make(model, **SMALL_SHAPE, **options) for make in (layered_engine, Engine)]
    got, expected = (run(engine, requests()) for engine in engines)
    for tokens, expected_tokens in zip(got, expected, strict=True):
        assert ids(tokens) == ids(expected_tokens)
        np.testing.assert_array_equal(tokens[-1].experts, expected_tokens[-1].experts)

    dense = tiny_models.model(eos=False)
    base = qwen3_jax.save(dense, tiny_models.tokenizer(), tmp_path / "base")
    targets = AdapterConfig(4, 8.0, ("q_proj", "down_proj"), layers=(1,))
    saved, _ = adapters.saved(dense, targets, tmp_path / "adapter")
    adapted, _ = qwen3_jax.load(base, adapter={"one": saved})
    for adapter in (0, 1):
        of_each = [answers(make(adapted, **SMALL_SHAPE), adapter=adapter) for make in (layered_engine, Engine)]
        check_equal(*of_each)


def test_a_model_is_called_layer_by_layer_only_where_that_is_faster(monkeypatch):
    small = tiny_models.model(eos=False)
    assert not layered.is_better(small)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(small.groups[0]))
    monkeypatch.setattr(layered, "_LEAST_LAYER_BYTES", size)
    assert layered.is_better(small)
    monkeypatch.setattr(layered, "_LEAST_LAYER_BYTES", size + 1)
    assert not layered.is_better(small)
    monkeypatch.setattr(layered, "_LEAST_LAYER_BYTES", 0)
    assert not layered.is_better(tiny_models.drawn(tiny_models.TINY))  # one stack of layers
    on_two = sharding.Placement(sharding.make_mesh(data=2))
    config, execution = tiny_models.TINY, qwen3_jax.kernels.Execution(on_two)
    assert not layered.is_better(tiny_models.drawn(config, scan_layers=False, execution=execution))
