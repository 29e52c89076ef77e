"""What a run has written: its configuration, metrics and history, read while it runs or after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.training.meter import PARTS
from qwen3_jax.training.metrics import read as read_lines
from qwen3_jax.training.metrics import training_losses


@dataclass
class RunLog:
    """The contents of a run's folder.

    Attributes:
        folder: of the run.
        config: config.json.
        train: rows of metrics.jsonl with training metrics.
        rows: all rows of metrics.jsonl.
        routers: rows of router.jsonl, of training batches.
        held_out_routers: those of held-out data.
        positions: rows of positions.jsonl, held-out losses by batch and position.
        history: rows of history.jsonl: starts and ends.
        loss: the name of the training loss in `train`.
        unit: its unit.
    """

    folder: Path
    config: dict[str, Any]
    train: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    routers: list[dict[str, Any]]
    held_out_routers: list[dict[str, Any]]
    positions: list[dict[str, Any]]
    history: list[dict[str, Any]]
    loss: str
    unit: str

    @property
    def steps(self) -> list[int]:
        """Steps of the rows in `train`."""
        return [row["step"] for row in self.train]

    def stages(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, steps before it, its last step, its tokens per step) of every stage."""
        done, data = 0, self.config["data"]
        if self.config.get("extended"):
            for part in [*self.config["extended"]["earlier"], self.config]:
                name = f"train from step {done + 1}" if done else "train"
                yield name, done, part["steps"], part["data"]["batch_size"] * part["data"]["sequence_length"]
                done = part["steps"]
            return
        for stage in self.config["stages"] or [{"name": "train", "steps": self.config["steps"]}]:
            rows = stage.get("batch_size") or data["batch_size"]
            length = stage.get("sequence_length") or data["sequence_length"]
            yield stage["name"], done, done + stage["steps"], rows * length
            done += stage["steps"]

    def time_spent(self) -> dict[str, float]:
        """Return seconds since the first start by activity; "rest" is time that no row accounts for."""
        spent = {part: sum(row.get(f"seconds_{part}", 0.0) for row in self.rows) for part in PARTS}
        begin = self.history[0]["time"] if self.history else self.rows[0]["time"]
        end = max(row["time"] for row in [*self.rows, *self.history])
        return spent | {"rest": max(end - begin - sum(spent.values()), 0.0)}

    def goodput(self) -> float:
        """Return the share of the time since the first start that was spent in steps that the run kept."""
        spent = self.time_spent()
        return spent["step"] / max(sum(spent.values()), 1e-9)

    def starts(self) -> list[int]:
        """Return the step at which each start began or resumed."""
        return [row["step"] for row in self.history if row["event"] == "start"]


def read_run(run_dir: Path) -> RunLog:
    """Read a run's folder, also while the run is in progress.

    Raises:
        UserError: the folder is not a run's, or nothing was logged yet.
    """
    if not (run_dir / "config.json").exists():
        raise UserError(
            f"{run_dir} is not the folder of a training run, which has config.json, nor of a recipe, which has recipe.json."
        )
    names = "metrics", "router", "positions", "history"
    rows, routers, positions, history = (read_lines(run_dir / f"{name}.jsonl") for name in names)
    train, loss, unit = training_losses(rows)
    if not train:
        raise UserError(f"{run_dir} has no metrics yet.")
    routers, held_out = (
        [row for row in routers if ("held_out" in row) == is_held_out] for is_held_out in (False, True)
    )
    config = read_json(run_dir / "config.json")
    return RunLog(run_dir, config, train, rows, routers, held_out, positions, history, loss, unit)
