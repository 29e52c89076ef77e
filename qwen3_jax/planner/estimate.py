"""Memory and step time of a training configuration by arithmetic over the architecture: enough to order candidates."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import parameter_count
from qwen3_jax.planner.topologies import Topology
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from sharding import AXES
from sharding.hardware import Gpu


@dataclass(frozen=True)
class Estimate:
    """Memory of one chip in bytes and seconds of one step, without compiling."""

    memory: float
    seconds: float


def estimate(config: TrainConfig, model: Qwen3Config, topology: Topology, sizes: tuple[int, ...]) -> Estimate:
    """Return memory and time by rule of thumb; good to order candidates, not to state.

    Args:
        config: batch, storage types, remat policy and micro-batches.
        model: the architecture.
        topology: the slice(s).
        sizes: of the mesh axes, in the order of `sharding.AXES`.
    """
    load = _Load(config, model, sizes)
    devices = topology.chip.devices
    return Estimate(_memory(config, model, load) * devices, _seconds(config, model, topology, load))


class _Load:
    """What each device holds and works on; widths are elements per token.

    Attributes:
        mesh: sizes by axis.
        queries, keys_values: widths of queries, and of keys and values together.
        routed: experts per token; 1 without experts.
        mlp: width of the MLP or of a token's experts.
        shard: parameters of one device as they are gathered, before FSDP splits them.
        fsdp: parts into which FSDP splits them.
        tokens: of one micro-batch on one device.
    """

    def __init__(self, config: TrainConfig, model: Qwen3Config, sizes: tuple[int, ...]):
        self.mesh = dict(zip(AXES, sizes, strict=True))
        replica, data, expert, context, tensor = sizes
        self.queries = model.num_attention_heads * model.head_dim / tensor
        self.keys_values = 2 * model.num_key_value_heads * model.head_dim / tensor
        self.routed = model.num_experts_per_tok if model.num_experts else 1
        self.mlp = (
            (model.moe_intermediate_size if model.num_experts else model.intermediate_size) * self.routed / tensor
        )
        total, self.flops_per_token = _size(model, config.data.sequence_length)
        in_experts = 0
        if model.num_experts:
            moe_layers = sum(model.is_moe_layer(layer) for layer in range(model.num_hidden_layers))
            in_experts = moe_layers * 3 * model.num_experts * model.hidden_size * model.moe_intermediate_size
        self.shard = (total - in_experts) / tensor + in_experts / (tensor * expert)
        self.fsdp = data * context
        self.batch_tokens = config.data.batch_size * config.data.sequence_length
        self.tokens = self.batch_tokens / (replica * data * expert * context) / config.micro_batches


def _memory(config: TrainConfig, model: Qwen3Config, load: _Load) -> float:
    """Bytes of one device: parameters, Adam's moments and gradients, what the remat policy keeps of every layer, one layer's
    work and one chunk of logits."""
    layers, d = model.num_hidden_layers, model.hidden_size
    queries, keys_values, mlp = load.queries, load.keys_values, load.mlp
    stored = {"float32": 4, "bfloat16": 2}
    parameter, moment = stored[config.model.param_dtype], stored[config.optimizer.moment_dtype]
    gradients = 4 * (2 if config.micro_batches > 1 else 1)
    kept = {
        "full": d,
        "attention": d + queries,
        "qkv": d + 2 * queries + keys_values,
        "mlp": d + 2 * queries + keys_values + mlp,
        "dots": 3 * d + 2 * queries + keys_values + 2 * mlp,
        "none": 8 * d + 4 * queries + 2 * keys_values + 4 * mlp,
    }[config.model.remat]
    one_layer = 8 * d + 4 * queries + 2 * keys_values + 4 * mlp
    logits = config.loss.chunk_tokens * model.vocab_size / load.mesh["tensor"] * 4 * 3
    memory = load.shard / load.fsdp * (parameter + 2 * moment + gradients) + 2 * 2 * load.shard / layers
    memory += 2 * load.tokens * (layers * kept + 2 * one_layer) + logits
    return memory


def _seconds(config: TrainConfig, model: Qwen3Config, topology: Topology, load: _Load) -> float:
    """Seconds of one step: arithmetic at peak; parameter gathers and gradient sums overlap with it, exchanges of activations
    (tensor, expert, context) do not."""
    chip, remat, fsdp = topology.chip, config.model.remat, load.fsdp
    expert, context, tensor = load.mesh["expert"], load.mesh["context"], load.mesh["tensor"]
    layers, d = model.num_hidden_layers, model.hidden_size
    attention = (
        6 * layers * model.num_attention_heads * model.head_dim * config.data.sequence_length * load.batch_tokens
    )
    arithmetic = load.flops_per_token * load.batch_tokens
    recomputed = {
        "none": 0.0,
        "dots": attention / 3,
        "mlp": (arithmetic - attention) / 9,
        "qkv": (arithmetic - attention) / 5,
        "attention": (arithmetic - attention) / 3,
    }
    flops = arithmetic + recomputed.get(remat, arithmetic / 3)
    compute = flops / (topology.chips * chip.flops)

    along = functools.partial(rate, topology, load.mesh)
    passes = 3 if remat == "none" else 4
    gather = 3 * 2 * load.shard * (fsdp - 1) / fsdp * config.micro_batches / along("data", fsdp) if fsdp > 1 else 0.0
    exchange = 0.0
    tokens = load.tokens * config.micro_batches
    if tensor > 1:
        exchange += passes * 2 * layers * tokens * d * 2 * 2 * (tensor - 1) / tensor / along("tensor", tensor)
    if expert > 1:
        exchange += passes * 2 * layers * tokens * load.routed * d * 2 * max(1, expert / 8) / along("expert", expert)
    if context > 1:
        exchange += passes * layers * tokens * (context - 1) * load.keys_values * 2 / along("context", context)
    replica = load.mesh["replica"]
    outside = chip.nic if isinstance(chip, Gpu) else chip.dcn
    between_slices = 2 * 4 * load.shard / fsdp / outside if replica > 1 and topology.nodes > 1 else 0.0
    return max(compute + exchange, gather + exchange, between_slices)


def rate(topology: Topology, mesh: dict[str, int], axis: str, size: int) -> float:
    """Bytes/s of one device to the others of its group along an axis.

    Of a TPU its share of the torus dimensions; of a GPU its links, or the network cards of the group's members in its node.
    """
    chip = topology.chip
    if not isinstance(chip, Gpu):
        share = math.log(size) / math.log(max(len(topology.devices) / topology.slices, 2))
        return 2 * chip.ici_link * max(chip.dimensions * share, 0.5) / chip.devices
    inner = math.prod(mesh[name] for name in AXES[AXES.index(axis) + 1 :] if axis != "data" or name != "context")
    per_node = topology.shape[1]
    return chip.link if size * inner <= per_node else min(chip.link, chip.nic * max(per_node // inner, 1))


@functools.cache
def _size(model: Qwen3Config, length: int) -> tuple[int, float]:
    """Parameters, and FLOPs of a token; each takes building the model once."""
    return parameter_count(model), training_flops_per_token(model, length)
