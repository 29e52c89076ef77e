"""Planning to serve a model on TPUs that are not here: the real decode step, compiled for a named slice.

    python infer.py --model Qwen/Qwen3-8B --plan v5e:2x2 --mesh tensor=4 --batch-size 16 --context 8192

The step is `generate`'s own (forward pass over the cache, sampling, budget). Weights are described, not read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.generation import program
from qwen3_jax.generation.requests import Request, arrays_of
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.json_fields import read_json
from qwen3_jax.kernels import page_size
from qwen3_jax.kernels.costs import pricer
from qwen3_jax.model import Qwen3, Structure, parameter_count
from sharding import MeshConfig, Placement, ShardingError, Topology
from sharding.plan import Plan, bytes_per_device, compile_for, uncached
from sharding.topology import nearest_meshes

_LEAST = 16  # slots of a context
_STEPS = 8  # most tokens of a call; the report is of one


def plan(
    config: Qwen3Config,
    where: Topology,
    mesh: MeshConfig,
    rows: int,
    context: int,
    dtype: str = "bfloat16",
    name: str = "",
) -> Plan:
    """Compile one decode step and return what it would take.

    Args:
        config: the architecture.
        where: the slice(s).
        mesh: axis sizes.
        rows: answers decoded together.
        context: slots of the cache in each row; a step attends to all of them.
        dtype: type of weights, activations and cache.
        name: of the model, for the report.

    Raises:
        UserError: no rows, or a context beyond what the model handles.
        ShardingError: the mesh does not fit the devices or the model; names meshes that do.
    """
    if rows < 1 or not _LEAST <= context <= config.max_position_embeddings:
        raise UserError(
            f"{rows} rows of {context} slots cannot be planned: at least one row, and {_LEAST} to "
            f"{config.max_position_embeddings} slots (max_position_embeddings)."
        )
    started = time.perf_counter()
    placement = Placement(sharding.topology_mesh(where, mesh), sharding.SERVING)

    def make() -> Qwen3:
        kind = jnp.dtype(dtype)
        return Qwen3(config, rngs=nnx.Rngs(0), dtype=kind, param_dtype=kind, placement=placement)

    structure = Structure(make)
    try:
        shardings = structure.shardings(placement)
    except ShardingError as error:
        near = nearest_meshes(mesh, len(where.devices), lambda sizes: _works(config, where, sizes))
        raise ShardingError(f"{error} {near}") from None
    shapes = structure.shapes
    weights = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[n]) for n, x in shapes.items()}
    graphdef, params = nnx.split(structure.merge(weights))
    shards = placement.parts("batch")
    if rows % shards:
        raise ShardingError(f"{rows} rows do not divide by {shards}, over which the mesh splits the batch.")
    state, settings, progress, tables = _arguments(structure, placement, rows, shards, context)
    lowered = program.decode.lower(
        (graphdef,), _STEPS, (params,), state, settings, progress, tables, jax.ShapeDtypeStruct((), jnp.int32)
    )
    lowering = time.perf_counter() - started
    assert placement.mesh is not None
    expert_rows = rows / shards * config.num_experts_per_tok if config.num_experts else None
    experts = config.num_experts // placement.parts("expert") or None
    compiled = compile_for(lowered, where, placement.mesh, pricer(expert_rows, experts))
    compiled = dataclasses.replace(compiled, seconds=compiled.seconds + lowering)
    devices = where.chip.devices
    matrices = parameter_count(config, active=True)
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    return Plan(
        title=f"{name or 'the model'}, decoding {rows} rows with {context:,} slots each, {dtype}",
        where=where,
        mesh=dict(placement.mesh.shape),
        compiled=compiled,
        holds={"weights": devices * bytes_per_device(weights), "cache": devices * bytes_per_device(state.groups)},
        tokens=rows,
        model_flops=rows * (2 * matrices + attention),
        notes=("one step gives one token to every row; a full cache is attended to",),
    )


def architecture(model: str, hf_overrides: Mapping[str, Any] | None = None) -> Qwen3Config:
    """Return the architecture of a checkpoint folder, or of a released model by name; no weights are read.

    `hf_overrides` are fields of config.json to replace.

    Raises:
        UserError: it is neither.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return Qwen3Config.from_hf(read_json(folder / "config.json") | dict(hf_overrides or {}))
    try:
        config = Qwen3Config.preset(model)
    except UserError as error:
        raise UserError(f"{model!r} is no folder with a config.json, and {error}") from None
    return Qwen3Config.from_hf(config.to_hf() | dict(hf_overrides or {}))


def _arguments(structure: Structure, placement: Placement, rows: int, shards: int, context: int):
    """What the decode step is called with, described: as an `Engine` with a full cache calls it."""
    size = page_size(placement)
    width = -(-context // size)

    graphdef, params = nnx.split(structure.merge(structure.shapes))
    with uncached():
        lowered = program.begin.lower(
            (graphdef,), shards, rows // shards, 1 + rows // shards * width, size, None, (params,)
        )
        shardings = lowered.compile().output_shardings
    if placement.mesh is not None and placement.mesh.size == 1:  # where constraints say nothing
        everywhere = jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec())
        shardings = jax.tree.map(lambda _: everywhere, shardings)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), lowered.out_info, shardings)
    one_row = arrays_of(Request((0,), Sampling(temperature=0, seed=0), 1), GenerationConfig(), 0)
    settings, progress = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one_row)
    return placed, settings, progress, jax.ShapeDtypeStruct((shards, rows // shards, width), jnp.int32)


def _works(config: Qwen3Config, where: Topology, sizes: tuple[int, ...]) -> bool:
    replica, _, expert, _, tensor = sizes
    divisible = [(config.vocab_size, tensor), (config.num_key_value_heads, tensor), (replica, where.slices)]
    if config.num_experts:
        divisible += [(config.num_experts, expert), (config.moe_intermediate_size, tensor)]
    if not all(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        divisible.append((config.intermediate_size, tensor))
    return all(size % parts == 0 for size, parts in divisible)
