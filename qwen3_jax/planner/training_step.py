"""The training step of a configuration, compiled for a slice.

    python train.py --config configs/scale/qwen3-8b.yaml --plan v5p:2x2x1

The step is the run's own (`Trainer.lower`), with the mesh laid over described devices. No data, tokenizer or weights are read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.compile import bytes_per_device, compile_for, lowering_for
from qwen3_jax.planner.kernel_costs import pricer
from qwen3_jax.planner.meshes import nearest_meshes
from qwen3_jax.planner.plan import Plan
from qwen3_jax.planner.topologies import Topology, topology_mesh
from qwen3_jax.training.adapters import lora_of
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.objectives import objective_of
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.policy import log_probs_of
from qwen3_jax.training.step import Trainer, TrainState
from qwen3_jax.training.token_values import TokenValues
from sharding import Placement, ShardingError
from sharding.hardware import Gpu


def plan_training(
    config: TrainConfig, topology: Topology, prepare: Callable[[Trainer], None] = lambda trainer: None
) -> Plan:
    """Compile the training step of a configuration without stages for the slice(s) or nodes.

    Of answers that are sampled (rl) every row of the batch is counted as full; a step skips micro-batches without answers.

    Args:
        prepare: gives the trainer what its objective reads besides the data.

    Raises:
        UserError: the architecture cannot be known without the data or tokenizer, or options exclude each other.
        ShardingError: the mesh does not fit the devices or the model; names meshes that do.
    """
    started = time.perf_counter()
    config, notes = across_slices(config, topology)
    model = training_architecture(config)
    trainer = make_trainer(config, model, topology)
    prepare(trainer)
    try:
        batch = trainer.abstract_batch(config.data.batch_size, config.data.sequence_length)
    except ShardingError as error:
        raise ShardingError(f"{error} {_nearest(config, model, topology)}") from None
    state = trainer.abstract_state()
    trainer.base = trainer.abstract_base(config.lora.quantize if config.lora is not None else None)
    with lowering_for(topology):
        lowered = trainer.lower(state, batch)
    return planned(config, topology, trainer, state, lowered, "training", time.perf_counter() - started, notes)


def plan_log_probs(config: TrainConfig, topology: Topology, teacher: Qwen3Config | None = None) -> Plan:
    """Compile the pass that gives the log probabilities of a step's rows, before its updates.

    Args:
        teacher: whose they are; None is the model that is trained.

    Raises:
        UserError, ShardingError: as `plan_training`.
    """
    started = time.perf_counter()
    config, notes = across_slices(config, topology)
    assert config.rl is not None
    trainer = make_trainer(config, teacher or training_architecture(config), topology)
    batch = trainer.abstract_batch(config.data.batch_size, config.data.sequence_length)
    state = trainer.abstract_state()
    trainer.base = trainer.abstract_base(config.lora.quantize if config.lora is not None else None)
    options = dict(temperature=config.rl.rollouts.temperature, chunk=config.loss.chunk_tokens)
    values = TokenValues(trainer, lambda model, rows: log_probs_of(model, rows, **options).log_probs)  # type: ignore[arg-type]
    with lowering_for(topology):
        lowered = values.lower(state.params, batch)
    seconds = time.perf_counter() - started
    what = "log probabilities" if teacher is None else "the teacher's log probabilities"
    return planned(config, topology, trainer, state, lowered, what, seconds, notes, passes=1)


def planned(
    config: TrainConfig, topology: Topology, trainer: Trainer, state: TrainState, lowered: Any, what: str, seconds: float,
    notes: tuple[str, ...], passes: int = 3,
) -> Plan:  # fmt: skip
    """Compile a program of a trainer over a global batch; `passes` is 3 for a forward and a backward pass, 1 for the first."""
    model, mesh = trainer.config, trainer.placement.mesh
    assert mesh is not None
    tokens = config.data.batch_size * config.data.sequence_length
    parts = trainer.placement.parts("batch") * trainer.placement.parts("length") * config.micro_batches
    expert_rows = tokens / parts * model.num_experts_per_tok if model.num_experts else None
    on_gpus = isinstance(topology.chip, Gpu)  # their kernels take the experts of all layers in one array
    experts = model.num_experts // trainer.placement.parts("expert") if on_gpus and model.num_experts else None
    compiled = compile_for(lowered, topology, mesh, pricer(expert_rows, experts), seconds)
    name = config.model.preset or config.model.init_from or "the configured model"
    devices = topology.chip.devices
    return Plan(
        title=f"{name}, {what} {'of adapters ' if trainer.lora else ''}with sequences of {config.data.sequence_length:,}",
        topology=topology,
        mesh=dict(mesh.shape),
        compiled=compiled,
        holds={
            "weights": devices * (bytes_per_device(state.params) + bytes_per_device(trainer.base)),
        }
        | ({"optimizer": devices * bytes_per_device(state.optimizer)} if passes == 3 else {}),
        tokens=tokens,
        model_flops=tokens * trainer.flops_per_token(config.data.sequence_length) * passes / 3,
        notes=(*notes, *_sparse_cores(mesh)),
    )


def make_trainer(config: TrainConfig, model: Qwen3Config, topology: Topology) -> Trainer:
    """Return the run's trainer over described devices.

    Raises:
        ShardingError: a parameter does not divide over the mesh; names meshes that work.
    """
    placement = Placement(topology_mesh(topology, config.mesh), sharding.TRAINING)
    rate = schedule(config.optimizer, config.total_steps)
    try:
        return Trainer(
            model, config.model, config.optimizer, rate, placement, config.loss, config.micro_batches,
            lora_of(config.lora, model), objective_of(config),
        )  # fmt: skip
    except ShardingError as error:
        raise ShardingError(f"{error} {_nearest(config, model, topology)}") from None


def across_slices(config: TrainConfig, topology: Topology) -> tuple[TrainConfig, tuple[str, ...]]:
    """Lay a configuration written for one slice over several.

    Returns:
        The configuration with one replica per slice, and notes for the report; unchanged and () where nothing is to be done.
    """
    mesh = config.mesh
    if topology.slices == 1 or mesh.replica == -1 or mesh.replica % topology.slices == 0:
        return config, ()
    mesh = dataclasses.replace(mesh, replica=mesh.replica * topology.slices)
    note = f"{topology.slices} slices hold one copy each: mesh.replica={mesh.replica} (a run needs it in its configuration)"
    return dataclasses.replace(config, mesh=mesh), (note,)


def mesh_works(config: TrainConfig, model: Qwen3Config, sizes: tuple[int, ...]) -> bool:
    """Whether parameters and batch divide over a mesh with these axis sizes (in the order of `sharding.AXES`)."""
    replica, data, expert, context, tensor = sizes
    rows, length = config.data.batch_size, config.data.sequence_length
    divisible = [
        (rows, replica * data * expert * config.micro_batches),
        (length, 2 * context if context > 1 else 1),
        (model.hidden_size, data * context),
        (model.vocab_size, tensor),
        (model.num_attention_heads, tensor),
        (model.num_key_value_heads, tensor),
    ]
    if model.num_experts:
        divisible += [(model.num_experts, expert), (model.moe_intermediate_size, tensor)]
    if not all(model.is_moe_layer(layer) for layer in range(model.num_hidden_layers)):
        divisible.append((model.intermediate_size, tensor))
    return all(size % parts == 0 for size, parts in divisible)


def _nearest(config: TrainConfig, model: Qwen3Config, topology: Topology) -> str:
    def works(sizes: tuple[int, ...]) -> bool:
        return sizes[0] % topology.slices == 0 and mesh_works(config, model, sizes)

    return nearest_meshes(config.mesh, len(topology.devices), works)


def _sparse_cores(mesh: Mesh) -> tuple[str, ...]:
    if sharding.compiler_options(mesh) is None:
        return ()
    return ("collectives run on the chips' sparse cores (sharding.compiler_options)",)
