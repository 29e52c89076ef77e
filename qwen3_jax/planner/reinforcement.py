"""The phases of reinforcement learning, each compiled for a slice: rollouts, log probabilities, updates.

    python train.py --config configs/posttrain/reasoning-rl-8b.yaml --plan v5p:4x4x4

All run on one mesh, one after another. The state of training (weights, optimizer) stays on the devices in each; the engine's
cache stays too, and its copy of the weights where serving rules or types differ from those of training.
"""

from __future__ import annotations

import dataclasses

from qwen3_jax.errors import UserError
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.decode_step import plan_decoding
from qwen3_jax.planner.plan import GIB, Plan
from qwen3_jax.planner.topologies import Topology
from qwen3_jax.planner.training_step import across_slices, plan_log_probs, plan_training
from qwen3_jax.training.config import TrainConfig


def plan_reinforcement(config: TrainConfig, topology: Topology) -> list[Plan]:
    """Compile the phases of a run of the method grpo, in the order in which they run.

    Raises:
        UserError: as `plan_training` and `plan_decoding`.
        ShardingError: likewise.
    """
    assert config.rl is not None
    training = plan_training(config, topology)
    passes = config.rl.rollouts.updates > 1 or config.rl.policy.kl.coefficient
    scored = [plan_log_probs(config, topology)] if passes else []
    return with_rollouts(config, topology, [*scored, training])


def with_rollouts(config: TrainConfig, topology: Topology, learning: list[Plan], *notes: str) -> list[Plan]:
    """Compile the engine's decode step, and return it before the phases that learn from its answers, the update last.

    Args:
        notes: on what else stays on the devices in the rollouts.

    Raises:
        UserError, ShardingError: as `plan_decoding`.
    """
    assert config.rl is not None
    rollouts, model = config.rl.rollouts, training_architecture(config)
    if rollouts.mesh is not None:
        raise UserError("rl.rollouts.mesh is not planned; plan the run without it, on the devices of each part.")
    mesh = across_slices(config, topology)[0].mesh
    rows = rollouts.rows or min(rollouts.prompts * rollouts.group_size, 256)
    name = str(config.model.preset or config.model.init_from)
    decoding = plan_decoding(model, topology, mesh, rows, config.data.sequence_length, config.model.dtype, name)
    stays = gib(sum(learning[-1].holds.values()))
    note = f"the training state, {stays} of each chip, stays beside this phase and is not in its peak"
    decoding = dataclasses.replace(decoding, notes=(*decoding.notes, note, *notes))
    cache = gib(decoding.holds["cache"] + decoding.holds["weights"])
    beside = f"the engine's weights and cache, at most {cache} of each chip, stay beside this phase"
    return [decoding, *(dataclasses.replace(plan, notes=(*plan.notes, beside)) for plan in learning)]


def gib(size: float) -> str:
    """Bytes for a note."""
    return f"{size / GIB:.1f} GiB"
