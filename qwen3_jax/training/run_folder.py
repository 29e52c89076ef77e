"""The folder of a run: configuration, tokenizer, architecture, and loading a checkpoint of it.

RUN/config.json         the configuration at the first start
RUN/architecture.json   the model's config.json
RUN/tokenizer/          the tokenizer
RUN/data/               prepared corpora of raw sources
RUN/checkpoints/STEP/   state and data position (Orbax)
RUN/metrics.jsonl, router.jsonl, history.jsonl, tensorboard/, loss.png
RUN/hf/                 the exported checkpoint, written at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

import sharding
from qwen3_jax.checkpoint import load_tokenizer
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Prepared, open_sources, training_texts
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.json_fields import read_config, read_json
from qwen3_jax.kernels import Kernels
from qwen3_jax.model import Qwen3
from qwen3_jax.text import Tokenizer, train_tokenizer
from qwen3_jax.text.folder import replace_file
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer, TrainState

# What a resumed run must not change,
_FIXED = ("model", "tokenizer", "data", "optimizer", "loss", "seed", "steps", "stages")
# except these, which change no result: the restart may be on other hardware.
_FREE = ("model.remat", "model.kernels", "data.cache", "data.prefetch_batches")
_FREE_IN_STAGES = ("mesh", "remat", "micro_batches")


def check(run_dir: Path, config: TrainConfig) -> None:
    """Check that a run which the folder already holds has the same settings.

    Raises:
        UserError: a setting differs; names the first.
    """
    path = run_dir / "config.json"
    if path.exists():
        before, values = _comparable(read_json(path)), _comparable(_values(config))
        for name in _FIXED:
            changed = _difference(before.get(name), values[name], name)
            if changed:
                raise UserError(
                    f"{run_dir} holds a run with other settings: {changed}; set run_dir to another folder, or delete this one."
                )


def claim(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer, architecture: Qwen3Config) -> None:
    """Write tokenizer, architecture and, last, config.json, unless the folder holds a run."""
    if jax.process_index() == 0 and not (run_dir / "config.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(run_dir / "tokenizer")
        _write(run_dir / "architecture.json", architecture.to_hf())
        _write(run_dir / "config.json", _values(config))


def load_or_train_tokenizer(run_dir: Path, config: TrainConfig, init_from: Path | None) -> Tokenizer:
    """Return the run's tokenizer: the one it already has, the configured one, or a new one trained on the run's data."""
    if (run_dir / "config.json").exists():
        return Tokenizer.from_pretrained(run_dir / "tokenizer")
    folder = resolve(config.tokenizer.path) if config.tokenizer.path else init_from
    if folder is None:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} tokens")
        texts = training_texts(config.data, config.tokenizer.train_records)
        return train_tokenizer(texts, config.tokenizer.vocab_size, show_progress=False)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer files; set tokenizer.path.")
    return tokenizer


def prepare_corpora(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer) -> list[Prepared]:
    """Return the prepared corpus of every source. The first process prepares raw sources; the others wait for it.

    Raises:
        UserError: data cannot be read, or does not fit the run's tokenizer.
    """
    folder = run_dir / "data"
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if jax.process_index() == 0:
            open_sources(config.data, tokenizer, folder)
        multihost_utils.sync_global_devices("data is prepared")
    return open_sources(config.data, tokenizer, folder)


def architecture(config: TrainConfig, init_from: Path | None, tokenizer: Tokenizer) -> Qwen3Config:
    """Return the architecture that the configuration describes.

    Raises:
        UserError: it does not fit the tokenizer or the data.
    """
    base = Qwen3Config.from_hf(read_config(init_from)) if init_from else None
    architecture = dataclasses.replace(
        config.model.architecture(base, tokenizer.vocab_size),
        bos_token_id=tokenizer.endoftext_id,
        eos_token_id=tokenizer.im_end_id,
        dtype=config.model.param_dtype,
    )
    for stage in config.resolved():
        length = stage.run.data.sequence_length
        if length > architecture.max_position_embeddings:
            prefix = "" if not config.stages else f"stage {stage.name!r}: "
            raise UserError(
                f"{prefix}data.sequence_length ({length}) is longer than the model's max_position_embeddings "
                f"({architecture.max_position_embeddings})."
            )
    return architecture


def exportable_model(trainer: Trainer, state: TrainState, tokenizer: Tokenizer) -> Qwen3:
    """Return the model with the state's parameters and the generation config that belongs to the tokenizer."""
    model = trainer.model(state.params)
    model.generation_config = GenerationConfig(
        eos_token_id=tuple(i for i in (tokenizer.im_end_id, tokenizer.endoftext_id) if i is not None),
        bos_token_id=tokenizer.endoftext_id,
        pad_token_id=tokenizer.endoftext_id,
    )
    return model


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    return (folder / "architecture.json").exists() and (folder / "checkpoints").is_dir()


def load_run(run_dir: Path, step: int | None = None) -> tuple[Qwen3, Tokenizer]:
    """Return model and tokenizer of a checkpoint of a run.

    Args:
        run_dir: the run's folder.
        step: of the checkpoint; None is the newest.

    Raises:
        UserError: the run has no checkpoint, or none of that step.
    """
    saved = read_json(run_dir / "config.json")
    with contextlib.closing(TrainCheckpoints(run_dir / "checkpoints", saved["checkpoint_keep"])) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            raise UserError(
                f"{run_dir} has no checkpoint{f' of step {step}' if steps else ''}; steps: {steps or 'none'}."
            )
        step = max(steps) if step is None else step
        base = Qwen3Config.from_hf(read_json(run_dir / "architecture.json"))
        config = architecture_after(base, saved["stages"], step)
        trainer = Trainer(
            config,
            # The run's kernels may not exist on this platform.
            ModelConfig(**saved["model"] | {"kernels": Kernels()}),
            optimizer := OptimizerConfig(**saved["optimizer"]),
            schedule(optimizer, step + optimizer.warmup_steps + 1),  # any schedule does: nothing is trained
            sharding.Placement(),
        )
        state, _ = checkpoints.restore(step, trainer.abstract_state())
    tokenizer = Tokenizer.from_pretrained(run_dir / "tokenizer")
    return exportable_model(trainer, state, tokenizer), tokenizer


def architecture_after(base: Qwen3Config, stages: list[dict[str, Any]], step: int) -> Qwen3Config:
    """Return the architecture of the checkpoint of a step: stages may change the base of the rotary embedding.

    Args:
        base: the architecture at the first step.
        stages: config.json's; a stage changes what its first step computes, so the checkpoint at the end of the stage before
            has the base of that one.
        step: steps taken.
    """
    config, done = base, 0
    for stage in stages:
        if step <= done:
            break
        if stage["rope_theta"] is not None:
            config = dataclasses.replace(config, rope_theta=stage["rope_theta"])
        done += stage["steps"]
    return config


def say(text: str) -> None:
    """Print, on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _values(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with its stages by name, without the settings that a resumed run may change."""
    stages = {
        stage["name"]: {name: value for name, value in stage.items() if name not in _FREE_IN_STAGES}
        for stage in values.get("stages", [])
    }
    return values | {"stages": stages}


def _write(path: Path, values: dict[str, Any]) -> None:
    """Write atomically, so that a run killed here starts from the beginning."""
    replace_file(path, json.dumps(values, indent=2) + "\n")


def _difference(before: Any, now: Any, name: str) -> str:
    """Return the first difference of two nested configurations as a sentence, "" where they are equal."""
    if name in _FREE:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            if difference := _difference(before.get(key), now.get(key), f"{name}.{key}"):
                return difference
        return ""
    return "" if before == now else f"{name} was {before!r} and is {now!r}"
