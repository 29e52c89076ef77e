"""Metrics and history of a run, written by the first process alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_jax.progress import doing
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.loss_plot import plot_loss
from qwen3_jax.training.metrics import MetricsWriter


class Journal:
    """Writes metrics and history on the first process; does nothing on the others.

    Args:
        run_dir: the run's folder.
        config: the run.
        step: step of the restored checkpoint, 0 for a new run; later lines are dropped.
        started: `time.time()` at which the program was started.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, step: int, started: float):
        self._writer = None
        if jax.process_index() == 0:
            with doing("opening the logs"):  # tensorboardX imports torch where that is installed, which takes seconds
                self._writer = MetricsWriter(run_dir, step, started, config.wandb)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if self._writer:
            self._writer.close(None if kind is None else f"{kind.__name__}: {error}")

    def write(self, step: int, row: dict[str, float]) -> None:
        """Write one row of metrics."""
        if self._writer:
            self._writer.write(step, row)

    def write_routers(self, step: int, load_le: np.ndarray, held_out: str | None = None) -> None:
        """Write the load of each expert [L, E] in a training batch, or on the held-out data of a source or domain."""
        if self._writer:
            self._writer.write_routers(step, load_le, held_out)

    def write_positions(self, step: int, name: str, losses: np.ndarray, tokens: np.ndarray) -> None:
        """Write the held-out loss and the number of tokens of each batch in a range of positions."""
        if self._writer:
            self._writer.write_positions(step, name, losses, tokens)

    def plot(self, baseline: dict[str, float], named: str) -> None:
        """Draw loss.png; `baseline` is what to compare the loss of each source or domain with, and `named` its name."""
        if self._writer:
            plot_loss(self._writer.path, self._writer.folder / "loss.png", baseline, named)

    def push(self) -> None:
        """Copy everything that was written to the run's folder, before a checkpoint is saved."""
        if self._writer:
            self._writer.push()
