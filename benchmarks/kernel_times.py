"""Device time by kernel of a training step or a decode step on an NVIDIA GPU.

    python -m benchmarks.kernel_times train --model Qwen3-0.6B --rows 8 --length 4096 --remat attention
    python -m benchmarks.kernel_times decode --model Qwen3-0.6B --rows 1

Random weights. The profile is JAX's own, read back; kernels of one name are added up.
"""

import argparse
import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import show
from qwen3_jax.config import Qwen3Config

PROMPT, NEW = 512, 33


def profiled(function: Callable[[], object], steps: int, title: str, most: int) -> None:
    """Call the function, which takes `steps` steps, under the profiler; print its `most` longest kernels."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with jax.profiler.trace(folder):
            function()
        wall_ms = 1000 * (time.perf_counter() - started) / steps
        [path] = Path(folder).rglob("*.xplane.pb")
        planes = [p for p in jax.profiler.ProfileData.from_file(str(path)).planes if p.name.startswith("/device:GPU")]
        times, calls = collections.Counter[str](), collections.Counter[str]()
        for plane in planes:
            for line in plane.lines:
                for event in line.events if line.name.startswith("Stream") else ():
                    times[event.name] += event.duration_ns / 1e6 / steps
                    calls[event.name] += 1
    if not times:
        raise SystemExit(f"the profile has no kernel of a GPU; the devices are {jax.devices()}.")
    total = sum(times.values())
    rows = [
        [name[:60], f"{ms:.3f}", f"{ms / total:.1%}", f"{calls[name] / steps:,.1f}"]
        for name, ms in times.most_common(most)
    ]
    rows.append(["all", f"{total:.3f}", "100%", f"{sum(calls.values()) / steps:,.1f}"])
    show(f"{title}: {wall_ms:.2f} ms of wall time a step", ["kernel", "ms a step", "share", "calls a step"], rows)


def train(options: argparse.Namespace, config: Qwen3Config) -> None:
    """Profile two training steps after two."""
    import sharding
    from benchmarks.models import batch
    from qwen3_jax.training.config import ModelConfig, OptimizerConfig
    from qwen3_jax.training.optimizer import schedule
    from qwen3_jax.training.step import Trainer

    optimizer = OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=1e-5)
    model = ModelConfig(dtype="bfloat16", param_dtype="float32", remat=options.remat)
    trainer = Trainer(config, model, optimizer, schedule(optimizer, 10**6), sharding.Placement())
    state, placed = trainer.init(0), trainer.place(batch(config, options.rows, options.length))
    step = trainer.lower(state, placed).compile()

    def run() -> None:
        nonlocal state
        for _ in range(2):
            state, metrics = step(state, placed, trainer.peaks, trainer.frozen)
        float(metrics.loss.cross_entropy)

    run()
    profiled(run, 2, "training step", options.kernels)


def decode(options: argparse.Namespace, config: Qwen3Config) -> None:
    """Profile 32 decode steps after a prompt for each row, and the prompts' own kernels with them."""
    from flax import nnx

    import qwen3_jax
    from qwen3_jax import Engine, Request, Sampling

    with tempfile.TemporaryDirectory() as folder:
        model = qwen3_jax.Qwen3(config, rngs=nnx.Rngs(0), dtype="bfloat16", param_dtype="bfloat16")
        qwen3_jax.save(model, None, folder)
        model, _ = qwen3_jax.load(folder, dtype="bfloat16")
    engine = Engine(
        model, rows=options.rows, cache_tokens=options.rows * (PROMPT + 3 * 64), prefix_cache=False, decode_steps=32
    )
    random = np.random.default_rng(0)

    def run() -> None:
        for _ in range(options.rows):
            prompt = tuple(random.integers(0, config.vocab_size, PROMPT).tolist())
            engine.submit(Request(prompt, Sampling(temperature=0, seed=0), NEW))
        while engine.busy:
            engine.step()

    run()
    profiled(run, NEW - 1, "decode step", options.kernels)


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "decode"], help="what is profiled")
    parser.add_argument("--model", default="Qwen3-0.6B", help="a preset (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="cut the model to this many")
    parser.add_argument("--rows", type=int, default=1, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=4096, help="train: tokens of a row (default: %(default)s)")
    parser.add_argument("--remat", default="attention", help="train: what is computed again (default: %(default)s)")
    parser.add_argument("--kernels", type=int, default=40, help="kernels that are printed (default: %(default)s)")
    options = parser.parse_args()
    config = Qwen3Config.preset(options.model)
    if options.layers:
        config = dataclasses.replace(config, num_hidden_layers=options.layers)
    (train if options.step == "train" else decode)(options, config)


if __name__ == "__main__":
    main()
