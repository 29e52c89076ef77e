"""Losses of preferences: direct preference optimisation, and reward models. Sums over pairs, divided once by their number.

    DPO              -log sigmoid(beta ((log pi - log ref)(chosen) - (log pi - log ref)(rejected)))
    reward model     -log sigmoid(r(chosen) - r(rejected))

(Rafailov et al. 2023, arXiv 2305.18290, equation 7; Bradley & Terry 1952, as in Ouyang et al. 2022, arXiv 2203.02155, equation
1.) log pi is the sum over the learned tokens of a document, r the reward of its last token.

Both documents of a pair lie in one row as segments 2p + 1 and 2p + 2 (`qwen3_jax.data.batches`), so every sum is one within a
row.

Shapes: b batch, t length, p pairs of a row (T // 2, most of them empty), 2 chosen and rejected.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.model import Qwen3, RewardModel, RouterStats
from qwen3_jax.training.config import LossConfig
from qwen3_jax.training.cross_entropy import token_log_probs, token_loss
from qwen3_jax.training.losses import (
    BATCH_FIELDS,
    Objective,
    RouterMeans,
    Whole,
    balance_share,
    hidden_of,
    is_output_frozen,
    router_means,
)

DeviceBatch = dict[str, jax.Array]


@struct.dataclass
class PairSums:
    """Sums over the pairs of one micro-batch, float32 scalars; the rest as in `losses.Sums`.

    Attributes:
        loss: of the pairs.
        rewards_chosen, rewards_rejected: of DPO beta (log pi - log ref), of a reward model its rewards.
        accuracies: pairs whose chosen answer has the higher reward.
        logps_chosen, logps_rejected: of DPO log pi; None for a reward model.
    """

    loss: jax.Array
    rewards_chosen: jax.Array
    rewards_rejected: jax.Array
    accuracies: jax.Array
    logps_chosen: jax.Array | None
    logps_rejected: jax.Array | None
    balance: jax.Array
    router: RouterStats | None


@struct.dataclass
class PairLoss(RouterMeans):
    """Means over the pairs of a global batch, float32 scalars; see `PairSums`.

    Attributes:
        total: preference + router_aux_loss_coef * balance; its gradient is taken.
        preference: mean loss of a pair, in nats; log 2 for a model that cannot tell them apart.
        margins: rewards_chosen - rewards_rejected.
        pairs: their number.
    """

    total: jax.Array
    preference: jax.Array
    rewards_chosen: jax.Array
    rewards_rejected: jax.Array
    margins: jax.Array
    accuracies: jax.Array
    logps_chosen: jax.Array | None
    logps_rejected: jax.Array | None
    balance: jax.Array
    pairs: jax.Array

    @property
    def measure(self) -> jax.Array:
        """What held-out data is measured by."""
        return self.preference

    @property
    def tokens(self) -> jax.Array:
        """What means are over."""
        return self.pairs


def whole_pairs(batch: DeviceBatch) -> Whole:
    """Return the counts of a global batch of preferences."""
    firsts = (batch["segment_ids"] > 0) & (batch["positions"] == 0)
    return Whole(firsts.sum().astype(jnp.float32) / 2, (batch["segment_ids"] > 0).sum().astype(jnp.float32))


def sums_of_segments(values_bt: jax.Array, segments_bt: jax.Array) -> jax.Array:
    """Return the sum over each document of every pair, [B, P, 2]."""
    pairs = values_bt.shape[1] // 2
    total = functools.partial(jax.ops.segment_sum, num_segments=2 * pairs + 1)
    return jax.vmap(total)(values_bt, segments_bt)[:, 1:].reshape(-1, pairs, 2)


def dpo(beta: float) -> Objective:
    """Return direct preference optimisation; batches have `reference`, log ref at the first token of each document."""

    def share(model: Qwen3, batch: DeviceBatch, whole: Whole, config: LossConfig) -> tuple[jax.Array, PairSums]:
        hidden = hidden_of(model, batch)
        states, (weight, tied) = hidden.states.astype(model.dtype), model.output_matrix()
        options: dict[str, Any] = dict(tied=tied, chunk=config.chunk_tokens, placement=model.execution.placement)
        segments, learned_bt = batch["segment_ids"], batch["loss_mask"] > 0
        logp_bt = (
            token_log_probs(states, weight, batch["targets"], needed_bt=learned_bt, **options) * batch["loss_mask"]
        )
        logp_bp2 = sums_of_segments(logp_bt, segments)
        reward_bp2 = beta * (logp_bp2 - sums_of_segments(batch["reference"], segments))
        real_bp = _real(batch)
        margin_bp = (reward_bp2[..., 0] - reward_bp2[..., 1]) * real_bp
        loss = (jax.nn.softplus(-margin_bp) * real_bp).sum()
        # The gradient of the loss by log pi of a document, which is the weight of the cross-entropy of its tokens.
        slope_bp = beta * jax.nn.sigmoid(-margin_bp) * real_bp
        slope_bs = jnp.stack([slope_bp, -slope_bp], axis=-1).reshape(len(segments), -1)
        slope_bt = jnp.take_along_axis(slope_bs, jnp.maximum(segments - 1, 0), axis=1) * batch["loss_mask"]
        surrogate = token_loss(
            states, weight, batch["targets"], slope_bt, frozen=is_output_frozen(model), **options
        ).total
        balance = balance_share(hidden.router, whole)
        total = loss + surrogate - jax.lax.stop_gradient(surrogate)
        total = total / jnp.maximum(whole.tokens, 1) + model.config.router_aux_loss_coef * balance
        return total, _sums(loss, reward_bp2, real_bp, logp_bp2, balance, hidden.router)

    return Objective(BATCH_FIELDS | {"reference": jnp.float32}, whole_pairs, share, _finish)


def _reward_share(model: RewardModel, batch: DeviceBatch, whole: Whole, _: LossConfig) -> tuple[jax.Array, PairSums]:
    hidden = hidden_of(model, batch)
    reward_bp2 = sums_of_segments(model.rewards(hidden.states) * batch["last"], batch["segment_ids"])
    real_bp = _real(batch)
    loss = (jax.nn.softplus(reward_bp2[..., 1] - reward_bp2[..., 0]) * real_bp).sum()
    balance = balance_share(hidden.router, whole)
    share = loss / jnp.maximum(whole.tokens, 1) + model.config.router_aux_loss_coef * balance
    return share, _sums(loss, reward_bp2, real_bp, None, balance, hidden.router)


def _real(batch: DeviceBatch) -> jax.Array:
    """Return 1 for the pairs that there are, float32 [B, P]."""
    firsts = (batch["segment_ids"] > 0) & (batch["positions"] == 0)
    return sums_of_segments(firsts.astype(jnp.float32), batch["segment_ids"])[..., 0]


def _sums(loss, reward_bp2, real_bp, logp_bp2, balance, router) -> PairSums:
    rewards = (reward_bp2 * real_bp[..., None]).sum(axis=(0, 1))
    chosen, rejected = (None, None) if logp_bp2 is None else (logp_bp2 * real_bp[..., None]).sum(axis=(0, 1))
    right = ((reward_bp2[..., 0] > reward_bp2[..., 1]) * real_bp).sum()
    return PairSums(loss, rewards[0], rewards[1], right, chosen, rejected, balance, router)


def _finish(sums: PairSums, whole: Whole, _: LossConfig, balance_coefficient: float) -> PairLoss:
    count = jnp.maximum(whole.tokens, 1)
    chosen, rejected = sums.rewards_chosen / count, sums.rewards_rejected / count
    logp_chosen, logp_rejected = (None if x is None else x / count for x in (sums.logps_chosen, sums.logps_rejected))
    preference = sums.loss / count
    return PairLoss(
        preference + balance_coefficient * sums.balance, preference, chosen, rejected, chosen - rejected,
        sums.accuracies / count, logp_chosen, logp_rejected, sums.balance, whole.tokens, **router_means(sums.router),
    )  # fmt: skip


_SEEN = {name: BATCH_FIELDS[name] for name in ("tokens", "segment_ids", "positions")}
REWARD_MODEL = Objective(_SEEN | {"last": jnp.float32}, whole_pairs, _reward_share, _finish, RewardModel)
