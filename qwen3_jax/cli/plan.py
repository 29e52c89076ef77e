"""Plan a training run for TPUs or GPUs that are not present: memory, traffic and a bound on speed, from the compiled step.

    qwen3 plan --config configs/scale/qwen3-8b.yaml --topology v5p:2x2x1
    qwen3 plan --config configs/scale/qwen3-235b-a22b.yaml --topology v5p:8x8x8 --slices 2 --json
    qwen3 plan --config configs/scale/qwen3-32b.yaml --topology v6e:8x8 --search
    qwen3 plan --config configs/scale/qwen3-8b.yaml --topology h100:8x4 --mesh.data=32 --data.batch_size=32

The same as `python train.py --config FILE --plan TOPOLOGY`. The training step is compiled, unmodified, for the named slice or
GPUs by XLA, with libtpu (`pip install "qwen3-jax[tpu]"`) or jax's CUDA plug-in (a plan without it says what to install); no TPU
and no GPU is needed. No data, tokenizer or weights are read. Every key of the configuration is a flag, as for `train`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from qwen3_jax.cli import background
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.cli.train_options import PlanOptions, parse_plan
from qwen3_jax.errors import UserError, warn
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 plan") -> int:
    """Plan; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return guarded(prog, lambda: background.leave(background.call(lambda: _plan(words, prog))))


def _plan(words: list[str], prog: str) -> int:
    """Plan, in the background thread: Ctrl-C is heard in the main one."""
    with doing("starting JAX"):
        config, options = parse_plan(words, prog, __doc__ or "")
    return run(config, options)


def without_accelerators() -> None:
    """Keep JAX off real devices, which planning does not need; call it before the first array is created."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the environment; without effect where devices are in use already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def run(config: TrainConfig, options: PlanOptions) -> int:
    """Plan the training run of a configuration and print the report; return the exit code."""
    without_accelerators()
    from qwen3_jax import planner

    config = config.stage(options.stage)
    topology = planner.topology(options.topology, options.slices)
    with doing(f"compiling for {options.topology}"):
        if options.search and config.method in ("grpo", "distillation"):
            raise UserError(
                f"--search is for one program, and method: {config.method} has several; plan each mesh by itself."
            )
        if options.search:
            from qwen3_jax.planner import search

            ranking = search.search(config, topology)
            if options.json:
                for refused in ranking.failed:
                    warn(f"does not compile: {refused}")
            lines = [json.dumps(result.plan.json()) for result in ranking]
            text = "\n".join(lines) if options.json else search.table(ranking, topology)
        else:
            if config.method == "distillation":
                plans = planner.plan_distillation(config, topology)
            elif config.method == "grpo":
                plans = planner.plan_reinforcement(config, topology)
            else:
                plans = [planner.plan_training(config, topology)]
            lines = [json.dumps(plan.json()) if options.json else plan.text() for plan in plans]
            text = "\n".join(lines) if options.json else "\n\n".join(lines)
    print(text)
    return 0
