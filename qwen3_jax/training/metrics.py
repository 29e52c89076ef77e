"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and loss.png.

Invariant: metrics.jsonl has one line per logged step, in order, without repeats, also after a resume.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends to a run's metrics.

    Args:
        run_dir: the run's folder.
        resume_step: lines past this step are dropped: the run went back to a checkpoint.
    """

    def __init__(self, run_dir: Path, resume_step: int):
        from tensorboardX import SummaryWriter

        self.path = run_dir / "metrics.jsonl"
        kept = [row for row in read(self.path) if row["step"] <= resume_step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; numbers also go to TensorBoard."""
        # JSON has no NaN: what is not finite (a skipped step's loss) is null.
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


class Meter:
    """Throughput between two readings.

    Args:
        tokens_per_step: of the global batch.
        flops_per_token: forward and backward.
        peak: FLOP/s of one device, None when unknown.
        devices: of the whole run.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak: float | None, devices: int):
        self._tokens, self._flops, self._peak, self._devices = tokens_per_step, flops_per_token, peak, devices
        self.restart()

    def restart(self) -> None:
        """Begin to count now: what came before (a compilation, an evaluation) is not training time."""
        self._since, self._waited, self._done = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around everything that waits for input; each entry is one step."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started
        self._done += 1

    def read(self) -> dict[str, float]:
        """Return the rates since the last reading or restart, and begin anew; nothing if no step was taken since."""
        seconds, steps, waited = time.perf_counter() - self._since, self._done, self._waited
        self.restart()
        if steps == 0:
            return {}
        tokens = self._tokens * steps / seconds
        flops = tokens * self._flops / self._devices
        rates = {"tokens_per_second": tokens, "tflops_per_device": flops / 1e12, "input_wait_share": waited / seconds}
        return rates if self._peak is None else rates | {"mfu": flops / self._peak}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; an unfinished last line (a killed run) is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_loss(path: Path, output: Path, entropy: dict[str, float]) -> None:
    """Draw the training loss, the held-out losses and the sources' unigram entropies over steps."""
    from matplotlib.figure import Figure

    rows = read(path)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train = [(row["step"], row["train.cross_entropy"]) for row in rows if "train.cross_entropy" in row]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="0.85", linewidth=1, label="training batches")
        width = max(len(losses) // 20, 1)  # batches differ in what they are made of: show where they are going
        means = [sum(losses[max(i - width, 0) : i + 1]) / (i + 1 - max(i - width, 0)) for i in range(len(losses))]
        axes.plot(steps, means, color="0.45", linewidth=1.3, label="running mean")
    for color, (name, nats) in zip(("C0", "C1", "C2", "C3", "C4", "C5"), entropy.items(), strict=False):
        points = [(row["step"], row[f"eval.{name}"]) for row in rows if f"eval.{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=f"held-out {name}")
        axes.axhline(nats, color=color, linestyle=":", linewidth=1, label=f"unigram entropy of {name}")
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=130)
