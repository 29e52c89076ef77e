"""Where the numbers of a run go: metrics.jsonl, router.jsonl (load of every expert), TensorBoard, Weights & Biases, loss.png;
and history.jsonl, when it ran.

Invariant: metrics.jsonl has one line of training metrics per logged step and one of held-out losses per evaluation, in order,
without gaps or repeats, also after a resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

import jax
import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.text.folder import replace_file

PARTS = ("step", "input", "compile", "eval", "checkpoint", "other")
T = TypeVar("T")
U = TypeVar("U")


class MetricsWriter:
    """Appends to a run's metrics.

    Args:
        run_dir: the run's folder.
        resume_step: lines past this step are dropped: the run went back to a checkpoint.
        started: `time.time()` at which the program was started.
        wandb: project of Weights & Biases, or None.
    """

    def __init__(self, run_dir: Path, resume_step: int, started: float, wandb: str | None = None):
        self.path = run_dir / "metrics.jsonl"
        self._step = resume_step
        self._history = run_dir / "history.jsonl"
        self._note("start", started)
        self._metrics = _lines(self.path, resume_step)
        self._routers = _lines(run_dir / "router.jsonl", resume_step)
        self._board = _Board(run_dir / "tensorboard", resume_step)
        self._wandb = _wandb_run(wandb, run_dir) if wandb else None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; numbers also go to TensorBoard."""
        # JSON has no NaN: what is not finite (a skipped step's loss) is null.
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self._step = step
        self._append(self._metrics, {"step": step, "time": time.time(), **plain})
        if self._wandb:
            self._wandb.log(plain, step=step)
        self._board.write(step, {name: value for name, value in values.items() if isinstance(value, (int, float))})

    def write_routers(self, step: int, load_le: np.ndarray) -> None:
        """Write the load of every expert of every MoE layer; 1 is an even share."""
        self._append(self._routers, {"step": step, "load": np.round(load_le, 4).tolist()})

    def close(self, reason: str | None = None) -> None:
        """Flush everything; `reason` is why the run ended before its time."""
        if reason is None:
            self._note("end", time.time())
        else:
            with contextlib.suppress(OSError):  # a full disk, most likely: the reason itself is what should be heard
                self._note("end", time.time(), reason=reason)
        self._metrics.close()
        self._routers.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=1 if reason else 0)

    def _append(self, file: TextIO, row: dict[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    def _note(self, event: str, when: float, **more: Any) -> None:
        with open(self._history, "a", encoding="utf-8") as file:
            self._append(file, {"event": event, "time": when, "step": self._step, **more})


class _Board:
    """TensorBoard's event file, written by the caller: a full disk kills the thread of tensorboardX's `SummaryWriter`, whose
    queue then blocks the run for ever."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._protos = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        # A restart within the same second has a file of its own.
        self._events = EventsWriter(str(folder / "events"), f".from-step-{resume_step + 1}")
        # TensorBoard forgets what an earlier file of the run says of these steps.
        self._add(resume_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        Summary = self._protos[1].Summary
        scalars = [Summary.Value(tag=name.replace(".", "/"), simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def _add(self, step: int, **what: Any) -> None:
        self._events.write_event(self._protos[0].Event(wall_time=time.time(), step=step, **what))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _lines(path: Path, resume_step: int) -> TextIO:
    """Open a file of lines to append to, without those past a step."""
    kept = [row for row in read(path) if row["step"] <= resume_step]
    replace_file(path, "".join(json.dumps(row) + "\n" for row in kept))
    return open(path, "a", encoding="utf-8")


class Meter:
    """Throughput between two readings, and what the time went to.

    Steps are handed to the device ahead of their results. A thread waits for each result and notes when it was there, so that
    what the device worked and what it waited for input is known exactly, not what the host happened to do meanwhile.

    Args:
        tokens_per_step: of the global batch.
        flops_per_token: forward and backward.
        peak: FLOP/s of one device, None when unknown.
        devices: of the whole run.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak: float | None, devices: int):
        self._tokens, self._flops, self._peak, self._devices = tokens_per_step, flops_per_token, peak, devices
        self._watcher = ThreadPoolExecutor(1, "meter")
        self._last: Future[None] | None = None
        self._done = self._since = self._asked = time.perf_counter()
        self._compiled = False
        self._begin(self._since)

    def _begin(self, now: float) -> None:
        self._since, self._steps, self._spent = now, 0, dict.fromkeys(PARTS[:-1], 0.0)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown()

    def fetch(self, get: Callable[[], T]) -> T:
        """Get the input of the next step."""
        self._asked = time.perf_counter()
        return get()

    def step(self, take: Callable[[], tuple[T, U]]) -> tuple[T, U]:
        """Take a step that returns (state, metrics)."""
        fetched = time.perf_counter()
        out = take()
        self._last = self._watcher.submit(self._finish, self._asked, fetched, out[1])
        return out

    def _finish(self, asked: float, fetched: float, result: Any) -> None:
        jax.block_until_ready(result)
        now = time.perf_counter()
        self._spent["input"] += max(fetched - max(asked, self._done), 0.0)
        self._spent["step" if self._compiled else "compile"] += now - max(fetched, self._done)
        self._steps += self._compiled
        self._compiled, self._done = True, now

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    @contextlib.contextmanager
    def during(self, what: Literal["eval", "checkpoint"]) -> Iterator[None]:
        """Around what is not training."""
        self._wait()
        started = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Return what was measured since the last reading, and begin anew.

        seconds, and what they went to: `seconds_step` (computation), `_input` (the device waited for a batch), `_compile` (the
        first step of a stage), `_eval`, `_checkpoint` (where it held up the run) and `_other` (the rest). If a step was taken:
        tokens_per_second of all but compilation, evaluation and checkpoints, tflops_per_device, mfu, input_wait_share.
        """
        self._wait()
        now = time.perf_counter()
        seconds, steps, spent = now - self._since, self._steps, self._spent
        self._begin(now)
        spent["other"] = max(seconds - sum(spent.values()), 0.0)
        out = {"seconds": seconds} | {f"seconds_{name}": spent[name] for name in PARTS}
        if steps == 0:
            return out
        training = spent["step"] + spent["input"] + spent["other"]
        tokens = self._tokens * steps / training
        flops = tokens * self._flops / self._devices
        out |= {
            "tokens_per_second": tokens,
            "tflops_per_device": flops / 1e12,
            "input_wait_share": spent["input"] / training,
        }
        return out if self._peak is None else out | {"mfu": flops / self._peak}


def check_wandb(project: str | None) -> None:
    """Refuse to log to Weights & Biases without its package.

    Raises:
        UserError: it is not installed.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError('wandb needs its package: pip install "qwen3-jax[wandb]", or leave the key out.')


def _wandb_run(project: str, run_dir: Path) -> Any:
    import wandb

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


def held_out_losses(row: dict[str, Any]) -> dict[str, float | None]:
    """Return the held-out losses of a row by name, none in a row of training metrics; None is one that is not finite."""
    return {
        name.removeprefix("eval."): value
        for name, value in row.items()
        if name.startswith("eval.") and not name.endswith("_unigram_entropy")
    }


def last_held_out(rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """Return the last held-out losses among rows, or nothing."""
    found: dict[str, float | None] = {}
    for row in rows:
        found = held_out_losses(row) or found
    return found


def finite(values: Iterable[float | None]) -> list[float]:
    """Return values as they can be drawn: NaN where a row has null."""
    return [math.nan if value is None else value for value in values]


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and those before it, a twentieth of all; NaN counts for nothing."""
    width = max(len(values) // 20, 1)
    out = []
    for i in range(len(values)):
        near = [value for value in values[max(i - width, 0) : i + 1] if not math.isnan(value)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def plot_loss(path: Path, output: Path, entropy: dict[str, float]) -> None:
    """Draw the training loss, the held-out losses and the sources' unigram entropies over steps."""
    from matplotlib.figure import Figure

    rows = read(path)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train = [row for row in rows if "train.cross_entropy" in row]
    if train:
        steps, losses = [row["step"] for row in train], finite(row["train.cross_entropy"] for row in train)
        axes.plot(steps, losses, color="0.85", linewidth=1, label="training batches")
        # Batches differ in what they are made of: show where they are going.
        axes.plot(steps, running_mean(losses), color="0.45", linewidth=1.3, label="running mean")
    for color, (name, nats) in zip(("C0", "C1", "C2", "C3", "C4", "C5"), entropy.items(), strict=False):
        points = [(row["step"], row[f"eval.{name}"]) for row in rows if f"eval.{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=f"held-out {name}")
        axes.axhline(nats, color=color, linestyle=":", linewidth=1, label=f"unigram entropy of {name}")
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=130)
