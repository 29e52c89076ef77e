"""Memory of a step of distillation, logits in chunks and logits of both models in one piece, from the compiled programs.

python -m benchmarks.distillation_memory           # shapes of Qwen3-0.6B, two layers, a row of 4,096 tokens, vocabulary 151,936

Both are the trainer's step over the same model and batch, with the teacher's final hidden states as an argument; the second has
the logits [B, T, V] of student and teacher, by plain jax.numpy. Nothing is run, so no weights are needed.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sharding
from benchmarks.common import show
from qwen3_jax import Qwen3Config
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.distillation import EMBEDDING, STATES, DistillationSums, distillation
from qwen3_jax.training.distillation_config import DistillationConfig
from qwen3_jax.training.losses import hidden_of
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer

KINDS = ("reverse_kl", "forward_kl", "jsd")
GIB = 2**30


def all_logits(kind: str) -> Callable[..., Any]:
    """Return the objective's `share` with the logits of both models in one piece."""

    def share(model: Any, batch: dict[str, jax.Array], whole: Any, _: Any) -> tuple[jax.Array, DistillationSums]:
        weight, _ = model.output_matrix()  # tied, as the teacher's

        def log_probs(states_btd: jax.Array, weight_vd: jax.Array) -> jax.Array:
            logits_btv = jnp.einsum("btd,vd->btv", states_btd, weight_vd.astype(states_btd.dtype))
            return jax.nn.log_softmax(logits_btv.astype(jnp.float32))

        pi = log_probs(hidden_of(model, batch).states.astype(model.dtype), weight)
        nu = log_probs(batch[STATES], batch[EMBEDDING])
        if kind == "reverse_kl":
            divergence = (jnp.exp(pi) * (pi - nu)).sum(axis=-1)
        elif kind == "forward_kl":
            divergence = (jnp.exp(nu) * (nu - pi)).sum(axis=-1)
        else:
            mean = jnp.logaddexp(pi, nu) - jnp.log(2.0)
            divergence = (jnp.exp(nu) * (nu - mean) + jnp.exp(pi) * (pi - mean)).sum(axis=-1) / 2
        total, zero = (divergence * batch["loss_mask"]).sum(), jnp.zeros((), jnp.float32)
        return total / whole.tokens, DistillationSums(total, zero, zero, None, None, zero, None)

    return share


def temporaries(kind: str, options: argparse.Namespace, *, in_chunks: bool) -> int:
    """Compile the step; return the bytes of what it keeps besides arguments and results."""
    config = dataclasses.replace(Qwen3Config.preset("Qwen3-0.6B"), num_hidden_layers=options.layers)
    rates, model = OptimizerConfig(warmup_steps=0), ModelConfig(remat="full", dtype=options.dtype)
    objective = distillation(DistillationConfig("teacher", divergence=kind))  # type: ignore[arg-type]
    states = {STATES: (jnp.dtype(options.dtype), config.hidden_size)}
    objective = dataclasses.replace(objective, computed=states)
    if not in_chunks:
        objective = dataclasses.replace(objective, share=all_logits(kind))
    trainer = Trainer(config, model, rates, schedule(rates, 10), sharding.Placement(), objective=objective)
    shape = config.vocab_size, config.hidden_size
    trainer.objective_arrays = {EMBEDDING: jax.ShapeDtypeStruct(shape, jnp.dtype(options.dtype))}  # type: ignore[dict-item]
    lowered = trainer.lower(trainer.abstract_state(), trainer.abstract_batch(options.rows, options.length))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of student (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of activations and states (default: %(default)s)")
    parser.add_argument("--divergences", nargs="+", choices=KINDS, default=[*KINDS], help="(default: all)")
    options = parser.parse_args()
    rows = []
    for kind in options.divergences:
        ours, plain = (temporaries(kind, options, in_chunks=chunks) for chunks in (True, False))
        rows.append([kind, f"{ours / GIB:.2f}", f"{plain / GIB:.2f}", f"{plain / ours:.1f}x"])
    title = f"temporaries of a step of distillation, {options.rows} x {options.length} tokens, {options.dtype}"
    show(title, ["", "in chunks, GiB", "all logits, GiB", "ratio"], rows)


if __name__ == "__main__":
    main()
