"""Time to compile a training step at 4 and at 48 layers.

python benchmarks/compile_time.py                # goal: equal within 20%
"""

import argparse
import dataclasses
import statistics
import time

import jax

import sharding
from benchmarks.common import show
from benchmarks.models import DENSE, MOE
from qwen3_jax.progress import progress_bar
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer


def seconds(config, layers: int) -> float:
    """Trace, lower and compile once, without any cache."""
    config = dataclasses.replace(config, num_hidden_layers=layers)
    jax.clear_caches()
    options = OptimizerConfig(warmup_steps=0)
    trainer = Trainer(config, ModelConfig(remat="full"), options, schedule(options, 10), sharding.Placement())
    started = time.perf_counter()
    trainer.lower(trainer.abstract_state(), trainer.abstract_batch(4, 512)).compile()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)"
    )
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_compilation_cache", False)
    table = []
    with progress_bar("compiling", 4 * (rounds + 1)) as bar:
        for name, config in (("dense", DENSE), ("8 of 32 experts", MOE)):
            seconds_by_layers: dict[int, list[float]] = {4: [], 48: []}
            for turn in range(rounds + 1):
                for layers, values in seconds_by_layers.items():
                    elapsed = seconds(config, layers)
                    if turn:
                        values.append(elapsed)
                    bar.advance(1, f"{name}, {layers} layers")
            few, many = (statistics.median(values) for values in seconds_by_layers.values())
            table.append([name, f"{few:.2f} s", f"{many:.2f} s", f"{many / few:.2f}x"])
    show("compiling a train step", ["model", "4 layers", "48 layers", "ratio"], table)


if __name__ == "__main__":
    main()
