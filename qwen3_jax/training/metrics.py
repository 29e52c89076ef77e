"""Writes the metrics of a run: metrics.jsonl, router.jsonl (load of every expert), positions.jsonl (held-out loss by position
and batch), history.jsonl (starts and ends), TensorBoard and Weights & Biases.

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.paths import WorkingCopy, is_url, replace_file


class MetricsWriter:
    """Appends to a run's metrics.

    Args:
        run_dir: the run's folder, local or in a bucket.
        resume_step: step of the restored checkpoint; lines of later steps are dropped.
        started: `time.time()` at which the program was started.
        wandb: project of Weights & Biases, or None.
    """

    def __init__(self, run_dir: Path, resume_step: int, started: float, wandb: str | None = None):
        # A bucket has no files that grow: they are kept here and copied.
        self._copy = WorkingCopy(run_dir, ("metrics.jsonl", "router.jsonl", "positions.jsonl", "history.jsonl"))
        self.folder = self._copy.folder
        self.path = self.folder / "metrics.jsonl"
        self._step = resume_step
        self._history = self.folder / "history.jsonl"
        self._note("start", started)
        self._metrics = _lines(self.path, resume_step)
        self._routers = _lines(self.folder / "router.jsonl", resume_step)
        self._positions = _lines(self.folder / "positions.jsonl", resume_step)
        self._board = _Board(self.folder / "tensorboard", resume_step)
        self._wandb = _wandb_run(wandb, run_dir, self.folder) if wandb else None
        self.push()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; numbers also go to TensorBoard."""
        # JSON has no NaN: values that are not finite (the loss of a skipped step) are null.
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self._step = step
        self._append(self._metrics, {"step": step, "time": time.time(), **plain})
        if self._wandb:
            self._wandb.log(plain, step=step)
        self._board.write(step, {name: value for name, value in values.items() if isinstance(value, (int, float))})
        self.push(seldom=True)

    def push(self, seldom: bool = False) -> None:
        """Copy what was written to the run's folder, if that is in a bucket; see `WorkingCopy.push`."""
        self._copy.push(seldom)

    def write_routers(self, step: int, load_le: np.ndarray, held_out: str | None = None) -> None:
        """Write the load of every expert of every MoE layer, 1 is an even share: of a training batch, or held-out data."""
        where = {} if held_out is None else {"held_out": held_out}
        self._append(self._routers, {"step": step, **where, "load": np.round(load_le, 4).tolist()})

    def write_positions(self, step: int, name: str, losses: np.ndarray, tokens: np.ndarray) -> None:
        """Write the held-out loss and the number of tokens of each batch in a range of positions."""
        plain = [loss if math.isfinite(loss) else None for loss in losses.tolist()]
        self._append(self._positions, {"step": step, "positions": name, "losses": plain, "tokens": tokens.tolist()})

    def close(self, reason: str | None = None) -> None:
        """Close all files; `reason` is why the run ended early, None at its regular end."""
        if reason is None:
            self._note("end", time.time())
        else:
            with contextlib.suppress(
                OSError
            ):  # the disk may be full; the exception that is `reason` must not be hidden
                self._note("end", time.time(), reason=reason)
        self._metrics.close()
        self._routers.close()
        self._positions.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=1 if reason else 0)
        self._copy.close()

    def _append(self, file: TextIO, row: dict[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    def _note(self, event: str, when: float, **more: Any) -> None:
        with open(self._history, "a", encoding="utf-8") as file:
            self._append(file, {"event": event, "time": when, "step": self._step, **more})


class _Board:
    """Writes TensorBoard's event file without a thread: a full disk kills the thread of tensorboardX's `SummaryWriter`, and its
    full queue then blocks the run for ever."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._protos = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        # The suffix keeps a restart within the same second apart.
        self._events = EventsWriter(str(folder / "events"), f".from-step-{resume_step + 1}")
        # Makes TensorBoard drop these steps of earlier files of the run.
        self._add(resume_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        Summary = self._protos[1].Summary
        scalars = [Summary.Value(tag=name.replace(".", "/"), simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(self._protos[0].Event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _lines(path: Path, resume_step: int) -> TextIO:
    """Open a JSON lines file for appending, after dropping lines past `resume_step`."""
    rows = [row for row in read(path) if row["step"] <= resume_step]
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return open(path, "a", encoding="utf-8")


def check_wandb(project: str | None) -> None:
    """Refuse to log to Weights & Biases without its package.

    Raises:
        UserError: it is not installed.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError('wandb needs its package: pip install "qwen3-jax[wandb]", or leave the key out.')


def _wandb_run(project: str, run_dir: Path, folder: Path) -> Any:
    import wandb

    # The same id after a resume continues the same run.
    place = str(run_dir if is_url(run_dir) else run_dir.absolute())
    identity = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
    return wandb.init(project=project, name=run_dir.name, id=identity, resume="allow", dir=folder)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file; an unfinished last line (of a killed run) is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# The metric that is a run's training loss, by its unit: of tokens, or of preferences.
TRAINING_LOSSES = {
    "train.divergence": "nats per token from the teacher",  # before that of the targets, which the same rows have
    "train.cross_entropy": "nats per token",
    "train.preference": "nats per pair",
    "train.policy": "policy loss",
}


def training_losses(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], str, str]:
    """Return the rows that hold a training loss, its name in them, and its unit."""
    rows = list(rows)
    for name, unit in TRAINING_LOSSES.items():
        if held := [row for row in rows if name in row]:
            return held, name, unit
    return [], *next(iter(TRAINING_LOSSES.items()))


def held_out_losses(row: dict[str, Any]) -> dict[str, float | None]:
    """Return the held-out losses of a row by name, {} for a row of training metrics; None for one that is not finite."""
    return {
        name.removeprefix("eval."): value
        for name, value in row.items()
        if name.startswith("eval.") and not name.endswith("_unigram_entropy")
    }


def last_held_out(rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """Return the last held-out losses among rows, {} if there are none."""
    losses: dict[str, float | None] = {}
    for row in rows:
        losses = held_out_losses(row) or losses
    return losses
