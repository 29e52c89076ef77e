"""64 greedy tokens equal transformers' `generate`, for batches of unequal prompts."""

import functools
import itertools

import numpy as np
import pytest
import torch

import qwen3_jax
from qwen3_jax import Sampling
from tests.helpers import hf_checkpoints

NEW = 64
LENGTHS = (3, 17, 40)
VARIANTS = hf_checkpoints.VARIANTS
# In the default tier one model has all that changes attention; decoding of the MoE model unrolled is in test_engine.py.
YARN = {name: VARIANTS["yarn"][1][name] for name in ("rope_scaling", "max_position_embeddings")}
COMBINED = VARIANTS["odd_heads"][1] | YARN | dict(attention_bias=True)
MODELS = {"combined": (False, COMBINED)} | VARIANTS
QUICK = {True: ("dense_tied",), False: ("combined",)}  # by scan_layers
# The others, scanned or unrolled: what changes more than weights that `test_parity_with_transformers.py` compares. The other
# cases by hand.
SLOW = [
    ("moe_mixed_layers", True),
    ("dense_bias", True),
    ("moe", False),
    ("yarn", True),
    ("odd_heads", False),
    ("one_kv_head", True),
]
SLOW += [("real_vocabulary", False)]
CASES = [
    pytest.param(
        *case, marks=() if case[0] in QUICK[case[1]] else pytest.mark.slow if case in SLOW else pytest.mark.soak
    )
    for case in itertools.product(MODELS, (False, True))
]


@functools.cache
def reference(variant: str):
    """(transformers' model, prompts, its greedy continuations one row at a time)."""
    model = hf_checkpoints.build_from(*MODELS[variant])
    random = np.random.default_rng(1)
    prompts = [random.integers(0, model.config.vocab_size, length).tolist() for length in LENGTHS]
    answers = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        answers.append(ids[0, len(prompt) :].tolist())
    assert all(len(answer) == NEW for answer in answers)
    return model, prompts, answers


@pytest.mark.parametrize(("variant", "scan_layers"), CASES)
def test_greedy_tokens_equal_transformers(variant, scan_layers, tmp_path):
    hf, prompts, expected = reference(variant)
    hf.save_pretrained(tmp_path)
    model, _ = qwen3_jax.load(tmp_path, scan_layers=scan_layers)
    if variant in ("yarn", "combined"):
        original = model.config.rope_scaling.original_max_position_embeddings
        assert original < max(LENGTHS) + NEW < model.config.max_position_embeddings
    results = qwen3_jax.generate(model, None, prompts, sampling=Sampling(temperature=0), max_new_tokens=NEW)
    assert [result.token_ids for result in results] == expected
    assert [result.finish_reason for result in results] == ["length"] * len(LENGTHS)
    assert len(set(map(tuple, expected))) == len(LENGTHS)  # no one continuation that would hide a mix-up of rows


def test_the_end_token_of_the_generation_config_ends_an_answer(tmp_path):
    """As transformers ends it, with the token included; rows end by themselves while others go on."""
    hf, prompts, expected = reference("dense_tied")
    first = expected[0][10]
    place = expected[0].index(first)
    other = next(token for token in expected[1] if token not in expected[0])
    hf.generation_config.eos_token_id = [first, other]
    try:
        hf.save_pretrained(tmp_path)
    finally:
        hf.generation_config.eos_token_id = None
    model, _ = qwen3_jax.load(tmp_path, scan_layers=True)
    assert model.generation_config.eos_token_id == (first, other)
    results = qwen3_jax.generate(model, None, prompts, sampling=Sampling(temperature=0), max_new_tokens=NEW)
    for result, tokens in zip(results, expected, strict=True):
        ends = [i for i, token in enumerate(tokens) if token in (first, other)]
        assert result.token_ids == (tokens[: ends[0] + 1] if ends else tokens)
        assert result.finish_reason == ("stop" if ends else "length")
    assert results[0].token_ids == expected[0][: place + 1]
    assert len(results[0].token_ids) < NEW
    assert len({len(result.token_ids) for result in results}) > 1
