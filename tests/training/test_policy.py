"""Policy objectives: values and gradients equal NumPy statements of the papers' definitions, whatever the micro-batches, the
packing, the padding and the mesh; nothing under the mask counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sharding
from qwen3_jax.errors import UserError
from qwen3_jax.model import flatten
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig
from qwen3_jax.training.cross_entropy import token_log_probs, token_scores
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.policy import log_probs_of, policy, policy_sums
from qwen3_jax.training.policy_config import (
    EntropyBand,
    KlConfig,
    PolicyConfig,
    applied_coefficient,
    next_coefficient,
)
from qwen3_jax.training.step import Trainer
from tests.helpers.tiny_models import TINY, TINY_MOE, drawn

MAX_TOKENS = 17  # the constant length of Dr. GRPO
BANNED = (5, 40)
FIELDS = ("behaviour", "old", "reference", "entropy_weights")


@dataclasses.dataclass
class Answer:
    """A prompt with its answer; arrays are those of its targets, [N]."""

    tokens: np.ndarray  # [N + 1]
    learned: np.ndarray
    advantage: float
    banned: np.ndarray
    fields: dict[str, np.ndarray]


def answers_of(count: int = 10, seed: int = 0) -> list[Answer]:
    """Answers of 1 to 9 tokens after prompts of 2 to 4, some tokens of them forced; fields are differences to log pi.

    Advantages have both signs; the last answer has no learned token.
    """
    random, out = np.random.default_rng(seed), []
    for number in range(count):
        prompt, length = random.integers(2, 5), random.integers(1, 10)
        tokens = random.integers(0, TINY.vocab_size, prompt + length).astype(np.int32)
        learned = np.arange(1, len(tokens)) >= prompt
        learned[prompt:] &= random.random(length - 1) < 0.8
        banned = (random.random(len(learned)) < 0.5) & ~np.isin(tokens[1:], BANNED)
        banned |= ~learned & np.isin(tokens[1:], BANNED)  # forced tags: log pi is -inf
        noise = {name: random.normal(size=len(learned)) for name in FIELDS}
        shift = 0.5 * random.normal()
        fields = {
            "old": 0.4 * noise["old"] + shift,
            "behaviour": 0.4 * noise["old"] + shift + 0.3 * noise["behaviour"] + 0.1 * random.normal(),
            "reference": 0.5 * noise["reference"],
            "entropy_weights": 0.1 * noise["entropy_weights"],
        }
        if number == count - 1:
            learned[:] = False
        out.append(Answer(tokens, learned, float(random.normal()) + 0.3 * (-1) ** number, banned, fields))
    return out


def around(answers: list[Answer], log_probs: list[np.ndarray]) -> list[Answer]:
    """The answers with log-probabilities near these."""
    out = []
    for one, log_prob in zip(answers, log_probs, strict=True):
        near = {name: value + log_prob * (name != "entropy_weights") for name, value in one.fields.items()}
        near = {name: np.where(one.learned, value, 0).astype(np.float32) for name, value in near.items()}
        out.append(dataclasses.replace(one, fields=near, advantage=float(np.float32(one.advantage))))
    return out


def batch_of(answers: list[Answer], rows: int, length: int, order=None) -> dict[str, np.ndarray]:
    """The answers, first fit, in rows filled up with padding."""
    names = ("tokens", "targets", "segment_ids", "positions", "banned")
    batch = {name: np.zeros((rows, length), np.int32) for name in names}
    batch |= {name: np.zeros((rows, length), np.float32) for name in ("loss_mask", "advantages", *FIELDS)}
    used, segments = [0] * rows, [0] * rows
    for number in range(len(answers)) if order is None else order:
        one = answers[number]
        size = len(one.learned)
        row = next(row for row in range(rows) if used[row] + size <= length)
        place = row, slice(used[row], used[row] + size)
        used[row], segments[row] = used[row] + size, segments[row] + 1
        values = dict(
            tokens=one.tokens[:-1], targets=one.tokens[1:], segment_ids=segments[row], positions=np.arange(size),
            banned=one.banned, loss_mask=one.learned, advantages=one.advantage, **one.fields,
        )  # fmt: skip
        for name, value in values.items():
            batch[name][place] = value
    return batch


def policy_statement(config: PolicyConfig, one: Answer, live: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """The policy loss of each learned token, as the papers have it; `frozen` is log pi where no gradient flows."""
    a, old, mu = one.advantage, *(one.fields[name][one.learned].astype(np.float64) for name in ("old", "behaviour"))
    r = np.exp(live - old)
    if config.algorithm == "cispo":
        loss = -np.minimum(np.exp(frozen - old), 5) * a * live
    else:
        low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(config.algorithm, (0.2, 0.2))
        if config.algorithm == "gspo":
            r = np.full(len(live), np.exp((live - old).mean()))
        objective = np.minimum(r * a, np.clip(r, 1 - low, 1 + high) * a)
        if config.dual_clip is not None and a < 0:
            objective = np.maximum(objective, config.dual_clip * a)
        loss = -objective
    if config.importance_cap is not None:
        ratio = np.exp(old - mu)
        if config.importance_level == "sequence":
            ratio = ratio.prod() * np.ones(len(live))
            loss = loss * np.where(ratio > config.importance_cap, 0, ratio)
        else:
            loss = loss * np.minimum(ratio, config.importance_cap)
    if config.drop_off_policy is not None and a < 0 and (mu - frozen).mean() > config.drop_off_policy:
        loss = 0 * loss
    return loss


def kl_statement(config: KlConfig, one: Answer, live: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    old, reference = (one.fields[name][one.learned].astype(np.float64) for name in ("old", "reference"))
    d = live - reference
    k = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) + d - 1}[config.estimator]
    if not config.unbiased:
        return k
    return np.exp((frozen if config.estimator == "k2" else live) - old) * k


def loss_statement(config: PolicyConfig, answers, live, frozen, entropy) -> dict[str, float]:
    """The loss and its terms from the log-probabilities and entropies of the learned tokens of each answer."""
    terms: dict[str, list[np.ndarray]] = {"policy": [], "kl": [], "bonus": []}
    for one, lp, held, h in zip(answers, live, frozen, entropy, strict=True):
        if one.learned.any():
            terms["policy"].append(policy_statement(config, one, lp, held))
            terms["kl"].append(kl_statement(config.kl, one, lp, held))
            terms["bonus"].append(one.fields["entropy_weights"][one.learned].astype(np.float64) * h)
    out = {}
    for name, values in terms.items():
        if config.algorithm in ("grpo", "gspo"):
            out[name] = np.mean([x.mean() for x in values])
        elif config.algorithm == "dr_grpo":
            out[name] = sum(x.sum() for x in values) / (len(values) * MAX_TOKENS)
        else:
            out[name] = np.concatenate(values).mean()
    out["total"] = out["policy"] + config.kl.coefficient * out["kl"] - out["bonus"]
    return out


def slopes(config: PolicyConfig, answers, log_probs, entropy) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Derivatives of the statement by every log-probability and entropy of a learned token, by central differences."""

    def derivative(of, values):
        out = [np.zeros(len(x)) for x in values]
        for number, x in enumerate(values):
            for i in range(len(x)):
                moved = []
                for sign in (1, -1):
                    copy = [y.copy() for y in values]
                    copy[number][i] += sign * 1e-6
                    moved.append(of(copy)["total"])
                out[number][i] = (moved[0] - moved[1]) / 2e-6
        return out

    by_log_prob = derivative(lambda x: loss_statement(config, answers, x, log_probs, entropy), log_probs)
    return by_log_prob, derivative(lambda x: loss_statement(config, answers, log_probs, log_probs, x), entropy)


def config_of(algorithm: str, **options) -> PolicyConfig:
    kl = KlConfig(**options.pop("kl", {}))
    length = {"constant_length": MAX_TOKENS} if algorithm == "dr_grpo" else {}
    return PolicyConfig(algorithm, kl=kl, **length, **options)


K3 = dict(coefficient=0.2)
OPTIONS = [
    {}, dict(dual_clip=1.3), dict(importance_cap=1.2), dict(importance_cap=1.5, importance_level="sequence"),
    dict(drop_off_policy=0.05), dict(kl=K3), dict(kl=K3 | dict(unbiased=False)), dict(kl=K3 | dict(estimator="k2")),
    dict(kl=K3 | dict(estimator="k2", unbiased=False)), dict(kl=K3 | dict(estimator="k1")),
    dict(dual_clip=1.3, importance_cap=1.2, drop_off_policy=0.05, kl=K3),
]  # fmt: skip
ALGORITHMS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


def learned_only(values: list[np.ndarray], answers: list[Answer]) -> list[np.ndarray]:
    return [np.asarray(x, np.float64)[one.learned] for x, one in zip(values, answers, strict=True)]


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
    whole = policy(config_of("dapo"), 1.0, ()).whole(batch)
    gaps = np.abs(np.concatenate(gap))
    np.testing.assert_allclose(
        [whole.tokens, whole.answers, whole.mismatch, whole.mismatch_max], [len(r), len(some), gaps.sum(), gaps.max()],
        rtol=1e-5,
    )  # fmt: skip
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


def trainer(config, objective, micro_batches: int = 1, mesh: dict | None = None, chunk: int = 1024) -> Trainer:
    settings, placement = OptimizerConfig(), sharding.Placement()
    if mesh is not None:
        placement = sharding.Placement(sharding.make_mesh(**mesh), sharding.TRAINING)
    return Trainer(
        config, ModelConfig(scan_layers=False), settings, schedule(settings, 10**3), placement,
        LossConfig(chunk_tokens=chunk), micro_batches, objective=objective,
    )  # fmt: skip


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
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5 * size, err_msg=name)
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


MESHES = [
    dict(data=2), dict(data=8), dict(tensor=2), dict(data=4, tensor=2), dict(data=2, expert=4), dict(data=2, context=2),
    dict(expert=2, tensor=2), dict(replica=2, data=2, tensor=2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "meshes"),
    [
        pytest.param(TINY, (), id="dense"),
        pytest.param(TINY_MOE, (), id="moe", marks=pytest.mark.slow),
        pytest.param(TINY, (3, 5, 7), id="dense-some", marks=pytest.mark.slow),
        pytest.param(TINY_MOE, (0, 1, 2, 4, 6), id="moe-some", marks=pytest.mark.slow),
        pytest.param(TINY, range(8), id="dense-all", marks=pytest.mark.soak),
        pytest.param(TINY_MOE, range(8), id="moe-all", marks=pytest.mark.soak),
    ],
)
def test_micro_batches_packing_padding_and_eight_meshes_give_the_gradients_of_one_batch(config, meshes):
    """With every term of the loss, and the load-balancing loss of experts."""
    algorithm = "gspo" if config is TINY else "dr_grpo"
    settings = config_of(algorithm, importance_cap=1.5, drop_off_policy=0.2, kl=K3)
    objective = policy(settings, 0.7, BANNED)
    whole = trainer(config, objective)
    params = whole.init(0).params
    answers = answers_of(16, seed=4)
    guess = [np.full(len(one.learned), -np.log(TINY.vocab_size), np.float32) for one in answers]
    answers = around(answers, guess)
    batch = batch_of(answers, 8, 48)
    expected, loss = whole.gradients(params, whole.place(batch))
    assert (loss.balance > 0) == (config is TINY_MOE)
    assert (batch["segment_ids"].max(axis=1) == 0).sum() >= 2  # rows of padding, whose micro-batches are not computed

    def check(other: Trainer, batch: dict[str, np.ndarray], where: object) -> None:
        held = jax.device_put(params, other.shardings.params)
        gradients, got = other.gradients(held, other.place(batch))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(loss), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=str(where))
        for name, value in gradients.items():
            wanted = np.asarray(expected[name])
            worst = np.abs(np.asarray(value) - wanted).max()
            assert worst <= 2e-5 * np.abs(wanted).max() + 1e-9, (where, name)

    if not meshes:
        order = np.random.default_rng(0).permutation(len(answers))
        check(trainer(config, objective, 4), batch, "micro-batches")
        check(trainer(config, objective, 8, chunk=13), batch_of(answers, 8, 48, order), "another order, small chunks")
        check(whole, batch_of(answers, 16, 24, order), "shorter rows, more padding")
    for sizes in (MESHES[i] for i in meshes):
        if "expert" in sizes and config is TINY:
            sizes = sizes | {"expert": 1}
        check(trainer(config, objective, mesh=sizes), batch, sizes)


@pytest.mark.parametrize(
    "config", [pytest.param(TINY, id="dense"), pytest.param(TINY_MOE, id="moe", marks=pytest.mark.slow)]
)
def test_an_empty_micro_batch_is_not_computed_and_the_result_is_the_same(config):
    """Counted by a callback in the objective: micro-batches with a learned token; with experts those with any."""
    computed: list[int] = []
    sparse = policy(config_of("grpo"), 1.0, ())
    share = sparse.share

    def counted(model, rows, whole, loss, share=share, computed=computed):
        jax.debug.callback(lambda _: computed.append(1), rows["loss_mask"].sum())
        return share(model, rows, whole, loss)

    answers = answers_of(9, seed=5)
    answers = around(answers, [np.full(len(one.learned), -4, np.float32) for one in answers])
    batch = batch_of(answers, 8, 24)
    rows = int((batch["segment_ids"].max(axis=1) > 0).sum())
    assert 3 <= rows <= 6
    if config is TINY_MOE:
        batch["loss_mask"][0] = 0  # its tokens count in the load-balancing loss
    results = []
    for objective in (sparse, dataclasses.replace(sparse, sparse=False)):
        one = trainer(config, dataclasses.replace(objective, share=counted), 8)
        params = one.init(0).params
        computed.clear()
        results.append(jax.device_get(one.gradients(params, one.place(batch))))
        jax.effects_barrier()
        assert len(computed) == (rows if objective.sparse else 8)
        computed.clear()
        results.append(jax.device_get(one.evaluate(params, one.place(batch))))
        jax.effects_barrier()
        assert len(computed) == (rows if objective.sparse else 8)
    for skipped, full in ((results[0], results[2]), (results[1], results[3])):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), skipped, full)


PLACED = [None, *MESHES[1:6], dict(context=2, tensor=2, data=2), dict(replica=2, expert=2, tensor=2)]


@pytest.mark.parametrize("tied", [False, True])
def test_scores_and_their_gradients_equal_those_of_all_logits(tied):
    """Chunk by chunk, on meshes that split the vocabulary, the embedding and the tokens; also with a frozen weight."""
    random = np.random.default_rng(0)
    b, t, d, v = 8, 12, 16, 32
    states = random.normal(size=(b, t, d)).astype(np.float32)
    weight = random.normal(size=(v, d) if tied else (d, v)).astype(np.float32)
    targets = random.integers(0, v, (b, t)).astype(np.int32)
    left_out = (random.random((b, t)) < 0.5) & ~np.isin(targets, (3, 20))
    above = tuple(random.normal(size=(2, b, t)).astype(np.float32))

    def plain(states, weight, temperature, banned_ids):
        logits = states @ (weight.T if tied else weight) / temperature
        drop = left_out[..., None] & np.isin(np.arange(v), banned_ids)
        log_p = jax.nn.log_softmax(jnp.where(drop, -jnp.inf, logits))
        entropy = -(jnp.exp(log_p) * jnp.where(drop, 0, log_p)).sum(axis=-1)
        return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0], entropy

    for mesh in PLACED:
        placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**mesh), sharding.TRAINING)
        for temperature, banned_ids in ((1.0, ()), (0.6, (3, 20))) if mesh is None else ((0.6, (3, 20)),):
            options = dict(tied=tied, placement=placement, chunk=7, temperature=temperature, banned_ids=banned_ids)

            @functools.partial(jax.jit, static_argnums=2)
            def ours(states, weight, frozen, options=options):
                def scores(states, weight):
                    banned = jnp.asarray(left_out) if options["banned_ids"] else None
                    return tuple(token_scores(states, weight, targets, banned_bt=banned, frozen=frozen, **options))

                values, pull = jax.vjp(scores, states, weight)
                return values, pull(above)

            def all_logits(states, weight, temperature=temperature, banned_ids=banned_ids):
                values, pull = jax.vjp(lambda *x: plain(*x, temperature, banned_ids), states, weight)
                return values, pull(above)

            placed = (
                jax.device_put(states, placement.sharding(("batch", "length", None), states.shape)),
                jax.device_put(
                    weight, placement.sharding(("vocab", "embed") if tied else ("embed", "vocab"), weight.shape)
                ),
            )
            expected = jax.jit(all_logits)(states, weight)
            for frozen in (False, True):
                got = ours(*placed, frozen)
                for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                    if frozen and a.shape == weight.shape:
                        e = np.zeros_like(e)
                    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.abs(e).max(), err_msg=str(mesh))
            if not banned_ids:
                found = token_log_probs(states, weight, targets, tied=tied, chunk=7)
                np.testing.assert_allclose(found, expected[0][0], rtol=1e-5, atol=1e-5)


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


def test_each_algorithm_fills_what_is_null_and_keeps_what_is_given():
    filled = {
        name: (c.normalize_std, c.ratio, c.clipping, c.clip_low, c.clip_high, c.aggregation)
        for name, c in ((name, PolicyConfig(name)) for name in ALGORITHMS)
    }
    assert filled == {
        "grpo": (True, "token", "clip", 0.2, 0.2, "sample_mean"),
        "dr_grpo": (False, "token", "clip", 0.2, 0.2, "constant_length"),
        "dapo": (True, "token", "clip", 0.2, 0.28, "token_mean"),
        "gspo": (True, "sequence", "clip", 3e-4, 4e-4, "sample_mean"),
        "cispo": (True, "token", "cispo", 1.0, 4.0, "token_mean"),
    }
    own = PolicyConfig("dapo", clip_high=0.3, normalize_std=False)
    assert (own.clip_high, own.normalize_std, own.clip_low) == (0.3, False, 0.2)
    assert dataclasses.replace(own) == own


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
