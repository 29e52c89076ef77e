"""Planning a run from a machine without TPUs: the real training step, compiled for a named slice.

    python train.py --config configs/scale/qwen3-8b.yaml --plan v5p:2x2x1

The step is the run's own (`Trainer.step`), with the mesh laid over described devices. No data, tokenizer or weights are read.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from jax.sharding import Mesh

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.kernels.costs import pricer
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer
from sharding import Placement, ShardingError, Topology, hlo
from sharding.plan import Plan, bytes_per_device, compile_for
from sharding.topology import nearest_meshes

_VOCABULARY_MULTIPLE = 128  # as a run pads a trained tokenizer's


def plan(config: TrainConfig, where: Topology) -> Plan:
    """Compile the training step of a configuration without stages for the slice(s) and return what it would take.

    Raises:
        UserError: the configuration does not say enough without its data, or options exclude each other.
        ShardingError: the mesh does not fit the devices or the model; names meshes that do.
    """
    started = time.perf_counter()
    config, notes = across_slices(config, where)
    model = architecture(config)
    trainer = build(config, model, where)
    try:
        batch = trainer.abstract_batch(config.data.batch_size, config.data.sequence_length)
    except ShardingError as error:
        raise ShardingError(f"{error} {_nearest(config, model, where)}") from None
    state = trainer.abstract_state()
    lowered = trainer.lower(state, batch)
    lowering = time.perf_counter() - started
    assert trainer.placement.mesh is not None
    mesh = trainer.placement.mesh
    tokens = config.data.batch_size * config.data.sequence_length
    split = trainer.placement.parts("batch") * trainer.placement.parts("length") * config.micro_batches
    rows = tokens / split * model.num_experts_per_tok if model.num_experts else None
    compiled = compile_for(lowered, where, mesh, pricer(rows))
    compiled = dataclasses.replace(compiled, seconds=compiled.seconds + lowering)
    devices = where.chip.devices
    return Plan(
        title=f"{_name(config)}, training with sequences of {config.data.sequence_length:,}",
        where=where,
        mesh=dict(mesh.shape),
        compiled=compiled,
        holds={
            "weights": devices * bytes_per_device(state.params),
            "optimizer": devices * bytes_per_device(state.optimizer),
        },
        tokens=tokens,
        model_flops=tokens * training_flops_per_token(model, config.data.sequence_length),
        notes=(*notes, *_sparse_cores(mesh)),
    )


def build(config: TrainConfig, model: Qwen3Config, where: Topology) -> Trainer:
    """Return the run's trainer over described devices.

    Raises:
        ShardingError: a parameter does not divide over the mesh; names meshes that work.
    """
    placement = Placement(sharding.topology_mesh(where, config.mesh), sharding.TRAINING)
    rate = schedule(config.optimizer, config.total_steps)
    try:
        return Trainer(model, config.model, config.optimizer, rate, placement, config.loss, config.micro_batches)
    except ShardingError as error:
        raise ShardingError(f"{error} {_nearest(config, model, where)}") from None


def across_slices(config: TrainConfig, where: Topology) -> tuple[TrainConfig, tuple[str, ...]]:
    """A configuration written for one slice, on several: one replica more per slice, and a line that says so."""
    mesh = config.mesh
    if where.slices == 1 or mesh.replica == -1 or mesh.replica % where.slices == 0:
        return config, ()
    mesh = dataclasses.replace(mesh, replica=mesh.replica * where.slices)
    note = (
        f"{where.slices} slices hold one copy each: mesh.replica={mesh.replica} (a run needs it in its configuration)"
    )
    return dataclasses.replace(config, mesh=mesh), (note,)


def architecture(config: TrainConfig) -> Qwen3Config:
    """Return the architecture without reading data: the vocabulary is the preset's, the config's, or the size that a trained
    tokenizer is asked to have.

    Raises:
        UserError: only weights that are not here could tell, or the sequence is too long for the model.
    """
    base = None
    if config.model.init_from is not None:
        folder = Path(config.model.init_from).expanduser()
        if (folder / "config.json").is_file():
            base = Qwen3Config.from_hf(read_json(folder / "config.json"))
        else:
            try:
                base = Qwen3Config.preset(config.model.init_from)
            except UserError:
                raise UserError(
                    f"model.init_from {config.model.init_from!r} is neither a folder here nor a released model; for planning "
                    "set model.preset to the architecture instead."
                ) from None
    named = config.tokenizer.path is not None or base is not None or config.model.preset is not None
    rows = 1 if named else -(-config.tokenizer.vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    if config.tokenizer.path is not None and base is None and config.model.preset is None:
        if "vocab_size" not in config.model.config:
            raise UserError(
                "planning reads no tokenizer: set model.config.vocab_size to the number of embedding rows (151936 for "
                "Qwen3's tokenizer)."
            )
        rows = 1
    found = dataclasses.replace(config.model.architecture(base, rows), dtype=config.model.param_dtype)
    if config.data.sequence_length > found.max_position_embeddings:
        raise UserError(
            f"data.sequence_length ({config.data.sequence_length}) is longer than the model's max_position_embeddings "
            f"({found.max_position_embeddings})."
        )
    return found


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


def _nearest(config: TrainConfig, model: Qwen3Config, where: Topology) -> str:
    def works(sizes: tuple[int, ...]) -> bool:
        return sizes[0] % where.slices == 0 and mesh_works(config, model, sizes)

    return nearest_meshes(config.mesh, len(where.devices), works)


def _sparse_cores(mesh: Mesh) -> tuple[str, ...]:
    told = sharding.compiler_options(mesh) is not None
    return ("collectives run on the chips' sparse cores (sharding.compiler_options)",) if told else ()


def _name(config: TrainConfig) -> str:
    return config.model.preset or config.model.init_from or "the configured model"


def full_stack_gathers(module: hlo.Module, layers: int) -> list[str]:
    """Return the all-gathers whose result holds a parameter of all layers at once; a good program has none.

    Args:
        module: the compiled step.
        layers: length of the stack; the model should have no other dimension of this size.
    """
    return [
        f"{i.name} {shape.dtype}{list(shape.dims)} of {i.source}"
        for i in module.instructions()
        if i.opcode.removesuffix("-start") == "all-gather"
        for shape in i.shapes[-1:]
        if len(shape.dims) >= 3 and shape.dims[0] == layers
    ]


def full_logits(module: hlo.Module, vocabulary: int, tokens: int) -> list[str]:
    """Return the arrays that hold logits of all of a device's tokens at once; with a chunked loss there are none.

    Args:
        module: the compiled step.
        vocabulary: columns of the vocabulary on one device.
        tokens: tokens of one micro-batch on one device.
    """
    return [
        f"{i.name} {shape.dtype}{list(shape.dims)} of {i.source}"
        for i in module.instructions()
        for shape in i.shapes
        if vocabulary in shape.dims
        and shape.elements >= vocabulary * tokens
        and tokens in _products(shape.dims, vocabulary)
    ]


def _products(dims: tuple[int, ...], vocabulary: int) -> set[int]:
    """Products of neighbouring dimensions besides the vocabulary: [2, 512, V] may hold 1,024 tokens."""
    rest = list(dims)
    rest.remove(vocabulary)
    out = set()
    for start in range(len(rest)):
        product = 1
        for side in rest[start:]:
            product *= side
            out.add(product)
    return out
