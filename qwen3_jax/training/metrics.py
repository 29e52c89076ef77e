"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases, loss.png; and history.jsonl, when it ran.

Invariant: metrics.jsonl has one line of training metrics per logged step and one of held-out losses per evaluation, in order,
without gaps or repeats, also after a resume.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError


class MetricsWriter:
    """Appends to a run's metrics.

    Args:
        run_dir: the run's folder.
        resume_step: lines past this step are dropped: the run went back to a checkpoint.
        wandb: project of Weights & Biases, or None.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, run_dir: Path, resume_step: int, wandb: str | None = None):
        from tensorboardX import SummaryWriter

        self._wandb = _wandb_run(wandb, run_dir) if wandb else None
        self._history = run_dir / "history.jsonl"
        self._note("start", resume_step)

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
        self._step = step
        self._file.write(json.dumps({"step": step, "time": time.time(), **plain}) + "\n")
        self._file.flush()
        if self._wandb:
            self._wandb.log(plain, step=step)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name.replace(".", "/"), value, step)

    def close(self, reason: str | None = None) -> None:
        """Flush everything; `reason` is why the run ended before its time."""
        self._note("end", self._step, **({"reason": reason} if reason else {}))
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=1 if reason else 0)

    def _note(self, event: str, step: int, **more: Any) -> None:
        self._step = step
        with open(self._history, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), "step": step, **more}) + "\n")


class Meter:
    """Throughput between two readings, and what the time went to.

    Args:
        tokens_per_step: of the global batch.
        flops_per_token: forward and backward.
        peak: FLOP/s of one device, None when unknown.
        devices: of the whole run.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak: float | None, devices: int):
        self._tokens, self._flops, self._peak, self._devices = tokens_per_step, flops_per_token, peak, devices
        self._begin()

    def _begin(self) -> None:
        self._since, self._steps = time.perf_counter(), 0
        self._other = dict.fromkeys(("compile", "input", "eval", "checkpoint"), 0.0)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Around what is not computation: "input" (each entry is one step), "eval", "checkpoint"."""
        started = time.perf_counter()
        yield
        self._other[what] += time.perf_counter() - started
        self._steps += what == "input"

    def compiled(self) -> None:
        """All time so far went to the first step, which compiles: it is not counted as one."""
        self._other["compile"] = time.perf_counter() - self._since - self._other["input"]
        self._other["input"], self._steps = 0.0, 0

    def read(self) -> dict[str, float]:
        """Return what was measured since the last reading, and begin anew.

        seconds, and those of them in `seconds_input`, `_eval`, `_checkpoint`, `_compile` and `_step` (the rest); if a step was
        taken, tokens_per_second of input and computation, tflops_per_device, mfu and input_wait_share.
        """
        seconds, steps, other = time.perf_counter() - self._since, self._steps, self._other
        self._begin()
        out = {"seconds": seconds} | {f"seconds_{name}": value for name, value in other.items()}
        out["seconds_step"] = max(seconds - sum(other.values()), 0.0)
        if steps == 0:
            return out
        training = out["seconds_step"] + other["input"]
        tokens = self._tokens * steps / training
        flops = tokens * self._flops / self._devices
        out |= {
            "tokens_per_second": tokens,
            "tflops_per_device": flops / 1e12,
            "input_wait_share": other["input"] / training,
        }
        return out if self._peak is None else out | {"mfu": flops / self._peak}


def _wandb_run(project: str, run_dir: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError('wandb needs its package: pip install "qwen3-jax[wandb]", or leave the key out.') from None
    # The same id after a resume: one run, one curve.
    identity = hashlib.blake2b(str(run_dir.absolute()).encode(), digest_size=8).hexdigest()
    return wandb.init(project=project, name=run_dir.name, id=identity, resume="allow", dir=run_dir)


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
