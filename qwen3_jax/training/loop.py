"""One training run from configuration to exported checkpoint.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/pretrain/laptop.yaml     # three stages

Invariant: the state after step s depends on the configuration alone, not on how often the run was interrupted before, nor by
    what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sharding
from qwen3_jax.checkpoint import load_model, save
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints, restore_newest
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Prepared, make_train_loader
from qwen3_jax.data.mixture import at_boundary
from qwen3_jax.errors import Diverged, Interrupted, UserError
from qwen3_jax.evaluation import budget_curve
from qwen3_jax.model import flatten
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.training import guard, metrics, run_folder
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.held_out import HeldOut, position_edges
from qwen3_jax.training.optimizer import run_schedule
from qwen3_jax.training.run_folder import say
from qwen3_jax.training.step import Trainer, TrainState, host
from sharding.hardware import peak_flops

Watch = Callable[[int, dict[str, float]], None]
_PROFILED = 5  # steps in a trace, after as many to warm up


def train(config: TrainConfig, watch: Watch | None = None) -> Path:
    """Run (or resume, or finish) a training run and return the exported Hugging Face folder.

    Args:
        config: the run.
        watch: called with (step, metrics) whenever metrics are logged, on every process: a live plot, an early stop.

    Raises:
        UserError: the configuration, data, weights or an existing run directory do not fit; the disk is full; names what.
        ShardingError: the model or batch does not divide over the mesh.
        Interrupted: SIGTERM came; a checkpoint was saved.
    """
    started, since = time.time(), time.perf_counter()
    run_dir = Path(config.run_dir).expanduser()
    metrics.check_wandb(config.wandb)
    run_folder.check(run_dir, config)
    stages = config.resolved()
    source = resolve(config.model.init_from) if config.model.init_from else None
    tokenizer = run_folder.tokenizer(run_dir, config, source)
    architecture = run_folder.architecture(config, source, tokenizer)
    trainers = [_trainer(stage, stages, architecture) for stage in stages]
    for stage, trainer in zip(stages, trainers, strict=True):
        # Refuses what does not divide, before anything is written.
        trainer.abstract_batch(stage.run.data.batch_size, stage.run.data.sequence_length)
    run_folder.claim(run_dir, config, tokenizer, architecture)
    corpora = run_folder.corpora(run_dir, config, tokenizer)
    checkpoints = TrainCheckpoints(
        run_dir / "checkpoints", config.checkpoint_keep, config.checkpoint_keep_best, [stage.last for stage in stages]
    )
    last = trainers[-1]
    say(f"{run_dir}: {_describe(last)}, mesh {_mesh(last)}, {config.total_steps} steps" + _stage_names(stages))

    with contextlib.closing(checkpoints), checkpoints.full_disk_said(None), _terminated() as asked_to_end:
        found = restore_newest(checkpoints, lambda step: trainers[_number_at(stages, step)].abstract_state())
        if found is None:
            step, position = 0, None
            state = _fresh(config, trainers[0], source)
        else:
            step, state, position = found
            say(f"resumed at step {step}")
        with _Journal(run_dir, config, step, started) as journal:
            run = _Run(config, run_dir, stages, architecture, corpora, checkpoints, journal, watch, asked_to_end)
            for stage, trainer in zip(stages, trainers, strict=True):
                if step < stage.last:
                    if step == stage.first:
                        state = dataclasses.replace(state, guard=guard.anew(state.guard))
                    state = jax.device_put(state, trainer.shardings)  # another stage may have another mesh
                    state, position = run.stage(stage, trainer, state, position)
                    step = stage.last
            checkpoints.wait()
        model = run_folder.finished(last, state, tokenizer)
        exported = save(model, tokenizer, run_dir / "hf", dtype=config.export_dtype, overwrite=True)
    say(f"exported {exported} after {time.perf_counter() - since:.0f} s")
    if config.budget_curve is not None and jax.process_index() == 0:
        budget_curve.measure(exported, config.budget_curve, config.data, run_dir)
        next_command = budget_curve.suggestion(exported, config.budget_curve, config.data)
        say(f"done after {time.perf_counter() - since:.0f} s. Try next:\n  {next_command}")
    return exported


@dataclasses.dataclass
class _Run:
    """What the stages of a run share."""

    config: TrainConfig
    run_dir: Path
    stages: Sequence[Stage]
    architecture: Qwen3Config
    corpora: Sequence[Prepared]
    checkpoints: TrainCheckpoints
    journal: _Journal
    watch: Watch | None
    asked_to_end: Callable[[int], bool]

    def stage(
        self, stage: Stage, trainer: Trainer, state: TrainState, position: dict[str, Any] | None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Take the remaining steps of one stage; return the state and the data position at its end."""
        data, step = stage.run.data, int(state.step)
        loader = make_train_loader(data, self.corpora, weights=stage.weights, rows=trainer.local_rows(data.batch_size))
        meter = metrics.Meter(
            data.batch_size * data.sequence_length,
            training_flops_per_token(trainer.config, data.sequence_length),
            peak_flops(jax.local_devices()[0]),
            jax.device_count(),
        )
        label = stage.name if self.config.stages else "training"
        with (
            contextlib.closing(iter(loader)) as batches,
            meter,
            progress_bar(label, stage.last - step) as bar,
            _Profiler(self.config.profile, self.run_dir / "profile", step, stage.last, bar.print) as profiler,
        ):
            if position is not None:
                same = position["stage"] == stage.name
                batches.set_state(position["data"] if same else at_boundary(position["data"]))
            return self._steps(stage, trainer, state, batches, meter, bar, profiler)

    def _steps(
        self,
        stage: Stage,
        trainer: Trainer,
        state: TrainState,
        batches: Any,
        meter: metrics.Meter,
        bar: Bar,
        profiler: _Profiler,
    ) -> tuple[TrainState, dict[str, Any]]:
        config, rows = self.config, stage.run.data.batch_size
        held_out = HeldOut(stage, self.corpora, config.eval_batches)
        step = logged = int(state.step)
        while step < stage.last:
            profiler.before(step)
            batch = meter.fetch(lambda: trainer.place(next(batches), rows))
            state, step_metrics = meter.step(functools.partial(trainer.step, state, batch))
            step += 1
            profiler.after(step, step_metrics)
            last, ending = step == stage.last, self.asked_to_end(step)
            losses: dict[str, float] = {}
            if last or _due(step, config.eval_every):
                with meter.during("eval"):
                    losses = self._evaluate(step, stage, trainer, state, held_out, bar)
                    if (load := step_metrics.loss.router_load) is not None:
                        self.journal.write_routers(step, jax.device_get(load))
            if last or step % config.log_every == 0:
                self._log(step, step_metrics, stage, meter, bar, step - logged)
                logged = step
            if last or ending or _due(step, config.checkpoint_every):
                with meter.during("checkpoint"):
                    mean = sum(losses.values()) / len(losses) if losses else None
                    position = {"stage": stage.name, "data": batches.get_state()}
                    self.checkpoints.save(step, state, position, mean)
            if ending and step < config.total_steps:
                self.checkpoints.wait()
                raise Interrupted(f"stopped at step {step} as asked (SIGTERM); the same command resumes there.")
        return state, position

    def _log(self, step: int, step_metrics: Any, stage: Stage, meter: metrics.Meter, bar: Bar, advanced: int) -> None:
        """Fetch the metrics of a step, write and show them.

        Raises:
            Diverged: too many steps in a row were skipped.
        """
        values = host(step_metrics)  # waits for the device
        row = {f"train.{name.removeprefix('loss.')}": value for name, value in values.items()} | meter.read()
        self.journal.write(step, row)
        if self.watch:
            self.watch(step, row)
        if values["skipped_in_row"] >= self.config.optimizer.max_skips:
            raise Diverged(
                f"{values['skipped_in_row']:.0f} steps in a row were skipped up to step {step} "
                f"(loss {values['loss.total']:.4g}, gradient norm {values['gradient_norm']:.4g}); lower "
                "optimizer.learning_rate, or look at the data, and start again from an earlier checkpoint."
            )
        note = _note(row)
        bar.advance(advanced, note)
        total = self.config.total_steps
        # Where no bar is drawn (a log file), print a line now and then instead: about twenty over a run.
        if not bar.visible and (step == total or step * 20 // total != (step - advanced) * 20 // total):
            name = f"{stage.name}, " if self.config.stages else ""
            bar.print(f"{name}step {step}/{total}: {note}")

    def _evaluate(
        self, step: int, stage: Stage, trainer: Trainer, state: TrainState, held_out: HeldOut, bar: Bar
    ) -> dict[str, float]:
        """Measure the held-out losses; write, show and return them."""
        losses, entropy = held_out.losses(trainer, state.params), held_out.entropy
        row = {f"eval.{name}": loss for name, loss in losses.items()}
        row |= {f"eval.{name}_unigram_entropy": entropy[name] for name in losses}
        text = ", ".join(f"{name} {loss:.3f} (unigram entropy {entropy[name]:.2f})" for name, loss in losses.items())
        if text:
            bar.print(f"step {step}: held-out loss {text}")
        if step == stage.last:
            placed = self._by_position(stage, trainer, state)
            row |= {f"position.{name}": loss for name, loss in placed.items()}
            text = ", ".join(f"{name} {loss:.3f}" for name, loss in placed.items())
            if text:
                bar.print(f"step {step}: held-out loss by position {text}")
        self.journal.write(step, row)
        self.journal.plot(entropy)
        return losses

    def _by_position(self, stage: Stage, trainer: Trainer, state: TrainState) -> dict[str, float]:
        """The held-out loss by position, on rows of the longest stage; nothing where all stages are of one length.

        The model is the one of this stage, its rotary base included: what longer text costs before a stage that is for it.
        """
        longest = max(self.stages, key=lambda one: one.run.data.sequence_length)
        edges = position_edges(one.run.data.sequence_length for one in self.stages)
        if len(edges) == 2:
            return {}
        params = state.params
        if stage.run.data.sequence_length < longest.run.data.sequence_length:
            trainer = _trainer(
                dataclasses.replace(longest, rope_theta=stage.rope_theta), self.stages, self.architecture
            )
            params = jax.device_put(params, trainer.shardings.params)
        return HeldOut(longest, self.corpora, self.config.eval_batches).by_position(trainer, params, edges)


class _Profiler:
    """Writes a trace of a few steps of a stage, after as many to warm up."""

    def __init__(self, wanted: bool, folder: Path, first: int, last: int, report: Callable[[str], None]):
        self._folder, self._report, self._running = folder, report, False
        self._from = min(first + _PROFILED, last - 1) if wanted else -1
        self._to = min(self._from + _PROFILED, last)

    def __enter__(self) -> _Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        if step == self._from:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        if self._running and step == self._to:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running = False
            self._report(f"a trace of steps {self._from + 1} to {self._to} is in {self._folder}")


class _Journal:
    """Metrics and history of a run, written by the first process alone."""

    def __init__(self, run_dir: Path, config: TrainConfig, step: int, started: float):
        self._run_dir, self._writer = run_dir, None
        if jax.process_index() == 0:
            self._writer = metrics.MetricsWriter(run_dir, step, started, config.wandb)

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if self._writer:
            self._writer.close(None if kind is None else f"{kind.__name__}: {error}")

    def write(self, step: int, row: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, row)

    def write_routers(self, step: int, load_le: np.ndarray) -> None:
        if self._writer:
            self._writer.write_routers(step, load_le)

    def plot(self, entropy: dict[str, float]) -> None:
        if self._writer:
            metrics.plot_loss(self._writer.path, self._run_dir / "loss.png", entropy)


@contextlib.contextmanager
def _terminated() -> Iterator[Callable[[int], bool]]:
    """Yield a function of the step that says, on every process alike, whether SIGTERM has asked the run to end."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda _: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _trainer(stage: Stage, stages: Sequence[Stage], architecture: Qwen3Config) -> Trainer:
    """The trainer of a stage, with the schedule of the whole run."""
    run = stage.run
    config = (
        architecture if stage.rope_theta is None else dataclasses.replace(architecture, rope_theta=stage.rope_theta)
    )
    placement = sharding.Placement(sharding.make_mesh(**dataclasses.asdict(run.mesh)), sharding.TRAINING)
    rate = run_schedule([(one.run.optimizer, one.last - one.first) for one in stages])
    return Trainer(config, run.model, run.optimizer, rate, placement, run.loss, run.micro_batches)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _number_at(stages: Sequence[Stage], step: int) -> int:
    """The stage that goes on from a step; the last one where the run is finished."""
    return next((i for i, stage in enumerate(stages) if step < stage.last), len(stages) - 1)


def _stage_names(stages: Sequence[Stage]) -> str:
    if len(stages) == 1:
        return ""
    return " in " + ", ".join(f"{s.name} ({s.last - s.first} of {s.run.data.sequence_length} tokens)" for s in stages)


def _note(row: dict[str, float]) -> str:
    parts = [f"loss {row['train.cross_entropy']:.3f}"]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    if row["train.balance"]:
        parts.append(f"balance {row['train.balance']:.2f}")
    if row["train.skipped"]:
        parts.append(f"{row['train.skipped']:.0f} step{'s' if row['train.skipped'] > 1 else ''} skipped")
    return " | ".join(parts)


def _fresh(config: TrainConfig, trainer: Trainer, source: Path | None) -> TrainState:
    if source is None:
        return trainer.init(config.seed)
    model = load_model(
        source,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        placement=trainer.placement,
        scan_layers=config.model.scan_layers,
    )
    params, shapes = flatten(model), trainer.structure.shapes
    for name, shape in shapes.items():
        if name not in params or params[name].shape != shape.shape:
            raise UserError(f"model.config changes the shape of {name!r}; model.init_from cannot fill it.")
    return trainer.init_from(params)


def _mesh(trainer: Trainer) -> dict[str, int]:
    mesh = trainer.placement.mesh
    return {} if mesh is None else dict(mesh.shape)


def _describe(trainer: Trainer) -> str:
    count = sum(shape.size for shape in trainer.structure.shapes.values())
    kind = f"{trainer.config.num_experts} experts" if trainer.config.num_experts else "dense"
    return f"{count / 1e6:,.2f}M parameters ({kind})"
