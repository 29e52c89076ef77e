"""Model FLOPs utilisation of training steps on one accelerator.

    python -m benchmarks.gpu_mfu                                 # 0.6B, 1.7B, 4B and a depth-cut 30B-A3B at 4,096 tokens
    python -m benchmarks.gpu_mfu --only 0.6b --rows 8 --remat attention
    python -m benchmarks.gpu_mfu --plan h100                     # without a GPU: what the plans say
    python -m benchmarks.gpu_mfu --no-plan                       # what must be measured on the GPU alone

Goals on one H100: at least 55% dense, 35% mixture of experts. FLOPs are the model's own (`training/flops.py`), without
recomputation; the peak is the data sheet's dense bf16. Beside each figure stand the same step by transformers with
torch on the same card (float32 parameters, bf16 autocast, fused AdamW; half of the rows, and again half, where its memory ends)
and the figure of the step's plan (`planner.plan_training`). One JSON line per model, then a table.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import card_of_kind, show
from qwen3_jax.model import REMAT
from sharding.hardware import GPUS

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
        state, metrics = step(state, placed, trainer.peaks, trainer.frozen)
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


def peer(name: str, rows: int, length: int, remat: str, steps: int) -> dict:
    """Take the same steps with transformers and torch on CUDA; return tokens per second, and the rows that fit."""
    import torch
    import transformers

    from qwen3_jax.config import Qwen3Config

    preset, layers, *_ = MODELS[name]
    values = Qwen3Config.preset(preset).to_hf()
    if layers is not None:
        values["num_hidden_layers"] = layers
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    if remat != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()

    def timed(tokens: torch.Tensor) -> float:
        started = time.perf_counter()
        step(tokens)
        return time.perf_counter() - started

    while True:
        tokens = torch.randint(0, config.vocab_size, (rows, length), device="cuda")
        try:
            step_s = statistics.median([timed(tokens) for _ in range(steps + 2)][2:])
            break
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        rows //= 2
    return {
        "peer_rows": rows, "peer_tokens_per_s": rows * length / step_s, "torch": torch.__version__,
        "transformers": transformers.__version__, "peer_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def planned(name: str, rows: int, length: int, remat: str, moments: str, param_dtype: str, card: str) -> dict:
    """Return what the plan of the same step says: seconds and MFU at most, memory. No GPU is used."""
    from qwen3_jax import planner
    from qwen3_jax.cli.train_options import parse_config

    preset, layers, *_ = MODELS[name]
    options = [
        "--config",
        "configs/scale/qwen3-0.6b.yaml",
        f"--model.preset={preset}",
        f"--model.param_dtype={param_dtype}",
    ]
    options += [f"--model.remat={remat}", f"--optimizer.moment_dtype={moments}", "--mesh.data=1"]
    options += [f"--data.batch_size={rows}", f"--data.sequence_length={length}"]
    if layers is not None:
        options.append(f"--model.config.num_hidden_layers={layers}")
    plan = planner.plan_training(parse_config(options), planner.topology(f"{card}:1"))
    figures = plan.json()
    return {f"planned_{key}": figures[key] for key in ("roofline_step_s", "roofline_mfu", "hbm_peak_gib")}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MODELS), action="append", help="measure only this one; may be repeated")
    parser.add_argument("--rows", type=int, help="rows of a batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--remat", choices=REMAT, help="what the backward pass computes again")
    parser.add_argument(
        "--params", choices=["float32", "bfloat16"], default="float32", help="storage type (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed (default: %(default)s)")
    parser.add_argument(
        "--plan", choices=list(GPUS), metavar="CARD", help="measure nothing: the plans for this card alone"
    )
    parser.add_argument("--no-plan", action="store_true", help="measure without the plans, which take CPU time")
    parser.add_argument("--no-peer", action="store_true", help="measure without transformers")
    parser.add_argument("--here", choices=["measure", "peer", "plan"], help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process(command: list[str], without_devices: bool = False) -> dict:
    """Run this file's command; return the JSON of its last line, or {"failed": the last line of its errors}."""
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if without_devices else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:80]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and plan each model in processes of their own and print."""
    options, table = parse(), []
    for name in options.only or MODELS:
        preset, layers, rows, remat, moments = MODELS[name]
        rows, remat = options.rows or rows, options.remat or remat
        if options.here == "measure":
            print(json.dumps(measure(name, rows, options.length, remat, moments, options.steps, options.params)))
            return
        if options.here == "peer":
            print(json.dumps(peer(name, rows, options.length, remat, options.steps)))
            return
        if options.here == "plan":
            print(json.dumps(planned(name, rows, options.length, remat, moments, options.params, options.plan)))
            return
        command = [sys.executable, "-m", "benchmarks.gpu_mfu", "--only", name, "--rows", str(rows)]
        command += ["--length", str(options.length), "--remat", remat, "--params", options.params]
        result = {} if options.plan else in_a_process([*command, "--steps", str(options.steps), "--here", "measure"])
        other = {} if options.plan or options.no_peer else in_a_process([*command, "--here", "peer"])
        other = {f"peer_{key}" if key == "failed" else key: value for key, value in other.items()}
        card = options.plan or (None if options.no_plan else card_of_kind(result.get("device", "")))
        plan = in_a_process([*command, "--plan", card, "--here", "plan"], without_devices=True) if card else {}
        print(json.dumps({"model": preset, **result, **other, **plan}), flush=True)
        failed = result.get("failed") or plan.get("failed")
        cells = [f"failed: {failed}" if failed else f"{rows} x {options.length}", remat]
        for found in (result.get("tokens_per_s"), other.get("peer_tokens_per_s", other.get("peer_failed"))):
            cells.append(f"{found:,.0f}" if isinstance(found, float) else found or "")
        for found in (result.get("mfu"), plan.get("planned_roofline_mfu")):
            cells.append("" if found is None else f"{found:.1%}")
        for found in (result.get("peak_gib"), plan.get("planned_hbm_peak_gib")):
            cells.append("" if found is None else f"{found:.1f}")
        table.append([preset if layers is None else f"{preset}, {layers} layers", *cells])
    columns = ["model", "tokens", "remat", "tokens/s", "transformers", "MFU", "plan: at most", "peak GiB", "plan"]
    show("training steps, bfloat16", columns, table)


if __name__ == "__main__":
    main()
