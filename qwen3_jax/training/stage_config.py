"""Stages of a run as a configuration names them: differences from the run's settings; part of `qwen3_jax.training.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.data import LengthShare
from qwen3_jax.errors import UserError
from qwen3_jax.model import Remat
from sharding import MeshConfig


@dataclass(frozen=True)
class StageOptimizer:
    """The learning rate of one stage. null is the run's value, except warmup_steps, which is 0 after the first stage.

    Attributes:
        learning_rate, warmup_steps, schedule, final_learning_rate, decay_share: see
            `qwen3_jax.training.config.OptimizerConfig`; steps and shares are the stage's.
    """

    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: Literal["cosine", "linear", "constant", "wsd"] | None = None
    final_learning_rate: float | None = None
    decay_share: float | None = None


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run, as differences from the run's settings; null is the run's value.

    Attributes:
        name: a unique label.
        steps: optimizer steps of this stage.
        sequence_length, batch_size, lengths: of its data, see `DataConfig`.
        weights: shares of the sources by name, instead of their own; a source left out is not used.
        rope_theta: base of the rotary embedding from this stage on (ABF: Xiong et al. 2023, arXiv 2309.16039).
        optimizer: its learning rate.
        micro_batches, mesh, remat: for longer sequences.
    """

    name: str
    steps: int
    sequence_length: int | None = None
    batch_size: int | None = None
    lengths: list[LengthShare] | None = None
    weights: dict[str, float] | None = None
    rope_theta: float | None = None
    optimizer: StageOptimizer = field(default_factory=StageOptimizer)
    micro_batches: int | None = None
    mesh: MeshConfig | None = None
    remat: Remat | None = None

    def __post_init__(self) -> None:
        check_bounds(vars(self), f"stage {self.name!r}: ", steps=whole(1), rope_theta=above(0))
        if self.weights is not None:
            if not self.weights:
                raise UserError(f"stage {self.name!r}: weights names no source; leave it out for the sources' own.")
            bounds = dict.fromkeys(self.weights, above(0))
            check_bounds(self.weights, f"stage {self.name!r}: weights.", **bounds)
