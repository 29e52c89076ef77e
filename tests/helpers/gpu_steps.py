"""Whole programs for GPUs that are not here, and what of their text the tests ask for."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Execution, Kernels
from qwen3_jax.model import Qwen3, Structure
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer
from sharding import SERVING, TRAINING, Placement, make_mesh
from tests.helpers.gpu_targets import gpu_devices, gpu_mesh

# What gives an array a name, or hands it on, without moving it.
_IN_PLACE = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "optimization-barrier",
}


def decode_step(config: Qwen3Config, card: str, *, rows=1, context=4096, dtype=jnp.bfloat16, scan_layers=False, **axes):
    """Return the lowered forward pass of one new token in each row, over a cache that is donated."""
    placement = Placement(gpu_mesh(card, **axes), SERVING)
    execution = Execution(placement, Kernels())
    structure = Structure(
        lambda: Qwen3(
            config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype, execution=execution, scan_layers=scan_layers
        )
    )
    shardings = structure.shardings(placement)
    weights = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in structure.shapes.items()
    }
    graphdef, state = nnx.split(structure.merge(weights))
    cache = jax.eval_shape(lambda state: nnx.merge(graphdef, state).new_cache(rows, context), state)
    groups = tuple(
        jax.tree.map(
            lambda x, pool=pool: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=placement.sharding(pool.axes[: x.ndim], x.shape)
            ),
            pool,
        )
        for pool in cache.groups
    )
    cache = cache.replace(groups=groups)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(state, tokens, cache):
        model = nnx.merge(graphdef, state)
        hidden = model.hidden(tokens, cache=cache)
        return model.logits(hidden.states), hidden.cache

    return step.lower(state, jax.ShapeDtypeStruct((rows, 1), jnp.int32), cache)


def written_arrays(text: str) -> dict[tuple[str, int], int]:
    """Return how often the program writes arrays to memory, by (operation, elements): of instructions outside of fusions."""
    counts: dict[tuple[str, int], int] = {}
    inside = fused(text)
    for name, body in computations(text).items():
        if name in inside:
            continue
        for line in body:
            match = re.match(r"\s*(?:ROOT )?%?[\w.#-]+ = (.*?) ([\w-]+)\(", line)
            if match is None or match[2] in _IN_PLACE:
                continue
            for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                key = match[2], math.prod(int(n) for n in dims.split(",") if n)
                counts[key] = counts.get(key, 0) + 1
    return counts


def computations(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation of an HLO module."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if (match := re.match(r"(?:ENTRY )?%?([\w.#-]+) \(.*\{$", line)) is not None:
            lines = found.setdefault(match[1], [])
        elif line.strip() != "}":
            lines.append(line)
    return found


def fused(text: str) -> set[str]:
    """Return the computations that run inside of another instruction: fusions, reducers, comparators."""
    return set(re.findall(r"(?:calls|to_apply|comparator)=%?([\w.#-]+)", text))


def train_step(config: Qwen3Config, card: str, *, rows=8, length=1024, nodes=1, model=None, **axes):
    """Return the lowered training step of packed rows in bfloat16 with float32 master weights."""
    placement = Placement(make_mesh(devices=gpu_devices(card, nodes=nodes), **axes), TRAINING)
    model = ModelConfig(dtype="bfloat16", remat="attention") if model is None else model
    optimizer = OptimizerConfig()
    trainer = Trainer(config, model, optimizer, schedule(optimizer, 1000), placement)
    return trainer.lower(trainer.abstract_state(), trainer.abstract_batch(rows, length))
