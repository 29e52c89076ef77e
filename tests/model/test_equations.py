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
from qwen3_jax.model import Qwen3, flatten

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


def rms_norm(config, x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(config, x_bthd, positions_bt):
    """Pairs (i, i + H / 2) turn by position * theta^(-2 i / H)."""
    half = config.head_dim // 2
    angle = positions_bt[:, :, None, None] * config.rope_theta ** (-np.arange(half) / half)
    first, second = x_bthd[..., :half], x_bthd[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(config, p, x_btd, positions_bt, segments_bt):
    q, k, v = (np.einsum("btd,dnh->btnh", x_btd, p[f"attention.{name}"]) for name in "qkv")
    if config.attention_bias:
        q, k, v = (x + p[f"attention.{name}_bias"] for x, name in zip((q, k, v), "qkv", strict=True))
    q = rotate(config, rms_norm(config, q, p["attention.q_norm.scale"]), positions_bt)
    k = rotate(config, rms_norm(config, k, p["attention.k_norm.scale"]), positions_bt)
    group = config.num_attention_heads // config.num_key_value_heads
    k, v = (x.repeat(group, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / config.head_dim**0.5
    visible = np.tri(T, dtype=bool) & (segments_bt[:, :, None] == segments_bt[:, None])
    scores = np.where(visible[:, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("bnts,bsnh->btnh", probs / probs.sum(-1, keepdims=True), v)
    y = np.einsum("btnh,nhd->btd", out, p["attention.o"])
    return y + p["attention.o_bias"] if config.attention_bias else y


def experts(config, p, x_btd, segments_bt):
    """The layer's output, and the statistics of its router over tokens that are not padding."""
    logits = x_btd @ p["mlp.router"]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    chosen = np.argsort(-probs, axis=-1)[..., : config.num_experts_per_tok]
    share = np.zeros_like(probs)
    np.put_along_axis(share, chosen, np.take_along_axis(probs, chosen, -1), -1)
    load = (share > 0).astype(float)
    if config.norm_topk_prob:
        share /= share.sum(-1, keepdims=True)
    hidden = silu(np.einsum("btd,edf->btef", x_btd, p["mlp.gate"])) * np.einsum("btd,edf->btef", x_btd, p["mlp.up"])
    y = np.einsum("btef,efd,bte->btd", hidden, p["mlp.down"], share)
    valid = segments_bt > 0
    stats = dict(
        load=load[valid].sum(0),
        prob=probs[valid].sum(0),
        entropy=-(probs * np.log(probs))[valid].sum(),
        tokens=valid.sum(),
    )
    return y, stats


def decoder(config, params, tokens_bt, positions_bt, segments_bt):
    """Logits [B, T, V] and the routers' statistics, one dictionary per MoE layer."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    x, router = params["embed"][tokens_bt], []
    for layer in range(config.num_hidden_layers):
        prefix = f"groups.{layer}."
        p = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        normed = rms_norm(config, x, p["attention_norm.scale"])
        x = x + attention(config, p, normed, positions_bt, segments_bt)
        normed = rms_norm(config, x, p["mlp_norm.scale"])
        sparse = config.num_experts and (layer + 1) % config.decoder_sparse_step == 0
        if sparse and layer not in config.mlp_only_layers:
            y, stats = experts(config, p, normed, segments_bt)
            router.append(stats)
        else:
            y = (silu(normed @ p["mlp.gate"]) * (normed @ p["mlp.up"])) @ p["mlp.down"]
        x = x + y
    x = rms_norm(config, x, params["norm.scale"])
    return x @ (params["embed"].T if config.tie_word_embeddings else params["lm_head"]), router


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
