"""Decoding on one accelerator: tokens/s, time to first token, and the share of the limit that its memory bandwidth sets.

    python -m benchmarks.decode                                    # every model, weight type and batch; an H100 needs an hour
    python -m benchmarks.decode --only 4b --weights bfloat16 --batches 1 64
    python -m benchmarks.decode --only 4b --no-peer                # without transformers on the same card

Every request has a prompt of 512 tokens and 128 new ones; random weights. A decode step must read all weights that it uses once
(of a mixture of experts those that its rows choose, if they choose at random) and the keys and values of all rows: the limit is
the data sheet's bandwidth over these bytes. The goal on one H100 is 70% of it at batch 1 from 4B up. One JSON line per row, and
a table.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.common import show
from qwen3_jax.config import Qwen3Config

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


def main() -> None:
    """Measure each model in processes of its own and print."""
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
    parser.add_argument("--here", choices=["make", *WEIGHTS, "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        if options.here == "make":
            make(options.only[0], options.layers, options.folder)
        else:
            results = (
                peer(options.folder, options.batches)
                if options.here == "peer"
                else ours(options.folder, options.here, options.batches)
            )
            print(json.dumps(results))
        return
    table = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            common = [sys.executable, "-m", "benchmarks.decode", "--only", name, "--folder", f"{folder}/model"]
            common += ["--batches", *map(str, options.batches)]
            common += ["--layers", str(options.layers)] if options.layers else []
            for kind in ("make", *options.weights, *([] if options.no_peer else ["peer"])):
                done = subprocess.run([*common, "--here", kind], capture_output=True, text=True, check=False)
                if done.returncode:
                    table.append([name, kind, f"failed: {done.stderr.strip().splitlines()[-1][:80]}", "", "", ""])
                    continue
                for row in json.loads(done.stdout.splitlines()[-1]) if kind != "make" else []:
                    print(json.dumps({"model": name, **row}), flush=True)
                    share = row.get("of_limit")
                    table.append([
                        name, row["weights"], str(row["batch"]), f"{row['tokens_per_s']:,.0f}",
                        f"{row['ttft_ms']:,.0f}" if "ttft_ms" in row else "", "" if share is None else f"{share:.0%}",
                    ])  # fmt: skip
    columns = ["model", "weights", "batch", "tokens/s", "first token, ms", "of the memory's limit"]
    show(f"Decoding after {PROMPT} tokens", columns, table)


if __name__ == "__main__":
    main()
