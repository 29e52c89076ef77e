"""What each method minimises."""

from __future__ import annotations

import dataclasses

from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.distillation import distillation
from qwen3_jax.training.losses import LANGUAGE_MODEL, Objective
from qwen3_jax.training.method_checks import reads_policy, teacher_temperature
from qwen3_jax.training.methods import DpoConfig
from qwen3_jax.training.policy import policy
from qwen3_jax.training.preferences import REWARD_MODEL, dpo


def objective_of(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Objective:
    """Return what a run's method minimises.

    tokenizer: of the run; its think tags are needed where the model samples answers (`rl`).
    """
    if config.method == "dpo":
        return dpo((config.dpo or DpoConfig()).beta)
    rl, banned = config.rl, () if tokenizer is None else banned_tokens(tokenizer)
    if config.distillation is not None and not reads_policy(config):
        return distillation(config.distillation, teacher_temperature(config), banned, on_policy=rl is not None)
    if rl is not None:
        settings = rl.policy
        if settings.aggregation == "constant_length" and settings.constant_length is None:
            settings = dataclasses.replace(settings, constant_length=rl.rollouts.max_new_tokens)
        return policy(
            settings, rl.rollouts.temperature, banned, on_policy=rl.rollouts.is_on_policy,
            from_teacher=config.distillation is not None,
        )  # fmt: skip
    return REWARD_MODEL if config.method == "reward_model" else LANGUAGE_MODEL


def banned_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that a rollout cannot sample once its thinking budget is used up (`generation.budget`): `<think>`."""
    return () if tokenizer.think_start_id is None else (tokenizer.think_start_id,)
