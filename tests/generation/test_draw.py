"""The draw of a token against NumPy: candidate sets, frequencies, log probabilities, seeds."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax import GenerationConfig, Sampling
from qwen3_jax.generation.draw import sample
from qwen3_jax.generation.sampling import SamplingRows, Seen, penalise

DRAWS = 10_000
SIZE = 100  # tokens: more than the partial sort takes


def expected_probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, then the k most likely, then the fewest that reach top_p, then those near the most likely one."""
    scaled = logits.astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    order = np.argsort(-probs, kind="stable")
    probs = probs[order]
    if sampling.top_k:
        probs[sampling.top_k :] = 0
    probs /= probs.sum()
    if sampling.top_p < 1:
        probs[1 + np.searchsorted(np.cumsum(probs), sampling.top_p) :] = 0
    probs[probs < sampling.min_p * probs[0]] = 0
    out = np.empty_like(probs)
    out[order] = probs / probs.sum()
    return out


jitted_sample = jax.jit(lambda *inputs: sample(*inputs)[0])


def draw_settings() -> list[Sampling]:
    base = dict(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    changes = [
        dict(temperature=1.0),
        dict(temperature=0.6),
        dict(temperature=2.5),
        dict(temperature=1.0, top_k=1),
        dict(temperature=1.5, top_k=7),
        dict(temperature=3.0, top_k=64),
        dict(temperature=3.0, top_k=65),
        dict(temperature=1.0, top_k=1000),
        dict(temperature=1.0, top_p=0.8),
        dict(temperature=1.0, top_p=1e-9),
        dict(temperature=1.0, min_p=0.1),
        dict(temperature=1.0, min_p=1.0),
        dict(temperature=0.6, top_k=20, top_p=0.95),
        dict(temperature=2.0, top_k=30, top_p=0.9, min_p=0.05),
        dict(temperature=2.0, top_k=80, top_p=0.9, min_p=0.02),
    ]
    return [Sampling(**(base | change), seed=11) for change in changes]


def assert_drawn_from(tokens: np.ndarray, probs: np.ndarray) -> None:
    """No token without probability, every likely one, and frequencies that chi-square does not tell apart."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert counts[probs == 0].sum() == 0
    assert (counts[probs > 20 / DRAWS] > 0).all()
    common = probs * DRAWS >= 5
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(probs[common], probs[~common].sum()) * DRAWS
    keep = wanted > 0
    if keep.sum() > 1:
        assert scipy.stats.chisquare(seen[keep], wanted[keep] * seen.sum() / wanted[keep].sum()).pvalue > 1e-4


@functools.cache
def keys_of_seeds() -> np.ndarray:
    seeds = [Sampling(seed=seed).resolve(GenerationConfig()) for seed in range(DRAWS)]
    return SamplingRows.of(seeds, [0] * DRAWS).key


@pytest.mark.parametrize("setting", draw_settings(), ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}-m{s.min_p}")
def test_draws_follow_the_distribution(setting):
    """Over seeds at one position, and over the positions of one seed."""
    logits = np.random.default_rng(3).normal(size=SIZE).astype(np.float32) * 2
    probs = expected_probabilities(logits, setting)
    many = np.broadcast_to(logits, (DRAWS, SIZE))
    rows = SamplingRows.of([setting], [0])
    rows = jax.tree.map(lambda x: np.broadcast_to(x, (DRAWS, *x.shape[1:])), rows)
    over_positions = jitted_sample(many, rows, np.arange(DRAWS, dtype=np.int32))
    assert_drawn_from(np.asarray(over_positions), probs)
    over_seeds = jitted_sample(many, rows.replace(key=keys_of_seeds()), np.full(DRAWS, 5, np.int32))
    assert_drawn_from(np.asarray(over_seeds), probs)


def test_candidates_among_equal_logits_are_the_first_and_their_log_probabilities_are_exact():
    """Rows of few different logits, so that most bounds fall between equal ones; some are masked, some rows keep all."""
    rng = np.random.default_rng(5)
    count = 3000
    logits = (rng.integers(-3, 4, (count, SIZE)) * rng.choice([0.0, 0.5, 1.0], (count, 1))).astype(np.float32)
    logits[rng.random((count, SIZE)) < rng.choice([0, 0.5, 0.98], (count, 1))] = -np.inf
    logits[np.arange(count), rng.integers(0, SIZE, count)] = 0
    logits[(logits == 0) & (rng.random(logits.shape) < 0.5)] = -0.0  # equal to 0
    settings = [
        Sampling(
            temperature=float(rng.choice([0.5, 1.0, 2.0])), top_k=int(rng.choice([0, 3, 64, 65, 80, 10**6])),
            top_p=float(rng.choice([1e-9, 0.3133, 0.7791, 0.9987, 1.0])), min_p=float(rng.choice([0, 0, 0.21, 1.0])),
            repetition_penalty=1.0, seed=place, logprobs=0, sampled_logprobs=True,
        )
        for place in range(count)
    ]  # fmt: skip
    rows = SamplingRows.of(settings, [0] * count)
    token_b, logprob_b = map(np.asarray, jax.jit(sample)(logits, rows, np.zeros(count, np.int32)))
    for row, setting, token, logprob in zip(logits, settings, token_b, logprob_b, strict=True):
        probs = expected_probabilities(row, setting)
        assert probs[token] > 0, (setting, token)
        np.testing.assert_allclose(logprob, np.log(probs[token]), atol=2e-5)


@pytest.mark.parametrize("draws", [100, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("narrowing", [{}, dict(top_p=0.99)], ids=str)
def test_a_draw_does_not_depend_on_rounding(narrowing, draws):
    """Batches of other sizes round differently; in a large vocabulary that swaps the ranks of many unlikely tokens."""
    rng = np.random.default_rng(7)
    size = 20_000
    logits = rng.normal(size=(draws, size)).astype(np.float32) * 2
    rounded = logits + rng.uniform(-5e-6, 5e-6, logits.shape).astype(np.float32)
    assert (np.argsort(logits) != np.argsort(rounded)).any(axis=1).all()
    setting = Sampling(temperature=1.0, seed=5, **narrowing).resolve(GenerationConfig())
    rows = jax.tree.map(lambda x: np.broadcast_to(x, (draws, *x.shape[1:])), SamplingRows.of([setting], [0]))
    before, after = (jitted_sample(x, rows, np.arange(draws, dtype=np.int32)) for x in (logits, rounded))
    assert (np.asarray(before) == np.asarray(after)).all()
    assert len(set(np.asarray(before).tolist())) > draws / 10


def row_settings():
    return st.builds(
        Sampling,
        temperature=st.one_of(st.just(0.0), st.floats(0.05, 5)),
        top_k=st.sampled_from([0, 1, 3, 20, 63, 64, 65, 99, 100, 2**40]),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.5, 2),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        seed=st.integers(0, 2**63 - 1),
    )


@settings(max_examples=150)
@given(rows=st.lists(row_settings(), min_size=4, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_a_row_depends_on_itself_alone_and_stays_in_its_candidate_set(rows, seed):
    """Its own settings select the partial or the full sort, the penalties and greedy; its neighbours' have no effect."""
    random = np.random.default_rng(seed)
    rows = [row.resolve(GenerationConfig()) for row in rows]
    logits = random.normal(size=(4, SIZE)).astype(np.float32) * 3
    in_prompt, in_answer = random.random((2, 4, SIZE)) < 0.2
    count = in_answer * random.integers(1, 5, in_answer.shape).astype(np.int16)
    position = random.integers(0, 1000, 4).astype(np.int32)

    def run(settings_of_rows):
        arrays = SamplingRows.of(settings_of_rows, range(4))
        shaped = jitted_penalise(logits, arrays, Seen(in_prompt, count), np.arange(4))
        return np.asarray(shaped), np.asarray(jitted_sample(shaped, arrays, position))

    shaped, together = run(rows)
    for i, row in enumerate(rows):
        plain = logits[i].astype(np.float64)
        seen = in_prompt[i] | in_answer[i]
        plain = np.where(
            seen, np.where(plain > 0, plain / row.repetition_penalty, plain * row.repetition_penalty), plain
        )
        plain -= row.presence_penalty * in_answer[i] + row.frequency_penalty * count[i]
        np.testing.assert_allclose(shaped[i], plain, rtol=1e-5, atol=1e-5)
        if row.temperature == 0:
            assert together[i] == shaped[i].argmax()
        else:
            # Allow for rounding at the edges of the candidate set.
            wide = Sampling(
                temperature=row.temperature, top_k=row.top_k, top_p=min(row.top_p + 1e-5, 1), min_p=row.min_p * 0.9999
            )
            assert expected_probabilities(shaped[i], wide)[together[i]] > 0
        for neighbour in (
            Sampling(temperature=0, seed=1),
            Sampling(temperature=1, top_k=0, presence_penalty=1, repetition_penalty=1.7, seed=1),
            Sampling(temperature=1, top_k=5, seed=1),
        ):
            others = [row if j == i else neighbour.resolve(GenerationConfig()) for j in range(4)]
            assert run(others)[1][i] == together[i]


jitted_penalise = jax.jit(penalise)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-6])
@pytest.mark.parametrize("top_k", [0, 20])
def test_a_tiny_temperature_is_greedy(temperature, top_k):
    logits = np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32) * 20
    logits[0, 3] = -np.inf
    row = Sampling(temperature=temperature, top_k=top_k, seed=0).resolve(GenerationConfig())
    neighbour = Sampling(temperature=1.0, seed=0).resolve(GenerationConfig())
    tokens = jitted_sample(logits, SamplingRows.of([row, row, row, neighbour], [0] * 4), np.zeros(4, np.int32))
    assert np.asarray(tokens)[:3].tolist() == logits[:3].argmax(axis=-1).tolist()
