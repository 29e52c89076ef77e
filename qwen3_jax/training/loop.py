"""One training run from configuration to exported checkpoint.

    python train.py --config configs/quickstart.yaml

Invariant: the state after step s depends on the configuration alone, not on how often the run was interrupted before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import sharding
from qwen3_jax.checkpoint import load_model, save
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints
from qwen3_jax.data import Batch, corpus_unigram_entropy, make_eval_batches, make_train_loader
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation import budget_curve
from qwen3_jax.model import flatten
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import metrics, run_folder
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.run_folder import say
from qwen3_jax.training.step import Trainer, TrainState, host
from sharding.hardware import peak_flops

Watch = Callable[[int, dict[str, float]], None]


def train(config: TrainConfig, watch: Watch | None = None) -> Path:
    """Run (or resume, or finish) a training run and return the exported Hugging Face folder.

    Args:
        config: the run.
        watch: called with (step, metrics) whenever metrics are logged, on every process: a live plot, an early stop.

    Raises:
        UserError: the configuration, data, weights or an existing run directory do not fit; names what.
        ShardingError: the model or batch does not divide over the mesh.
    """
    started = time.perf_counter()
    run_dir = Path(config.run_dir).expanduser()
    run_folder.check(run_dir, config)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    placement = sharding.Placement(mesh, sharding.TRAINING)
    source = resolve(config.model.init_from) if config.model.init_from else None
    tokenizer = run_folder.tokenizer(run_dir, config, source)
    architecture = run_folder.architecture(config, source, tokenizer)
    trainer = Trainer(
        architecture, config.model, config.optimizer, config.steps, placement, config.loss, config.micro_batches
    )
    trainer.abstract_batch(config.data.batch_size, config.data.sequence_length)  # refuses what does not divide
    run_folder.claim(run_dir, config, tokenizer, architecture)
    checkpoints = TrainCheckpoints(run_dir / "checkpoints", config.checkpoint_keep)
    loader = make_train_loader(config.data, tokenizer)
    say(f"{run_dir}: {_describe(trainer)}, mesh {dict(mesh.shape)}, {config.steps} steps")

    with contextlib.closing(checkpoints), contextlib.closing(iter(loader)) as batches:
        step = checkpoints.latest_step()
        if step is not None:
            state, position = checkpoints.restore(step, trainer.abstract_state())
            batches.set_state(position)
            say(f"resumed at step {step}")
        else:
            state = _fresh(config, trainer, source, placement)
        state = _run(config, trainer, state, batches, checkpoints, run_dir, tokenizer, watch)

    exported = save(
        run_folder.finished(trainer, state, tokenizer),
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


def _run(
    config: TrainConfig,
    trainer: Trainer,
    state: TrainState,
    batches: Any,
    checkpoints: TrainCheckpoints,
    run_dir: Path,
    tokenizer: Tokenizer,
    watch: Watch | None,
) -> TrainState:
    """Take the remaining steps."""
    step = int(state.step)
    if step >= config.steps:
        return state
    held_out = _held_out(config, tokenizer)
    entropy = {name: corpus_unigram_entropy(rows) for name, rows in held_out.items()}
    writer = metrics.MetricsWriter(run_dir, step) if jax.process_index() == 0 else None
    meter = metrics.Meter(
        config.data.batch_size * config.data.sequence_length,
        training_flops_per_token(trainer.config, config.data.sequence_length),
        peak_flops(jax.local_devices()[0]),
        jax.device_count(),
    )
    first = logged = step
    with progress_bar("training", config.steps - step) as bar:
        while step < config.steps:
            with meter.waiting():
                batch = trainer.place(next(batches))
            state, step_metrics = trainer.step(state, batch)
            step += 1
            last = step == config.steps
            if step == first + 1:
                jax.block_until_ready(step_metrics)
                meter.restart()  # the first step compiles
            if step % config.log_every == 0 or last:
                values = host(step_metrics)  # waits for the device
                row = {f"train.{name.removeprefix('loss.')}": value for name, value in values.items()}
                row |= meter.read()
                if writer:
                    writer.write(step, row)
                if watch:
                    watch(step, row)
                if values["skipped_in_row"] >= config.optimizer.max_skips:
                    raise UserError(
                        f"{values['skipped_in_row']:.0f} steps in a row were skipped up to step {step} (loss "
                        f"{values['loss.total']:.4g}, gradient norm {values['gradient_norm']:.4g}); lower "
                        "optimizer.learning_rate, or look at the data, and start again from an earlier checkpoint."
                    )
                note = _note(row)
                bar.advance(step - logged, note)
                _log(step, config.steps, note, bar)
                logged = step
            if last or (config.eval_every and step % config.eval_every == 0):
                losses = _evaluate(trainer, state, held_out)
                if writer:
                    row = {f"eval.{name}": loss for name, loss in losses.items()}
                    writer.write(step, row | {f"eval.{name}_unigram_entropy": entropy[name] for name in losses})
                    metrics.plot_loss(writer.path, run_dir / "loss.png", entropy)
                parts = (f"{name} {loss:.3f} (unigram entropy {entropy[name]:.2f})" for name, loss in losses.items())
                bar.print(f"step {step}: held-out loss {', '.join(parts)}")
                meter.restart()
            if last or (config.checkpoint_every and step % config.checkpoint_every == 0):
                checkpoints.save(step, state, batches.get_state())
    checkpoints.wait()
    if writer:
        writer.close()
    return state


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


def _log(step: int, steps: int, note: str, bar: Any) -> None:
    """Where no bar is drawn (a log file), print a line now and then instead: about twenty over a run."""
    if not bar.visible and (step == steps or step * 20 // steps != (step - 1) * 20 // steps):
        bar.print(f"step {step}/{steps}: {note}")


def _evaluate(trainer: Trainer, state: TrainState, held_out: dict[str, list[Batch]]) -> dict[str, float]:
    """Token-weighted cross-entropy of every source's held-out batches, in nats."""
    out = {}
    for name, rows in held_out.items():
        parts = [trainer.evaluate(state.params, trainer.place(batch)) for batch in rows]
        tokens = sum(float(part.tokens) for part in parts)
        out[name] = sum(float(part.cross_entropy) * float(part.tokens) for part in parts) / tokens
    return out


def _held_out(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, list[Batch]]:
    """Each source's held-out batches; sources that hold nothing out are left out."""
    return {
        source.name: make_eval_batches(config.data, tokenizer, source.name, config.eval_batches)
        for source in config.data.sources
        if source.eval_fraction > 0
    }


def _fresh(config: TrainConfig, trainer: Trainer, source: Path | None, placement: sharding.Placement) -> TrainState:
    if source is None:
        return trainer.init(config.seed)
    model = load_model(
        source,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        placement=placement,
        scan_layers=config.model.scan_layers,
    )
    params, shapes = flatten(model), trainer.structure.shapes
    for name, shape in shapes.items():
        if name not in params or params[name].shape != shape.shape:
            raise UserError(f"model.config changes the shape of {name!r}; model.init_from cannot fill it.")
    return trainer.init_from(params)


def _describe(trainer: Trainer) -> str:
    count = sum(shape.size for shape in trainer.structure.shapes.values())
    kind = f"{trainer.config.num_experts} experts" if trainer.config.num_experts else "dense"
    return f"{count / 1e6:,.2f}M parameters ({kind})"
