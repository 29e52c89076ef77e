"""The steps of one stage: batches, steps, evaluation, checkpoints, metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sharding
from qwen3_jax.checkpoint.training import TrainCheckpoints
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Prepared, make_train_loader
from qwen3_jax.data.pipeline import at_boundary
from qwen3_jax.data.token_targets import StoredTargets
from qwen3_jax.errors import Diverged, Interrupted
from qwen3_jax.progress import Bar, doing, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import guard
from qwen3_jax.training.adapters import lora_of
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.held_out import HeldOut, PositionLoss, position_edges
from qwen3_jax.training.journal import Journal
from qwen3_jax.training.meter import Meter, device_peak
from qwen3_jax.training.metrics import TRAINING_LOSSES
from qwen3_jax.training.objectives import objective_of
from qwen3_jax.training.optimizer import run_schedule
from qwen3_jax.training.own_devices import devices_to_train_on
from qwen3_jax.training.profiler import Profiler
from qwen3_jax.training.step import DeviceBatch, Trainer, TrainState
from qwen3_jax.training.step_metrics import Metrics, fetch_metrics
from qwen3_jax.training.teacher import Teacher

Watch = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass
class StageLoop:
    """Runs the stages of a run, one call each.

    Attributes:
        config: the run.
        run_dir: its folder.
        stages: all stages, resolved.
        architecture: of the first stage; `rope_theta` of a stage overrides it.
        corpora: the prepared corpus of each source.
        checkpoints: where states are saved.
        journal: where metrics are written.
        watch: called with (step, metrics) whenever metrics are logged.
        asked_to_end: called after a step; what has asked the run to end there ("SIGTERM"), or "".
        reference: of the method dpo, for each corpus the log-probabilities under the reference model.
        tokenizer: of the run.
        targets: of distillation on records with `top_k`, for each corpus the teacher's most probable tokens.
    """

    config: TrainConfig
    run_dir: Path
    stages: Sequence[Stage]
    architecture: Qwen3Config
    corpora: Sequence[Prepared]
    checkpoints: TrainCheckpoints
    journal: Journal
    watch: Watch | None
    asked_to_end: Callable[[int], str]
    reference: Sequence[np.ndarray] | None = None
    tokenizer: Tokenizer | None = None
    targets: Sequence[StoredTargets] | None = None

    def run(
        self, stage: Stage, trainer: Trainer, state: TrainState, position: dict[str, Any] | None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Take the remaining steps of one stage.

        Args:
            state: after the last step taken, placed for this stage's mesh or another; it is donated, do not reuse it.
            position: {"stage": name, "data": the loader's position}, as a checkpoint holds it; None at step 0.

        Returns:
            The state and the position at the end of the stage.
        """
        data, step = stage.run.data, int(state.step)
        if step == stage.first:
            state = dataclasses.replace(state, guard=guard.restarted(state.guard))
        state = jax.device_put(state, trainer.shardings)  # another stage may have another mesh
        with doing("planning rows"):
            loader = self.loader(stage, trainer)
            peak = device_peak(self.run_dir)
        flops = trainer.flops_per_token(data.sequence_length)
        meter = Meter(data.batch_size * data.sequence_length, flops, peak, jax.device_count())
        label = stage.name if len(self.stages) > 1 else "training"
        with (
            contextlib.closing(loader) as batches,
            meter,
            progress_bar(label, stage.last - stage.first, done=step - stage.first) as bar,
            Profiler(self.config.profile, self.run_dir / "profile", step, stage.last, bar.print) as profiler,
        ):
            if position is not None:
                batches.set_state(self.data_position(position, stage))
            return self._steps(stage, trainer, state, batches, meter, bar, profiler)

    def loader(self, stage: Stage, trainer: Trainer) -> Any:
        """Return the batches of a stage: an iterator with `get_state`, `set_state` and `close`."""
        data, settings = stage.run.data, self.config.distillation
        if settings is not None and settings.needs_states:
            assert self.tokenizer is not None
            Teacher(self.config, trainer, self.tokenizer).attach()
        rows = trainer.local_rows(data.batch_size)
        return iter(make_train_loader(
            data, self.corpora, weights=stage.weights, rows=rows, reference=self.reference, targets=self.targets
        ))  # fmt: skip

    def next_batch(self, batches: Any, stage: Stage, trainer: Trainer, state: TrainState) -> DeviceBatch:
        """Return the batch of the next step, placed; `state` is what that step begins with."""
        del state
        return trainer.place(next(batches), stage.run.data.batch_size)

    def taken(self, step: int, metrics: Metrics) -> None:
        """Called after each step with its metrics, which are still on the device."""

    def figures(self) -> dict[str, float]:
        """Return further figures of the steps since the last call, for the line of metrics that is written now."""
        return {}

    def prepare_held_out(self, stage: Stage) -> None:
        """Prepare what `evaluate` measures in a stage: its held-out data."""
        self._held_out = HeldOut(stage, self.corpora, self.config.eval_batches, self.reference, self.targets)
        if self.config.distillation is not None:
            self._held_out.baseline = {}  # a divergence has no baseline

    def data_position(self, position: dict[str, Any], stage: Stage) -> dict[str, Any]:
        """Return the state of a stage's loader. It takes the rows that follow those of the stage of `position` if it is
        that one, or if the run was extended with rows of the same length (how many make a batch does not matter)."""
        if position["stage"] == stage.name:
            return position["data"]
        before = next(one for one in self.stages if one.name == position["stage"])
        old, new = before.run.data, stage.run.data
        if not self.config.stages and (old.sequence_length, old.lengths) == (new.sequence_length, new.lengths):
            return position["data"]
        return at_boundary(position["data"], old, before.weights, new, self.corpora)

    def _steps(
        self,
        stage: Stage,
        trainer: Trainer,
        state: TrainState,
        batches: Any,
        meter: Meter,
        bar: Bar,
        profiler: Profiler,
    ) -> tuple[TrainState, dict[str, Any]]:
        config = self.config
        self.prepare_held_out(stage)
        step = logged = started = int(state.step)
        if config.eval_at_start and step == 0:
            with meter.during("eval"):
                self.evaluate(step, stage, trainer, state, bar)
        while step < stage.last:
            profiler.before(step)
            batch = meter.fetch(functools.partial(self.next_batch, batches, stage, trainer, state))
            if step == started:
                bar.advance(0, "compiling")
            state, step_metrics = meter.step(functools.partial(trainer.step, state, batch))
            if step == started:
                bar.advance(0, "")
            step += 1
            self.taken(step, step_metrics)
            profiler.after(step, step_metrics)
            last, ending = step == stage.last, self.asked_to_end(step)
            losses: dict[str, float] = {}
            if last or _due(step, config.eval_every):
                with meter.during("eval"):
                    losses = self.evaluate(step, stage, trainer, state, bar)
                    if (load := step_metrics.loss.router_load) is not None:
                        self.journal.write_routers(step, jax.device_get(load))
            if last or step % config.log_every == 0:
                self._log(step, step_metrics, stage, meter, bar, step - logged)
                logged = step
            if last or ending or _due(step, config.checkpoint_every):
                with meter.during("checkpoint"):
                    mean = sum(losses.values()) / len(losses) if losses else None
                    position = {"stage": stage.name, "data": batches.get_state()}
                    self.journal.push()
                    self.checkpoints.save(step, state, position, mean)
            if ending and step < config.total_steps:
                self.checkpoints.wait()
                raise Interrupted(
                    f"stopped at step {step} as asked ({ending}); the same command resumes there.", ending
                )
        return state, position

    def _log(self, step: int, step_metrics: Any, stage: Stage, meter: Meter, bar: Bar, advanced: int) -> None:
        """Fetch the metrics of a step, write and print them.

        Raises:
            Diverged: too many steps in a row were skipped.
        """
        values = fetch_metrics(step_metrics)  # blocks until the step has ended
        row = {f"train.{name.removeprefix('loss.')}": value for name, value in values.items()}
        row |= meter.read_and_reset() | self.figures()
        self.journal.write(step, row)
        if self.watch:
            self.watch(step, row)
        if values["skipped_in_row"] >= self.config.optimizer.max_skips:
            raise Diverged(
                f"{values['skipped_in_row']:.0f} steps in a row were skipped up to step {step} "
                f"(loss {values['loss.total']:.4g}, gradient norm {values['gradient_norm']:.4g}); lower "
                "optimizer.learning_rate, or inspect the data, and restart from an earlier checkpoint."
            )
        note = self.note(row)
        bar.advance(advanced, note)
        total = self.config.total_steps
        # Without a bar (output to a file), print about twenty lines over a run instead.
        if not bar.visible and (step == total or step * 20 // total != (step - advanced) * 20 // total):
            name = f"{stage.name}, " if len(self.stages) > 1 else ""
            bar.print(f"{name}step {step}/{total}: {note}")

    def note(self, row: dict[str, float]) -> str:
        """Return what the progress bar says of a line of metrics."""
        return _note(row)

    def evaluate(self, step: int, stage: Stage, trainer: Trainer, state: TrainState, bar: Bar) -> dict[str, float]:
        """Measure the held-out losses; write, print and return them."""
        held_out = self._held_out
        losses, baseline = held_out.losses(trainer, state.params), held_out.baseline
        row = {f"eval.{name}": loss for name, loss in losses.items()}
        row |= {f"accuracy.{name}": value for name, value in held_out.accuracy.items()}
        notes = {name: f" (accuracy {value:.1%})" for name, value in held_out.accuracy.items()}
        if not held_out.accuracy:
            row |= {f"eval.{name}_unigram_entropy": value for name, value in baseline.items()}
            notes = {name: f" (unigram entropy {value:.2f})" for name, value in baseline.items()}
        text = ", ".join(f"{name} {loss:.3f}{notes.get(name, '')}" for name, loss in losses.items())
        if text:
            bar.print(f"step {step}: held-out loss {text}")
        if step == stage.last:
            by_position = self._by_position(stage, trainer, state, held_out)
            row |= {f"position.{name}": one.mean for name, one in by_position.items()}
            for name, one in by_position.items():
                self.journal.write_positions(step, name, *one)
            text = ", ".join(f"{name} {one.mean:.3f}" for name, one in by_position.items())
            if text:
                bar.print(f"step {step}: held-out loss by position {text}")
        self.journal.write(step, row)
        for name, load in held_out.router_load.items():
            self.journal.write_routers(step, load, name)
        self.journal.plot(baseline, held_out.named)
        return losses

    def _by_position(
        self, stage: Stage, trainer: Trainer, state: TrainState, held_out: HeldOut
    ) -> dict[str, PositionLoss]:
        """Return the held-out loss by position, on rows of the longest stage; {} if all stages have one length, of pairs, or of
        divergences.

        The model has this stage's rotary base, so this measures long text before the stage that trains on it.
        """
        longest = max(self.stages, key=lambda one: one.run.data.sequence_length)
        edges = position_edges(one.run.data.sequence_length for one in self.stages)
        if len(edges) == 2 or held_out.accuracy or self.config.distillation is not None:
            return {}
        params = state.params
        if stage.run.data.sequence_length < longest.run.data.sequence_length:
            own = trainer
            trainer = stage_trainer(
                dataclasses.replace(longest, rope_theta=stage.rope_theta),
                self.stages,
                self.architecture,
                self.tokenizer,
            )
            params = jax.device_put(params, trainer.shardings.params)
            if own.lora is not None:
                trainer.take_base(own.base)
        return HeldOut(longest, self.corpora, self.config.eval_batches).by_position(trainer, params, edges)


def stage_trainer(
    stage: Stage, stages: Sequence[Stage], architecture: Qwen3Config, tokenizer: Tokenizer | None = None
) -> Trainer:
    """Return the trainer of a stage, with the schedule of the whole run.

    tokenizer: of the run; only the method grpo needs it, for the think tags.
    """
    run = stage.run
    config = (
        architecture if stage.rope_theta is None else dataclasses.replace(architecture, rope_theta=stage.rope_theta)
    )
    mesh = sharding.make_mesh(**dataclasses.asdict(run.mesh), devices=devices_to_train_on(run))
    placement = sharding.Placement(mesh, sharding.TRAINING)
    rate = run_schedule([(one.run.optimizer, one.last - one.first) for one in stages])
    return Trainer(
        config, run.model, run.optimizer, rate, placement, run.loss, run.micro_batches, lora_of(run.lora, config),
        objective_of(run, tokenizer),
    )  # fmt: skip


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _note(row: dict[str, float]) -> str:
    key = next(name for name in TRAINING_LOSSES if name in row)
    parts = [f"loss {row[key]:.3f}"]
    if "train.accuracies" in row:
        parts.append(f"accuracy {row['train.accuracies']:.0%}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    if row["train.balance"]:
        parts.append(f"balance {row['train.balance']:.2f}")
    if row["train.skipped"]:
        parts.append(f"{row['train.skipped']:.0f} step{'s' if row['train.skipped'] > 1 else ''} skipped")
    return " | ".join(parts)
