"""What may be drawn, and how often, equals transformers' logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen3_jax import GenerationConfig, Sampling
from qwen3_jax.generation.draw import sample
from qwen3_jax.generation.sampling import SamplingRows, Seen, penalise

DRAWS, SIZE = 20_000, 100


@jax.jit
def draw(logits, rows, in_prompt, position):
    seen = Seen(in_prompt, in_prompt.astype(jnp.int16) * 0)
    return sample(penalise(logits, rows, seen, jnp.arange(DRAWS)), rows, position)[0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "penalty"),
    [
        (0.6, 20, 0.95, 0.0, 1.0),
        (0.7, 20, 0.8, 0.0, 1.05),
        (1.0, 0, 0.9, 0.0, 1.3),
        (1.5, 64, 1.0, 0.0, 0.7),
        (1.5, 65, 1.0, 0.0, 1.3),
        (2.0, 0, 1.0, 0.1, 1.0),
        (3.0, 50, 0.9, 0.05, 2.0),
        (1.0, 3, 0.99, 0.2, 1.1),
    ],
)
def test_draws_follow_transformers_processors(temperature, top_k, top_p, min_p, penalty):
    random = np.random.default_rng(int(temperature * 10) + top_k)
    logits = random.normal(size=SIZE).astype(np.float32) * 2.5
    prompt = random.integers(0, SIZE, 30)
    processors = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
    processors.append(TemperatureLogitsWarper(temperature))
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []
    processed = LogitsProcessorList(processors)(torch.tensor(prompt)[None], torch.tensor(logits)[None])
    probs = torch.softmax(processed.double(), -1)[0].numpy()

    setting = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=5
    ).resolve(GenerationConfig())
    rows = jax.tree.map(lambda x: np.broadcast_to(x, (DRAWS, *x.shape[1:])), SamplingRows.of([setting], [0]))
    seen = np.broadcast_to(np.isin(np.arange(SIZE), prompt), (DRAWS, SIZE))
    tokens = draw(np.broadcast_to(logits, (DRAWS, SIZE)), rows, seen, np.arange(DRAWS, dtype=np.int32))
    counts = np.bincount(np.asarray(tokens), minlength=SIZE)
    assert counts[probs == 0].sum() == 0
    assert (counts[probs > 20 / DRAWS] > 0).all()
    common = probs * DRAWS >= 5
    wanted = probs[common] / probs[common].sum() * counts[common].sum()
    assert common.sum() > 1
    assert scipy.stats.chisquare(counts[common], wanted).pvalue > 1e-4
