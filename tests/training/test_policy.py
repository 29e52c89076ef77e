"""Policy objectives: values and gradients equal NumPy statements of the papers' definitions; nothing under the mask counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.errors import UserError
from qwen3_jax.model import flatten
from qwen3_jax.training.config import LossConfig
from qwen3_jax.training.policy import log_probs_of, policy, policy_sums
from qwen3_jax.training.policy_config import (
    EntropyBand,
    KlConfig,
    PolicyConfig,
    applied_coefficient,
    next_coefficient,
)
from tests.helpers.answers import (
    BANNED,
    FIELDS,
    K3,
    Answer,
    answers_of,
    around,
    batch_of,
    config_of,
    kl_statement,
    learned_only,
    loss_statement,
    slopes,
    trainer,
)  # fmt: skip
from tests.helpers.tiny_models import TINY, drawn

OPTIONS = [
    {}, dict(dual_clip=1.3), dict(importance_cap=1.2), dict(importance_cap=1.5, importance_level="sequence"),
    dict(drop_off_policy=0.05), dict(kl=K3), dict(kl=K3 | dict(unbiased=False)), dict(kl=K3 | dict(estimator="k2")),
    dict(kl=K3 | dict(estimator="k2", unbiased=False)), dict(kl=K3 | dict(estimator="k1")),
    dict(dual_clip=1.3, importance_cap=1.2, drop_off_policy=0.05, kl=K3),
]  # fmt: skip
ALGORITHMS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_option_has_the_value_and_the_gradient_of_its_definition(algorithm):
    """By the log-probability and the entropy of every token."""
    random = np.random.default_rng(1)
    answers = answers_of(16)
    log_probs = [-random.exponential(size=len(one.learned)).astype(np.float32) for one in answers]
    entropy = [random.exponential(size=len(one.learned)).astype(np.float32) for one in answers]
    answers = around(answers, log_probs)
    batch = batch_of(answers, 8, 40)
    shown = [dataclasses.replace(one, fields={"old": x, "reference": y, "behaviour": x, "entropy_weights": x})
             for one, x, y in zip(answers, log_probs, entropy, strict=True)]  # fmt: skip
    packed = batch_of(shown, 8, 40)
    log_prob_bt, entropy_bt = packed["old"], packed["reference"]
    plain = None
    for options in OPTIONS:
        if "dual_clip" in options and algorithm == "cispo":
            continue
        config = config_of(algorithm, **options)
        whole = policy(config, 1.0, ()).whole(batch)
        count = whole.tokens if config.aggregation == "token_mean" else whole.answers

        def mean(log_prob_bt, entropy_bt, config=config, count=count):
            total, sums = policy_sums(config, log_prob_bt, entropy_bt, batch)
            return total / count, jax.tree.map(count.__rtruediv__, sums)

        (got, terms), gradients = jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))(log_prob_bt, entropy_bt)
        lp, h = learned_only(log_probs, answers), learned_only(entropy, answers)
        expected = loss_statement(config, answers, lp, lp, h)
        np.testing.assert_allclose(got, expected["total"], rtol=1e-5, atol=1e-6, err_msg=str(options))
        plain = expected["total"] if plain is None else plain
        assert (options == {}) or abs(expected["total"] - plain) > 1e-4, options  # it has an effect
        np.testing.assert_allclose(terms.policy, expected["policy"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(terms.bonus, expected["bonus"], rtol=1e-5, atol=1e-6)
        assert (terms.kl is None) == ("kl" not in options)
        if terms.kl is not None:
            np.testing.assert_allclose(terms.kl, expected["kl"], rtol=1e-5)
        for gradient, slope in zip(gradients, slopes(config, answers, lp, h), strict=True):
            placed = [np.zeros(len(one.learned)) for one in answers]
            for one, values, x in zip(answers, placed, slope, strict=True):
                values[one.learned] = x
            shown = [dataclasses.replace(one, fields=dict.fromkeys(FIELDS, x))
                     for one, x in zip(answers, placed, strict=True)]  # fmt: skip
            wanted = batch_of(shown, 8, 40)["old"]
            np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=str(options))
            assert np.abs(wanted).max() > 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_under_the_mask_counts(algorithm):
    """NaN and infinity there change no gradient; without jit, whose compiler may itself drop a product with a mask."""
    config = config_of(algorithm, importance_cap=1.2, importance_level="sequence", drop_off_policy=0.05, kl=K3)
    answers = answers_of(16)
    batch = batch_of(around(answers, [np.full(len(one.learned), -1, np.float32) for one in answers]), 8, 40)
    learned = batch["loss_mask"] > 0
    score = np.where(learned, -1, 0).astype(np.float32)

    def gradients(batch, score):
        return jax.grad(lambda a, b: policy_sums(config, a, b, batch)[0], (0, 1))(score, score)

    expected = gradients(batch, score)
    for value in (np.nan, np.inf, -np.inf):
        planted = {name: np.where(learned, batch[name], value).astype(np.float32) for name in ("advantages", *FIELDS)}
        got = gradients(batch | planted, np.where(learned, score, value).astype(np.float32))
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert np.abs(got[0]).max() > 0.01
        whole = [policy(config, 1.0, ()).whole(x) for x in (batch, batch | planted)]
        jax.tree.map(np.testing.assert_array_equal, *whole)


def test_each_bound_is_reached_and_counted():
    """The options of the test above change something, and the shares are those of NumPy."""
    answers = answers_of(16)
    log_probs = [np.full(len(one.learned), -1.0, np.float32) for one in answers]
    answers = around(answers, log_probs)
    batch = batch_of(answers, 8, 40)
    log_prob_bt = np.full((8, 40), -1, np.float32)
    some = [one for one in answers if one.learned.any()]
    r = np.concatenate([np.exp(-1 - one.fields["old"][one.learned]) for one in some])
    a = np.concatenate([np.full(one.learned.sum(), one.advantage) for one in some])
    gap = [(one.fields["old"] - one.fields["behaviour"])[one.learned] for one in some]
    off = [(one.fields["behaviour"] + 1)[one.learned].mean() for one in some]

    def sums(**options):
        return policy_sums(config_of("dapo", **options), log_prob_bt, 0 * log_prob_bt, batch)[1]

    every = sums(dual_clip=1.3, importance_cap=1.2, drop_off_policy=0.05)
    sequence = sums(importance_cap=1.2, importance_level="sequence")
    expected = dict(
        clipped_low=((r < 0.8) & (a < 0)).sum(), clipped_high=((r > 1.28) & (a > 0)).sum(),
        clipped_dual=((r > 1.3) & (a < 0)).sum(), capped=(np.exp(np.concatenate(gap)) > 1.2).sum(),
        dropped=sum(x > 0.05 and one.advantage < 0 for x, one in zip(off, some, strict=True)),
        ratio=r.sum(), kl_old=(r - 1 - np.log(r)).sum(),
    )  # fmt: skip
    for name, value in expected.items():
        assert value > 0
        np.testing.assert_allclose(getattr(every, name), value, rtol=1e-5, err_msg=name)
    masked = sum(np.exp(x.sum()) > 1.2 for x in gap)
    assert 0 < masked < len(some)
    np.testing.assert_allclose([sequence.masked, sequence.capped, every.masked], [masked, 0, 0], rtol=1e-6)
    objective = policy(config_of("dapo"), 1.0, ())
    whole, gaps = objective.whole(batch), np.abs(np.concatenate(gap))
    np.testing.assert_allclose(
        [whole.tokens, whole.answers, every.mismatch, every.mismatch_max], [len(r), len(some), gaps.sum(), gaps.max()],
        rtol=1e-5,
    )  # fmt: skip
    loss = objective.finish(every, whole, LossConfig(), 0.0)
    largest = np.quantile(gaps, 0.999, method="inverted_cdf")
    assert largest <= loss.mismatch_999 <= 1.26 * largest
    # Of micro-batches everything is the sum, but for the largest.
    twice = objective.combine(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), every))
    np.testing.assert_allclose([twice.mismatch, twice.mismatch_max], [3 * gaps.sum(), 2 * gaps.max()], rtol=1e-5)
    cispo = policy_sums(config_of("cispo", clip_low=0.2, clip_high=0.3), log_prob_bt, 0 * log_prob_bt, batch)[1]
    np.testing.assert_allclose([cispo.clipped_low, cispo.clipped_high], [(r < 0.8).sum(), (r > 1.3).sum()])


@pytest.mark.parametrize(
    ("estimator", "unbiased"), [("k1", True), ("k2", True), ("k3", True), ("k2", False), ("k3", False)]
)
def test_a_kl_penalty_has_in_expectation_the_gradient_that_its_description_states(estimator, unbiased):
    """Exactly, by summing over a small vocabulary drawn from pi_o; the plain forms where pi is pi_o."""
    random = np.random.default_rng(2)
    logits, old, reference = random.normal(size=(3, 7))
    if not unbiased:
        old = logits
    answers = [Answer(np.zeros(3, np.int32), np.ones(2, bool), 0.0, np.zeros(2), {})]
    config = config_of("dapo", kl=dict(coefficient=1.0, estimator=estimator, unbiased=unbiased))

    def expected(logits):
        total = 0.0
        for token in range(7):
            empty = batch_of([dataclasses.replace(answers[0], fields=dict.fromkeys(FIELDS, 0))], 1, 2)
            batch: dict = empty | {
                "old": jnp.full((1, 2), jax.nn.log_softmax(old)[token]),
                "reference": jnp.full((1, 2), jax.nn.log_softmax(reference)[token]),
            }
            log_prob_bt = jnp.full((1, 2), jax.nn.log_softmax(logits)[token])
            total += jax.nn.softmax(old)[token] * policy_sums(config, log_prob_bt, 0 * log_prob_bt, batch)[0] / 2
        return total

    def divergence(p, q):
        return (jax.nn.softmax(p) * (jax.nn.log_softmax(p) - jax.nn.log_softmax(q))).sum()

    reverse = estimator == "k3" and not unbiased
    wanted = (lambda x: divergence(reference, x)) if reverse else (lambda x: divergence(x, reference))
    value, gradient = jax.value_and_grad(expected)(logits)
    np.testing.assert_allclose(gradient, jax.grad(wanted)(logits), atol=1e-6)
    if estimator != "k2":
        np.testing.assert_allclose(value, divergence(logits, reference), rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_terms_stay_finite_where_the_policy_has_left_a_token(algorithm):
    """log pi is -100 at tokens that policy and reference had at -1: r exp(-d) is ref / pi_o, not 0 times infinity."""
    answers = answers_of(3)
    answers = around(answers, [np.full(len(one.learned), -1, np.float32) for one in answers])
    batch = batch_of(answers, 1, 48)
    log_prob_bt = jnp.where(jnp.arange(48) % 2 == 0, -100.0, -1.0)[None]
    for kl in (dict(estimator="k1"), dict(estimator="k2"), dict(estimator="k3"), dict(estimator="k2", unbiased=False)):
        config = config_of(algorithm, kl=K3 | kl)
        total, gradient = jax.value_and_grad(lambda x, config=config: policy_sums(config, x, 0 * x, batch)[0])(
            log_prob_bt
        )
        assert np.isfinite(total), kl
        assert np.isfinite(gradient).all(), kl
        if kl == dict(estimator="k3"):
            first = answers[:1]
            (lp,) = learned_only([np.asarray(log_prob_bt)[0, : len(one.learned)] for one in first], first)
            alone = policy_sums(config_of("dapo", kl=K3), log_prob_bt, 0 * log_prob_bt, batch_of(first, 1, 48))[1]
            np.testing.assert_allclose(alone.kl, kl_statement(config.kl, first[0], lp, lp).sum(), rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(2, 3))
def scores_alone(params, answers, temperature, banned_ids):
    """log p and entropy [A, N] of answers [A, N], each alone in its row, by plain softmax of all logits."""
    model = _structure().merge(params)
    logits = model(answers["tokens"]) / temperature
    if banned_ids:
        left_out = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(banned_ids)].set(True)
        logits = jnp.where((answers["banned"] > 0)[..., None] & left_out, -jnp.inf, logits)
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, answers["targets"][..., None], axis=-1)[..., 0]
    finite = jnp.where(log_p > -jnp.inf, log_p, 0)
    return jnp.where(answers["loss_mask"] > 0, chosen, 0), -(jnp.exp(log_p) * finite).sum(axis=-1)


@functools.cache
def _structure():
    return trainer(TINY, policy(PolicyConfig(), 1.0, ())).structure


@functools.partial(jax.jit, static_argnums=(2, 3))
def pulled(params, answers, temperature, banned_ids, above):
    return jax.vjp(lambda p: scores_alone(p, answers, temperature, banned_ids), params)[1](above)[0]


def near_the_model(params, answers, temperature, banned_ids):
    """The answers around the model's log-probabilities; those, the entropies, and each answer in a row of its own."""
    blank = [dataclasses.replace(one, fields=dict.fromkeys(FIELDS, 0)) for one in answers]
    rows = max(len(one.learned) for one in answers)
    batches = [batch_of([one], 1, rows) for one in blank]
    alone = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    log_prob, entropy = jax.device_get(scores_alone(params, alone, temperature, banned_ids))
    cut = [slice(len(one.learned)) for one in answers]
    log_probs = [x[at] for x, at in zip(log_prob, cut, strict=True)]
    entropies = [x[at] for x, at in zip(entropy, cut, strict=True)]
    return around(answers, log_probs), log_probs, entropies, alone


MODEL_CASES = [
    ("grpo", dict(kl=K3), 1.0, ()),
    ("dr_grpo", dict(importance_cap=1.2, kl=K3 | dict(estimator="k1")), 0.7, BANNED),
    ("dapo", dict(dual_clip=1.3, drop_off_policy=0.05), 0.7, BANNED),
    ("gspo", dict(importance_cap=1.5, importance_level="sequence", kl=K3 | dict(estimator="k2")), 0.7, BANNED),
    ("cispo", dict(kl=K3 | dict(unbiased=False)), 1.0, ()),
]


@pytest.mark.parametrize(
    ("algorithm", "options", "temperature", "banned_ids"), MODEL_CASES, ids=[c[0] for c in MODEL_CASES]
)
def test_the_gradient_by_parameters_is_that_of_the_definition(algorithm, options, temperature, banned_ids):
    """At the rollouts' temperature, without the tokens that they left out; and NaN under the mask changes no bit."""
    config = config_of(algorithm, **options)
    params = flatten(drawn(TINY, scan_layers=False))
    answers, log_probs, entropy, alone = near_the_model(params, answers_of(seed=3), temperature, banned_ids)
    lp, h = learned_only(log_probs, answers), learned_only(entropy, answers)
    expected = loss_statement(config, answers, lp, lp, h)
    above = []
    for slope in slopes(config, answers, lp, h):
        full = np.zeros(alone["tokens"].shape, np.float32)
        full[alone["loss_mask"] > 0] = np.concatenate(slope)
        above.append(full)
    wanted = pulled(params, alone, temperature, banned_ids, tuple(above))

    one = trainer(TINY, policy(config, temperature, banned_ids), chunk=37)
    batch = batch_of(answers, 4, 48)
    gradients, got = one.gradients(params, one.place(batch))
    np.testing.assert_allclose(got.total, expected["total"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.policy, expected["policy"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.entropy, np.concatenate(h).mean(), rtol=1e-5)
    for name, value in gradients.items():
        size = np.abs(wanted[name]).max()
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-5 * size, err_msg=name)
        assert size > 0

    hidden = batch["loss_mask"] == 0
    planted = {name: np.where(hidden, np.nan, batch[name]).astype(np.float32) for name in ("advantages", *FIELDS)}
    planted |= {
        "targets": np.where(hidden, BANNED[0], batch["targets"]),
        "advantages": np.where(hidden, np.inf, batch["advantages"]),
    }
    again, same = one.gradients(params, one.place(batch | planted))
    jax.tree.map(np.testing.assert_array_equal, (again, same), (gradients, got))


def test_log_probs_of_are_those_of_the_rollout_s_distribution_and_give_a_ratio_of_one():
    params = flatten(drawn(TINY, scan_layers=False))
    answers, log_probs, entropy, _ = near_the_model(params, answers_of(seed=3), 0.7, BANNED)
    batch = batch_of(answers, 4, 48)
    one = trainer(TINY, policy(config_of("gspo"), 0.7, BANNED))

    def compute(params, batch):
        return log_probs_of(one.structure.merge(params), batch, temperature=0.7, banned_ids=BANNED, chunk=31)

    scores = jax.device_get(jax.jit(compute)(params, batch))
    learned = batch["loss_mask"] > 0
    # Both in the order of the rows, whose learned tokens are those of the answers in some order.
    shown = [dataclasses.replace(a, fields=dict.fromkeys(FIELDS, 0) | {"old": x, "behaviour": y})
             for a, x, y in zip(answers, log_probs, entropy, strict=True)]  # fmt: skip
    expected = batch_of(shown, 4, 48)
    np.testing.assert_allclose(scores.log_probs[learned], expected["old"][learned], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.entropy[learned], expected["behaviour"][learned], rtol=1e-5)
    loss = one.evaluate(params, one.place(batch | {"old": scores.log_probs}))
    np.testing.assert_allclose([loss.ratio, loss.kl_old, loss.clipped_low, loss.clipped_high], [1, 0, 0, 0], atol=1e-6)


finite = st.floats(-3, 3)


@given(coefficient=finite, entropy=st.floats(0, 5), low=st.floats(0, 3), width=st.floats(0, 2), step=st.floats(1e-3, 1))
def test_the_entropy_s_coefficient_moves_towards_the_band_and_only_outside_it(coefficient, entropy, low, width, step):
    band = EntropyBand(low, low + width, step, maximum=2.0)
    after = next_coefficient(band, coefficient, entropy)
    applied = applied_coefficient(band, after, entropy)
    if entropy < low:
        assert 0 < after <= 2
        assert after == applied == min(max(coefficient, 0) + step, 2)
    elif entropy > low + width:
        assert -2 <= after < 0
        assert after == applied == -min(max(-coefficient, 0) + step, 2)
    else:
        assert (after, applied) == (coefficient, 0)
    mirrored = EntropyBand(low, low + width, step, maximum=2.0, start=-0.0)
    reflected = next_coefficient(mirrored, -coefficient, 2 * low + width - entropy)
    if abs(entropy - low) > 1e-9 and abs(entropy - low - width) > 1e-9:  # rounding of the reflection
        assert reflected == -after


def test_each_algorithm_fills_what_is_null_and_keeps_what_is_given(tmp_path):
    filled = {
        name: (c.normalize_std, c.ratio, c.clipping, c.clip_low, c.clip_high, c.aggregation)
        for name, c in ((name, PolicyConfig(name).filled()) for name in ALGORITHMS)
    }
    assert filled == {
        "grpo": (True, "token", "clip", 0.2, 0.2, "sample_mean"),
        "dr_grpo": (False, "token", "clip", 0.2, 0.2, "constant_length"),
        "dapo": (True, "token", "clip", 0.2, 0.28, "token_mean"),
        "gspo": (True, "sequence", "clip", 3e-4, 4e-4, "sample_mean"),
        "cispo": (True, "token", "cispo", 1.0, 4.0, "token_mean"),
    }
    own = PolicyConfig("dapo", clip_high=0.3, normalize_std=False).filled()
    assert (own.clip_high, own.normalize_std, own.clip_low) == (0.3, False, 0.2)
    assert dataclasses.replace(own) == own == own.filled()
    # Of a file, whose values are laid over those of a default instance; config.json has them all.
    source = {"name": "s", "path": "x"}
    for name, values in filled.items():
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({
            "method": "grpo", "steps": 1, "optimizer": {"warmup_steps": 0}, "model": {"init_from": "m"},
            "data": {"sequence_length": 2048, "batch_size": 256}, "rl": {"prompts": [source], "policy": {"algorithm": name}},
        }))  # fmt: skip
        c = parse_train([f"--config={tmp_path / 'c.yaml'}"], "train").config.rl.policy
        assert (c.normalize_std, c.ratio, c.clipping, c.clip_low, c.clip_high, c.aggregation) == values


REFUSED = [
    (lambda: PolicyConfig("ppo"), r"rl\.policy\.algorithm is 'ppo'.*grpo.*cispo"),
    (lambda: PolicyConfig(clip_low=0.0), r"rl\.policy\.clip_low is 0\.0; it must be above 0"),
    (lambda: PolicyConfig(clip_high=float("inf")), r"rl\.policy\.clip_high is inf"),
    (lambda: PolicyConfig(dual_clip=1.0), r"rl\.policy\.dual_clip is 1\.0; it must be above 1"),
    (lambda: PolicyConfig("cispo", dual_clip=3.0), r"rl\.policy\.dual_clip is read by .*clipping: clip"),
    (lambda: PolicyConfig(constant_length=9), r"rl\.policy\.constant_length is read by .*constant_length"),
    (lambda: PolicyConfig("dr_grpo", constant_length=0), r"rl\.policy\.constant_length is 0"),
    (lambda: PolicyConfig(importance_cap=0.5), r"rl\.policy\.importance_cap is 0\.5"),
    (lambda: PolicyConfig(importance_level="sequence"), r"importance_level is read with .*importance_cap"),
    (lambda: PolicyConfig(drop_off_policy=-1.0), r"rl\.policy\.drop_off_policy is -1\.0"),
    (lambda: KlConfig(-1.0), r"rl\.policy\.kl\.coefficient is -1\.0"),
    (lambda: KlConfig(0.1, "k1", unbiased=False), r"k1 without .*unbiased has a gradient of 0.*to k2"),
    (lambda: EntropyBand(1.0, 0.5, 0.1, 1.0), r"rl\.entropy\.high is 0\.5; it must be at least 1\.0"),
    (lambda: EntropyBand(0.1, 0.5, 0.1, 1.0, 2.0), r"rl\.entropy\.start is 2\.0"),
    (lambda: EntropyBand(0.1, float("inf"), 0.1, 1.0), r"rl\.entropy\.high is inf; it must be at least 0\.1 and finite"),
    (lambda: policy(PolicyConfig("dr_grpo"), 1.0, ()), r"set rl\.policy\.constant_length"),
]  # fmt: skip


@pytest.mark.parametrize(("construct", "message"), REFUSED)
def test_settings_that_cannot_work_are_refused_by_name(construct, message):
    with pytest.raises(UserError, match=message):
        construct()


def test_fields_are_those_that_are_read():
    plain = policy(PolicyConfig(), 1.0, ()).fields
    assert "reference" not in plain
    assert "banned" not in plain
    full = policy(config_of("grpo", kl=K3), 1.0, BANNED).fields
    assert full.keys() - plain.keys() == {"reference", "banned"}
