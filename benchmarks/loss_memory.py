"""Peak memory of a training step with the loss in chunks and in one piece, each in a process of its own.

python benchmarks/loss_memory.py                 # Qwen3's vocabulary of 151,936, 4 x 1,024 tokens
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import show


def measure(chunk: int, rows: int, length: int) -> dict[str, float]:
    """Take two steps in this process; return its peak resident memory and the compiler's temporaries, in GiB."""
    import jax

    import sharding
    from benchmarks.models import DENSE, batch
    from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig
    from qwen3_jax.training.optimizer import schedule
    from qwen3_jax.training.step import Trainer

    config = dataclasses.replace(DENSE, vocab_size=151_936, num_hidden_layers=2)
    loss = LossConfig(chunk_tokens=chunk)
    options = OptimizerConfig(warmup_steps=0)
    trainer = Trainer(config, ModelConfig(remat="full"), options, schedule(options, 10), sharding.Placement(), loss)
    state, placed = trainer.init(0), trainer.place(batch(config, rows, length))
    step = trainer.lower(state, placed).compile()
    for _ in range(2):
        state, metrics = step(state, placed, trainer.peaks, trainer.frozen)
    jax.block_until_ready(metrics)
    # Not ru_maxrss: in a child process Linux starts it at the peak of the process that forked.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
    return {"peak": peak, "temporary": step.memory_analysis().temp_size_in_bytes / 2**30}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="CHUNK", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.rows, options.length)))
        return
    table = []
    for label, chunk in (("one piece", options.rows * options.length), ("1,024 tokens", 1024), ("256 tokens", 256)):
        command = [sys.executable, "-m", "benchmarks.loss_memory", "--only", str(chunk)]
        command += ["--rows", str(options.rows), "--length", str(options.length)]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
        ).stdout
        result = json.loads(out.splitlines()[-1])
        table.append([label, f"{result['peak']:.2f}", f"{result['temporary']:.2f}"])
    show(
        f"memory of a train step, {options.rows} x {options.length} tokens, vocabulary 151,936",
        ["loss in chunks of", "peak resident GiB", "compiler's temporaries GiB"], table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
