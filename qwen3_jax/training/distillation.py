"""Distillation as an objective: the divergence from a teacher, mean over learned tokens (`qwen3_jax.training.divergence`).

Fields of a batch besides `losses.BATCH_FIELDS`, at the place where the token is a target:

    teacher_states                  [B, T, E], final hidden states of the teacher, which a program of its own computes
    teacher_ids, teacher_log_probs  [B, T, K], in their place: its most probable tokens; see `TeacherTop`
    behaviour                       float32 [B, T], of answers that the student sampled: log mu, as the rollout measured it
    banned                          int32 [B, T], of the same: 1 where the rollout left `banned_ids` out

The teacher's output projection is an array of the step besides the batch (`Frozen.arrays`): `teacher_embedding` [V, E] where it
is tied, else `teacher_output` [E, V].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.model import Qwen3, RouterStats
from qwen3_jax.training.config import LossConfig
from qwen3_jax.training.distillation_config import DistillationConfig
from qwen3_jax.training.divergence import TeacherStates, TeacherTop, token_divergence
from qwen3_jax.training.losses import (
    BATCH_FIELDS,
    Objective,
    RouterMeans,
    Whole,
    balance_share,
    hidden_of,
    is_output_frozen,
    router_means,
    total_of,
    whole,
)

STATES, OUTPUT, EMBEDDING = "teacher_states", "teacher_output", "teacher_embedding"
IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"

DeviceBatch = dict[str, jax.Array]


def projection(tied: bool) -> tuple[str, tuple[str, str]]:
    """Return the name of the teacher's output projection among the step's arrays, and its logical axes."""
    return (EMBEDDING, ("vocab", "embed")) if tied else (OUTPUT, ("embed", "vocab"))


@struct.dataclass
class DistillationSums:
    """Sums over the learned tokens of one micro-batch, float32 scalars; balance and router as in `losses.Sums`.

    Attributes:
        divergence: from the teacher.
        cross_entropy: of -log pi(target).
        entropy: of pi.
        mismatch, mismatch_max: of |log pi - log mu|, their sum and the largest; None of data.
    """

    divergence: jax.Array
    cross_entropy: jax.Array
    entropy: jax.Array
    mismatch: jax.Array | None
    mismatch_max: jax.Array | None
    balance: jax.Array
    router: RouterStats | None


@struct.dataclass
class DistillationLoss(RouterMeans):
    """Means over the learned tokens of a global batch, in nats.

    Attributes:
        total: divergence + router_aux_loss_coef * balance; its gradient is taken.
        divergence: from the teacher, as `DistillationConfig.divergence` says.
        cross_entropy: of the targets, under the student.
        entropy: of the student's distribution.
        mismatch: mean of |log pi - log mu|: how far the rollout's log-probabilities are from the trainer's; None of data.
        mismatch_max: the largest.
        tokens: learned tokens.
    """

    total: jax.Array
    divergence: jax.Array
    cross_entropy: jax.Array
    entropy: jax.Array
    mismatch: jax.Array | None
    mismatch_max: jax.Array | None
    balance: jax.Array
    tokens: jax.Array

    @property
    def measure(self) -> jax.Array:
        """What held-out data is measured by."""
        return self.divergence


def distillation(
    config: DistillationConfig, temperature: float = 1.0, banned_ids: tuple[int, ...] = (), *, on_policy: bool = False
) -> Objective:
    """Return the exact form of distillation.

    Args:
        config: its settings.
        temperature: of both distributions.
        banned_ids: tokens that rollouts leave out of the distribution where the batch has `banned`.
        on_policy: batches are answers that the student sampled.
    """
    kind = config.divergence or ("reverse_kl" if on_policy else "forward_kl")
    beta = 0.5 if config.beta is None else config.beta
    fields: dict[str, Any] = {**BATCH_FIELDS}
    if on_policy:
        fields |= {"behaviour": jnp.float32} | ({"banned": jnp.int32} if banned_ids else {})
    if config.top_k is not None:
        fields |= {IDS: (jnp.int32, config.top_k), LOG_PROBS: (jnp.float32, config.top_k)}
    banned_ids = banned_ids if on_policy else ()

    def share(model: Qwen3, batch: DeviceBatch, whole: Whole, loss: LossConfig) -> tuple[jax.Array, DistillationSums]:
        hidden, (weight, tied), learned = hidden_of(model, batch), model.output_matrix(), batch["loss_mask"]
        total, values = token_divergence(
            hidden.states.astype(model.dtype), weight, batch["targets"], learned, _teacher_of(batch), tied=tied, kind=kind,
            beta=beta, temperature=temperature, chunk=loss.chunk_tokens, placement=model.execution.placement,
            frozen=is_output_frozen(model), banned_bt=batch["banned"] if banned_ids else None, banned_ids=banned_ids,
        )  # fmt: skip

        def over(values_bt: jax.Array) -> jax.Array:
            return jnp.where(learned > 0, values_bt, 0).sum()

        mismatch = mismatch_max = None
        if on_policy:
            off_bt = jnp.where(learned > 0, jnp.abs(values.log_probs - batch["behaviour"]), 0)
            mismatch, mismatch_max = off_bt.sum(), off_bt.max()
        balance = balance_share(hidden.router, whole)
        sums = DistillationSums(
            over(values.divergence), -over(values.log_probs), over(values.entropy), mismatch, mismatch_max, balance,
            hidden.router,
        )  # fmt: skip
        return total / jnp.maximum(whole.tokens, 1) + model.config.router_aux_loss_coef * balance, sums

    return Objective(fields, whole, share, _finish, sparse=on_policy, combine=_combine)


def _teacher_of(batch: DeviceBatch) -> TeacherStates | TeacherTop:
    if IDS in batch:
        return TeacherTop(batch[IDS], batch[LOG_PROBS])
    tied = EMBEDDING in batch
    return TeacherStates(batch[STATES], batch[EMBEDDING if tied else OUTPUT], tied)


def _combine(sums: DistillationSums) -> DistillationSums:
    total = total_of(sums)
    return total if sums.mismatch_max is None else dataclasses.replace(total, mismatch_max=sums.mismatch_max.max())


def _finish(sums: DistillationSums, whole: Whole, _: LossConfig, balance_coefficient: float) -> DistillationLoss:
    tokens = jnp.maximum(whole.tokens, 1)
    divergence = sums.divergence / tokens
    return DistillationLoss(
        divergence + balance_coefficient * sums.balance, divergence, sums.cross_entropy / tokens, sums.entropy / tokens,
        None if sums.mismatch is None else sums.mismatch / tokens, sums.mismatch_max, sums.balance, whole.tokens,
        **router_means(sums.router),
    )  # fmt: skip
