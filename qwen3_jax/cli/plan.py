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

from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.cli.train_options import PlanOptions, parse_plan
from qwen3_jax.errors import warn

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 plan") -> int:
    """Plan; return the exit code."""
    return guarded(prog, lambda: run(*parse_plan(sys.argv[1:] if argv is None else argv, prog, __doc__ or "")))


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
    if options.search:
        from qwen3_jax.planner import search

        ranking = search.search(config, topology)
        if not options.json:
            print(search.table(ranking, topology))
            return 0
        for refused in ranking.failed:
            warn(f"does not compile: {refused}")
        print("\n".join(json.dumps(result.plan.json()) for result in ranking))
        return 0
    plan = planner.plan_training(config, topology)
    print(json.dumps(plan.json()) if options.json else plan.text())
    return 0
