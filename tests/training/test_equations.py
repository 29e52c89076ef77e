"""Losses, optimizer and guard equal NumPy statements of their equations, value by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.model import RouterStats
from qwen3_jax.training import guard, losses
from qwen3_jax.training.config import LossConfig, OptimizerConfig
from qwen3_jax.training.cross_entropy import token_loss
from qwen3_jax.training.optimizer import decayed, make_optimizer, run_schedule, schedule, stored_as


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [5, 100])
def test_token_loss_and_its_gradients_equal_numpy(tied, chunk):
    """Weights of any size, some 0; 12 tokens in chunks of 5 need padding, and with 7 weights one chunk is skipped."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4, 6)), rng.normal(size=(6, 11))
    targets, weights, z_loss = rng.integers(0, 11, (3, 4)), rng.random((3, 4)), 0.3
    weights[:, 1] = weights[1, 2] = weights[2, 0] = 0
    logits = x.reshape(12, 6) @ w
    log_z = np.log(np.exp(logits).sum(-1))
    n, t = weights.reshape(-1), targets.reshape(-1)
    cross_entropy = (n * (log_z - logits[np.arange(12), t])).sum()
    log_z_squared = (n * log_z**2).sum()
    probabilities = np.exp(logits - log_z[:, None])
    d_logits = n[:, None] * (probabilities * (1 + 2 * z_loss * log_z)[:, None] - np.eye(11)[t])

    def total(x, w):
        loss = token_loss(
            x, w, jnp.asarray(targets), jnp.asarray(weights, jnp.float32), tied=tied, z_loss=z_loss, chunk=chunk
        )
        return loss.total, loss

    weight = jnp.asarray(w.T if tied else w, jnp.float32)
    (_, loss), (dx, dw) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(jnp.asarray(x, jnp.float32), weight)
    np.testing.assert_allclose(loss.cross_entropy, cross_entropy, rtol=1e-6)
    np.testing.assert_allclose(loss.log_z_squared, log_z_squared, rtol=1e-6)
    np.testing.assert_allclose(loss.total, cross_entropy + z_loss * log_z_squared, rtol=1e-6)
    np.testing.assert_allclose(dx, (d_logits @ w.T).reshape(3, 4, 6), rtol=1e-5, atol=1e-6)
    dw_dv = x.reshape(12, 6).T @ d_logits
    np.testing.assert_allclose(dw, dw_dv.T if tied else dw_dv, rtol=1e-5, atol=1e-6)


def sums(cross_entropy=30.0, log_z_squared=70.0, balance=1.5) -> losses.Sums:
    """Of two MoE layers and three experts: 8 tokens that are not padding, 2 experts each."""
    return losses.Sums(
        jnp.float32(cross_entropy),
        jnp.float32(log_z_squared),
        jnp.float32(balance),
        RouterStats(
            load=jnp.asarray([[8.0, 6.0, 2.0], [4.0, 4.0, 8.0]]),
            prob=jnp.ones((2, 3)),
            entropy=jnp.asarray([4.0, 6.0]),
            tokens=jnp.asarray([8.0, 8.0]),
        ),
    )


def test_the_reported_loss_is_the_sum_of_its_parts_each_divided_by_its_own_count():
    """5 learned tokens, 8 that are not padding: cross-entropy and z over the first, router entropy over the second."""
    whole = losses.whole(
        {"loss_mask": np.float32([[1, 1, 1, 0], [1, 1, 0, 0]]), "segment_ids": np.int32([[1] * 4] * 2)}
    )
    assert (float(whole.tokens), float(whole.valid)) == (5, 8)
    loss = losses.finish(sums(), whole, LossConfig(z_loss=0.25), 0.125)
    assert (float(loss.cross_entropy), float(loss.z), float(loss.balance), float(loss.tokens)) == (6, 14, 1.5, 5)
    assert float(loss.total) == 6 + 0.25 * 14 + 0.125 * 1.5
    np.testing.assert_array_equal(loss.router_entropy, [0.5, 0.75])
    np.testing.assert_allclose(loss.router_load, np.array([[8, 6, 2], [4, 4, 8]]) / 16 * 3)
    np.testing.assert_allclose(loss.router_max_load, [1.5, 1.5])
    np.testing.assert_allclose(loss.router_min_load, [0.375, 0.75])
    # Padding is segment 0, whatever the mask.
    padded = losses.whole({"loss_mask": np.ones((1, 4), np.float32), "segment_ids": np.int32([[1, 2, 2, 0]])})
    assert (float(padded.tokens), float(padded.valid)) == (4, 3)


def test_balance_loss_divides_counts_and_probabilities_by_their_own_tokens_and_takes_the_mean_over_layers():
    load, prob = np.float32([[6, 2], [3, 5]]), np.float32([[3, 1], [2.5, 1.5]])
    expected = np.mean([2 * sum(load[i] / 8 * prob[i] / 4) for i in range(2)])
    np.testing.assert_allclose(losses.balance_loss(load, np.float32(8), prob, np.float32(4)), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: losses.balance_loss(x, jnp.float32(8), prob, jnp.float32(4)))(load)
    np.testing.assert_array_equal(gradient, 0)


def numpy_adamw(params, gradients, config, rates, stored=lambda x: x):
    """Loshchilov & Hutter 2019, algorithm 2, after a clip by global norm, in float64; `stored` rounds moments between steps."""
    m, v = ({name: np.zeros_like(p, np.float64) for name, p in params.items()} for _ in range(2))
    params = {name: p.astype(np.float64) for name, p in params.items()}
    for t, (step_gradients, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step_gradients.values()))
        for name, p in params.items():
            g = step_gradients[name].astype(np.float64) * min(1, config.clip_norm / norm)
            m_new = config.beta1 * m[name] + (1 - config.beta1) * g
            v_new = config.beta2 * v[name] + (1 - config.beta2) * g * g
            update = m_new / (1 - config.beta1**t) / (np.sqrt(v_new / (1 - config.beta2**t)) + config.eps)
            decay = config.weight_decay * p if not name.endswith(("scale", "bias")) else 0
            params[name] = p - rate * (update + decay)
            m[name], v[name] = stored(m_new), stored(v_new)
    return params


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_four_steps_of_the_optimizer_equal_adamw_in_numpy(moments):
    """Moments stored in bfloat16 are rounded between steps and nowhere else: their arithmetic is float32."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, schedule="linear", weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-3, clip_norm=2.0,
        moment_dtype=moments,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {"a.q": (4, 3), "norm.scale": (3,), "a.q_bias": (4,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    steps = [
        {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        for scale in (3.0, 0.1, 1.0, 0.2)
    ]
    rates = np.array([0.05, 0.1, 0.1, 0.1 - 0.09 / 6])  # 2 steps of warm-up, then 6 down to a tenth

    def stored(x):
        return x if moments == "float32" else np.asarray(x.astype(np.float32).astype(jnp.bfloat16), np.float64)

    expected = numpy_adamw(params, steps, config, rates, stored)
    optimizer = make_optimizer(config, schedule(config, 8))
    state, ours = optimizer.init(params), params
    update = jax.jit(optimizer.update)
    for gradients in steps:
        updates, state = update(gradients, state, ours)
        ours = {name: np.asarray(ours[name] + updates[name]) for name in ours}
    for name in params:
        assert ours[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)
    floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats == [moments] * 6


def test_stored_moments_reach_the_optimizer_in_float32():
    seen = []

    class Spy:
        def init(params):
            return {"m": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}

        def update(gradients, state, params=None):
            seen.append(state["m"].dtype)
            return gradients, {"m": state["m"] + 1 / 3, "count": state["count"] + 1}

    wrapped = stored_as(Spy, jnp.bfloat16)
    _, state = wrapped.update({}, wrapped.init({}), {})
    assert seen == [jnp.float32]
    assert state["m"].dtype == jnp.bfloat16
    assert state["count"].dtype == jnp.int32


def numpy_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The docstring of `OptimizerConfig`, step by step from 0."""
    out = []
    rest, final = steps - config.warmup_steps, config.learning_rate * config.final_learning_rate
    for step in range(steps):
        if step < config.warmup_steps:
            out.append(config.learning_rate * (step + 1) / config.warmup_steps)
            continue
        done = step - config.warmup_steps
        decaying = min(max(round(steps * config.decay_share), 1), rest)
        share = {
            "cosine": (1 + np.cos(np.pi * done / rest)) / 2,
            "linear": 1 - done / rest,
            "constant": 1.0,
            "wsd": 1 - max(done - (rest - decaying), 0) / decaying,
        }[config.schedule]
        out.append(final + (config.learning_rate - final) * share)
    return np.array(out)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_every_step_of_every_schedule_equals_numpy_also_after_another_stage(kind, warmup):
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=warmup, schedule=kind, final_learning_rate=0.2, decay_share=0.3
    )
    first = OptimizerConfig(learning_rate=5.0, warmup_steps=3, schedule="linear", final_learning_rate=0.5)
    rates = np.concatenate([numpy_rates(first, 9), numpy_rates(config, 23)])
    course = run_schedule([(first, 9), (config, 23)])
    np.testing.assert_allclose(jax.jit(jax.vmap(course))(np.arange(32)), rates, rtol=2e-6)
    np.testing.assert_array_equal(course.peaks, np.float32([5, 2]))
    doubled = course.at(np.float32([5, 4]))
    np.testing.assert_allclose(jax.jit(jax.vmap(doubled))(np.arange(9, 32)), 2 * rates[9:], rtol=2e-6)


def test_matrices_are_decayed_and_norms_and_biases_are_not():
    names = ["embed", "lm_head", "groups.0.attention.q", "groups.0.mlp.router", "groups.0.mlp.scaled"]
    assert all(decayed(name) for name in names)
    assert not any(decayed(name) for name in ("final_norm.scale", "groups.0.attention.q_norm.scale", "a.k_bias"))


def test_the_guard_counts_skips_and_fills_its_window_value_by_value():
    """A window of 4 and 2 sigmas: judged from 2 values on; the mean plus exactly 2 standard deviations is still accepted."""
    judge = jax.jit(guard.judge, static_argnums=3)
    state = guard.fresh(4)
    log = []
    for loss, norm in ((1, 1), (3, 1), (4, 1), (4.1, 1), (np.inf, 1), (2, 9), (2, 1), (3, 1)):
        take, state = judge(state, jnp.float32(loss), jnp.float32(norm), 2.0)
        log.append((bool(take), int(state.seen), int(state.skipped), int(state.in_row)))
    # mean 2 and deviation 1 of (1, 3) accept 4; (1, 3, 4) have 2.67 and 1.25, which accept 4.1; a norm of 9 is skipped.
    assert log == [
        (True, 1, 0, 0), (True, 2, 0, 0), (True, 3, 0, 0), (True, 4, 0, 0), (False, 4, 1, 1), (False, 5, 2, 2), (True, 6, 2, 0),
        (True, 7, 2, 0),
    ]  # fmt: skip
    np.testing.assert_allclose(state.losses, [2, 2, 3, 4.1], rtol=1e-6)
    np.testing.assert_array_equal(state.norms, [9, 1, 1, 1])
    before = state

    # The first judged value is the third, when half of the window is there.
    state, taken = guard.fresh(4), []
    for loss in (1, 3, 4.01):
        take, state = judge(state, jnp.float32(loss), jnp.float32(1), 2.0)
        taken.append(bool(take))
    assert taken == [True, True, False]

    restarted = guard.restarted(before)
    assert int(restarted.seen) == 0
    assert (int(restarted.skipped), int(restarted.in_row)) == (2, 0)
    take, after = judge(restarted, jnp.float32(1e6), jnp.float32(1e6), 2.0)
    assert bool(take)
    assert float(after.losses[0]) == 1e6


def test_a_guard_of_zero_sigmas_skips_only_what_is_not_finite():
    state = guard.fresh(2)
    taken = []
    for loss, norm in ((1, 1), (1, 1), (1e9, 1), (1, 1e9), (np.nan, 1), (1, np.inf)):
        take, state = guard.judge(state, jnp.float32(loss), jnp.float32(norm), 0.0)
        taken.append(bool(take))
    assert taken == [True] * 4 + [False] * 2
    assert int(state.in_row) == 2
