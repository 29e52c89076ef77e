"""Prefill, decoding and batches against transformers with torch, and the cost or gain of each part of the engine.

    python -m benchmarks.inference                              # Qwen3-0.6B's shapes, float32 and bfloat16
    python -m benchmarks.inference --model moe --dtype float32
    python -m benchmarks.inference --only decode budget

Both run the same random weights; each pair is measured in turn in one process.

| part     | what is compared                                                     | goal    |
|----------|----------------------------------------------------------------------|---------|
| prefill  | a prompt of 512 tokens to its next token: transformers               | >= 1.2x |
| decode   | 32 tokens after 128, one request: transformers                       | >= 1.5x |
| mixed    | 32 requests, prompts of 16 to 256 tokens, 8 to 96 new: transformers' padded batch | >= 4x |
| budget   | decoding under a budget that is not reached: without one             | <= 2 %  |
| context  | decoding with 64 times the longest context: with the shorter one     | <= 10 % |
| prefix   | first token of a prompt of 512 that is cached: one that is not       |         |
| cache    | decoding after 2,048 tokens with an int8 cache: with an exact one    |         |
| weights  | decoding with int8, fp8 and int4 weights: with the checkpoint's      |         |
| first    | a new process, from `load` to the first token after 16: transformers |         |

`first` is measured twice: with an empty compilation cache, and with the programs of an earlier process in it.
"""

import argparse
import dataclasses
import functools
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.common import interleaved, show
from qwen3_jax.config import Qwen3Config

SMALL_MOE = dataclasses.replace(
    Qwen3Config.preset("Qwen3-30B-A3B"), num_hidden_layers=6, hidden_size=1024, num_attention_heads=16, num_experts=64,
    moe_intermediate_size=384, vocab_size=32_768,
)  # fmt: skip
MODELS = {"0.6b": Qwen3Config.preset("Qwen3-0.6B"), "moe": SMALL_MOE}
PARTS = ("prefill", "decode", "mixed", "budget", "context", "prefix", "cache", "weights", "first")


def peer(config: Qwen3Config, dtype: str, folder: str):
    """Return transformers' model with random weights, saved to the folder for `qwen3_jax.load`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    hf_config = AutoConfig.for_model(**config.to_hf())
    model = AutoModelForCausalLM.from_config(hf_config, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    return model


class Ours:
    """The engine, run until its requests are finished."""

    def __init__(self, model, **options):
        from qwen3_jax.generation import Engine

        self.engine = Engine(model, **options)
        self.vocabulary = model.config.vocab_size

    def request(self, prompt, new: int, **options):
        from qwen3_jax import Request, Sampling

        return Request(tuple(prompt), Sampling(temperature=0, seed=0), new, **options)

    def run(self, *requests) -> int:
        for request in requests:
            self.engine.submit(request)
        count = 0
        while self.engine.busy:
            count += len(self.engine.step())
        return count


def theirs(model, prompts, new: list[int]) -> Callable[[], object]:
    """Return a function that generates for a batch, padded on the left, as many tokens as its longest answer has."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def run():
        with torch.no_grad():
            return model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(new),
                min_new_tokens=max(new),
                do_sample=False,
                pad_token_id=0,
            )

    return run


OUR_FIRST = """
import time, qwen3_jax
from qwen3_jax import Engine, Request, Sampling
started = time.perf_counter()
model, _ = qwen3_jax.load({folder!r}, dtype={dtype!r})
engine = Engine(model, rows=1, cache_tokens=512)
engine.submit(Request(tuple(range(16)), Sampling(temperature=0, seed=0), 1))
while engine.busy:
    engine.step()
print(time.perf_counter() - started)
"""
THEIR_FIRST = """
import time, torch
from transformers import AutoModelForCausalLM
started = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=getattr(torch, {dtype!r}))
with torch.no_grad():
    model.generate(torch.arange(16)[None], attention_mask=torch.ones(1, 16, dtype=int), max_new_tokens=1, do_sample=False)
print(time.perf_counter() - started)
"""


def first_token(script: str, folder: str, dtype: str, compiled: str) -> float:
    """Return the seconds that a new process measures; `compiled` is the folder of its compilation cache."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    code = script.format(folder=folder, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=list(MODELS), default="0.6b", help="shapes of the model (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=["float32", "bfloat16"],
        default=["float32", "bfloat16"],
        help="compute types (default: both)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)"
    )
    options = parser.parse_args()
    rows: list[list[str]] = []
    for dtype in options.dtype:
        with tempfile.TemporaryDirectory() as folder:
            measure(MODELS[options.model], dtype, folder, options.only, options.rounds, rows)
            gc.collect()
            if "first" in options.only:
                measure_first(dtype, folder, rows)
    show(f"Inference, {options.model}", ["part", "dtype", "ours", "other", "ratio"], rows)


def measure(config: Qwen3Config, dtype: str, folder: str, parts: list[str], rounds: int, rows: list[list[str]]) -> None:
    """Fill in the rows of one data type."""
    import qwen3_jax
    from qwen3_jax.generation import ThinkingTokens

    random = np.random.default_rng(0)
    hf = peer(config, dtype, folder)
    started = time.perf_counter()
    model, _ = qwen3_jax.load(folder, dtype=dtype)
    loaded = time.perf_counter() - started

    def prompt(length: int) -> list[int]:
        return random.integers(0, config.vocab_size, length).tolist()

    def compare(part: str, ours: Callable, other: Callable, per: int = 1, unit: str = "ms") -> None:
        seconds = interleaved({"ours": ours, "other": other}, rounds, f"{part} {dtype}")
        texts = [f"{1000 * seconds[name] / per:,.1f} {unit}" for name in ("ours", "other")]
        rows.append([part, dtype, *texts, f"{seconds['other'] / seconds['ours']:.2f}x"])
        print(" | ".join(rows[-1]), flush=True)

    one = dict(rows=1, cache_tokens=4096, prefix_cache=False)
    if "prefill" in parts:
        ours, text = Ours(model, **one), prompt(512)
        compare("prefill", lambda: ours.run(ours.request(text, 1)), theirs(hf, [text], [1]))
    if "decode" in parts:
        ours, text = Ours(model, **one), prompt(128)

        # Both with the prefill: 128 tokens cost about as much as two further ones.
        compare("decode", lambda: ours.run(ours.request(text, 65)), theirs(hf, [text], [65]), 65)
    if "mixed" in parts:
        lengths, new = random.integers(16, 257, 32), random.integers(8, 97, 32).tolist()
        texts = [prompt(length) for length in lengths]
        ours = Ours(model, rows=32, cache_tokens=32 * 384, prefix_cache=False)
        compare("mixed", lambda: ours.run(*map(ours.request, texts, new)), theirs(hf, texts, new), 1)
    if "budget" in parts:
        ours, text = Ours(model, **one), prompt(128)
        tokens = ThinkingTokens(start=1, end=2, stop=(3, 2, 4))
        plain = ours.request(text, 65)
        limited = ours.request(text, 65, budget=10_000, thinking=True, thinking_tokens=tokens)
        compare("budget", lambda: ours.run(limited), lambda: ours.run(plain), 65)
    if "context" in parts:
        text = prompt(128)
        long, short = (
            Ours(model, rows=1, cache_tokens=max(n, 2048), prefix_cache=False, max_length=n) for n in (32_768, 512)
        )
        compare("context", lambda: long.run(long.request(text, 65)), lambda: short.run(short.request(text, 65)), 65)
    if "prefix" in parts:
        hit, miss, text = Ours(model, rows=1, cache_tokens=4096), Ours(model, **one), prompt(512)
        compare("prefix", lambda: hit.run(hit.request(text, 1)), lambda: miss.run(miss.request(text, 1)))
    if "cache" in parts:
        text = prompt(2048)
        exact, int8 = (Ours(model, rows=1, cache_tokens=4096, cache_type=kind) for kind in (None, "int8"))
        compare("cache", lambda: int8.run(int8.request(text, 33)), lambda: exact.run(exact.request(text, 33)), 33)
    if "weights" in parts:
        exact, text = Ours(model, **one), prompt(128)
        for kind in ("int8", "fp8", "int4"):
            quantized = Ours(qwen3_jax.load(folder, dtype=dtype, quantize=kind)[0], **one)
            runs = (functools.partial(side.run, side.request(text, 65)) for side in (quantized, exact))
            compare(f"weights, {kind}", *runs, 65)
    rows.append(["load", dtype, f"{loaded:.1f} s", "", ""])


def measure_first(dtype: str, folder: str, rows: list[list[str]]) -> None:
    """Fill in the rows of new processes, after `measure` has freed its models."""
    times: dict[str, list[float]] = {"cold": [], "warm": [], "theirs": []}
    with tempfile.TemporaryDirectory() as compiled:
        for turn in range(3):
            cache = f"{compiled}/{turn}"
            times["cold"].append(first_token(OUR_FIRST, folder, dtype, cache))
            times["warm"].append(first_token(OUR_FIRST, folder, dtype, cache))
            times["theirs"].append(first_token(THEIR_FIRST, folder, dtype, cache))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, note in (("cold", "first, not compiled"), ("warm", "first, compiled before")):
        texts = [f"{medians[side]:.1f} s" for side in (name, "theirs")]
        rows.append([note, dtype, *texts, f"{medians['theirs'] / medians[name]:.2f}x"])
        print(" | ".join(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
