"""Which mesh, remat policy and number of micro-batches suit a slice: an estimate orders them, the compiler decides.

    python train.py --config configs/scale/qwen3-32b.yaml --plan v6e:8x8 --search

The estimate is arithmetic over the architecture (`estimate`); of each mesh its fastest setting that should fit is kept, and the
most promising few are compiled, the configuration's own first.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args, get_type_hints

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.model import parameter_count
from qwen3_jax.progress import progress_bar
from qwen3_jax.training.config import ModelConfig, TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.plan import across_slices, architecture, mesh_works, plan
from sharding import AXES, MeshConfig, ShardingError, Topology
from sharding.mesh import describe
from sharding.plan import Plan
from sharding.topology import factorizations

_GIB = 2**30
_REMAT = get_args(get_type_hints(ModelConfig)["remat"])
_MARGIN = 0.9  # of the memory; estimates are rough, and a run needs room for checkpoints and metrics
COMPILED = 5


@dataclass(frozen=True)
class Estimate:
    """Memory of one chip in bytes and seconds of one step, without compiling."""

    memory: float
    seconds: float


@dataclass(frozen=True)
class Found:
    """One setting that was compiled."""

    mesh: tuple[int, ...]
    remat: str
    micro_batches: int
    estimate: Estimate
    plan: Plan


def search(config: TrainConfig, where: Topology, most: int = COMPILED) -> list[Found]:
    """Compile the most promising settings for the slice(s); best first, those that do not fit last.

    Args:
        config: the run; its batch and sequence length stay.
        where: the slice(s).
        most: settings to compile, the configuration's own included.

    Raises:
        UserError: no mesh of these devices divides the model and the batch.
    """
    config, _ = across_slices(config, where)
    model = architecture(config)
    ranked = sorted(candidates(config, model, where), key=lambda item: item[1].seconds)
    if not ranked:
        raise UserError(
            f"no mesh of the {len(where.devices)} devices of {where.title} divides {config.data.batch_size} rows of "
            f"{config.data.sequence_length} tokens and the model; change data.batch_size (a multiple of the devices is safe)."
        )
    fitting = [item for item in ranked if item[1].memory <= _MARGIN * where.chip.hbm_gib * _GIB]
    chosen = [item[0] for item in fitting or sorted(ranked, key=lambda item: item[1].memory)]
    own = _own(config, where)
    chosen = ([own] if own is not None else []) + [one for one in _first_of_each_mesh(chosen) if one != own]
    out = []
    with progress_bar("compiling", min(most, len(chosen))) as bar:
        for one in chosen[:most]:
            planned = plan(one, where)
            sizes = tuple(planned.mesh[axis] for axis in AXES)
            out.append(Found(sizes, one.model.remat, one.micro_batches, estimate(one, model, where, sizes), planned))
            bar.advance(note=f"{describe(sizes)}, remat {one.model.remat}: {_verdict(planned)}")
    return sorted(out, key=lambda found: (not found.plan.fits, _step(found.plan)))


def candidates(config: TrainConfig, model: Qwen3Config, where: Topology) -> Iterator[tuple[TrainConfig, Estimate]]:
    """Every setting that divides the model and the batch, with its estimate."""
    for sizes in factorizations(len(where.devices), len(AXES)):
        if sizes[0] % where.slices or (sizes[0] > where.slices):
            continue  # whole copies of the weights within a slice only cost memory
        if sizes[2] > 1 and not model.num_experts:
            continue
        rows = config.data.batch_size // (sizes[0] * sizes[1] * sizes[2])
        for micro in (2**power for power in range(rows.bit_length())):
            tried = dataclasses.replace(config, mesh=MeshConfig(*sizes), micro_batches=micro)
            if not mesh_works(tried, model, sizes):
                continue
            for remat in _REMAT:
                one = dataclasses.replace(tried, model=dataclasses.replace(config.model, remat=remat))
                yield one, estimate(one, model, where, sizes)


def estimate(config: TrainConfig, model: Qwen3Config, where: Topology, sizes: tuple[int, ...]) -> Estimate:
    """Return memory and time by rule of thumb; good to order candidates, not to state.

    Memory: parameters, Adam's moments and gradients, what the remat policy keeps of every layer, one layer's work and one
    chunk of logits. Time: arithmetic at peak; parameter gathers and gradient sums overlap with it, exchanges of activations
    (tensor, expert, context) do not.
    """
    replica, data, expert, context, tensor = sizes
    chip, devices = where.chip, where.chip.devices
    layers, d, h = model.num_hidden_layers, model.hidden_size, model.head_dim
    queries, pairs = model.num_attention_heads * h / tensor, 2 * model.num_key_value_heads * h / tensor
    routed = model.num_experts_per_tok if model.num_experts else 1
    width = (model.moe_intermediate_size if model.num_experts else model.intermediate_size) * routed / tensor
    total, per_token = _size(model, config.data.sequence_length)
    in_experts = 0
    if model.num_experts:
        moe_layers = sum(model.is_moe_layer(layer) for layer in range(layers))
        in_experts = moe_layers * 3 * model.num_experts * d * model.moe_intermediate_size
    shard = (total - in_experts) / tensor + in_experts / (tensor * expert)  # whole, as it is gathered
    fsdp = data * context
    tokens = config.data.batch_size * config.data.sequence_length
    mine = tokens / (replica * data * expert * context) / config.micro_batches

    stored = {"float32": 4, "bfloat16": 2}
    parameter, moment = stored[config.model.param_dtype], stored[config.optimizer.moment_dtype]
    gradients = 4 * (2 if config.micro_batches > 1 else 1)
    kept = {
        "full": d,
        "attention": d + queries,
        "qkv": d + 2 * queries + pairs,
        "dots": 3 * d + 2 * queries + pairs + 2 * width,
        "none": 8 * d + 4 * queries + 2 * pairs + 4 * width,
    }[config.model.remat]
    one_layer = 8 * d + 4 * queries + 2 * pairs + 4 * width
    logits = config.loss.chunk_tokens * model.vocab_size / tensor * 4 * 3
    memory = shard / fsdp * (parameter + 2 * moment + gradients) + 2 * 2 * shard / layers
    memory += 2 * mine * (layers * kept + 2 * one_layer) + logits

    attention = 6 * layers * model.num_attention_heads * h * config.data.sequence_length * tokens
    arithmetic = per_token * tokens
    again = {
        "none": 0.0,
        "dots": attention / 3,
        "qkv": (arithmetic - attention) / 3,
        "attention": (arithmetic - attention) / 3,
    }
    flops = arithmetic + again.get(config.model.remat, arithmetic / 3)
    compute = flops / (where.chips * chip.flops)

    def rate(size: int) -> float:
        """Bytes/s of one device along an axis: its share of the torus dimensions."""
        share = math.log(size) / math.log(max(len(where.devices) / where.slices, 2))
        return 2 * chip.ici_link * max(chip.dimensions * share, 0.5) / devices

    passes = 3 if config.model.remat == "none" else 4
    gather = 3 * 2 * shard * (fsdp - 1) / fsdp * config.micro_batches / rate(fsdp) if fsdp > 1 else 0.0
    exchange = 0.0
    micro_tokens = mine * config.micro_batches
    if tensor > 1:
        exchange += passes * 2 * layers * micro_tokens * d * 2 * 2 * (tensor - 1) / tensor / rate(tensor)
    if expert > 1:
        exchange += passes * 2 * layers * micro_tokens * routed * d * 2 * max(1, expert / 8) / rate(expert)
    if context > 1:
        exchange += passes * layers * micro_tokens * (context - 1) * pairs * 2 / rate(context)
    between = 2 * 4 * shard / fsdp / chip.dcn if where.slices > 1 else 0.0
    return Estimate(memory * devices, max(compute + exchange, gather + exchange, between))


@functools.cache
def _size(model: Qwen3Config, length: int) -> tuple[int, float]:
    """Parameters, and FLOPs of a token; each takes building the model once."""
    return parameter_count(model), training_flops_per_token(model, length)


def table(found: list[Found], where: Topology) -> str:
    """The ranking as text, best first, with the first one's report."""
    heads = f"{'HBM GiB':>8} {'estimate':>8} {'step s':>8} {'MFU':>6} {'bound by':<9}"
    lines = [f"{'mesh':<36} {'remat':<10} {'micro':>5} {heads} compile s"]
    for one in found:
        memory = one.plan.compiled.needed
        bound = one.plan.compiled.roofline
        lines.append(
            f"{describe(one.mesh):<36} {one.remat:<10} {one.micro_batches:>5} "
            f"{'?' if memory is None else f'{memory / _GIB:.1f}':>8} {one.estimate.memory / _GIB:>8.1f} "
            + (f"{bound.step_s:>8.3f} {one.plan.mfu:>6.1%} {bound.bound:<9}" if bound else f"{'does not fit':>24} ")
            + f" {one.plan.compiled.seconds:.0f}"
        )
    lines.append(f"(HBM of {where.chip.hbm_gib:g} GiB per chip; estimate: before compiling.) The first one:")
    best = found[0]
    settings = " ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, best.mesh, strict=True))
    lines.append(f"  {settings} --model.remat={best.remat} --micro_batches={best.micro_batches}")
    return "\n".join([*lines, best.plan.text()])


def _own(config: TrainConfig, where: Topology) -> TrainConfig | None:
    """The configuration itself with its mesh filled in, or None where it does not fit the devices."""
    try:
        sizes = config.mesh.sizes(len(where.devices))
    except ShardingError:
        return None
    works = math.prod(sizes) == len(where.devices) and mesh_works(config, architecture(config), sizes)
    return dataclasses.replace(config, mesh=MeshConfig(*sizes)) if works else None


def _first_of_each_mesh(chosen: list[TrainConfig]) -> list[TrainConfig]:
    out: dict[MeshConfig, TrainConfig] = {}
    for one in chosen:
        out.setdefault(one.mesh, one)
    return list(out.values())


def _step(planned: Plan) -> float:
    bound = planned.compiled.roofline
    return math.inf if bound is None else bound.step_s


def _verdict(planned: Plan) -> str:
    bound = planned.compiled.roofline
    return "does not fit" if bound is None or not planned.fits else f"{bound.step_s:.3f} s"
