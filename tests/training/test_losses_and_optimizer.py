"""Losses equal NumPy statements of their equations; the optimizer does what its configuration says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Qwen3, RouterStats, parameter_count
from qwen3_jax.model.moe import MoE
from qwen3_jax.training import losses
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.optimizer import decayed, run_schedule, schedule
from qwen3_jax.training.step import Trainer
from tests.helpers.tiny_models import TINY, TINY_MOE, packed_batch


@functools.cache
def dense() -> Qwen3:
    return nnx.jit(lambda: Qwen3(TINY, rngs=nnx.Rngs(0)))()


def test_cross_entropy_equals_numpy_and_ignores_what_is_masked():
    batch = packed_batch()
    compute = nnx.jit(losses.compute)
    loss = compute(dense(), batch)
    logits = np.asarray(
        dense()(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"]), np.float64
    )
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
    expected = -(chosen * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    np.testing.assert_allclose(loss.cross_entropy, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.tokens, batch["loss_mask"].sum())
    assert loss.total == loss.cross_entropy

    changed = dict(batch, targets=np.where(batch["loss_mask"] > 0, batch["targets"], 0))
    np.testing.assert_array_equal(compute(dense(), changed).total, loss.total)


def test_packed_documents_do_not_see_each_other():
    batch = packed_batch()
    logits = dense()(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
    documents = [
        (row, np.nonzero(batch["segment_ids"][row] == segment)[0])
        for row in range(len(batch["tokens"]))
        for segment in (1, 2)
    ]
    padded = np.zeros((len(documents), batch["tokens"].shape[1]), np.int32)  # a causal model does not see what follows
    for line, (row, places) in zip(padded, documents, strict=True):
        line[: len(places)] = batch["tokens"][row, places]
    for alone, (row, places) in zip(np.asarray(dense()(padded)), documents, strict=True):
        alone = alone[: len(places)]
        np.testing.assert_allclose(logits[row, places], alone, atol=2e-5 * float(np.abs(alone).max()))


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_balance_loss_equals_its_equation_over_the_global_batch(seed):
    """N_E * sum_i f_i p_i with f and p over all tokens of the batch that are not padding."""
    rng = np.random.default_rng(seed)
    tokens, experts, k = 50, 8, 2
    probs = rng.dirichlet(np.ones(experts), tokens)
    valid = rng.random(tokens) < 0.7
    valid[0] = True
    chosen = np.argsort(-probs, axis=1)[:, :k]
    f = np.array([(chosen[valid] == i).any(axis=1).mean() for i in range(experts)])
    p = probs[valid].mean(axis=0)
    load = np.array([(chosen[valid] == i).sum() for i in range(experts)], np.float32)
    stats = RouterStats(
        load=jnp.asarray(load)[None],
        prob=jnp.asarray(probs[valid].sum(axis=0), jnp.float32)[None],
        entropy=jnp.zeros(1),
        tokens=jnp.asarray([valid.sum()], jnp.float32),
    )
    np.testing.assert_allclose(
        losses.balance_loss(stats.load, stats.tokens[0], stats.prob, stats.tokens[0]),
        experts * (f * p).sum(),
        rtol=1e-5,
    )


def test_router_statistics_of_the_model_equal_numpy_and_leave_out_padding(monkeypatch):
    batch = packed_batch()
    original = MoE.__call__

    @nnx.jit
    def run():
        """What `hidden` returns, with the router's weights and the input of each layer."""
        seen = []

        def record(self, x, *others):
            seen.append((self.router[...], x))
            return original(self, x, *others)

        monkeypatch.setattr(MoE, "__call__", record)
        model = Qwen3(TINY_MOE, rngs=nnx.Rngs(1), scan_layers=False)
        hidden = model.hidden(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
        return hidden.router, seen

    found, seen = jax.device_get(run())
    valid = (batch["segment_ids"] > 0).reshape(-1)
    for layer, (router, x) in enumerate(seen):
        logits = x.reshape(-1, x.shape[-1]).astype(np.float64) @ router
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = np.argsort(-probs, axis=1)[:, :2]
        load = np.array([(chosen[valid] == i).sum() for i in range(8)])
        np.testing.assert_array_equal(found.load[layer], load)
        np.testing.assert_allclose(found.prob[layer], probs[valid].sum(0), rtol=1e-4)
        np.testing.assert_allclose(found.entropy[layer], -(probs * np.log(probs))[valid].sum(), rtol=1e-4)
        assert found.tokens[layer] == valid.sum()
    assert len(seen) == 2


@pytest.mark.slow
def test_steps_on_a_mesh_equal_one_device_and_split_the_state_as_the_rules_say():
    """Two optimizer steps agree (`test_exact_step.py` has gradients on nine meshes); parameters and both Adam moments take 1/n
    of the bytes. One layer is dense and one has experts."""
    sizes = {"data": 2, "expert": 2, "tensor": 2}
    config = dataclasses.replace(TINY_MOE, mlp_only_layers=(0,))
    batch = packed_batch()
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    options = (config, ModelConfig(scan_layers=True), optimizer, schedule(optimizer, 10))

    def run(mesh):
        trainer = Trainer(*options, sharding.Placement(mesh, sharding.TRAINING))
        state = trainer.init(0)
        collected = []
        for _ in range(2):
            state, metrics = trainer.step(state, trainer.place(batch))
            collected.append(jax.device_get(metrics))
        return trainer, state, collected

    _, expected, expected_metrics = run(None)
    trainer, state, collected = run(sharding.make_mesh(**sizes))
    for ours, theirs in zip(collected, expected_metrics, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    for name, value in expected.params.items():
        np.testing.assert_allclose(state.params[name], value, atol=2e-4, err_msg=f"{sizes} {name}")
    moments = [s for s in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu")]
    for name, value in state.params.items():
        axes = trainer.structure.logical_axes[name]
        parts = 1
        for axis in axes:
            for mesh_axis in dict(sharding.TRAINING.table)[axis]:
                parts *= sizes.get(mesh_axis, 1)
        for array in (value, moments[0].mu[name], moments[0].nu[name]):
            assert array.addressable_shards[0].data.nbytes * parts == array.nbytes, (sizes, name)


def test_decay_leaves_norms_and_biases_alone_and_the_clip_is_global():
    options = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.5, clip_norm=1e-30, schedule="constant")
    config = dataclasses.replace(TINY, attention_bias=True)
    trainer = Trainer(config, ModelConfig(), options, schedule(options, 10), sharding.Placement())
    before = trainer.init(0)
    kept = {name: np.asarray(value) for name, value in before.params.items()}
    after, _ = trainer.step(before, trainer.place(packed_batch()))
    # With the gradient clipped to nothing, Adam's update is bounded by clip / eps and only the decay moves anything.
    for name, value in after.params.items():
        factor = 1 - 0.5 * 0.5 if decayed(name) else 1.0
        np.testing.assert_allclose(value, kept[name] * factor, atol=1e-6, err_msg=name)
    assert {name.rsplit(".", 1)[-1] for name in kept if not decayed(name)} == {
        "scale",
        "q_bias",
        "k_bias",
        "v_bias",
        "o_bias",
    }


def test_schedules_start_at_once_peak_after_warmup_and_end_where_they_say():
    for kind, end in (("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)):
        config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule=kind, final_learning_rate=0.1)
        rates = np.array([float(schedule(config, 100)(step)) for step in range(101)])
        np.testing.assert_allclose(rates[0], 0.2, rtol=1e-6)
        np.testing.assert_allclose(rates[10], 2.0, rtol=1e-6)
        np.testing.assert_allclose(rates[100], 2.0 * end, rtol=1e-5)
        assert (np.diff(rates[:11]) >= 0).all()
        assert (np.diff(rates[10:]) <= 1e-6).all()


def test_wsd_decays_at_the_end_and_stages_follow_each_other():
    wsd = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule="wsd", decay_share=0.25, final_learning_rate=0.0)
    rates = np.array([float(schedule(wsd, 100)(step)) for step in range(101)])
    np.testing.assert_allclose(rates[10:76], 2.0)
    np.testing.assert_allclose(rates[75:], 2.0 * np.linspace(1, 0, 26), atol=1e-6)
    second = OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="linear", final_learning_rate=0.5)
    whole = run_schedule([(wsd, 100), (second, 50)])
    np.testing.assert_allclose([float(whole(step)) for step in range(100)], rates[:100], atol=1e-6)
    np.testing.assert_allclose([float(whole(100 + step)) for step in range(51)], np.linspace(1, 0.5, 51), atol=1e-6)


def test_flops_use_head_dim_and_active_experts():
    config = Qwen3Config.preset("Qwen3-0.6B")
    matrices = parameter_count(config)
    expected = 6 * matrices + 3 * 4 * 28 * 16 * 128 * 4096 / 2
    assert training_flops_per_token(config, 4096) == pytest.approx(expected)
    moe = Qwen3Config.preset("Qwen3-30B-A3B")
    active = 3_353_032_704 - 151_936 * 2048
    assert training_flops_per_token(moe, 4096) == pytest.approx(6 * active + 3 * 4 * 48 * 32 * 128 * 4096 / 2)
