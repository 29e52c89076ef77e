"""The decode step of a served model, compiled for a slice.

    python infer.py --model Qwen/Qwen3-8B --plan v5e:2x2 --mesh tensor=4 --batch-size 16 --context 8192

The step is `generate`'s own (forward pass over the cache, sampling, budget). Weights are described, not read.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import sharding
from qwen3_jax.checkpoint.described import described
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.generation import program
from qwen3_jax.generation.active import arrays_of
from qwen3_jax.generation.request import Request
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.kernels import Execution, WeightType, page_size, prefers_unrolled_decoding
from qwen3_jax.model import Qwen3, Structure, parameter_count
from qwen3_jax.planner.compile import bytes_per_device, compile_for, lowering_for, uncached
from qwen3_jax.planner.costs import Price
from qwen3_jax.planner.kernel_costs import pricer
from qwen3_jax.planner.meshes import nearest_meshes
from qwen3_jax.planner.plan import Plan
from qwen3_jax.planner.topologies import Topology, topology_mesh
from sharding import MeshConfig, Placement, ShardingError

_MIN_CONTEXT = 16  # slots
_MAX_STEPS = 8  # the program's limit of steps per call; the report is of one step


def plan_decoding(
    config: Qwen3Config,
    topology: Topology,
    mesh: MeshConfig,
    rows: int,
    context: int,
    dtype: str = "bfloat16",
    name: str = "",
    quantize: WeightType | None = None,
) -> Plan:
    """Compile one decode step for the slice(s).

    Args:
        config: the architecture.
        topology: the slice(s).
        mesh: axis sizes.
        rows: answers decoded together.
        context: slots of the cache in each row; a step attends to all of them.
        dtype: type of weights, activations and cache.
        name: of the model, for the report.
        quantize: keep the weights in 8 or 4 bits, as for `load`.

    Raises:
        UserError: no rows, or a context beyond what the model handles.
        ShardingError: the mesh does not fit the devices or the model; names meshes that do.
    """
    _check(config, rows, context)
    started = time.perf_counter()
    placement = Placement(topology_mesh(topology, mesh), sharding.SERVING)
    structure, make_weights = _structure(config, dtype, placement)
    try:
        weights = make_weights(quantize)
    except ShardingError as error:
        near = nearest_meshes(mesh, len(topology.devices), lambda sizes: mesh_works(config, topology, sizes))
        raise ShardingError(f"{error} {near}") from None
    graphdef, params = nnx.split(structure.merge(weights))
    shards = placement.parts("batch")
    if rows % shards:
        raise ShardingError(f"{rows} rows do not divide by {shards}, over which the mesh splits the batch.")
    state, settings, progress, tables = _arguments(structure, placement, rows, shards, context)
    with lowering_for(topology):
        steps = least = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = program.decode.lower(
            (graphdef,), _MAX_STEPS, (params,), state, settings, progress, tables, steps, least
        )
    lowering_seconds = time.perf_counter() - started
    assert placement.mesh is not None
    price = _price(config, placement, rows, context)
    compiled = compile_for(lowered, topology, placement.mesh, price, lowering_seconds)
    devices, weights_in = topology.chip.devices, f" with {quantize} weights" if quantize else ""
    return Plan(
        title=f"{name or 'the model'}, decoding {rows} rows with {context:,} slots each, {dtype}{weights_in}",
        topology=topology,
        mesh=dict(placement.mesh.shape),
        compiled=compiled,
        holds={"weights": devices * bytes_per_device(weights), "cache": devices * bytes_per_device(state.groups)},
        tokens=rows,
        model_flops=rows * _flops_per_token(config, context),
        notes=("one step gives one token to every row; a full cache is attended to",),
    )


def _price(config: Qwen3Config, placement: Placement, rows: int, context: int) -> Price:
    if not config.num_experts:
        return pricer(slots=context)
    expert_rows = rows / placement.parts("batch") * config.num_experts_per_tok
    return pricer(expert_rows, config.num_experts // placement.parts("expert"), context)


def _check(config: Qwen3Config, rows: int, context: int) -> None:
    if rows < 1 or not _MIN_CONTEXT <= context <= config.max_position_embeddings:
        raise UserError(
            f"{rows} rows of {context} slots cannot be planned: at least one row, and {_MIN_CONTEXT} to "
            f"{config.max_position_embeddings} slots (max_position_embeddings)."
        )


def _structure(
    config: Qwen3Config, dtype: str, placement: Placement
) -> tuple[Structure, Callable[[WeightType | None], dict[str, Any]]]:
    """Return the model without weights, and what describes them as `load` would place them, with `quantize` or None."""
    kind = jnp.dtype(dtype)
    execution = Execution(placement)
    stacked = not prefers_unrolled_decoding(placement)  # as `load` decides
    structure = Structure(
        lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=kind, param_dtype=kind, scan_layers=stacked, execution=execution)
    )
    _, state = nnx.split(structure.merge(structure.shapes))
    return structure, functools.partial(described, state, config, stacked, placement)


def _flops_per_token(config: Qwen3Config, context: int) -> int:
    """FLOPs of one token: two for each weight it meets, and attention to `context` slots."""
    matrices = parameter_count(config, active=True)
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size  # the look-up multiplies nothing
    return 2 * matrices + 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context


def _arguments(structure: Structure, placement: Placement, rows: int, shards: int, context: int) -> tuple[Any, ...]:
    """The decode step's state, settings, progress and page tables as an `Engine` with a full cache passes them, abstract."""
    size = page_size(placement)
    width = -(-context // size)
    graphdef, params = nnx.split(structure.merge(structure.shapes))
    with uncached():
        lowered = program.begin.lower(
            (graphdef,), shards, rows // shards, 1 + rows // shards * width, size, None, (params,)
        )
        shardings = lowered.compile().output_shardings
    if placement.mesh is not None and placement.mesh.size == 1:  # constraints on one device name no sharding
        replicated = jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec())
        shardings = jax.tree.map(lambda _: replicated, shardings)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), lowered.out_info, shardings)
    one_row = arrays_of(Request((0,), Sampling(temperature=0, seed=0), 1), GenerationConfig(), 0)
    settings, progress = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one_row)
    return state, settings, progress, jax.ShapeDtypeStruct((shards, rows // shards, width), jnp.int32)


def mesh_works(config: Qwen3Config, topology: Topology, sizes: tuple[int, ...]) -> bool:
    """Whether the weights divide over a mesh with these axis sizes (in the order of `sharding.AXES`)."""
    replica, _, expert, _, tensor = sizes
    divisible = [(config.vocab_size, tensor), (config.num_key_value_heads, tensor), (replica, topology.slices)]
    if config.num_experts:
        divisible += [(config.num_experts, expert), (config.moe_intermediate_size, tensor)]
    if not all(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        divisible.append((config.intermediate_size, tensor))
    return all(size % parts == 0 for size, parts in divisible)
