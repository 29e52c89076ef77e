"""Loss and gradient depend on the global batch alone: not on the mesh, the micro-batches, or the chunks of the loss."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution
from qwen3_jax.training import guard, losses
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import decayed, schedule
from qwen3_jax.training.step import Trainer
from qwen3_jax.training.step_metrics import fetch_metrics
from tests.helpers.tiny_models import TINY, TINY_MOE, packed_batch

# The balancing loss weighs a thousand times more than in training, so that its gradient shows.
MOE = dataclasses.replace(TINY_MOE, router_aux_loss_coef=1.0)
LOSS = LossConfig(z_loss=1e-2, chunk_tokens=37)
MESHES = [
    {},
    {"data": 8},
    {"tensor": 2, "data": 4},
    {"data": 2, "expert": 2, "tensor": 2},
    {"replica": 2, "data": 2, "context": 2},
    {"context": 4, "expert": 2},
    {"context": 2, "tensor": 2, "data": 2},
    {"replica": 2, "expert": 4},
    {"expert": 8},
]
# (model, place of the mesh, micro-batches, remat): every pair of axes that training uses, and every policy of remat. The last
# one is slow.
QUICK = [("dense", 6, 8, "dots"), ("moe", 3, 8, "qkv"), ("moe", 4, 2, "full"), ("moe", 7, 1, "attention")]
ROWS = 64
# One window for all, so that they begin with the same state.
OPTIONS = OptimizerConfig(warmup_steps=0, spike_window=8, spike_sigmas=6.0)
STEPS = dataclasses.replace(OPTIONS, learning_rate=1e-2, schedule="linear")  # one program for tests of several steps


@functools.cache
def _trainer(config, mesh, micro_batches, loss, options, model):
    placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**dict(mesh)), sharding.TRAINING)
    rate = schedule(options, 100)
    return Trainer(config, ModelConfig(**dict(model)), options, rate, placement, loss, micro_batches)


def make_trainer(config, mesh=None, micro_batches=1, loss=LOSS, options=OPTIONS, **model):
    """A trainer; equal arguments give the same one, with its compiled programs."""
    axes = None if mesh is None else tuple(mesh.items())
    return _trainer(config, axes, micro_batches, loss, options, tuple(model.items()))


@functools.cache
def initial(config, moment_dtype="float32"):
    """The state that every trainer of a model begins with, as NumPy."""
    return jax.device_get(make_trainer(config, options=dataclasses.replace(OPTIONS, moment_dtype=moment_dtype)).init(0))


def start(trainer, moment_dtype="float32"):
    """A new state on the trainer's devices; its step may donate it."""
    return jax.tree.map(jax.device_put, initial(trainer.config, moment_dtype), trainer.shardings)


def measure(trainer, batch):
    """Gradients and loss of initial parameters, as NumPy."""
    known = MOE if trainer.config.num_experts else TINY  # parameters do not depend on weights of losses
    params = jax.tree.map(jax.device_put, initial(known).params, trainer.shardings.params)
    return jax.device_get(trainer.gradients(params, trainer.place(batch)))


def assert_same(ours, theirs, what, relative=1e-5):
    """Equal to `relative` of the largest entry of each array."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        error = np.abs(np.asarray(a, np.float64) - b).max()
        assert error <= relative * np.abs(b).max() + 1e-9, (what, jax.tree_util.keystr(path), error, np.abs(b).max())


WHOLE = dataclasses.replace(LOSS, chunk_tokens=10**6)


@pytest.fixture(scope="module")
def single():
    """The big batch on one device, by name of the model."""
    batch = packed_batch(ROWS, 16)
    return batch, {name: measure(make_trainer(c, loss=WHOLE), batch) for name, c in (("dense", TINY), ("moe", MOE))}


def _cases():
    quick = {case[:3]: case for case in QUICK}
    for name, index, count in itertools.product(("dense", "moe"), range(len(MESHES)), (1, 2, 8)):
        if (case := quick.get((name, index, count))) is None and count == 2:
            continue  # 8 are as different from 1, and the quick cases have both
        label = "_".join(f"{k}{v}" for k, v in MESHES[index].items()) or "one"
        remat = case[3] if case else "none"
        turn = (index + (name == "moe") + (count == 8)) % 2  # half of the other cases are for CI
        turn &= name == "moe" or "expert" not in MESHES[index]
        marks = pytest.mark.slow if turn or case == QUICK[-1] else pytest.mark.soak
        marks = () if case in QUICK[:-1] else marks
        yield pytest.param(name, MESHES[index], count, remat, id=f"{name}-{label}-{count}-{remat}", marks=marks)


@pytest.mark.parametrize(("name", "mesh", "micro_batches", "remat"), list(_cases()))
def test_gradients_equal_the_single_device_big_batch(single, name, mesh, micro_batches, remat):
    """Also with every policy of remat, which changes nothing but what is saved."""
    batch, expected = single
    trainer = make_trainer(TINY if name == "dense" else MOE, mesh, micro_batches, remat=remat)
    assert_same(measure(trainer, batch), expected[name], (mesh, micro_batches, remat))


@jax.jit
def router_of(params, rows, cotangent):
    """What the routers of the MoE model count over some rows, and the product of their probabilities' Jacobian."""

    def probabilities(params):
        of = make_trainer(MOE).structure.merge(params)
        router = of.hidden(rows["tokens"], positions=rows["positions"], segment_ids=rows["segment_ids"]).router
        return router.prob, router.load

    prob, pull, load = jax.vjp(probabilities, params, has_aux=True)
    return prob, load, pull(cotangent)[0]


def by_hand(params, micro_batches, buffer):
    """The balancing loss of some micro-batches from NumPy counts, and its gradient.

    exact:  N_E sum_i f_i P_i / N                       f over the whole batch
    buffer: sum_m N_E sum_i (C_i^1 + ... + C_i^m) / (n_1 + ... + n_m) P_i^m / N     (Qiu et al. 2025, section 3)

    Args:
        params: of `MOE`.
        micro_batches: each a list of parts, all of one shape.
        buffer: the running buffer, else exact.
    """
    layers, experts = MOE.num_hidden_layers, MOE.num_experts
    nothing = np.zeros((layers, experts), np.float32)
    seen = [[router_of(params, part, nothing) for part in parts] for parts in micro_batches]
    loads = np.cumsum([sum(np.asarray(load, np.float64) for _, load, _ in parts) for parts in seen], axis=0)
    valid = np.cumsum([sum((part["segment_ids"] > 0).sum() for part in parts) for parts in micro_batches])
    value, gradient = 0.0, None
    for m, parts in enumerate(micro_batches):
        load, count = (loads[m], valid[m]) if buffer else (loads[-1], valid[-1])
        weight = experts * load / count / valid[-1] / layers  # linear in the probabilities
        for part, (prob, _, _) in zip(parts, seen[m], strict=True):
            value += (weight * np.asarray(prob, np.float64)).sum()
            pulled = jax.device_get(router_of(params, part, weight.astype(np.float32))[2])
            gradient = pulled if gradient is None else jax.tree.map(np.add, gradient, pulled)
    return value, gradient


@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize("buffer", [False, True])
def test_balance_loss_and_its_gradient_equal_numpy_over_the_global_batch(micro_batches, buffer, single):
    batch, expected = single
    loss = dataclasses.replace(LOSS, balance_counts="buffer" if buffer else "exact")
    with_balance, report = measure(make_trainer(MOE, None, micro_batches, loss), batch)
    without, _ = measure(make_trainer(dataclasses.replace(MOE, router_aux_loss_coef=0.0)), batch)
    if not buffer:
        assert_same((with_balance, report), expected["moe"], micro_batches)
    params = initial(MOE).params
    columns = (np.split(rows, 8) for rows in batch.values())
    eighths = [dict(zip(batch, parts, strict=True)) for parts in zip(*columns, strict=True)]  # consecutive rows
    value, gradient = by_hand(params, [[part] for part in eighths] if micro_batches == 8 else [eighths], buffer)
    np.testing.assert_allclose(report.balance, value, rtol=1e-5)
    for name, theirs in gradient.items():
        ours = with_balance[name] - without[name]
        np.testing.assert_allclose(
            ours, theirs, atol=2e-5 * float(np.abs(with_balance[name]).max()) + 1e-9, err_msg=name
        )

    if micro_batches > 1:
        # Counting each micro-batch by itself, as others do, is another loss with another gradient.
        valid = [(part["segment_ids"] > 0).sum() for part in eighths]
        values = [by_hand(params, [[part]], False) for part in eighths]
        per_part = sum(n * float(v) for n, (v, _) in zip(valid, values, strict=True)) / sum(valid)
        assert abs(per_part - float(report.balance)) > 2e-4
        name = "groups.0.mlp.router"
        micro_gradient = sum(n * g[name] for n, (_, g) in zip(valid, values, strict=True)) / sum(valid)
        assert np.abs(micro_gradient - gradient[name]).max() > 1e-2 * np.abs(gradient[name]).max()
        if buffer:  # once is enough
            alone, report = measure(
                make_trainer(MOE, None, 8, dataclasses.replace(LOSS, balance_counts="micro_batch")), batch
            )
            np.testing.assert_allclose(report.balance, per_part, rtol=1e-5)
            bound = 2e-5 * float(np.abs(alone[name]).max()) + 1e-9
            np.testing.assert_allclose(alone[name] - without[name], micro_gradient, atol=bound)


def test_padding_never_counts(single):
    """Other tokens where there is padding change neither loss nor gradient nor router metrics, in any micro-batch."""
    batch, _ = single
    other = dict(batch, tokens=np.where(batch["segment_ids"] > 0, batch["tokens"], 5).astype(np.int32))
    assert (other["tokens"] != batch["tokens"]).any()
    trainer = make_trainer(MOE, None, 8)
    assert_same(measure(trainer, other), measure(trainer, batch), "padding", 1e-6)


def test_logits_of_the_whole_batch_never_exist():
    """With a vocabulary far larger than all else, the compiled step holds no array of [B, T, V] elements."""
    config = dataclasses.replace(TINY, vocab_size=4096)
    batch = packed_batch(8, 64)
    for mesh, tokens in ((None, 512), ({"data": 2, "tensor": 2, "context": 2}, 128)):
        trainer = make_trainer(config, mesh, 1, LossConfig(chunk_tokens=16))
        text = trainer.lower(trainer.abstract_state(), trainer.place(batch)).compile().as_text()
        local_vocabulary = 4096 // (1 if mesh is None else 2)
        assert f"f32[16,{local_vocabulary}]" in text  # one chunk does
        for shape in (
            f"[{tokens},{local_vocabulary}]",
            f"[8,64,{local_vocabulary}]",
            f"[{tokens},4096]",
            "[8,64,4096]",
        ):
            assert shape not in text, shape


def test_bf16_keeps_float32_gradients_and_close_losses(single):
    batch, expected = single
    for name, config, micro_batches in (("dense", TINY, 1), ("moe", MOE, 2)):
        gradients, loss = measure(make_trainer(config, None, micro_batches, dtype="bfloat16"), batch)
        np.testing.assert_allclose(loss.cross_entropy, expected[name][1].cross_entropy, rtol=2e-3)
        for key, value in gradients.items():
            assert value.dtype == np.float32, key
        # More digits than bf16 has: the weight gradients were not rounded on the way.
        q = gradients["groups.0.attention.q"]
        assert (q != q.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9


@pytest.mark.parametrize("quantization", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_quantised_products_are_close_and_learn(quantization, single):
    pytest.importorskip("qwix")
    batch, expected = single
    gradients, loss = expected["dense"]
    trainer = make_trainer(TINY, loss=WHOLE, quantization=quantization)
    state, placed = start(trainer), trainer.place(batch)
    seen = []
    for step in range(8):
        state, metrics = trainer.step(state, placed)
        seen.append(float(metrics.loss.cross_entropy))
        if step == 0:  # Adam's first moment is then the gradient, scaled
            (moments,) = [part.mu for part in adam_states(state.optimizer)]
            ours = np.asarray(moments["groups.0.mlp.gate"])
    assert 0 < abs(seen[0] - loss.cross_entropy) < 0.02
    plain = gradients["groups.0.mlp.gate"]
    cosine = (ours * plain).sum() / np.linalg.norm(ours) / np.linalg.norm(plain)
    assert 0.97 < cosine < 1 - 1e-7
    assert seen[-1] < seen[0] - 0.01


def adam_states(optimizer):
    """The parts of an optimizer's state that have moments."""
    parts = jax.tree.leaves(optimizer, is_leaf=lambda part: hasattr(part, "mu"))
    return [part for part in parts if hasattr(part, "mu")]


def test_bf16_moments_take_half_and_stay_close():
    batch = packed_batch(8, 24)
    runs = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(TINY, options=dataclasses.replace(STEPS, moment_dtype=dtype))
        state, placed = start(trainer, dtype), trainer.place(batch)
        for _ in range(5):
            state, metrics = trainer.step(state, placed)
        floats = [x for x in jax.tree.leaves(state.optimizer) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert all(x.dtype == dtype for x in floats)
        runs[dtype] = sum(x.nbytes for x in floats), float(metrics.loss.total)
    assert runs["bfloat16"][0] * 2 == runs["float32"][0]
    np.testing.assert_allclose(runs["bfloat16"][1], runs["float32"][1], rtol=0.02)


def test_a_step_reports_and_applies_its_gradient_and_evaluation_gives_the_same_loss(single):
    """One AdamW step from NumPy; the norms are of the gradient before its clip, and of the parameters after the step."""
    options = dataclasses.replace(OPTIONS, warmup_steps=2, learning_rate=1e-2, clip_norm=0.05, weight_decay=0.1)
    trainer = make_trainer(MOE, None, 8, options=options)
    state, placed = start(trainer), trainer.place(single[0])
    before = jax.device_get(state.params)
    gradients, loss = measure(make_trainer(MOE, None, 8), single[0])
    evaluated = jax.device_get(trainer.evaluate(state.params, placed))
    for name in ("cross_entropy", "z", "tokens", "router_entropy", "router_max_load", "router_min_load", "router_load"):
        np.testing.assert_allclose(getattr(evaluated, name), getattr(loss, name), rtol=1e-5, atol=1e-6, err_msg=name)
    assert loss.total == pytest.approx(loss.cross_entropy + LOSS.z_loss * loss.z + loss.balance, rel=1e-6)
    state, metrics = trainer.step(state, placed)
    after, metrics = jax.device_get((state.params, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), metrics.loss, loss)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert metrics.gradient_norm > options.clip_norm
    squares = sum((p.astype(np.float64) ** 2).sum() for p in after.values())
    assert metrics.parameter_norm == pytest.approx(np.sqrt(squares), rel=1e-6)
    assert metrics.learning_rate == pytest.approx(5e-3)
    assert (int(state.step), int(state.guard.seen)) == (1, 1)
    for name, old in before.items():
        g = gradients[name].astype(np.float64) * options.clip_norm / norm
        decay = 0.1 * old if decayed(name) else 0
        expected = old - 5e-3 * (g / (np.abs(g) + options.eps) + decay)
        clear = np.abs(g) > 1e-6  # the rest is rounding: its sign is not determined
        np.testing.assert_allclose(after[name][clear], expected[clear], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_step_that_is_not_finite_or_spikes_is_skipped_and_counted():
    batch = packed_batch(8, 24)
    rates = schedule(STEPS, 100)
    trainer = make_trainer(TINY, options=STEPS)
    state, placed = start(trainer), trainer.place(batch)
    for step in range(6):
        state, metrics = trainer.step(state, placed)
        assert float(metrics.learning_rate) == pytest.approx(float(rates(step)), rel=1e-6)
    assert fetch_metrics(metrics)["skipped"] == 0

    def unchanged(bad):
        nonlocal state
        before = jax.device_get((state.params, state.optimizer))
        state, report = trainer.step(state, bad)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.optimizer)), before)
        # What the step would have taken: the seventh, since skipped steps do not move the schedule.
        assert float(report.learning_rate) == pytest.approx(float(rates(6)), rel=1e-6)
        return fetch_metrics(report)

    poisoned = dict(placed, loss_mask=placed["loss_mask"].at[0, 0].set(jnp.nan))
    report = unchanged(poisoned)
    assert (report["skipped"], report["skipped_in_row"]) == (1, 1)
    # The same tokens with targets that are never seen: finite, but far above the last losses' spread.
    report = unchanged(dict(placed, targets=jnp.full_like(placed["targets"], 63), loss_mask=100 * placed["loss_mask"]))
    assert (report["skipped"], report["skipped_in_row"]) == (2, 2)
    state, metrics = trainer.step(state, placed)
    assert float(metrics.learning_rate) == pytest.approx(float(rates(6)), rel=1e-6)
    assert fetch_metrics(metrics)["skipped"] == 2
    assert fetch_metrics(metrics)["skipped_in_row"] == 0
    assert int(state.step) == 9


def test_guard_equals_a_plain_statement_of_its_rule():
    rng = np.random.default_rng(0)
    state, seen, skipped = guard.fresh(6), [], 0
    judge = jax.jit(guard.judge, static_argnums=3)
    for _ in range(60):
        loss, norm = rng.normal(3, 0.1) + 5 * (rng.random() < 0.1), abs(rng.normal(1, 0.2)) + 9 * (rng.random() < 0.1)
        loss = np.nan if rng.random() < 0.05 else loss
        take, state = judge(state, jnp.float32(loss), jnp.float32(norm), 3.0)
        window = np.array(seen[-6:], np.float32)
        expected = bool(np.isfinite([loss, norm]).all())
        if expected and len(seen) >= 3:
            expected = bool((np.float32([loss, norm]) - window.mean(0) <= 3 * window.std(0)).all())
        if np.isfinite([loss, norm]).all():
            seen.append((loss, norm))
        skipped += not expected
        assert bool(take) == expected
        assert int(state.skipped) == skipped
    assert 0 < skipped < 60


def test_options_that_cannot_work_are_refused_by_name():
    with pytest.raises(UserError, match=r"balance_counts.*dense"):
        make_trainer(TINY, loss=LossConfig(balance_counts="buffer"))
    trainer = make_trainer(TINY, {"data": 4}, 2)
    with pytest.raises(sharding.ShardingError, match=r"12 rows.*4 x 2.*multiple of 8"):
        trainer.place(packed_batch(12, 16))
    with pytest.raises(sharding.ShardingError, match=r"18 tokens.*divide by 4"):
        make_trainer(TINY, {"context": 2}).place(packed_batch(8, 18))
    with pytest.raises(UserError, match="quantization 'int3'"):
        Execution(quantization="int3")
    assert losses.whole(packed_batch()).tokens > 0
