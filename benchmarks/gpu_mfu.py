"""Model FLOPs utilisation of training steps on one accelerator.

    python -m benchmarks.gpu_mfu                                 # 0.6B, 1.7B, 4B and a depth-cut 30B-A3B at 4,096 tokens
    python -m benchmarks.gpu_mfu --only 0.6b --rows 8 --remat attention

Goals on one H100: at least 55% dense, 35% mixture of experts. FLOPs are the model's own (`training/flops.py`), without
recomputation; the peak is the data sheet's dense bf16. One JSON line per model, then a table.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time

from benchmarks.common import show
from qwen3_jax.model import REMAT

# name -> (preset, layers or None for all, rows of 4,096 tokens, remat, moments)
MODELS = {
    "0.6b": ("Qwen3-0.6B", None, 8, "attention", "float32"),
    "1.7b": ("Qwen3-1.7B", None, 4, "attention", "float32"),
    "4b": ("Qwen3-4B", None, 2, "full", "bfloat16"),
    "30b-a3b-cut": ("Qwen3-30B-A3B", 6, 4, "full", "bfloat16"),
}


def measure(name: str, rows: int, length: int, remat: str, moments: str, steps: int, param_dtype: str) -> dict:
    """Take some steps in this process; return tokens per second, MFU and peak memory."""
    import jax

    import sharding
    from benchmarks.models import batch
    from qwen3_jax.config import Qwen3Config
    from qwen3_jax.training.config import ModelConfig, OptimizerConfig
    from qwen3_jax.training.flops import training_flops_per_token
    from qwen3_jax.training.optimizer import schedule
    from qwen3_jax.training.step import Trainer
    from sharding.hardware import peak_flops

    preset, layers, *_ = MODELS[name]
    config = Qwen3Config.preset(preset)
    if layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=layers)
    options = OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=1e-5, moment_dtype=moments)
    model = ModelConfig(dtype="bfloat16", param_dtype=param_dtype, remat=remat)
    trainer = Trainer(config, model, options, schedule(options, 10**6), sharding.Placement())
    state, placed = trainer.init(0), trainer.place(batch(config, rows, length))
    started = time.perf_counter()
    step = trainer.lower(state, placed).compile()
    compile_s = time.perf_counter() - started
    seconds = []
    for index in range(steps + 2):
        started = time.perf_counter()
        state, metrics = step(state, placed, trainer.peaks)
        loss = float(metrics.loss.cross_entropy)  # waits for the step
        if index >= 2:
            seconds.append(time.perf_counter() - started)
    device, tokens = jax.devices()[0], rows * length
    peak, step_s = peak_flops(device), statistics.median(seconds)
    stats = device.memory_stats() or {}
    return {
        "model": preset if layers is None else f"{preset}, {layers} layers",
        "rows": rows, "length": length, "remat": remat, "moments": moments, "params": param_dtype,
        "step_s": step_s, "tokens_per_s": tokens / step_s, "loss": loss, "compile_s": compile_s,
        "mfu": peak and tokens * training_flops_per_token(config, length) / step_s / peak,
        "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
        "device": device.device_kind, "jax": jax.__version__,
    }  # fmt: skip


def main() -> None:
    """Measure each model in a process of its own and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MODELS), action="append", help="measure only this one; may be repeated")
    parser.add_argument("--rows", type=int, help="rows of a batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--remat", choices=REMAT, help="what the backward pass computes again")
    parser.add_argument(
        "--params", choices=["float32", "bfloat16"], default="float32", help="storage type (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    table = []
    for name in options.only or MODELS:
        _, _, rows, remat, moments = MODELS[name]
        rows, remat = options.rows or rows, options.remat or remat
        if options.here:
            result = measure(name, rows, options.length, remat, moments, options.steps, options.params)
            print(json.dumps(result), flush=True)
            return
        command = [sys.executable, "-m", "benchmarks.gpu_mfu", "--here", "--only", name, "--rows", str(rows)]
        command += ["--length", str(options.length), "--remat", remat, "--params", options.params]
        done = subprocess.run([*command, "--steps", str(options.steps)], capture_output=True, text=True, check=False)
        if done.returncode:
            table.append([name, f"failed: {done.stderr.strip().splitlines()[-1][:80]}", "", "", "", ""])
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(result), flush=True)
        mfu = "unknown peak" if result["mfu"] is None else f"{result['mfu']:.1%}"
        table.append([
            result["model"], f"{rows} x {options.length}", remat, f"{result['tokens_per_s']:,.0f}", mfu,
            f"{result['peak_gib']:.1f}",
        ])  # fmt: skip
    show("training steps, bfloat16", ["model", "tokens", "remat", "tokens/s", "MFU", "peak GiB"], table)


if __name__ == "__main__":
    main()
