"""Planning to serve a model on TPUs that are not here: the real decode step, compiled for a named slice.

    python infer.py --model Qwen/Qwen3-8B --plan v5e:2x2 --mesh tensor=4 --batch-size 16 --context 8192

The step is `generate`'s own (forward pass over the cache, sampling, budget). Weights are described, not read.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import sharding
from qwen3_jax.config import GenerationConfig, Qwen3Config, read_json
from qwen3_jax.errors import UserError
from qwen3_jax.generation import steps
from qwen3_jax.generation.budget import BudgetState, ThinkingTokens
from qwen3_jax.generation.sampling import Sampling, SamplingRows
from qwen3_jax.model import Qwen3, Structure, parameter_count
from sharding import MeshConfig, Placement, ShardingError, Topology
from sharding.plan import Plan, bytes_per_device, compile_for, uncached
from sharding.topology import nearest_meshes

_PROMPT = 16  # the shortest prefill: it is compiled only for where it leaves its state


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
    if rows < 1 or not _PROMPT <= context <= config.max_position_embeddings:
        raise UserError(
            f"{rows} rows of {context} slots cannot be planned: at least one row, and {_PROMPT} to "
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
    tokens = ThinkingTokens()
    settings = SamplingRows.of([Sampling(seed=0).resolve(GenerationConfig())] * rows, [0] * rows)
    state = _state(graphdef, tokens, context, params, settings, rows)
    lowered = steps._decode.lower(graphdef, tokens, params, settings, state)
    lowering = time.perf_counter() - started
    assert placement.mesh is not None
    compiled = compile_for(lowered, where, placement.mesh)
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
        holds={"weights": devices * bytes_per_device(weights), "cache": devices * bytes_per_device(state.cache)},
        tokens=rows,
        model_flops=rows * (2 * matrices + attention),
        notes=("one step gives one token to every row; a full cache is attended to",),
    )


def architecture(model: str) -> Qwen3Config:
    """Return the architecture of a checkpoint folder, or of a released model by name; no weights are read.

    Raises:
        UserError: it is neither.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return Qwen3Config.from_hf(read_json(folder / "config.json"))
    try:
        return Qwen3Config.preset(model)
    except UserError as error:
        raise UserError(f"{model!r} is no folder with a config.json, and {error}") from None


def _state(graphdef: Any, tokens: ThinkingTokens, context: int, params: Any, settings: SamplingRows, rows: int) -> Any:
    """The decode step's state, described: shapes and shardings with which a prefill leaves it."""
    prompts = jax.ShapeDtypeStruct((rows, _PROMPT), jnp.int32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    budget = BudgetState.start([None] * rows, [False] * rows)
    lowered = steps._prefill.lower(graphdef, tokens, context, params, settings, prompts, lengths, budget)
    shapes, _ = lowered.out_info
    with uncached():
        placed, _ = lowered.compile().output_shardings
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def _works(config: Qwen3Config, where: Topology, sizes: tuple[int, ...]) -> bool:
    replica, _, expert, _, tensor = sizes
    divisible = [(config.vocab_size, tensor), (config.num_key_value_heads, tensor), (replica, where.slices)]
    if config.num_experts:
        divisible += [(config.num_experts, expert), (config.moe_intermediate_size, tensor)]
    if not all(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        divisible.append((config.intermediate_size, tensor))
    return all(size % parts == 0 for size, parts in divisible)
