"""The phases of distillation, each compiled for a slice: rollouts, the teacher's forward pass, the student's update.

    python train.py --config configs/posttrain/distil-8b.yaml --plan v5p:2x2x4

All run on one mesh, one after another. The teacher's weights and the state of training stay on the devices in each; the hidden
states of the teacher, of all tokens of a batch, are the result of its pass and an argument of the update.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.planner.architecture import checkpoint_architecture, training_architecture
from qwen3_jax.planner.compile import lowering_for
from qwen3_jax.planner.plan import Plan
from qwen3_jax.planner.reinforcement import gib, with_rollouts
from qwen3_jax.planner.topologies import Topology, topology_mesh
from qwen3_jax.planner.training_step import across_slices, plan_log_probs, plan_training, planned
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.distillation import STATES, projection
from qwen3_jax.training.method_checks import reads_policy
from qwen3_jax.training.step import Trainer
from qwen3_jax.training.teacher import KEY, check_rows, states_program, teacher_trainer
from sharding import Placement


def plan_distillation(config: TrainConfig, topology: Topology) -> list[Plan]:
    """Compile the phases of a run of the method distillation, in the order in which they run.

    Raises:
        UserError: the teacher's architecture is not known without a download, or is of another vocabulary; devices of its own,
            which are not planned; and as `plan_training` and `plan_decoding`.
        ShardingError: as these.
    """
    settings = config.distillation
    assert settings is not None
    if settings.mesh is not None:
        raise UserError("distillation.mesh is not planned; plan the run without it, on the devices of each part.")
    model = None if settings.is_server else _teacher_architecture(config)
    plans, stays = list[Plan](), list[str]()
    if model is None or settings.top_k is not None:
        learning = _noted(plan_training(config, topology), "what the teacher computes before the steps is not planned")
    elif settings.needs_states:
        plans.append(_plan_states(config, topology, model))
        learning = plan_training(config, topology, lambda trainer: _attach(trainer, config, model))
        learning = _noted(learning, "other arguments are the teacher's states of the batch, and its output projection")
    else:
        plans.append(plan_log_probs(_of_teacher(config), topology, model))
        learning = plan_training(config, topology)
    if plans:
        stays = [f"the teacher's weights, {gib(plans[0].holds['weights'])} of each chip, stay beside this phase"]
        state = gib(sum(learning.holds.values()))
        plans = [_noted(plans[0], f"the training state, {state} of each chip, stays beside this phase")]
    if reads_policy(config) and config.rl is not None and config.rl.rollouts.updates > 1:
        plans.append(_noted(plan_log_probs(config, topology), *stays))
    plans.append(_noted(learning, *stays))
    return plans if config.rl is None else with_rollouts(config, topology, plans, *stays)


def _noted(plan: Plan, *notes: str) -> Plan:
    return dataclasses.replace(plan, notes=(*plan.notes, *notes))


def _teacher_architecture(config: TrainConfig) -> Qwen3Config:
    """Return the teacher's architecture, from its name or config.json."""
    assert config.distillation is not None
    try:
        model = checkpoint_architecture(config.distillation.teacher)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    check_rows(model.vocab_size, training_architecture(config).vocab_size)
    return model


def _of_teacher(config: TrainConfig) -> TrainConfig:
    """The run with the teacher in the student's place."""
    assert config.distillation is not None
    model = dataclasses.replace(config.model, preset=None, init_from=config.distillation.teacher)
    return dataclasses.replace(config, model=model, lora=None)


def _plan_states(config: TrainConfig, topology: Topology, model: Qwen3Config) -> Plan:
    """Compile the pass that gives the teacher's hidden states of a batch, as `Teacher` runs it."""
    started = time.perf_counter()
    config, notes = across_slices(config, topology)
    placement = Placement(topology_mesh(topology, config.mesh), sharding.TRAINING)
    trainer = teacher_trainer(config, model, placement, config.micro_batches)
    state = trainer.abstract_state()
    batch = trainer.abstract_batch(config.data.batch_size, config.data.sequence_length)
    with lowering_for(topology):
        lowered = states_program(trainer).lower(state.params, batch)
    seconds = time.perf_counter() - started
    what = "the teacher's forward pass"
    return planned(_of_teacher(config), topology, trainer, state, lowered, what, seconds, notes, passes=1)


def _attach(trainer: Trainer, config: TrainConfig, model: Qwen3Config) -> None:
    """Describe to the student's trainer what `Teacher.attach` gives it."""
    (name, axes), kind = projection(model.tie_word_embeddings), trainer.compute_type
    sizes = {"embed": model.hidden_size, "vocab": model.vocab_size}
    shape = tuple(sizes[axis] for axis in axes)
    weight: Any = jax.ShapeDtypeStruct(shape, kind, sharding=trainer.placement.sharding(axes, shape))
    trainer.objective_arrays = {name: weight}
    trainer.objective = dataclasses.replace(trainer.objective, computed={STATES: (kind, model.hidden_size)})
