"""Policy objectives of reinforcement learning: GRPO, Dr. GRPO, DAPO, GSPO, CISPO and their corrections (`PolicyConfig`).

Answers are packed: an answer's learned tokens lie in one segment of one row, and one segment is one answer. `loss_mask` is 1
for tokens that were sampled and are trained, 0 for prompts, forced tokens, tool results and padding; nothing that a batch
holds under a mask of 0 changes anything, not even NaN.

Fields of a batch besides `losses.BATCH_FIELDS`, float32 [B, T], at the place where the token is a target:

    advantages        A of the token's answer, the same for all its tokens; absent: log ref - log pi_o of the token, with which
                      the policy gradient is that of the reverse KL to a teacher (distillation)
    behaviour         log mu: of the policy that sampled, as the rollout measured it
    old               log pi_o: of the trainer's parameters at the round's start (`log_probs_of`); absent: pi_o is pi
    reference         log ref; where `kl.coefficient` is above 0, or there are no advantages
    entropy_weights   coefficient of the token's entropy: positive is a bonus
    banned            int32, 1 where the rollout left `banned_ids` out; where there are any
    experts, replayed_experts       see `losses.EXPERTS`; one of them, of a model with experts

Sums over answers or tokens are divided once, by those of the global batch.

Shapes: b batch, t length, s segments of a row (T + 1, the first of which is padding).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.errors import UserError
from qwen3_jax.model import Qwen3, RouterStats
from qwen3_jax.training.config import LossConfig
from qwen3_jax.training.cross_entropy import TokenScores, token_scores
from qwen3_jax.training.losses import (
    BATCH_FIELDS,
    EXPERTS,
    REPLAYED,
    Objective,
    RouterMeans,
    Whole,
    balance_share,
    hidden_of,
    is_output_frozen,
    router_means,
    total_of,
)
from qwen3_jax.training.policy_config import KlConfig, PolicyConfig

DeviceBatch = dict[str, jax.Array]


@struct.dataclass(kw_only=True)
class PolicyWhole(Whole):
    """Counts of the global batch.

    Attributes:
        tokens: learned tokens.
        answers: answers with a learned token.
    """

    answers: jax.Array


@struct.dataclass(kw_only=True)
class PolicyFigures:
    """Of learned tokens, float32 scalars: sums over a micro-batch (`PolicySums`), means over the global batch (`PolicyLoss`).

    Attributes:
        policy, kl, bonus: terms of the loss, aggregated as `PolicyConfig.aggregation` says: the policy loss; the estimator
            without its coefficient, None without one; coefficient x entropy.
        entropy: of the tokens' whole distributions, in nats.
        ratio: r of tokens or sequences.
        kl_old: r - 1 - log r of tokens, whose mean is KL(pi_o || pi), in nats.
        clipped_low, clipped_high, clipped_dual: tokens whose r is replaced by 1 - clip_low, 1 + clip_high, or `dual_clip`.
        capped: tokens whose pi_o / mu is above `importance_cap`, with importance_level token.
        masked: answers that importance_level sequence masks; the mean is over answers.
        dropped: answers that `drop_off_policy` drops; the mean is over answers.
        mismatch: of |log pi_o - log mu|: how far the rollout's log-probabilities are from the trainer's, in nats.
        mismatch_max: the largest, neither sum nor mean.
        balance: as in `losses.Sums`.
    """

    policy: jax.Array
    kl: jax.Array | None
    bonus: jax.Array
    entropy: jax.Array
    ratio: jax.Array
    kl_old: jax.Array
    clipped_low: jax.Array
    clipped_high: jax.Array
    clipped_dual: jax.Array
    capped: jax.Array
    masked: jax.Array
    dropped: jax.Array
    mismatch: jax.Array
    mismatch_max: jax.Array
    balance: jax.Array


_TERMS, _OF_ANSWERS = ("policy", "kl", "bonus"), ("masked", "dropped")
_OF_TOKENS = (
    "entropy", "ratio", "kl_old", "clipped_low", "clipped_high", "clipped_dual", "capped", "mismatch",
)  # fmt: skip


@struct.dataclass(kw_only=True)
class PolicySums(PolicyFigures):
    """Sums over the learned tokens of one micro-batch; terms of the loss are weighted as `aggregation` says.

    Attributes:
        mismatch_counts: [100], learned tokens by their |log pi_o - log mu|, see `_histogram`.
        router: as in `losses.Sums`.
    """

    mismatch_counts: jax.Array
    router: RouterStats | None


@struct.dataclass(kw_only=True)
class PolicyLoss(PolicyFigures, RouterMeans):
    """Means over a global batch.

    Attributes:
        total: policy + kl.coefficient * kl - bonus + router_aux_loss_coef * balance; its gradient is taken.
        mismatch_999: a bound that 99.9% of the learned tokens do not exceed, at most 26% above the percentile.
        answers: their number.
        tokens: learned tokens.
        router_agreement: [L], share of the experts that the rollout sent tokens to which the router chooses itself, over tokens
            of which they are known, prompts included; None for a dense model.
    """

    total: jax.Array
    mismatch_999: jax.Array
    answers: jax.Array
    tokens: jax.Array
    router_agreement: jax.Array | None

    @property
    def measure(self) -> jax.Array:
        """What held-out data is measured by."""
        return self.policy


class _Answers:
    """Sums over the learned tokens of each answer of a batch."""

    def __init__(self, batch: DeviceBatch):
        self.learned_bt = batch["loss_mask"] > 0
        self._segments_bt = batch["segment_ids"]
        self.length_bs = self._total(self.learned_bt.astype(jnp.float32))
        self.is_answer_bs = self.length_bs > 0
        self.length_bt = jnp.maximum(self._spread(self.length_bs), 1)

    def values(self, field_bt: jax.Array) -> jax.Array:
        """A field in float32, 0 where nothing is learned."""
        return jnp.where(self.learned_bt, field_bt.astype(jnp.float32), 0)

    def total(self, values_bt: jax.Array) -> jax.Array:
        """For each token the sum over its answer."""
        return self._spread(self._total(jnp.where(self.learned_bt, values_bt, 0)))

    def mean(self, values_bt: jax.Array) -> jax.Array:
        """For each token the mean over its answer."""
        return self.total(values_bt) / self.length_bt

    def count(self, where_bt: jax.Array) -> jax.Array:
        """The number of answers with a condition, which is the same for all tokens of one."""
        return jnp.where(self.learned_bt & where_bt, 1 / self.length_bt, 0).sum()

    def _total(self, values_bt: jax.Array) -> jax.Array:
        of_row = functools.partial(jax.ops.segment_sum, num_segments=values_bt.shape[1] + 1)
        return jax.vmap(of_row)(values_bt, self._segments_bt)

    def _spread(self, values_bs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_bs, self._segments_bt, axis=1)


def policy(
    config: PolicyConfig,
    temperature: float,
    banned_ids: tuple[int, ...],
    *,
    on_policy: bool = False,
    from_teacher: bool = False,
) -> Objective:
    """Return a policy objective.

    Args:
        config: its settings.
        temperature: of the rollouts.
        banned_ids: tokens that rollouts leave out of the distribution where the batch has `banned`.
        on_policy: every batch is the first that is learned from its rollouts, so that pi_o is pi: the batch has no `old`.
        from_teacher: the batch has no `advantages`; they follow from `reference`.

    Raises:
        UserError: `constant_length` is needed and not filled in.
    """
    config = config.filled()
    if config.aggregation == "constant_length" and config.constant_length is None:
        raise UserError(
            "rl.policy.aggregation constant_length needs a length; set rl.policy.constant_length to the longest answer's."
        )
    coefficient = config.kl.coefficient
    names = ["behaviour", "entropy_weights", *([] if on_policy else ["old"])]
    names += [*([] if from_teacher else ["advantages"]), *(["reference"] if coefficient or from_teacher else [])]
    fields = BATCH_FIELDS | dict.fromkeys(names, jnp.float32) | ({"banned": jnp.int32} if banned_ids else {})

    def share(model: Qwen3, batch: DeviceBatch, whole: PolicyWhole, loss: LossConfig) -> tuple[jax.Array, PolicySums]:
        hidden = hidden_of(model, batch)
        scores = _scores(model, hidden.states, batch, temperature, banned_ids, loss.chunk_tokens)
        total, sums = policy_sums(config, scores.log_probs, scores.entropy, batch)
        balance = balance_share(hidden.router, whole)
        total = total / _count(config, whole) + model.config.router_aux_loss_coef * balance
        return total, dataclasses.replace(sums, balance=balance, router=hidden.router)

    def finish(sums: PolicySums, whole: PolicyWhole, _: LossConfig, balance_coefficient: float) -> PolicyLoss:
        means = _means(sums, _count(config, whole), whole) | router_means(sums.router)
        penalty = 0 if means["kl"] is None else coefficient * means["kl"]
        return PolicyLoss(
            total=means["policy"] + penalty - means["bonus"] + balance_coefficient * sums.balance, **means,
            mismatch_999=_percentile(sums.mismatch_counts, 0.999), mismatch_max=sums.mismatch_max, balance=sums.balance,
            answers=whole.answers, tokens=whole.tokens, router_agreement=_agreement(sums.router),
        )  # fmt: skip

    experts = REPLAYED if config.replay_experts else EXPERTS
    return Objective(fields, _whole, share, finish, sparse=True, combine=_combine, experts=experts)


def log_probs_of(
    model: Qwen3,
    batch: DeviceBatch,
    *,
    temperature: float = 1.0,
    banned_ids: tuple[int, ...] = (),
    chunk: int = 1024,
) -> TokenScores:
    """Return log p(target) and entropy of every token, float32 [B, T], as the objective computes them, without a gradient.

    With the trainer's parameters they are `old`, with the reference model's `reference`. Values at tokens that are not learned
    mean nothing; log p is -inf where a target is left out.

    Args:
        model: with its parameters.
        batch: `BATCH_FIELDS`, and `banned` where there are `banned_ids`.
        temperature, banned_ids: as for `policy`.
        chunk: tokens per device whose logits are in memory at a time.
    """
    states = hidden_of(model, batch).states
    return jax.lax.stop_gradient(_scores(model, states, batch, temperature, banned_ids, chunk))


def policy_sums(
    config: PolicyConfig, log_prob_bt: jax.Array, entropy_bt: jax.Array, batch: DeviceBatch
) -> tuple[jax.Array, PolicySums]:
    """Return the sum whose gradient is taken, not divided yet, and all sums (of experts none).

    Args:
        config: the objective.
        log_prob_bt: log pi, float32, differentiable.
        entropy_bt: of its distributions, in nats, differentiable.
        batch: the fields of the objective without tokens and targets.
    """
    answers = _Answers(batch)
    learned = answers.learned_bt
    log_pi, behaviour = answers.values(log_prob_bt), answers.values(batch["behaviour"])
    old = answers.values(batch["old"]) if "old" in batch else jax.lax.stop_gradient(log_pi)
    entropy = answers.values(entropy_bt)
    advantage = answers.values(batch["advantages"] if "advantages" in batch else batch["reference"] - old)
    log_token_ratio = log_pi - old
    log_ratio = answers.mean(log_token_ratio) if config.ratio == "sequence" else log_token_ratio
    weight, capped, masked = _importance(config, old - behaviour, answers)
    dropped = jnp.zeros(learned.shape, bool)
    if config.drop_off_policy is not None:
        dropped = (advantage < 0) & (answers.mean(behaviour - log_pi) > config.drop_off_policy)
    policy_bt = jnp.where(dropped, 0, _policy_loss(config, log_ratio, log_pi, advantage) * weight)
    bonus_bt = answers.values(batch["entropy_weights"]) * entropy
    loss_bt, kl_bt = policy_bt - bonus_bt, None
    if config.kl.coefficient:
        kl_bt = _kl(config.kl, log_pi - answers.values(batch["reference"]), log_token_ratio)
        loss_bt += config.kl.coefficient * kl_bt

    def aggregated(values_bt: jax.Array) -> jax.Array:
        return jnp.where(learned, values_bt * _weights(config, answers), 0).sum()

    def over(values_bt: jax.Array) -> jax.Array:
        return jnp.where(learned, values_bt, 0).astype(jnp.float32).sum()

    low, high, dual = _clipped(config, log_ratio, advantage)
    mismatch = jnp.abs(old - behaviour)
    sums = PolicySums(
        policy=aggregated(policy_bt), kl=None if kl_bt is None else aggregated(kl_bt), bonus=aggregated(bonus_bt),
        entropy=over(entropy), ratio=over(jnp.exp(log_ratio)), kl_old=over(jnp.expm1(log_token_ratio) - log_token_ratio),
        clipped_low=over(low), clipped_high=over(high), clipped_dual=over(dual), capped=over(capped),
        masked=answers.count(masked), dropped=answers.count(dropped), mismatch=over(mismatch),
        mismatch_max=jnp.where(learned, mismatch, 0).max(), mismatch_counts=_histogram(mismatch, learned),
        balance=jnp.zeros(()), router=None,
    )  # fmt: skip
    return aggregated(loss_bt), jax.lax.stop_gradient(sums)


def _policy_loss(config: PolicyConfig, log_ratio: jax.Array, log_pi: jax.Array, advantage: jax.Array) -> jax.Array:
    """The loss of each token. r is bounded as a logarithm: one that overflows has a gradient of NaN behind a minimum."""
    low, high = _log(1 - config.clip_low), math.log1p(config.clip_high)  # type: ignore[operator,arg-type]
    if config.clipping == "cispo":
        return -jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio, low, high))) * advantage * log_pi
    top = math.inf if config.dual_clip is None else math.log(config.dual_clip)
    bounded = jnp.where(advantage >= 0, jnp.minimum(log_ratio, high), jnp.clip(log_ratio, low, top))
    return -jnp.exp(bounded) * advantage


def _clipped(
    config: PolicyConfig, log_ratio: jax.Array, advantage: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where r is replaced by the lower bound, by the upper one, and by that of the dual clip."""
    low, high = log_ratio < _log(1 - config.clip_low), log_ratio > math.log1p(config.clip_high)  # type: ignore[operator,arg-type]
    if config.clipping == "cispo":
        return low, high, jnp.zeros_like(low)
    top = math.inf if config.dual_clip is None else math.log(config.dual_clip)
    return low & (advantage < 0), high & (advantage > 0), (log_ratio > top) & (advantage < 0)


def _importance(
    config: PolicyConfig, difference_bt: jax.Array, answers: _Answers
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the importance weight of each token, where it is capped, and where its answer is masked.

    Args:
        difference_bt: log pi_o - log mu.
    """
    nowhere = jnp.zeros(difference_bt.shape, bool)
    if config.importance_cap is None:
        return jnp.ones_like(difference_bt), nowhere, nowhere
    limit = math.log(config.importance_cap)
    if config.importance_level == "token":
        return jnp.exp(jnp.minimum(difference_bt, limit)), difference_bt > limit, nowhere
    difference_bt = answers.total(difference_bt)
    masked = difference_bt > limit
    return jnp.where(masked, 0, jnp.exp(difference_bt)), nowhere, masked


def _kl(config: KlConfig, d: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """The term of each token, see `KlConfig`; `d` is log pi - log ref."""
    if config.estimator == "k3":
        if config.unbiased:
            return _weighted_k3(d, log_ratio)
        term = jnp.expm1(-d) + d
    else:
        term = d if config.estimator == "k1" else d * d / 2
    if not config.unbiased:
        return term
    ratio = jnp.exp(log_ratio)
    return (jax.lax.stop_gradient(ratio) if config.estimator == "k2" else ratio) * term


_FAR = -20.0  # nats: below, exp(-d) is more than float32 can add d - 1 to


def _weighted_k3(d: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """r (exp(-d) + d - 1). Where pi is far below the reference r exp(-d) = ref / pi_o is one power, else 0 times infinity."""
    is_far, ratio = d < _FAR, jnp.exp(log_ratio)
    near = ratio * (jnp.expm1(-jnp.maximum(d, _FAR)) + d)
    return jnp.where(is_far, jnp.exp(jnp.where(is_far, log_ratio - d, 0)) + ratio * (d - 1), near)


def _weights(config: PolicyConfig, answers: _Answers) -> Any:
    """What each token's term is multiplied by, before the sum is divided by `_count`."""
    if config.aggregation == "sample_mean":
        return 1 / answers.length_bt
    return 1 if config.aggregation == "token_mean" else 1 / config.constant_length  # type: ignore[operator]


def _count(config: PolicyConfig, whole: PolicyWhole) -> jax.Array:
    """What sums of the loss are divided by: tokens or answers of the global batch."""
    return jnp.maximum(whole.tokens if config.aggregation == "token_mean" else whole.answers, 1)


def _means(sums: PolicySums, count: jax.Array, whole: PolicyWhole) -> dict[str, Any]:
    """Return the means by name: of terms over `count`, of others over learned tokens or answers of the global batch."""
    divisors = dict.fromkeys(_TERMS, count) | dict.fromkeys(_OF_TOKENS, jnp.maximum(whole.tokens, 1))
    divisors |= dict.fromkeys(_OF_ANSWERS, jnp.maximum(whole.answers, 1))
    values = {name: getattr(sums, name) for name in divisors}
    return {name: None if value is None else value / divisors[name] for name, value in values.items()}


def _whole(batch: DeviceBatch) -> PolicyWhole:
    answers = _Answers(batch)
    return PolicyWhole(
        tokens=answers.length_bs.sum(),
        valid=(batch["segment_ids"] > 0).sum().astype(jnp.float32),
        answers=answers.is_answer_bs.sum().astype(jnp.float32),
    )


def _combine(sums: PolicySums) -> PolicySums:
    """The sums of all micro-batches, from those of each along the first axis."""
    return dataclasses.replace(total_of(sums), mismatch_max=sums.mismatch_max.max(axis=0))


def _agreement(router: RouterStats | None) -> jax.Array | None:
    if router is None or router.agreed is None or router.compared is None:
        return None
    return router.agreed / jnp.maximum(router.compared, 1)


_BINS, _PER_DECADE, _LEAST = 100, 10, -8.0  # of the histogram, from 1e-8 to 100 nats


def _histogram(values_bt: jax.Array, learned_bt: jax.Array) -> jax.Array:
    """Count learned tokens by their value: ten bins in each power of ten, float32 [100]."""
    place_bt = (jnp.log10(jnp.maximum(values_bt, 1e-30)) - _LEAST) * _PER_DECADE
    place_bt = jnp.clip(jnp.floor(place_bt), 0, _BINS - 1).astype(jnp.int32)
    return jnp.zeros(_BINS).at[place_bt.reshape(-1)].add(learned_bt.reshape(-1).astype(jnp.float32))


def _percentile(counts: jax.Array, share: float) -> jax.Array:
    """Return the upper end of the bin that holds the value of a share of all tokens."""
    place = jnp.argmax(jnp.cumsum(counts) >= share * counts.sum())
    return 10 ** (_LEAST + (place + 1) / _PER_DECADE)


def _scores(
    model: Qwen3, states: jax.Array, batch: DeviceBatch, temperature: float, banned_ids: tuple[int, ...], chunk: int
) -> TokenScores:
    weight, tied = model.output_matrix()
    return token_scores(
        states.astype(model.dtype), weight, batch["targets"], tied=tied, chunk=chunk,
        placement=model.execution.placement, frozen=is_output_frozen(model), temperature=temperature,
        banned_bt=batch["banned"] if banned_ids else None, banned_ids=banned_ids, needed_bt=batch["loss_mask"] > 0,
    )  # fmt: skip


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
