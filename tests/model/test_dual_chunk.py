"""Dual Chunk Attention: transformers' model with the attention replaced by a plain statement of it, and ordinary attention
where the two must agree."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import qwen3_jax
import sharding
from qwen3_jax import Engine, PromptLookup, Qwen3Config, Request, Sampling, UserError
from qwen3_jax.model.rope import frequencies
from qwen3_jax.position_config import DualChunk
from tests.helpers import hf_checkpoints

LENGTH = 260
DUAL = dict(chunk_size=96, local_size=32)  # chunks of 64 tokens
HOT = DUAL | dict(original_max_position_embeddings=64)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TOKENS = np.random.default_rng(0).integers(0, 320, LENGTH).astype(np.int32)


def rotated(x, positions, inverse):
    """Rotate [..., T, H] by positions [T]."""
    angle = torch.as_tensor(positions, dtype=torch.float64)[:, None] * torch.as_tensor(inverse, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.double().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def statement(dual: dict, inverse):
    """Attention in which each pair of query i and key j has the positions of the paper, pair by pair, in float64."""
    chunk = dual["chunk_size"] - dual["local_size"]

    def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        length = query.shape[2]
        at = np.arange(length)
        # What comes is rotated by its own position: take that back. YaRN's factor stays.
        query, key = (rotated(x, -at, inverse) for x in (query, key))
        groups = query.shape[1] // key.shape[1]
        key, value = (x.double().repeat_interleave(groups, dim=1) for x in (key, value))
        key = rotated(key, at % chunk, inverse)
        positions = (
            at % chunk,
            np.minimum(at % chunk + chunk, dual["chunk_size"]),
            np.full(length, min(2 * chunk - 1, dual["chunk_size"])),
        )
        scores = torch.stack([rotated(query, p, inverse) @ key.transpose(-1, -2) for p in positions]) * scaling
        away = np.clip(at[:, None] // chunk - at[None] // chunk, 0, 2)
        scores = torch.gather(scores, 0, torch.as_tensor(away).expand(1, *scores.shape[1:]))[0]
        if original := dual.get("original_max_position_embeddings"):
            heat = np.maximum(0.1 * np.log((at + 1) / original) + 1, 1)
            scores = scores * torch.as_tensor(heat)[:, None]
        scores = scores.masked_fill(torch.as_tensor(at[None] > at[:, None]), -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).to(torch.float32), None

    return attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dual")


FIELDS = hf_checkpoints.SMALL | dict(num_hidden_layers=2)
KINDS = {
    "plain": (False, FIELDS, DUAL),
    "yarn": (False, FIELDS | dict(rope_scaling=YARN), DUAL),
    # All at once: temperature, YaRN, and a layer of experts after a dense one.
    "everything": (True, hf_checkpoints.MOE | FIELDS | dict(rope_scaling=YARN, mlp_only_layers=[0]), HOT),
}


@functools.cache
def pair(kind: str, folder):
    """Our model and transformers', which has the statement inside."""
    moe, fields, dual = KINDS[kind]
    hf = hf_checkpoints.build_from(moe, fields | dict(dual_chunk_attention_config=dual))
    hf.save_pretrained(folder / kind)
    model, _ = qwen3_jax.load(folder / kind)
    assert model.config.dual_chunk_attention_config == DualChunk(**dual)
    ALL_ATTENTION_FUNCTIONS.register(kind, statement(dual, frequencies(model.config)[0]))
    hf.config._attn_implementation = kind
    return model, hf


def expected(hf, tokens) -> np.ndarray:
    with torch.no_grad():
        return hf(torch.as_tensor(tokens)[None], use_cache=False).logits[0].numpy()


@functools.cache
def in_parts(kind, folder) -> np.ndarray:
    """Logits of prompts in parts and of single tokens, also the first and the last ones of a chunk."""
    model, _ = pair(kind, folder)
    cache = model.new_cache(1, LENGTH)
    logits = []
    for piece in np.split(TOKENS, [127, 128, 129, 256, 257, 258, 259]):
        part, cache = model(piece[None], cache=cache)
        logits.append(np.asarray(part[0]))
    return np.concatenate(logits)


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_prefill_and_decode_equal_the_statement(kind, folder):
    logits = expected(pair(kind, folder)[1], TOKENS)
    np.testing.assert_allclose(in_parts(kind, folder), logits, atol=2e-5 * np.abs(logits).max(), rtol=0)


@pytest.mark.parametrize("kind", ["plain", pytest.param("yarn", marks=pytest.mark.slow)])
def test_it_is_ordinary_attention_up_to_the_chunk_size_and_not_beyond(kind, folder):
    model, hf = pair(kind, folder)
    hf.config._attn_implementation = "eager"
    try:
        logits = expected(hf, TOKENS)
    finally:
        hf.config._attn_implementation = kind
    difference = np.abs(in_parts(kind, folder) - logits).max(axis=-1) / np.abs(logits).max()
    same = DUAL["chunk_size"] + 1  # to this position inclusive, distances are the true ones
    assert difference[:same].max() < 2e-5
    assert difference[same:].max() > 1e-3
    short = model(TOKENS[None, :64])  # without a cache, within one chunk
    np.testing.assert_allclose(np.asarray(short[0]), logits[:64], atol=2e-5 * np.abs(logits).max(), rtol=0)


WAYS = {
    "as_it_is": dict(),
    "small_chunks_and_lookup": dict(prefill_chunk=32, speculation=PromptLookup(3, shortest=1)),
    "one_at_a_time_and_preemptions": dict(decode_steps=1, cache_tokens=216),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("plain", "as_it_is"),
        pytest.param("everything", "small_chunks_and_lookup", marks=pytest.mark.slow),
        pytest.param("everything", "one_at_a_time_and_preemptions", marks=pytest.mark.slow),
    ],
)
def test_the_engine_gives_the_statements_greedy_tokens(kind, way, folder):
    model, hf = pair(kind, folder)
    engine = Engine(model, rows=2, slots_per_page=8, **dict(cache_tokens=2048) | WAYS[way])
    prompts = [TOKENS[:200].tolist(), [*TOKENS[:200].tolist(), 5], TOKENS[60:120].tolist()]
    numbers = [engine.submit(Request(tuple(p), Sampling(temperature=0), 12)) for p in prompts]
    got: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for token in engine.step():
            got[token.number].append(token.id)
    assert (engine.stats.preemptions > 0) == ("preemptions" in way)
    for number, prompt in zip(numbers, prompts, strict=True):
        logits = expected(hf, prompt + got[number])[len(prompt) - 1 : -1]
        assert got[number] == logits.argmax(axis=-1).tolist()


@pytest.mark.slow
def test_a_mesh_gives_the_same(folder):
    _, hf = pair("everything", folder)
    placed, _ = qwen3_jax.load(folder / "everything", mesh=sharding.make_mesh(data=2, tensor=2), scan_layers=True)
    two = np.stack([TOKENS, TOKENS[::-1]])
    got, _ = placed(two, cache=placed.new_cache(2, LENGTH))
    for row, tokens in zip(got, two, strict=True):
        logits = expected(hf, tokens)
        np.testing.assert_allclose(row, logits, atol=2e-5 * np.abs(logits).max(), rtol=0)


def positions(i: int, j: int, dual: DualChunk) -> int:
    """The distance at which a query at i meets a key at j."""
    chunk = dual.chunk_size - dual.local_size
    away = i // chunk - j // chunk
    query = (i % chunk, min(i % chunk + chunk, dual.chunk_size), min(2 * chunk - 1, dual.chunk_size))[min(away, 2)]
    return query - j % chunk


@settings(max_examples=200)
@given(st.data())
def test_near_distances_are_true_and_none_is_beyond_the_chunk_size(data):
    """The paper's promise, of the statement in this file."""
    size = data.draw(st.integers(3, 40))
    dual = DualChunk(size, data.draw(st.integers(1, size // 2)))
    i = data.draw(st.integers(0, 200))
    j = data.draw(st.integers(0, i))
    assert 0 <= positions(i, j, dual) <= size
    if i - j <= dual.local_size:
        assert positions(i, j, dual) == i - j


REFUSED = {
    "chunk_size": dict(local_size=4),
    "0 < local_size <= chunk_size / 2": dict(chunk_size=4, local_size=3),
    "sparse_attention_config": DUAL | dict(sparse_attention_config={"0": {}}),
    "chunk_sizes": DUAL | dict(chunk_sizes=4),
    "expected int": DUAL | dict(chunk_size="4"),
}


@pytest.mark.parametrize("words", list(REFUSED))
def test_what_is_refused(words):
    raw = Qwen3Config().to_hf() | dict(dual_chunk_attention_config=REFUSED[words])
    with pytest.raises(UserError, match=words):
        Qwen3Config.from_hf(raw)


def test_overrides_of_a_checkpoint_without_it(folder):
    model, _ = pair("plain", folder)
    hf_checkpoints.build_from(False, FIELDS).save_pretrained(folder / "without")
    loaded, _ = qwen3_jax.load(folder / "without", hf_overrides=dict(dual_chunk_attention_config=DUAL))
    assert dataclasses.replace(loaded.config, dtype=None) == dataclasses.replace(model.config, dtype=None)
    part = TOKENS[None, :127]  # longer than one chunk
    got, expect = (m(part, cache=m.new_cache(1, LENGTH))[0] for m in (loaded, model))
    np.testing.assert_array_equal(got, expect)
    with_yarn, _ = qwen3_jax.load(folder / "without", hf_overrides=dict(rope_scaling=YARN))
    assert with_yarn.config.rope_scaling == pair("yarn", folder)[0].config.rope_scaling
    qwen3_jax.save(loaded, None, folder / "saved")
    assert qwen3_jax.load(folder / "saved")[0].config == loaded.config
    with pytest.raises(UserError, match="config field hidden_size is 0; it must be at least 1"):
        qwen3_jax.load(folder / "without", hf_overrides=dict(hidden_size=0))


def test_config_round_trip_and_limits():
    raw = Qwen3Config().to_hf() | dict(dual_chunk_attention_config=DUAL | dict(sparse_attention_enabled=False))
    config = Qwen3Config.from_hf(raw)
    assert config.to_hf()["dual_chunk_attention_config"] == DUAL | dict(original_max_position_embeddings=0)
    assert "dual_chunk_attention_config" not in Qwen3Config().to_hf()
    tiny = dataclasses.replace(
        config, **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "head_dim"), 64)
    )
    model = qwen3_jax.Qwen3(dataclasses.replace(tiny, num_hidden_layers=1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="pages of 48 do not divide"):
        Engine(model, rows=1, cache_tokens=480, slots_per_page=48)
    with pytest.raises(ValueError, match="65 tokens without a cache exceed the 64 of one chunk"):
        model(jnp.zeros((1, 65), jnp.int32))
