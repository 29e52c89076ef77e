"""What each method minimises."""

from __future__ import annotations

import dataclasses

from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.losses import LANGUAGE_MODEL, Objective
from qwen3_jax.training.methods import DpoConfig
from qwen3_jax.training.policy import policy
from qwen3_jax.training.preferences import REWARD_MODEL, dpo


def objective_of(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Objective:
    """Return what a run's method minimises.

    tokenizer: of the run; the method grpo needs its think tags.
    """
    if config.method == "dpo":
        return dpo((config.dpo or DpoConfig()).beta)
    if config.rl is not None:
        rl = config.rl
        settings = rl.policy
        if settings.aggregation == "constant_length" and settings.constant_length is None:
            settings = dataclasses.replace(settings, constant_length=rl.rollouts.max_new_tokens)
        banned = () if tokenizer is None else banned_tokens(tokenizer)
        return policy(settings, rl.rollouts.temperature, banned, on_policy=rl.rollouts.is_on_policy)
    return REWARD_MODEL if config.method == "reward_model" else LANGUAGE_MODEL


def banned_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that a rollout cannot sample once its thinking budget is used up (`generation.budget`): `<think>`."""
    return () if tokenizer.think_start_id is None else (tokenizer.think_start_id,)
