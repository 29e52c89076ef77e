"""Checkpoints of a training run, in Orbax: `RUN/checkpoints/STEP/{state,position}`.

Invariants: a step folder is either complete or absent (Orbax writes beside it and renames), and holds everything that the
next step depends on: parameters, optimizer state, step count, and the data position. What is restored has the bits that were
saved: every array's fingerprint is saved with it and compared.
"""

import contextlib
import errno
import json
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from qwen3_jax.checkpoint.fingerprint import fingerprints
from qwen3_jax.errors import UserError, warn
from qwen3_jax.paths import is_url

_BEST = "held_out"
_unraisable_before = sys.unraisablehook


def _ignore_late_results(unraisable: Any) -> None:
    """Once one file of a checkpoint has failed, Orbax ends its event loop; TensorStore has a traceback printed for every other
    file that is finished later, until the program ends."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _unraisable_before(unraisable)


sys.unraisablehook = _ignore_late_results
# Orbax logs the traceback of every thread that found the disk full; the run says it once, in a sentence.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and _disk_full(record.exc_info[1])))


class TrainCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`, local or in a bucket; made when missing.
        keep: newest ones that are kept.
        keep_best: number of checkpoints with the lowest held-out loss that are kept too.
        keep_steps: steps whose checkpoints are always kept.
    """

    def __init__(self, folder: Path, keep: int, keep_best: int = 0, keep_steps: Collection[int] = ()):
        rules = [
            keeping.LatestN(keep),
            keeping.CustomSteps(list(keep_steps)),
            keeping.BestN(get_metric_fn=_held_out, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keeping.AnyPreservationPolicy(rules),
            best_fn=_held_out,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self.folder = folder if is_url(folder) else folder.absolute()
        self._set_aside_unreadable()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest held-out loss; None where none was measured."""
        step = self._manager.best_step()
        return step if step is not None and self._manager.metrics(step) else None

    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: dict[str, Any], held_out: float | None = None) -> None:
        """Begin to save in the background.

        Args:
            step: optimizer steps taken.
            state: arrays.
            position: position of the data loader, as JSON values.
            held_out: mean held-out loss at this step, if it was measured.

        Raises:
            UserError: the disk is full, now or when the one before was written; names the newest whole checkpoint.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave({"position": position, "fingerprints": fingerprints(state)}),
        )
        with self.disk_full_is_user_error(step):
            self._manager.save(step, args=arguments, metrics={} if held_out is None else {_BEST: held_out})

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
            expected, position = saved["fingerprints"], saved["position"]
        restored_fingerprints = fingerprints(state)
        for name, value in expected.items():
            if restored_fingerprints.get(name) != value:
                raise UserError(f"checkpoint {self.folder / str(step)} is damaged: {name} is not what was saved.")
        return state, position

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint to damaged-STEP, so that the run can resume from the one before."""
        if jax.process_index() == 0:
            self._rename(step)
        _wait_for_all("a damaged checkpoint is set aside")
        self._manager.reload()

    def _set_aside_unreadable(self) -> None:
        """The same for those whose held-out loss cannot be read, at which Orbax would stop before it reads anything else."""
        if jax.process_index() == 0:
            for path in self.folder.glob("*/metrics/metrics"):
                step = path.parent.parent.name
                with contextlib.suppress(FileNotFoundError):
                    try:
                        json.loads(path.read_text(encoding="utf-8"))
                    except ValueError:
                        if step.isdigit():
                            warn(f"checkpoint {self.folder / step} is damaged: {path} is no JSON. It is set aside.")
                            self._rename(int(step))
        _wait_for_all("checkpoints are looked at")

    def _rename(self, step: int) -> None:
        target, number = self.folder / f"damaged-{step}", 1
        while target.exists():
            number += 1
            target = self.folder / f"damaged-{step}.{number}"
        (self.folder / str(step)).rename(target)

    def wait(self) -> None:
        """Block until everything is on disk.

        Raises:
            UserError: the disk is full.
        """
        with self.disk_full_is_user_error(None):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Finish and release. Write errors have been raised by `wait` or `save`."""
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def disk_full_is_user_error(self, step: int | None) -> Iterator[None]:
        """Raise a UserError that names the newest whole checkpoint for any error of a full disk."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or not _disk_full(error):
                raise
            with contextlib.suppress(Exception):  # writes in progress finish, or fail in the same way
                self._manager.wait_until_finished()
            self._manager.reload()  # Orbax counts a step as saved once its write has started
            whole = self.steps()
            kept = f"the newest whole checkpoint is that of step {whole[-1]}" if whole else "there is no checkpoint yet"
            raise UserError(
                f"the disk of {self.folder} is full{f', at step {step}' if step else ''}; {kept}. "
                "Free some space and start again."
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


def restore_newest(
    checkpoints: TrainCheckpoints, abstract_state: Callable[[int], Any]
) -> tuple[int, Any, dict[str, Any]] | None:
    """Return (step, state, data position) of the newest checkpoint that is whole, or None where there is none.

    A damaged one is set aside with a warning, on all processes or on none.

    Args:
        checkpoints: of the run.
        abstract_state: step -> shapes, types and shardings.

    Raises:
        UserError: there are checkpoints, and none can be restored.
    """
    reasons = []
    for step in reversed(checkpoints.steps()):
        restored, reason = None, ""
        try:
            restored = checkpoints.restore(step, abstract_state(step))
        except UserError as error:
            reason = str(error)
        if _everywhere(restored is not None):
            assert restored is not None
            return step, *restored
        reasons.append(
            reason or f"checkpoint {checkpoints.folder / str(step)} could not be restored by another process."
        )
        warn(f"{reasons[-1]} It is set aside, and the one before is tried.")
        checkpoints.set_aside(step)
    if reasons:
        raise UserError(f"no checkpoint of the run is whole; the newest: {reasons[0]}")
    return None


def _everywhere(fine: bool) -> bool:
    """Whether `fine` holds in all processes."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def _wait_for_all(point: str) -> None:
    """Wait for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def _held_out(metrics: dict[str, float]) -> float:
    """The metric that chooses the best checkpoints; infinity where it was not measured."""
    return metrics.get(_BEST, math.inf)


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(
            error
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
