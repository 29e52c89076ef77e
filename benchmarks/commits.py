"""This checkout against an earlier commit: the training step, prefill, decode and a mixed batch, in turn in one run.

    python -m benchmarks.commits cd94ca3                              # Qwen3-0.6B's shapes, float32
    python -m benchmarks.commits cd94ca3 --only train decode --rounds 10

Each side runs in a process of its own, from a git worktree of its commit, in the same environment; one works while the other
waits. Both load the same random weights. A ratio above 1 says that this checkout is faster.

| part      | what is timed                                                            |
|-----------|--------------------------------------------------------------------------|
| train     | a training step of 29M parameters on 4 x 512 tokens, unrolled            |
| train-moe | the same with 8 of 32 experts                                            |
| prefill   | a prompt of 512 tokens to its next token                                 |
| decode    | 64 tokens after 128, one request                                         |
| mixed     | 32 requests, prompts of 16 to 256 tokens, 8 to 96 new                    |
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

PARTS = ("train", "train-moe", "prefill", "decode", "mixed")
ROOT = Path(__file__).parent.parent


class Side:
    """A process that runs parts of the benchmark with the code of one tree."""

    def __init__(self, tree: Path, model: Path):
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(tree), "--model", str(model)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree)

    def seconds(self, part: str) -> float:
        """Run a part once and return its wall time, compilation left out (the first run of a part warms it up)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(part, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {self.process.args} ended with code {self.process.wait()}.")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(tree: Path, model: Path, answers: TextIO) -> None:
    """Answer each line of standard input, the name of a part, with its seconds."""
    sys.path[0] = str(tree)  # in place of this file's folder: the code under test is that of the tree
    calls = {}
    for line in sys.stdin:
        part = line.strip()
        if part not in calls:
            calls[part] = prepare(part, model)
            calls[part]()
        started = time.perf_counter()
        calls[part]()
        print(json.dumps(time.perf_counter() - started), file=answers, flush=True)


def prepare(part: str, folder: Path):
    """Return a function that runs a part once."""
    import numpy as np

    if part.startswith("train"):
        from benchmarks.models import DENSE, MOE, stepper

        return stepper(MOE if part == "train-moe" else DENSE, "float32", 4, 512)[1]
    import qwen3_jax
    from qwen3_jax import Engine, Request, Sampling

    random = np.random.default_rng(0)
    lengths, new = {
        "prefill": ([512], [1]),
        "decode": ([128], [65]),
        "mixed": (random.integers(16, 257, 32).tolist(), random.integers(8, 97, 32).tolist()),
    }[part]
    model, _ = qwen3_jax.load(folder)
    engine = Engine(model, rows=len(lengths), cache_tokens=max(4096, 384 * len(lengths)), prefix_cache=False)
    prompts = [tuple(random.integers(0, model.config.vocab_size, length).tolist()) for length in lengths]

    def run() -> None:
        for prompt, count in zip(prompts, new, strict=True):
            engine.submit(Request(prompt, Sampling(temperature=0, seed=0), count))
        while engine.busy:
            engine.step()

    return run


def write_model(preset: str, layers: int | None, folder: Path) -> None:
    """Save random weights in the shapes of a released model, ended by its length alone."""
    from flax import nnx

    import qwen3_jax

    config = qwen3_jax.Qwen3Config.preset(preset)
    if layers:
        config = dataclasses.replace(config, num_hidden_layers=layers)
    qwen3_jax.save(qwen3_jax.Qwen3(config, rngs=nnx.Rngs(0)), None, folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the commit to compare with")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these (default: all)"
    )
    parser.add_argument("--preset", default="Qwen3-0.6B", help="the served model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="cut the served model to this many layers")
    parser.add_argument(
        "--rounds", type=int, default=7, help="measurements of each side, in turn (default: %(default)s)"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed must not be taken for an answer
        serve(options.serve, options.model, answers)
        return
    if options.commit is None:
        parser.error("name the commit to compare with.")
    from benchmarks.common import show
    from qwen3_jax.progress import progress_bar

    with tempfile.TemporaryDirectory() as work:
        before, model = Path(work) / "before", Path(work) / "model"
        subprocess.run(["git", "worktree", "add", "--detach", str(before), options.commit], cwd=ROOT, check=True)
        try:
            if {"prefill", "decode", "mixed"} & set(options.only):
                write_model(options.preset, options.layers, model)
            table = []
            for part in options.only:  # new processes for each, so that one model is in memory per side
                sides = {"this": Side(ROOT, model), options.commit: Side(before, model)}
                seconds: dict[str, list[float]] = {name: [] for name in sides}
                with progress_bar(part, options.rounds * 2) as bar:
                    for turn in range(options.rounds):
                        for name in sorted(sides, reverse=bool(turn % 2)):  # neither side is always the first
                            seconds[name].append(sides[name].seconds(part))
                            bar.advance(1, name)
                for side in sides.values():
                    side.close()
                ratios = sorted(b / a for a, b in zip(seconds["this"], seconds[options.commit], strict=True))
                medians = [statistics.median(seconds[name]) for name in ("this", options.commit)]
                row = [part, *(f"{1000 * m:,.1f} ms" for m in medians), f"{statistics.median(ratios):.3f}x"]
                table.append([*row, f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
                print(" | ".join(table[-1]), flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)
    columns = ["part", "this checkout", options.commit, "ratio", "of the pairs"]
    show(f"Against {options.commit}, {options.preset}, float32", columns, table)


if __name__ == "__main__":
    main()
