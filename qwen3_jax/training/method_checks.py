"""Refuses settings of a run that its method does not read, or that it needs and lacks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qwen3_jax.data.config import DataConfig
from qwen3_jax.errors import UserError
from qwen3_jax.training.policy_config import PolicyConfig
from qwen3_jax.training.rl_config import RlConfig

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def check_method(config: TrainConfig) -> DataConfig:
    """Check a run, and return its data with what the method says of it: whether its records are preferences.

    Raises:
        UserError: names the first setting that does not fit.
    """
    method, data = config.method, config.data
    if config.rl is None and method == "grpo":
        raise UserError("method: grpo reads its prompts from rl; add that.")
    if config.rl is not None and method not in ("grpo", "distillation"):
        raise UserError(f"rl is read by method: grpo and distillation, and this run has method: {method}.")
    if (config.distillation is None) == (method == "distillation"):
        raise UserError(
            "method: distillation needs distillation.teacher; add that."
            if config.distillation is None
            else f"distillation is read by method: distillation, and this run has method: {method}."
        )
    if config.rl is not None:
        _check_rl(config, config.rl)
    elif not data.sources:
        raise UserError(
            "data.sources is empty: nothing to train on"
            + ("; or let the student answer the prompts of rl." if method == "distillation" else "")
        )
    if config.distillation is not None:
        _check_distillation(config)
    pairs = method in ("dpo", "reward_model")
    for source in data.sources:
        if source.pairs and not pairs:
            raise UserError(f"source {source.name!r}: preferences (pairs) are for method: dpo or reward_model.")
        if method == "sft" and source.loss_on == "all":
            raise UserError(
                f"source {source.name!r}: loss_on: all learns prompts too, which method: sft does not; leave it out, or "
                "set method: pretrain."
            )
    if config.dpo is not None and method != "dpo":
        raise UserError(f"dpo is read by method: dpo, and this run has method: {method}.")
    if method == "dpo" and config.model.init_from is None:
        raise UserError("method: dpo trains a model that can already answer; set model.init_from.")
    if (pairs or method == "distillation") and config.loss.z_loss:
        raise UserError(f"loss.z_loss is not part of method: {method}; leave it out.")
    if config.lora is not None and method == "reward_model":
        raise UserError(
            "lora: and method: reward_model do not go together, because the new head has no frozen weights to be added to; "
            "leave lora out to train all parameters."
        )
    if config.budget_curve is not None and method == "reward_model":
        raise UserError("budget_curve generates answers, which a reward model cannot; leave it out.")
    if not pairs:
        return data
    return dataclasses.replace(data, sources=[dataclasses.replace(source, pairs=True) for source in data.sources])


def _check_rl(config: TrainConfig, rl: RlConfig) -> None:
    """Refuse what a run on sampled answers does not read, and rows that cannot hold its samples."""
    data, method = config.data, config.method
    unread = {
        "stages": config.stages != [], "data.sources": data.sources != [], "data.lengths": data.lengths != [],
        "data.packing_rows": data.packing_rows != 256, "data.cache": data.cache is not None,
        "data.prefetch_batches": data.prefetch_batches != 4, "loss.z_loss": config.loss.z_loss != 0,
        "budget_curve": config.budget_curve is not None, "eval_batches": config.eval_batches != 8,
    }  # fmt: skip
    for name, given in unread.items():
        if given:
            with_rl = "" if method == "grpo" else " with rl"
            raise UserError(f"{name} is not read by method: {method}{with_rl}; leave it out.")
    if config.model.init_from is None:
        raise UserError(f"method: {method} trains a model that can already answer; set model.init_from.")
    if rl.rollouts.max_new_tokens >= data.sequence_length:
        raise UserError(
            f"rl.rollouts.max_new_tokens ({rl.rollouts.max_new_tokens}) leaves no room for a prompt in "
            f"data.sequence_length ({data.sequence_length})."
        )
    samples = rl.rollouts.samples_per_step * (rl.environment.most_samples if rl.environment is not None else 1)
    if data.batch_size < samples:
        turns = " * rl.environment.max_turns" if samples > rl.rollouts.samples_per_step else ""
        raise UserError(
            f"data.batch_size is {data.batch_size}; a step learns from {samples} answers "
            f"(rl.rollouts.prompts / updates * group_size{turns}), each of which may fill a row: set it to at least that. "
            "Rows that stay empty cost no time where micro_batches divides them."
        )
    if reads_policy(config) and rl.rollouts.mesh is not None and rl.policy.importance_cap is None:
        raise UserError(
            "rl.rollouts.mesh samples one round ahead, with older weights than those that learn from it; set "
            "rl.policy.importance_cap, which corrects for that (2.0 is usual)."
        )
    if method != "grpo":
        return
    if not rl.rewards:
        raise UserError(
            "rl.rewards is empty, and method: grpo learns from rewards; add a part, such as `verifier: record`."
        )
    if rl.rollouts.group_size < 2:
        raise UserError(
            f"rl.rollouts.group_size is {rl.rollouts.group_size}; method: grpo compares the answers to a prompt with each "
            "other, so it must be at least 2."
        )


def _check_distillation(config: TrainConfig) -> None:
    """Refuse settings of reinforcement learning that distillation does not read, and others that exclude each other."""
    settings, rl = config.distillation, config.rl
    assert settings is not None
    if rl is None:
        if settings.form == "policy_gradient":
            raise UserError(
                "distillation.form policy_gradient learns from answers that the student samples; add rl.prompts, or leave it "
                "out."
            )
        return
    if settings.temperature is not None:
        raise UserError("distillation.temperature is rl.rollouts.temperature where the student samples; leave it out.")
    if settings.is_server and rl.rollouts.temperature != 1:
        raise UserError(
            f"rl.rollouts.temperature is {rl.rollouts.temperature:g}; a server gives the teacher's log-probabilities at 1: set "
            "it to that."
        )
    if settings.mesh is not None and rl.rollouts.mesh is not None:
        raise UserError("distillation.mesh and rl.rollouts.mesh both take the last devices; leave one of them out.")
    unread = {
        "rl.policy": not reads_policy(config) and rl.policy != PolicyConfig().filled(), "rl.entropy": rl.entropy is not None,
        "rl.reference": rl.reference is not None, "rl.rollouts.refill": rl.rollouts.refill != 0,
        "rl.policy.kl": rl.policy.kl.coefficient != 0, "rl.policy.replay_experts": rl.policy.replay_experts,
    }  # fmt: skip
    for name, given in unread.items():
        if given:
            raise UserError(f"{name} is not read by method: distillation with form: {settings.form}; leave it out.")


def reads_policy(config: TrainConfig) -> bool:
    """Whether a run learns by a policy objective, `rl.policy`."""
    return config.method == "grpo" or (
        config.distillation is not None and config.distillation.form == "policy_gradient"
    )


def teacher_temperature(config: TrainConfig) -> float:
    """Return what the logits of teacher and student are divided by, in a run of distillation."""
    assert config.distillation is not None
    return (config.distillation.temperature or 1.0) if config.rl is None else config.rl.rollouts.temperature
