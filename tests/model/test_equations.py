"""The decoder against its equations in NumPy (float64), with an unusual value in every field of the configuration."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from qwen3_jax.config import PRESETS, Qwen3Config
from qwen3_jax.model import Qwen3, Routes, flatten
from tests.helpers.equations import decoder

# No field has its default or a value that follows from another: head_dim is not hidden_size / num_attention_heads.
DENSE = Qwen3Config(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=10,
    max_position_embeddings=64,
    rms_norm_eps=0.05,
    rope_theta=37.0,
    attention_bias=True,
    tie_word_embeddings=True,
)
MIXTURE = dataclasses.replace(
    DENSE,
    num_experts=5,
    num_experts_per_tok=3,
    moe_intermediate_size=14,
    attention_bias=False,
    tie_word_embeddings=False,
)
CONFIGS = {
    "dense": DENSE,
    "moe": dataclasses.replace(MIXTURE, norm_topk_prob=True),
    # Layers 1 and 3 are MoE by their step, and layer 1 is excepted.
    "mixed": dataclasses.replace(
        MIXTURE, norm_topk_prob=False, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=(1,)
    ),
}
B, T = 2, 13
TOKENS = np.random.default_rng(0).integers(0, DENSE.vocab_size, (B, T)).astype(np.int32)
# Two documents and padding in the first row; one document that starts at a later position in the second.
SEGMENTS = np.asarray([[1] * 5 + [2] * 6 + [0] * 2, [1] * 13], np.int32)
POSITIONS = np.asarray([[*range(5), *range(6), 0, 0], range(7, 20)], np.int32)


def wide(model: Qwen3) -> dict[str, np.ndarray]:
    """Random parameters of a model, wide enough that every term shows in the logits."""
    random = np.random.default_rng(1)
    params = {}
    for name, value in flatten(model).items():
        draw = random.normal(size=value.shape).astype(np.float32)
        if name.endswith("scale"):
            draw = 1 + 0.3 * draw
        elif not name.endswith("bias"):
            draw *= 1.5 / value.shape[-2] ** 0.5
        params[name] = draw
    return params


@functools.cache
def case(name: str):
    """(model with wide parameters, its expected logits and router statistics)."""
    config = CONFIGS[name]
    model = Qwen3(config, rngs=nnx.Rngs(0), scan_layers=False)
    params = wide(model)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jax.numpy.asarray(params[".".join(map(str, path))]))
    return model, decoder(config, params, TOKENS, POSITIONS, SEGMENTS)


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_router_statistics_equal_the_equations(name):
    model, (logits, stats) = case(name)

    @jax.jit
    def run(tokens, positions, segment_ids):
        hidden = model.hidden(tokens, positions=positions, segment_ids=segment_ids)
        return model.logits(hidden.states), hidden.router

    found, router = run(TOKENS, POSITIONS, SEGMENTS)
    assert_near(found, logits)
    assert (router is None) == (not stats)
    for field in ("load", "prob", "entropy", "tokens") if stats else ():
        assert_near(getattr(router, field), np.stack([layer[field] for layer in stats]))


@pytest.mark.parametrize(("kind", "stacked"), [("moe", True), ("mixed", False)])
def test_experts_are_reported_compared_and_replayed(kind, stacked):
    single, (logits, stats) = case(kind)
    config = CONFIGS[kind]
    params = {path: np.asarray(value) for path, value in flatten(single).items()}
    model = single
    if stacked:  # a scan over the layers
        model = Qwen3(config, rngs=nnx.Rngs(0), scan_layers=True)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            name = ".".join(map(str, path))
            rest = name.removeprefix("groups.0.")
            layers = [params[f"groups.{i}.{rest}"] for i in range(config.num_hidden_layers)] if rest != name else None
            variable.set_value(jax.numpy.asarray(params[name] if layers is None else np.stack(layers)))

    @functools.partial(jax.jit, static_argnames="replay")
    def run(experts, replay=False):
        routes = None if experts is None else Routes(experts, replay)
        arguments = dict(positions=POSITIONS, segment_ids=SEGMENTS, routes=routes, report_experts=True)
        hidden = model.hidden(TOKENS, **arguments)
        return model.logits(hidden.states), hidden.router, hidden.experts

    found, router, experts = run(None)
    own = np.stack([layer["chosen"] for layer in stats], axis=2)
    assert_near(found, logits)
    assert router.agreed is None
    np.testing.assert_array_equal(np.sort(experts), np.sort(own))

    # Sending tokens where they went changes nothing.
    again, router, _ = run(experts.astype(np.int16), replay=True)
    np.testing.assert_array_equal(again, found)
    valid = (SEGMENTS > 0).sum()
    np.testing.assert_array_equal(router.agreed, router.compared)
    np.testing.assert_array_equal(router.compared, valid)

    # Other experts; those of every third token are unknown.
    random = np.random.default_rng(2)
    given = random.permuted(
        np.broadcast_to(np.arange(config.num_experts), (*own.shape[:3], config.num_experts)), axis=-1
    )
    given = given[..., : config.num_experts_per_tok].copy()
    given[:, ::3] = -1
    expected, sent = decoder(config, params, TOKENS, POSITIONS, SEGMENTS, given)
    compared, router, _ = run(given)
    np.testing.assert_array_equal(compared, found)
    same = (
        (given[..., :, None] == own[..., None, :]).any(-1).mean(-1) * (given[..., 0] >= 0) * (SEGMENTS > 0)[..., None]
    )
    np.testing.assert_allclose(router.agreed, same.sum((0, 1)), rtol=1e-6)
    replayed, router, experts = run(given, replay=True)
    assert_near(replayed, expected)
    assert np.abs(np.asarray(replayed) - logits).max() > 0.1
    np.testing.assert_array_equal(np.sort(experts), np.sort(np.stack([layer["chosen"] for layer in sent], axis=2)))
    for field in ("load", "prob", "entropy", "tokens"):
        assert_near(getattr(router, field), np.stack([layer[field] for layer in sent]))


def test_positions_count_from_zero_and_continue_in_a_cache():
    model, _ = case("dense")
    params = {name: np.asarray(value) for name, value in flatten(model).items()}
    ones = np.ones((B, T), np.int32)
    expected, _ = decoder(DENSE, params, TOKENS, np.tile(np.arange(T), (B, 1)), ones)
    assert_near(model(TOKENS), expected)
    cache, parts = model.new_cache(B, 64), []
    for part in np.split(TOKENS, [7, 12], axis=1):
        logits, cache = model(part, cache=cache)
        parts.append(logits)
    assert_near(np.concatenate(parts, axis=1), expected)


def test_initial_weights_have_the_configured_spread():
    """initializer_range, and for what is added to the residual stream that over sqrt(2 layers)."""
    config = dataclasses.replace(MIXTURE, hidden_size=96, vocab_size=500, initializer_range=0.3, mlp_only_layers=(0,))
    for name, value in flatten(Qwen3(config, rngs=nnx.Rngs(0), scan_layers=False)).items():
        if name.endswith("scale"):
            assert (value == 1).all(), name
            continue
        expected = 0.3 / (2 * config.num_hidden_layers) ** 0.5 if name.endswith((".o", ".down")) else 0.3
        # The error of an estimated standard deviation is 1 / sqrt(2 n) of it.
        assert abs(float(value.std()) / expected - 1) < 5 / (2 * value.size) ** 0.5, name


@pytest.mark.parametrize("moe", [False, True])
def test_fields_that_a_file_leaves_out_have_the_values_of_transformers(moe):
    theirs = (transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config)()
    ours = Qwen3Config.from_hf({"model_type": theirs.model_type})
    for field in dataclasses.fields(ours):
        if field.name == "head_dim" and moe:
            assert ours.head_dim == ours.hidden_size // ours.num_attention_heads
        elif field.name == "rope_theta":
            assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        elif field.name == "mlp_only_layers":
            assert list(ours.mlp_only_layers) == (list(theirs.mlp_only_layers or []) if moe else [])
        elif field.name not in ("rope_scaling", "dual_chunk_attention_config") and hasattr(theirs, field.name):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_presets_have_the_values_of_the_released_files():
    """What no parameter count shows: base, positions, end token; from each config.json."""
    theta = {"4B": 5e6, "30B-A3B": 1e7, "235B-A22B": 5e6}
    for name, config in PRESETS.items():
        size = re.fullmatch(r"Qwen3-(.+?)(-Base|-(Instruct|Thinking)-2507)?", name)[1]
        new, base = name.endswith("-2507"), name.endswith("-Base")
        assert config.rope_theta == (theta[size] if new else 1e6), name
        assert config.max_position_embeddings == (262_144 if new else 32_768 if base else 40_960), name
        assert config.eos_token_id == (151_643 if base else 151_645), name
        assert (config.rms_norm_eps, config.head_dim, config.norm_topk_prob) == (1e-6, 128, True), name
        assert not config.attention_bias
        assert config.tie_word_embeddings == (size in ("0.6B", "1.7B", "4B")), name
