"""Checkpoints of a training run, in Orbax: `RUN/checkpoints/STEP/{state,position}`.

Invariants: a step folder is either complete or absent (Orbax writes beside it and renames), and holds everything that the
next step depends on: parameters, optimizer state, step count, and the data position. What is restored has the bits that were
saved: every array's fingerprint is saved with it and compared.
"""

import contextlib
import errno
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from qwen3_jax.checkpoint.fingerprint import fingerprints
from qwen3_jax.errors import UserError, warn

_BEST = "held_out"


class TrainCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`; made when missing.
        keep: newest ones that are kept.
        keep_best: of those that were evaluated, so many with the lowest held-out loss are kept too.
        keep_steps: and these.
    """

    def __init__(self, folder: Path, keep: int, keep_best: int = 0, keep_steps: Collection[int] = ()):
        rules: list[keeping.PreservationPolicy] = [keeping.LatestN(keep), keeping.CustomSteps(list(keep_steps))]
        if keep_best:
            # Ascending order keeps the last ones: the metric's negative.
            rules.append(keeping.BestN(
                get_metric_fn=lambda metrics: -metrics[_BEST], n=keep_best, keep_checkpoints_without_metrics=False
            ))  # fmt: skip
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=keeping.AnyPreservationPolicy(rules),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: dict[str, Any], held_out: float | None = None) -> None:
        """Begin to save in the background.

        Args:
            step: optimizer steps taken.
            state: arrays.
            position: where the data stands, as JSON can hold it.
            held_out: mean held-out loss at this step, if it was measured.

        Raises:
            UserError: the disk is full, now or when the one before was written; names the newest whole checkpoint.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave({"position": position, "fingerprints": fingerprints(state)}),
        )
        with self._writing(step):
            self._manager.save(step, args=arguments, metrics=None if held_out is None else {_BEST: held_out})

    def position(self, step: int) -> dict[str, Any]:
        """Return the data position of a step.

        Raises:
            UserError: the checkpoint is damaged.
        """
        with self._reading(step):
            found = self._manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))
        return found["position"]["position"]

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Return (state, data position) of a step, placed as `abstract_state` says.

        Raises:
            UserError: the checkpoint is damaged or belongs to another model; names the folder.
        """
        with self._reading(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()
                ),
            )
        state, saved = restored["state"], restored["position"]
        found = fingerprints(state)
        for name, value in saved["fingerprints"].items():
            if found.get(name) != value:
                raise UserError(f"checkpoint {self.folder / str(step)} is damaged: {name} is not what was saved.")
        return state, saved["position"]

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint to damaged-STEP, so that the run can go on from the one before."""
        if jax.process_index() == 0:
            target = self.folder / f"damaged-{step}"
            number = 1
            while target.exists():
                number += 1
                target = self.folder / f"damaged-{step}.{number}"
            (self.folder / str(step)).rename(target)
        self._manager.reload()

    def wait(self) -> None:
        """Block until everything is on disk.

        Raises:
            UserError: the disk is full.
        """
        with self._writing(None):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Finish and release; what could not be written was said by `wait` or `save`."""
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _disk_full(error):
                raise
            whole = self.steps()
            kept = f"the newest whole checkpoint is that of step {whole[-1]}" if whole else "there is no checkpoint yet"
            raise UserError(
                f"the disk of {self.folder} is full{f', at step {step}' if step else ''}; {kept}. Make room and start again."
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Orbax and TensorStore report damage in many ways, bare Exceptions included: name the folder."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):  # the device's or the program's fault
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"checkpoint {self.folder / str(step)} could not be restored ({reason}).") from error


def restore_newest(checkpoints: TrainCheckpoints, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Return (step, state, data position) of the newest checkpoint that is whole, or None where there is none.

    A damaged one is set aside with a warning.

    Args:
        checkpoints: of the run.
        abstract_state: (step, position) -> shapes, types and shardings.

    Raises:
        UserError: there are checkpoints, and none can be restored.
    """
    reasons = []
    for step in reversed(checkpoints.steps()):
        try:
            position = checkpoints.position(step)
            state, position = checkpoints.restore(step, abstract_state(step, position))
        except UserError as error:
            reasons.append(str(error))
            warn(f"{error} It is set aside, and the one before is tried.")
            checkpoints.set_aside(step)
            continue
        return step, state, position
    if reasons:
        raise UserError(f"no checkpoint of the run is whole; the newest: {reasons[0]}")
    return None


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(
            error
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
