"""One training run from configuration to exported checkpoint.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/pretrain/laptop.yaml     # three stages

Invariant: the state after step s depends on the configuration alone, not on interruptions of the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.checkpoint import load_model, save
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints, restore_newest
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation import budget_curve
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.kernels import Execution
from qwen3_jax.model import RewardModel, flatten
from qwen3_jax.paths import run_path
from qwen3_jax.progress import doing
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import adapters, run_folder
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.journal import Journal
from qwen3_jax.training.reference import reference_log_probs
from qwen3_jax.training.run_data import prepare_corpora
from qwen3_jax.training.run_folder import say
from qwen3_jax.training.stage_loop import StageLoop, Watch, stage_trainer
from qwen3_jax.training.step import Trainer, TrainState
from qwen3_jax.training.stopping import StopSignals
from qwen3_jax.training.teacher import teacher_folder
from qwen3_jax.training.teacher_targets import stored_targets


def train(
    config: TrainConfig,
    watch: Watch | None = None,
    stop: StopSignals | None = None,
    make_loop: type[StageLoop] | None = None,
) -> Path:
    """Run (or resume, or finish) a training run and return the exported folder: RUN/hf, or of a run with adapters RUN/adapter.

    Args:
        config: the run.
        watch: called with (step, metrics) whenever metrics are logged, on every process.
        stop: says when the run is to end; None is SIGTERM.
        make_loop: the class that runs the stages; None is `StageLoop`, and reinforcement learning has its own.

    Raises:
        UserError: the configuration, data, weights or an existing run directory do not fit, or the disk is full.
        ShardingError: the model or batch does not divide over the mesh.
        Interrupted: when asked to end, after a checkpoint was saved.
        Diverged: too many steps in a row were skipped.
    """
    started, since = time.time(), time.perf_counter()
    run_dir = run_path(config.run_dir, "run_dir")
    run_folder.check_options(config)
    plan = run_folder.check(run_dir, config)
    stages = plan.stages
    source = resolve(config.model.init_from, key="model.init_from") if config.model.init_from else None
    with doing("preparing tokenizer and data"):
        tokenizer, architecture, trainers = _prepare(run_dir, config, stages, source)
        run_folder.claim(run_dir, plan, tokenizer, architecture)
        corpora = prepare_corpora(run_dir, config, tokenizer)
    checkpoints = TrainCheckpoints(
        run_dir / "checkpoints", config.checkpoint_keep, config.checkpoint_keep_best, [stage.last for stage in stages]
    )
    last = trainers[-1]
    say(f"{run_dir}: {_describe(last)}, mesh {_mesh(last)}, {config.total_steps} steps" + _stage_names(stages))
    if plan.note:
        say(plan.note)
    reference = reference_log_probs(run_dir, config, stages, corpora, trainers[0].placement)
    targets = stored_targets(run_dir, config, stages, corpora, trainers, tokenizer)
    signals = StopSignals() if stop is None else contextlib.nullcontext(stop)
    with contextlib.closing(checkpoints), checkpoints.disk_full_is_user_error(None), signals as stop:
        step, state, position = _first_state(config, stages, trainers, checkpoints, source)
        with Journal(run_dir, config, step, started) as journal:
            stage_loop = (make_loop or StageLoop)(
                config, run_dir, stages, architecture, corpora, checkpoints, journal, watch, _asked_to_end(stop), reference,
                tokenizer, targets,
            )  # fmt: skip
            for stage, trainer in zip(stages, trainers, strict=True):
                if step < stage.last:
                    adapters.take_over_base(trainer, trainers)
                    state, position = stage_loop.run(stage, trainer, state, position)
                    step = stage.last
            with doing("saving the checkpoint"):
                checkpoints.wait()
        stop.saves = False  # what follows is done again by the same command
        exported = _export(last, state, tokenizer, run_dir, config)
    say(f"exported {exported} after {time.perf_counter() - since:.0f} s")
    if config.budget_curve is not None and jax.process_index() == 0:
        _measure_budgets(exported, config.budget_curve, config, run_dir, since)
    return exported


def _measure_budgets(
    exported: Path, settings: BudgetCurveConfig, config: TrainConfig, run_dir: Path, since: float
) -> None:
    """Draw accuracy against the thinking budget; `since` is when the run began, by `time.perf_counter`."""
    budget_curve.measure(exported, settings, config.data, run_dir)
    next_command = budget_curve.suggestion(exported, settings, config.data)
    say(f"done after {time.perf_counter() - since:.0f} s. Try next:\n  {next_command}")


def _prepare(
    run_dir: Path, config: TrainConfig, stages: Sequence[Stage], source: Path | None
) -> tuple[Tokenizer, Qwen3Config, list[Trainer]]:
    """Return tokenizer, architecture and the trainer of every stage. Writes nothing.

    Raises:
        UserError, ShardingError: the model does not fit the tokenizer, the data or the mesh.
    """
    if run_folder.trains_tokenizer(run_dir, config):  # which takes long, and the mesh can be checked without it
        _trainers(stages, run_folder.expected_architecture(config, stages))
    tokenizer = run_folder.load_or_train_tokenizer(run_dir, config, source)
    architecture = run_folder.architecture(config, stages, source, tokenizer)
    if config.distillation is not None and not config.distillation.is_server:
        teacher_folder(config, tokenizer)  # raises where it does not fit the student
    return tokenizer, architecture, _trainers(stages, architecture, tokenizer)


def _asked_to_end(stop: StopSignals) -> Callable[[int], str]:
    """Return a function of the step, equal on all processes: what has asked the run to end, or ""."""

    def asked(step: int) -> str:
        stop.saves = True  # a step was taken, which would be lost
        if jax.process_count() == 1:
            return stop.reason or ""
        from jax.experimental import multihost_utils

        return (stop.reason or "SIGTERM") if multihost_utils.reached_preemption_sync_point(step) else ""

    return asked


def _trainers(stages: Sequence[Stage], architecture: Qwen3Config, tokenizer: Tokenizer | None = None) -> list[Trainer]:
    """Return the trainer of every stage.

    Raises:
        ShardingError: parameters or a batch do not divide over the mesh of a stage.
    """
    trainers = [stage_trainer(stage, stages, architecture, tokenizer) for stage in stages]
    for stage, trainer in zip(stages, trainers, strict=True):
        trainer.abstract_batch(stage.run.data.batch_size, stage.run.data.sequence_length)
    return trainers


def stage_index(stages: Sequence[Stage], step: int) -> int:
    """Return the index of the stage that takes the step after `step`; of the last one if the run is finished."""
    return next((i for i, stage in enumerate(stages) if step < stage.last), len(stages) - 1)


def _stage_names(stages: Sequence[Stage]) -> str:
    if len(stages) == 1:
        return ""
    return " in " + ", ".join(f"{s.name} ({s.last - s.first} of {s.run.data.sequence_length} tokens)" for s in stages)


def _first_state(
    config: TrainConfig,
    stages: Sequence[Stage],
    trainers: Sequence[Trainer],
    checkpoints: TrainCheckpoints,
    source: Path | None,
) -> tuple[int, TrainState, dict[str, Any] | None]:
    """Return step, state and data position of the newest checkpoint, or of the run's beginning."""
    with doing("looking for a checkpoint"):
        restored = restore_newest(checkpoints, lambda step: trainers[stage_index(stages, step)].abstract_state())
    if restored is None:
        return 0, _initial_state(config, trainers[0], source), None
    say(f"resumed at step {restored[0]}")
    if config.lora is not None and source is not None:
        with doing("loading the base model"):
            adapters.load_base(config.model, config.lora, trainers[stage_index(stages, restored[0])], source)
    return restored


@doing("setting the initial weights")
def _initial_state(config: TrainConfig, trainer: Trainer, source: Path | None) -> TrainState:
    if source is None:
        return trainer.init(config.seed)
    if config.lora is not None:
        return adapters.initial_state(config.model, config.lora, config.seed, trainer, source)
    model = load_model(
        source,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        execution=Execution(trainer.placement),
        scan_layers=config.model.scan_layers,
    )
    params, shapes = flatten(model), trainer.structure.shapes
    if trainer.objective.model is RewardModel and "score" not in params:  # a model of the vocabulary gets a new head
        params = {name: value for name, value in params.items() if name != "lm_head"}
        params["score"] = trainer.initial("score", config.seed)
    if model.no_text is not None and "lm_head" in shapes:
        raise UserError(f"model.init_from is {source}: {model.no_text}, so there is no output projection to train.")
    for name, shape in shapes.items():
        if name not in params or params[name].shape != shape.shape:
            raise UserError(f"model.config changes the shape of {name!r}; so model.init_from has no value for it.")
    return trainer.init_from(params)


@doing("exporting")
def _export(trainer: Trainer, state: TrainState, tokenizer: Tokenizer, run_dir: Path, config: TrainConfig) -> Path:
    model = run_folder.exportable_model(trainer, state, tokenizer)
    if config.lora is not None:
        return adapters.export(trainer, model, tokenizer, run_dir, config)
    return save(model, tokenizer, run_dir / "hf", dtype=config.export_dtype, overwrite=True)


def _mesh(trainer: Trainer) -> dict[str, int]:
    mesh = trainer.placement.mesh
    return {} if mesh is None else dict(mesh.shape)


def _describe(trainer: Trainer) -> str:
    shapes = trainer.structure.shapes
    count = sum(shape.size for shape in shapes.values())
    kind = f"{trainer.config.num_experts} experts" if trainer.config.num_experts else "dense"
    text = f"{count / 1e6:,.2f}M parameters ({kind})"
    if trainer.lora is None:
        return text
    trained = sum(shapes[name].size for name in trainer.structure.trained)
    return f"{text}, of which {trained / 1e6:,.2f}M are trained (adapters)"
