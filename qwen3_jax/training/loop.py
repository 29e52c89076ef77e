"""One training run from configuration to exported checkpoint.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/pretrain/laptop.yaml     # three stages

Invariant: the state after step s depends on the configuration alone, not on how often the run was interrupted before, nor by
    what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import sharding
from qwen3_jax.checkpoint import load_model, save
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints, restore_newest
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Batch, Prepared, corpus_unigram_entropy, make_eval_batches, make_train_loader
from qwen3_jax.data.mixture import at_boundary
from qwen3_jax.errors import Diverged, Interrupted, UserError
from qwen3_jax.evaluation import budget_curve
from qwen3_jax.model import flatten
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import metrics, run_folder
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.run_folder import say
from qwen3_jax.training.step import Trainer, TrainState, host, run_schedule
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
    started = time.perf_counter()
    run_dir = Path(config.run_dir).expanduser()
    run_folder.check(run_dir, config)
    stages = config.resolved()
    source = resolve(config.model.init_from) if config.model.init_from else None
    tokenizer = run_folder.tokenizer(run_dir, config, source)
    architecture = run_folder.architecture(config, source, tokenizer)
    trainers = [_trainer(stage, stages, architecture) for stage in stages]
    for stage, trainer in zip(
        stages, trainers, strict=True
    ):  # refuses what does not divide, before anything is written
        trainer.abstract_batch(stage.run.data.batch_size, stage.run.data.sequence_length)
    run_folder.claim(run_dir, config, tokenizer, architecture)
    corpora = run_folder.corpora(run_dir, config, tokenizer)
    checkpoints = TrainCheckpoints(
        run_dir / "checkpoints", config.checkpoint_keep, config.checkpoint_keep_best, [stage.last for stage in stages]
    )
    last = trainers[-1]
    say(f"{run_dir}: {_describe(last)}, mesh {_mesh(last)}, {config.total_steps} steps" + _stage_names(stages))

    with contextlib.closing(checkpoints), _terminated() as asked_to_end:
        found = restore_newest(checkpoints, lambda step, _: trainers[_number_at(stages, step)].abstract_state())
        if found is None:
            step, position = 0, None
            state = _fresh(config, trainers[0], source)
        else:
            step, state, position = found
            say(f"resumed at step {step}")
        with _Journal(run_dir, config, step) as journal:
            run = _Run(config, run_dir, tokenizer, corpora, checkpoints, journal, watch, asked_to_end)
            for stage, trainer in zip(stages, trainers, strict=True):
                if step < stage.last:
                    state = jax.device_put(state, trainer.shardings)  # another stage may have another mesh
                    state, position = run.stage(stage, trainer, state, position)
                    step = stage.last
            checkpoints.wait()

    exported = save(
        run_folder.finished(last, state, tokenizer),
        tokenizer,
        run_dir / "hf",
        dtype=config.export_dtype,
        overwrite=True,
    )
    say(f"exported {exported} after {time.perf_counter() - started:.0f} s")
    if config.budget_curve is not None and jax.process_index() == 0:
        budget_curve.measure(exported, config.budget_curve, config.data, run_dir)
        next_command = budget_curve.suggestion(exported, config.budget_curve, config.data)
        say(f"done after {time.perf_counter() - started:.0f} s. Try next:\n  {next_command}")
    return exported


class _Run:
    """What the stages of a run share."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        tokenizer: Tokenizer,
        corpora: Sequence[Prepared],
        checkpoints: TrainCheckpoints,
        journal: _Journal,
        watch: Watch | None,
        asked_to_end: Callable[[int], bool],
    ):
        self.config, self.run_dir, self.tokenizer, self.corpora = config, run_dir, tokenizer, corpora
        self.checkpoints, self.journal, self.watch, self.asked_to_end = checkpoints, journal, watch, asked_to_end

    def stage(
        self, stage: Stage, trainer: Trainer, state: TrainState, position: dict[str, Any] | None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Take the remaining steps of one stage; return the state and the data position at its end."""
        run = stage.run
        loader = make_train_loader(
            run.data, self.corpora, weights=stage.weights, rows=trainer.local_rows(run.data.batch_size)
        )
        with contextlib.closing(iter(loader)) as batches:
            if position is not None:
                batches.set_state(
                    position["data"] if position["stage"] == stage.name else at_boundary(position["data"])
                )
            return self._steps(stage, trainer, state, batches)

    def _steps(
        self, stage: Stage, trainer: Trainer, state: TrainState, batches: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        config, run = self.config, stage.run
        held_out = _held_out(stage, self.corpora, config.eval_batches)
        meter = metrics.Meter(
            run.data.batch_size * run.data.sequence_length,
            training_flops_per_token(trainer.config, run.data.sequence_length),
            peak_flops(jax.local_devices()[0]),
            jax.device_count(),
        )
        step = first = logged = int(state.step)
        label = "training" if not config.stages else stage.name
        with progress_bar(label, stage.last - step) as bar:
            while step < stage.last:
                profiling = config.profile and step == first + _PROFILED
                if profiling:
                    jax.profiler.start_trace(self.run_dir / "profile")
                with meter.during("input"):
                    batch = trainer.place(next(batches), run.data.batch_size)
                state, step_metrics = trainer.step(state, batch)
                step += 1
                last = step == stage.last
                if step == first + 1:
                    jax.block_until_ready(step_metrics)
                    meter.compiled()  # the first step compiles
                if config.profile and step == min(first + 2 * _PROFILED, stage.last) and step > first + _PROFILED:
                    jax.block_until_ready(step_metrics)
                    jax.profiler.stop_trace()
                    bar.print(f"a trace of {step - first - _PROFILED} steps is in {self.run_dir / 'profile'}")
                losses: dict[str, float] = {}
                ending = self.asked_to_end(step)
                if step % config.log_every == 0 or last or ending:
                    self._log(step, step_metrics, stage, meter, bar, step - logged)
                    logged = step
                if last or (config.eval_every and step % config.eval_every == 0):
                    with meter.during("eval"):
                        losses = self._evaluate(step, trainer, state, held_out, bar)
                if last or ending or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    with meter.during("checkpoint"):
                        mean = sum(losses.values()) / len(losses) if losses else None
                        position = {"stage": stage.name, "data": batches.get_state()}
                        self.checkpoints.save(step, state, position, mean)
                if ending and not last:
                    self.checkpoints.wait()
                    raise Interrupted(f"stopped at step {step} as asked (SIGTERM); the same command resumes there.")
        return state, {"stage": stage.name, "data": batches.get_state()}

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
        self, step: int, trainer: Trainer, state: TrainState, held_out: dict[str, list[Batch]], bar: Bar
    ) -> dict[str, float]:
        """Measure the token-weighted cross-entropy of all held-out batches, in nats; write and show it."""
        losses, entropy = {}, {name: corpus_unigram_entropy(rows) for name, rows in held_out.items()}
        for name, rows in held_out.items():
            parts = [trainer.evaluate(state.params, trainer.place(batch)) for batch in rows]
            tokens = sum(float(part.tokens) for part in parts)
            losses[name] = sum(float(part.cross_entropy) * float(part.tokens) for part in parts) / tokens
        row = {f"eval.{name}": loss for name, loss in losses.items()}
        self.journal.write(step, row | {f"eval.{name}_unigram_entropy": entropy[name] for name in losses})
        self.journal.plot(entropy)
        text = ", ".join(f"{name} {loss:.3f} (unigram entropy {entropy[name]:.2f})" for name, loss in losses.items())
        if text:
            bar.print(f"step {step}: held-out loss {text}")
        return losses


class _Journal:
    """Metrics and history of a run, written by the first process alone."""

    def __init__(self, run_dir: Path, config: TrainConfig, step: int):
        self._run_dir, self._writer = run_dir, None
        if jax.process_index() == 0:
            self._writer = metrics.MetricsWriter(run_dir, step, config.wandb)

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if self._writer:
            self._writer.close(None if kind is None else f"{kind.__name__}: {error}")

    def write(self, step: int, row: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, row)

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
        parts.append(f"{row['train.skipped']:.0f} steps skipped")
    return " | ".join(parts)


def _held_out(stage: Stage, corpora: Sequence[Prepared], most: int) -> dict[str, list[Batch]]:
    """Held-out batches by source, and by "source/domain" where a source has several; sources that hold nothing out are left
    out."""
    out = {}
    data = stage.run.data
    for source, corpus in zip(data.sources, corpora, strict=True):
        if not source.eval_fraction or not corpus.held_out(source.eval_fraction).any():
            continue
        used = source.where.domain or corpus.names("domain")
        if len(used) == 1:
            out[source.name] = make_eval_batches(data, corpora, source.name, most)
            continue
        for domain in used:
            with contextlib.suppress(UserError):  # a domain of which nothing happens to be held out
                out[f"{source.name}/{domain}"] = make_eval_batches(data, corpora, source.name, most, domain)
    return out


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
