"""Decoding on one accelerator: tokens/s, time to first token, and the share of the limit that its memory bandwidth sets.

    python -m benchmarks.decode                                    # every model, weight type and batch; an H100 needs an hour
    python -m benchmarks.decode --only 4b --weights bfloat16 --batches 1 64
    python -m benchmarks.decode --only 4b --no-peer                # without transformers on the same card
    python -m benchmarks.decode --plan h100                        # without a GPU: what the plans say

Every request has a prompt of 512 tokens and 128 new ones; random weights. A decode step must read all weights that it uses once
(of a mixture of experts those that its rows choose, if they choose at random) and the keys and values of all rows: the limit is
the data sheet's bandwidth over these bytes. The goal on one H100 is 70% of it at batch 1 from 4B up. Beside a step stands
what its plan says (`planner.plan_decoding`). One JSON line per row, and a table.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.common import card_of_kind, show
from qwen3_jax.config import Qwen3Config
from sharding.hardware import GPUS

PROMPT, NEW = 512, 128
# name -> (preset, layers or None for all)
MODELS = {
    "0.6b": ("Qwen3-0.6B", None),
    "4b": ("Qwen3-4B", None),
    "8b": ("Qwen3-8B", None),
    "30b-a3b-cut": ("Qwen3-30B-A3B", 12),
}
WEIGHTS = ("bfloat16", "int8", "fp8")


def architecture(name: str, layers: int | None) -> Qwen3Config:
    """Return the model of that name, cut to `layers` layers unless None."""
    preset, cut = MODELS[name]
    config, layers = Qwen3Config.preset(preset), layers or cut
    return config if layers is None else dataclasses.replace(config, num_hidden_layers=layers)


def bytes_per_step(config: Qwen3Config, weights: str, batch: int) -> float:
    """Return the bytes that a decode step in the middle of the answers must read."""
    d, h = config.hidden_size, config.head_dim
    attention = d * h * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    if config.num_experts:
        used = config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** batch)
        mlp = 3 * d * config.moe_intermediate_size * used + d * config.num_experts
    else:
        mlp = 3 * d * config.intermediate_size
    numbers = config.num_hidden_layers * (attention + mlp) + d * config.vocab_size
    cache = batch * (PROMPT + NEW / 2) * config.num_hidden_layers * 2 * config.num_key_value_heads * h * 2
    return numbers * (2 if weights == "bfloat16" else 1) + cache


def make(name: str, layers: int | None, folder: str) -> None:
    """Save a model with random bfloat16 weights."""
    from flax import nnx

    import qwen3_jax

    config = architecture(name, layers)
    model = qwen3_jax.Qwen3(config, rngs=nnx.Rngs(0), dtype="bfloat16", param_dtype="bfloat16")
    qwen3_jax.save(model, None, folder)


def ours(folder: str, weights: str, batches: list[int]) -> list[dict]:
    """Decode with the engine in this process."""
    import jax

    import qwen3_jax
    from qwen3_jax import Engine, Request, Sampling
    from sharding.hardware import memory_bandwidth

    quantize = None if weights == "bfloat16" else weights
    model, _ = qwen3_jax.load(folder, dtype="bfloat16", quantize=quantize)
    random, results = np.random.default_rng(0), []
    for batch in batches:
        engine = Engine(
            model, rows=batch, cache_tokens=batch * (PROMPT + NEW + 64), prefix_cache=False, decode_steps=32
        )

        def run(count: int, new: int, engine=engine) -> tuple[float, float]:
            """(seconds of decoding per token of a row, seconds to the first token)"""
            before, started = dataclasses.replace(engine.stats), time.perf_counter()
            for _ in range(count):
                prompt = tuple(random.integers(0, model.config.vocab_size, PROMPT).tolist())
                engine.submit(Request(prompt, Sampling(temperature=0, seed=0), new))
            first = None
            while engine.busy:
                if engine.step() and first is None:
                    first = time.perf_counter() - started
            assert first is not None
            return engine.stats.since(before).decode_seconds / max(new - 1, 1), first

        run(batch, NEW)
        step_s = float(np.median([run(batch, NEW)[0] for _ in range(3)]))
        ttft = float(np.median([run(1, 1)[1] for _ in range(3)]))
        bandwidth = memory_bandwidth(jax.devices()[0])
        limit = bandwidth and bytes_per_step(model.config, weights, batch) / bandwidth
        results.append({
            "weights": weights, "batch": batch, "tokens_per_s": batch / step_s, "step_ms": 1000 * step_s,
            "ttft_ms": 1000 * ttft, "of_limit": limit and limit / step_s,
            "device": jax.devices()[0].device_kind, "jax": jax.__version__,
        })  # fmt: skip
    return results


def peer(folder: str, batches: list[int]) -> list[dict]:
    """Decode with transformers in this process, on CUDA where torch has it."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    model.generation_config.eos_token_id = None
    results = []
    for batch in batches:
        ids = torch.randint(0, model.config.vocab_size, (batch, PROMPT), device=device)

        def run(new: int, ids=ids) -> float:
            started = time.perf_counter()
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        run(2)
        both = [(run(NEW), run(1)) for _ in range(2)]
        step_s = float(np.median([(long - short) / (NEW - 1) for long, short in both]))
        results.append(
            {"weights": "transformers", "batch": batch, "tokens_per_s": batch / step_s, "torch": torch.__version__}
        )
    return results


def planned(name: str, layers: int | None, weights: str, batches: list[int], card: str) -> list[dict]:
    """Return what the plans of the same steps say: milliseconds at least, and bytes of memory traffic. No GPU is used."""
    from qwen3_jax import planner
    from sharding import MeshConfig

    quantize = None if weights == "bfloat16" else weights
    results = []
    for batch in batches:
        plan = planner.plan_decoding(
            architecture(name, layers), planner.topology(f"{card}:1"), MeshConfig(), batch, PROMPT + NEW // 2,
            quantize=quantize,
        )  # fmt: skip
        bound = plan.compiled.roofline
        results.append({
            "weights": weights, "batch": batch, "planned_ms": bound and 1000 * bound.step_s,
            "planned_gb": bound and bound.hbm_bytes / 1e9, "planned_of_read": bound
            and bound.hbm_bytes / bytes_per_step(architecture(name, layers), weights, batch),
        })  # fmt: skip
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="measure only these (default: all)"
    )
    parser.add_argument(
        "--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="types of weights (default: all)"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 8, 64, 256], help="batch sizes (default: 1 8 64 256)"
    )
    parser.add_argument("--layers", type=int, help="cut the model to this many")
    parser.add_argument("--no-peer", action="store_true", help="measure without transformers")
    parser.add_argument(
        "--plan", choices=list(GPUS), metavar="CARD", help="measure nothing: the plans for this card alone"
    )
    parser.add_argument("--no-plan", action="store_true", help="measure without the plans, which take CPU time")
    parser.add_argument("--here", choices=["make", "ours", "peer", "plan"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def here(options: argparse.Namespace) -> list[dict]:
    """Do one part in this process."""
    name, weights = options.only[0], options.weights[0]
    if options.here == "make":
        make(name, options.layers, options.folder)
        return []
    if options.here == "peer":
        return peer(options.folder, options.batches)
    if options.here == "ours":
        return ours(options.folder, weights, options.batches)
    return planned(name, options.layers, weights, options.batches, options.plan)


def rows_of(name: str, options: argparse.Namespace, folder: str) -> list[dict]:
    """Measure and plan one model, each part in a process of its own; a part that fails gives {"failed": why}."""
    common = [sys.executable, "-m", "benchmarks.decode", "--only", name, "--folder", f"{folder}/model"]
    common += ["--batches", *map(str, options.batches)]
    common += ["--layers", str(options.layers)] if options.layers else []

    def run(part: str, *more: str, without_devices: bool = False) -> list[dict]:
        environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if without_devices else {})
        command = [*common, "--here", part, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return [{"failed": f"{part}: {done.stderr.strip().splitlines()[-1][:80]}"}]
        return json.loads(done.stdout.splitlines()[-1])

    rows = [] if options.plan else run("make")
    for weights in options.weights:
        measured = [] if options.plan else run("ours", "--weights", weights)
        cards = () if options.no_plan else (card_of_kind(row["device"]) for row in measured if "device" in row)
        card = options.plan or next(iter(cards), None)
        plans = run("plan", "--weights", weights, "--plan", card, without_devices=True) if card else []
        of = {row["batch"]: row for row in plans if "batch" in row}
        rows += [row | of.get(row.get("batch"), {}) for row in measured or plans]
        rows += [row for row in plans if measured and "failed" in row]
    return rows if options.no_peer or options.plan else [*rows, *run("peer")]


def main() -> None:
    """Measure each model and print."""
    options = parse()
    if options.here:
        print(json.dumps(here(options)))
        return
    table = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows = rows_of(name, options, folder)
        for row in rows:
            print(json.dumps({"model": name, **row}), flush=True)
            if "failed" in row:
                table.append([name, f"failed: {row['failed']}", *[""] * 6])
                continue
            figures = (
                ("tokens_per_s", ",.0f"),
                ("ttft_ms", ",.0f"),
                ("step_ms", ".2f"),
                ("planned_ms", ".2f"),
                ("of_limit", ".0%"),
            )
            cells = ["" if row.get(key) is None else format(row[key], form) for key, form in figures]
            table.append([name, row["weights"], str(row["batch"]), *cells])
    columns = ["model", "weights", "batch", "tokens/s", "first token, ms", "step, ms", "plan: at least", "of the limit"]
    show(f"Decoding after {PROMPT} tokens", columns, table)


if __name__ == "__main__":
    main()
