"""Checkpoints of a training run, in Orbax: `RUN/checkpoints/STEP/{state,position}`.

Invariant: a step folder is either complete or absent (Orbax writes beside it and renames), and holds everything that the next
step depends on: parameters, optimizer state, step count, and the data position.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from qwen3_jax.errors import UserError


class TrainCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`; made when missing.
        keep: newest ones that are kept.
    """

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self.folder = folder

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Begin to save in the background; `position` is the data iterator's state, as JSON can hold it."""
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        )

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Return (state, data position) of a step, placed as `abstract_state` says.

        Raises:
            UserError: the checkpoint is damaged or belongs to another model; names the folder.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, OSError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"checkpoint {self.folder / str(step)} could not be restored ({reason}).") from error
        return restored["state"], restored["position"]

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish and release."""
        self._manager.close()
