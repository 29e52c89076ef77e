"""Which mesh suits decoding on a slice or nodes of GPUs: an estimate orders them, the compiler decides.

    python infer.py --model Qwen/Qwen3-30B-A3B --plan h100:8 --batch-size 64 --search

The estimate counts what a step must read, weights and used cache, and the sums of activations over `tensor`. Meshes whose
weights and cache exceed the memory come last. The first few are compiled; one that does not compile or does not fit is replaced
by the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import WeightType
from qwen3_jax.model import parameter_count
from qwen3_jax.planner.compile import DoesNotCompile
from qwen3_jax.planner.decode_step import mesh_works, plan_decoding
from qwen3_jax.planner.estimate import Estimate, rate
from qwen3_jax.planner.meshes import factorizations
from qwen3_jax.planner.plan import GIB, Plan
from qwen3_jax.planner.topologies import Topology
from qwen3_jax.progress import progress_bar
from sharding import AXES, MeshConfig
from sharding.mesh import describe

_COMPILED = 6
_REPLACEMENTS = 3
_BYTES: dict[str | None, float] = {"int8": 1, "fp8": 1, "int4": 0.5}  # of a quantised number


@dataclass(frozen=True)
class DecodeRanking:
    """Plans, best first, those that do not fit last; `failed` says what the compiler refused and why."""

    plans: tuple[Plan, ...]
    failed: tuple[str, ...]


def search_decoding(
    config: Qwen3Config,
    topology: Topology,
    rows: int,
    context: int,
    dtype: str = "bfloat16",
    name: str = "",
    quantize: WeightType | None = None,
) -> DecodeRanking:
    """Compile a decode step on the most promising meshes of all devices.

    Args:
        config, topology, rows, context, dtype, name, quantize: as for `plan_decoding`.

    Raises:
        UserError: no mesh of these devices divides the model and the rows, or `rows` or `context` are none.
        DoesNotCompile: no mesh that was tried compiles.
    """
    width = jnp.dtype(dtype).itemsize
    estimates = {
        sizes: _estimate(config, topology, sizes, rows, context, (_BYTES.get(quantize, width), width))
        for sizes in factorizations(len(topology.devices), len(AXES))
        if _of_use(config, topology, sizes, rows)
    }
    if not estimates:
        raise UserError(
            f"no mesh of the {len(topology.devices)} devices of {topology.title} divides {rows} rows and the model; change the "
            "number of rows (a multiple of the devices is safe)."
        )
    capacity = topology.capacity_gib * GIB
    order = sorted(estimates, key=lambda sizes: (estimates[sizes].memory > capacity, estimates[sizes].seconds))
    plans: list[Plan] = []
    failed: list[str] = []
    with progress_bar("compiling", min(len(order), _COMPILED)) as bar:
        for sizes in order[: _COMPILED + _REPLACEMENTS]:
            if sum(plan.fits for plan in plans) >= _COMPILED:
                break
            try:
                plans.append(plan_decoding(config, topology, MeshConfig(*sizes), rows, context, dtype, name, quantize))
            except DoesNotCompile as error:
                failed.append(f"{describe(sizes)}: {error}")
            bar.advance(note=describe(sizes))
    if not plans:
        raise DoesNotCompile(failed[0])
    return DecodeRanking(tuple(sorted(plans, key=_order)), tuple(failed))


def table(ranking: DecodeRanking, topology: Topology) -> str:
    """Return the ranking as text, best first, with the first one's report."""
    lines = [f"{'mesh':<36} {'HBM GiB':>8} {'step ms':>8} {'tokens/s':>9} {'bound by':<9} compile s"]
    for plan in ranking.plans:
        needed, bound = plan.compiled.needed, plan.compiled.roofline if plan.fits else None
        speed = f"{'does not fit':>18} {'':<9}"
        if bound is not None:
            speed = f"{bound.step_s * 1e3:>8.2f} {plan.tokens / bound.step_s:>9,.0f} {bound.bound:<9}"
        memory = "?" if needed is None else f"{needed / GIB:.1f}"
        sizes = tuple(plan.mesh[axis] for axis in AXES)
        lines.append(f"{describe(sizes):<36} {memory:>8} {speed} {plan.compiled.seconds:.0f}")
    lines += [f"does not compile: {text}" for text in ranking.failed]
    best = ranking.plans[0]
    flag = ",".join(f"{axis}={size}" for axis, size in best.mesh.items())
    lines.append(f"(HBM of {topology.capacity_gib:.4g} GiB per {topology.unit}.) The first one:")
    return "\n".join([*lines, f"  --mesh {flag}", best.text()])


def _order(plan: Plan) -> tuple[bool, float]:
    bound = plan.compiled.roofline
    return not plan.fits, float("inf") if bound is None else bound.step_s


def _of_use(config: Qwen3Config, topology: Topology, sizes: tuple[int, ...], rows: int) -> bool:
    """Whether rows and weights divide over the mesh, and every axis splits something."""
    replica, data, expert, context, _ = sizes
    needless = replica != topology.slices or context > 1 or (expert > 1 and not config.num_experts)
    return not needless and rows % (replica * data * expert) == 0 and mesh_works(config, topology, sizes)


def _estimate(
    config: Qwen3Config, topology: Topology, sizes: tuple[int, ...], rows: int, context: int, widths: tuple[float, int]
) -> Estimate:
    """Bytes that one chip holds and seconds of one step, with `widths` bytes to a number of a weight and to any other."""
    of_weight, width = widths
    mesh = dict(zip(AXES, sizes, strict=True))
    batch, tensor, expert = mesh["replica"] * mesh["data"] * mesh["expert"], mesh["tensor"], mesh["expert"]
    in_experts, used, whole = 0.0, 0.0, 0.0
    if config.num_experts:
        layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
        one = 3 * layers * config.hidden_size * config.moe_intermediate_size / tensor
        in_experts = config.num_experts // expert * one
        used = min(config.num_experts, rows * config.num_experts_per_tok) / expert * one
        whole = one * tensor * config.num_experts
    dense = (parameter_count(config) - whole) / tensor
    heads = config.num_key_value_heads * config.head_dim / tensor
    cache = 2 * config.num_hidden_layers * rows / batch * context * heads
    devices = topology.chip.devices
    memory = (of_weight * (dense + in_experts) + width * cache) * devices
    seconds = (of_weight * (dense + used) + width * cache) * devices / topology.chip.hbm_bandwidth
    if tensor > 1:
        sums = 2 * config.num_hidden_layers * rows / batch * config.hidden_size * width
        seconds += 2 * sums * (tensor - 1) / tensor / rate(topology, mesh, "tensor", tensor)
    return Estimate(memory, seconds)
