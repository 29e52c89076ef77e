"""AdamW and its learning rate. Peaks are data of the compiled step, not part of the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwen3_jax.training.config import OptimizerConfig
from qwen3_jax.training.methods import LEARNING_RATES


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of a run. Peaks are data, not part of the compiled program, so that runs which differ only
    in peaks share one program.

    Attributes:
        stages: the optimizer of each stage with its number of steps.
    """

    stages: tuple[tuple[OptimizerConfig, int], ...]

    @property
    def peaks(self) -> np.ndarray:
        """Peak learning rate of each stage, float32 [stages]."""
        return np.asarray([peak_of(config) for config, _ in self.stages], np.float32)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        return self.at(self.peaks)(step)

    def at(self, peaks: Any) -> optax.Schedule:
        """Return the schedule with other peaks [stages]: linear warm-up, then the configured decay, stage after stage."""
        parts = [_course(config, steps, peaks[i]) for i, (config, steps) in enumerate(self.stages)]
        ends = np.cumsum([steps for _, steps in self.stages]).tolist()
        return optax.join_schedules(parts, ends[:-1])


def peak_of(config: OptimizerConfig) -> float:
    """Return the peak learning rate; without one, that of pre-training."""
    return LEARNING_RATES["pretrain"] if config.learning_rate is None else config.learning_rate


def _course(config: OptimizerConfig, steps: int, peak: Any) -> optax.Schedule:
    end = peak * config.final_learning_rate
    rest = steps - config.warmup_steps
    decaying = min(max(round(steps * config.decay_share), 1), rest)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_learning_rate),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "constant": lambda: optax.constant_schedule(peak),
        "wsd": lambda: optax.linear_schedule(peak, end, decaying, rest - decaying),
    }[config.schedule]()
    # Warm-up counts 1, 2, ..., so that the first step has a learning rate above 0.
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Return the learning rate of each of `steps` steps."""
    return Schedule(((config, steps),))


def run_schedule(stages: Sequence[tuple[OptimizerConfig, int]]) -> Schedule:
    """Return the learning rate of each step of a run of several stages, each with its number of steps."""
    return Schedule(tuple(stages))


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW with clipping by global norm; norms and biases are not decayed."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: decayed(name) for name in params},
        ),
    )
    return optimizer if config.moment_dtype == "float32" else stored_as(optimizer, jnp.dtype(config.moment_dtype))


def stored_as(optimizer: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """Return the optimizer with every float of its state stored in `dtype` between steps and computed in float32."""

    def cast(state: Any, to: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def init(params: Any) -> Any:
        return cast(optimizer.init(params), dtype)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def decayed(name: str) -> bool:
    """Return whether weight decay applies to a parameter: to matrices, not to norms and biases."""
    return not name.endswith(("scale", "bias"))
