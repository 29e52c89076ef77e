"""Rollouts of reinforcement learning: sampled answers per second, against transformers' `generate`.

    python -m benchmarks.rollouts --model runs/quickstart/hf            # the quickstart's model; or QWEN3_MODEL=DIR

| rows | what is sampled                                     | goal  |
|------|-----------------------------------------------------|-------|
| 64   | 8 problems x 8 samples, temperature 1, full support | 1.5x  |
| 256  | 32 problems x 8 samples                             | 2x    |

Each round has other problems and other seeds. Both sides run in turn, in float32; a round's rate is its tokens, end tokens
included, by its seconds. `--budget` gives ours a thinking budget, transformers has none. The first round is not counted; what
ours compiles after it is reported. XLA computes a small model's products on one core; `--devices 2` divides the rows over two
devices of the CPU, a mesh as in training, and so over its cores.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import add_devices, cpu_mesh, show
from qwen3_jax.progress import progress_bar

SAMPLES, MAX_NEW_TOKENS = 8, 160


class Ours:
    """An engine that is kept, as the loop of training keeps it."""

    def __init__(self, folder: str, rows: int, budget: int | None, logprobs: bool, mesh: Any):
        import jax

        import qwen3_jax
        from qwen3_jax import Engine

        self.model, self.tokenizer = qwen3_jax.load(folder, dtype="float32", mesh=mesh)
        self.engine = Engine(self.model, rows=rows, offline=True, max_length=512)
        self.budget, self.logprobs = budget, logprobs
        self.compiled = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, seconds: float, **_: object) -> None:
        self.compiled += event == "/jax/core/compile/backend_compile_duration"

    def run(self, prompts: Sequence[list[int]], seed: int) -> int:
        import qwen3_jax

        out = qwen3_jax.generate(
            self.engine, self.tokenizer, list(prompts),
            sampling=[
                qwen3_jax.Sampling(temperature=1, top_k=0, top_p=1, seed=seed + i, logprobs=0 if self.logprobs else None)
                for i in range(len(prompts))
            ],
            max_new_tokens=MAX_NEW_TOKENS, thinking_budget=self.budget,
        )  # fmt: skip
        return sum(len(answer.token_ids) for answer in out)


class Theirs:
    """transformers, all rows as one batch, padded on the left."""

    def __init__(self, folder: str):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def run(self, prompts: Sequence[list[int]], seed: int) -> int:
        import torch

        torch.manual_seed(seed)
        batch = self.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        with torch.no_grad():
            ids = self.model.generate(
                **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                pad_token_id=min(self.ends),
            )  # fmt: skip
        answers = ids[:, batch["input_ids"].shape[1] :].tolist()
        return sum(next((i + 1 for i, token in enumerate(a) if token in self.ends), len(a)) for a in answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("QWEN3_MODEL"), help="a trained model (default: QWEN3_MODEL)")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256], help="answers sampled together")
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)"
    )
    parser.add_argument("--budget", type=int, help="thinking budget of our side (default: none)")
    parser.add_argument("--logprobs", action="store_true", help="our side reports log probabilities")
    add_devices(parser)
    parser.add_argument("--no-peer", action="store_true", help="our side alone")
    options = parser.parse_args()
    if not options.model:
        parser.error("--model or QWEN3_MODEL: train one with `python train.py --config configs/quickstart.yaml`")
    from qwen3_jax.evaluation.tasks import find, load

    mesh = cpu_mesh(options.devices)
    theirs = None if options.no_peer else Theirs(options.model)
    rows = []
    for size in options.rows:
        ours = Ours(options.model, size, options.budget, options.logprobs, mesh)
        count = size // SAMPLES
        problems = load(find("running_sum"), None, {"problems": count * (options.rounds + 1)})
        rates: dict[str, list[float]] = {"qwen3-jax": []} | ({} if theirs is None else {"transformers": []})
        sides = {"qwen3-jax": ours.run} | ({} if theirs is None else {"transformers": theirs.run})
        compiled = 0
        with progress_bar(f"rollouts, {size} rows", (options.rounds + 1) * len(sides)) as bar:
            for turn in range(options.rounds + 1):
                prompts = [
                    ours.tokenizer.apply_chat_template(list(problem.prompt), add_generation_prompt=True, tokenize=True)
                    for problem in problems[turn * count : (turn + 1) * count]
                    for _ in range(SAMPLES)
                ]
                for name, side in sides.items():
                    before, started = ours.compiled, time.perf_counter()
                    tokens = side(prompts, 1000 * turn)
                    seconds = time.perf_counter() - started
                    if turn:
                        rates[name].append(tokens / seconds)
                        compiled += ours.compiled - before
                    bar.advance(1, name)
        medians = {name: statistics.median(each) for name, each in rates.items()}
        peer = medians.get("transformers")
        ratio = "" if peer is None else f"{medians['qwen3-jax'] / peer:.2f}x"
        rows.append(
            [str(size), f"{medians['qwen3-jax']:,.0f}", "" if peer is None else f"{peer:,.0f}", ratio, str(compiled)]
        )
    columns = ["rows", "qwen3-jax, tokens/s", "transformers, tokens/s", "ratio", "programs compiled later"]
    show("Rollouts", columns, rows)


if __name__ == "__main__":
    main()
