"""Log-likelihood requests of lm-eval against its own model for transformers: the same random weights, float32, in turn.

    python -m benchmarks.harness                       # 29M parameters, a vocabulary of 16,384
    python -m benchmarks.harness --questions 64 --batch-size 16 --rounds 5

| requests | what they are like                                                                               |
|----------|--------------------------------------------------------------------------------------------------|
| choices  | four answers of 4 to 12 tokens to each question, behind a context of 150 to 250 (HellaSwag, ARC)     |
| letters  | four answers of one token, behind 300 to 500 (MMLU with examples): transformers too computes these once |
| windows  | whole windows of 512 tokens (perplexities)                                                        |
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.common import interleaved, show
from benchmarks.models import DENSE

Requests = list[tuple[None, list[int], list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16, help="questions, and windows")
    parser.add_argument("--batch-size", type=int, default=8, help="of transformers; ours is 32 rows")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each side")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: for a machine with other work")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    makers: dict[str, Callable[[int], Requests]] = {
        "choices": lambda seed: choices(args.questions, (150, 250), (4, 12), seed),
        "letters": lambda seed: choices(args.questions, (300, 500), (1, 1), seed),
        "windows": lambda seed: windows(args.questions, seed),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sides = models(folder, args.batch_size)
        for name, make in makers.items():
            values: dict[str, list[float]] = {side: [] for side in sides}
            # New requests in each round, or our prefix cache would have them; the same ones for both sides.
            calls = {
                side: functools.partial(_call, of, make, itertools.count(), values[side]) for side, of in sides.items()
            }
            seconds = interleaved(calls, args.rounds, name, clock)
            mine, other = seconds["qwen3-jax"], seconds["transformers"]
            difference = np.abs(np.subtract(*values.values())).max()
            rows.append([name, f"{mine:.2f} s", f"{other:.2f} s", f"{other / mine:.2f}x", f"{difference:.1e}"])
    columns = ["requests", "qwen3-jax", "transformers", "ratio", "largest difference"]
    kind = "CPU seconds" if args.cpu_time else "seconds"
    title = f"log-likelihoods through lm-eval, {kind}; {args.questions} questions, batches of {args.batch_size}"
    show(title, columns, rows)


def _call(side: Any, make: Callable[[int], Requests], seeds: Iterator[int], values: list[float]) -> None:
    values += [value for value, _ in side._loglikelihood_tokens(make(next(seeds)), disable_tqdm=True)]


def models(folder: str, batch_size: int) -> dict[str, Any]:
    """Return our model of lm-eval and that for transformers, of one folder with random weights."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM

    from qwen3_jax.evaluation.harness import HarnessModel
    from qwen3_jax.text import train_tokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(**DENSE.to_hf())
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    train_tokenizer([__doc__ or ""], vocab_size=300).save_pretrained(folder)
    theirs = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=batch_size)
    return {"qwen3-jax": HarnessModel(folder, dtype="float32"), "transformers": theirs}


def choices(questions: int, context: tuple[int, int], answer: tuple[int, int], seed: int) -> Requests:
    """Return four requests for each question; lengths are drawn from the ranges, ends included."""
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return random.integers(0, DENSE.vocab_size, random.integers(low, high + 1)).tolist()

    return [(None, asked, tokens(*answer)) for asked in (tokens(*context) for _ in range(questions)) for _ in range(4)]


def windows(count: int, seed: int) -> Requests:
    """Return windows as `loglikelihood_rolling` makes them."""
    drawn = np.random.default_rng(seed).integers(0, DENSE.vocab_size, (count, 513)).tolist()
    return [(None, row[:1], row[1:]) for row in drawn]


if __name__ == "__main__":
    main()
