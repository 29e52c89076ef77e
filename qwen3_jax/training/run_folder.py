"""The folder of a run: its configuration, tokenizer, architecture, and how to open it again.

RUN/config.json         the configuration, as it was started
RUN/architecture.json   the model's config.json
RUN/tokenizer/          the tokenizer
RUN/data/               what was prepared from raw sources
RUN/checkpoints/STEP/   state and data position (Orbax)
RUN/metrics.jsonl, router.jsonl, history.jsonl, tensorboard/, loss.png
RUN/hf/                 the exported checkpoint, at the end
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
from qwen3_jax.json_fields import read_json
from qwen3_jax.kernels import Kernels
from qwen3_jax.model import Qwen3
from qwen3_jax.text import Tokenizer, train_tokenizer
from qwen3_jax.text.folder import replace_file
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer, TrainState

_VOCABULARY_MULTIPLE = 128  # embedding rows are padded to this, so that they split over any usual mesh
_FIXED = (
    "model",
    "tokenizer",
    "data",
    "optimizer",
    "loss",
    "seed",
    "steps",
    "stages",
)  # what a resumed run may not change
# But these, which change no result: the restart may be on other hardware.
_FREE = ("model.remat", "model.kernels", "data.cache", "data.prefetch_batches")
_FREE_IN_STAGES = ("mesh", "remat", "micro_batches")


def check(run_dir: Path, config: TrainConfig) -> None:
    """Make sure that a run which the folder already holds has the same settings.

    Raises:
        UserError: it has not; names the first that differs.
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
    """Write what defines the run, once everything about it has been checked; config.json last."""
    if jax.process_index() == 0 and not (run_dir / "config.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(run_dir / "tokenizer")
        _write(run_dir / "architecture.json", architecture.to_hf())
        _write(run_dir / "config.json", _values(config))


def tokenizer(run_dir: Path, config: TrainConfig, init_from: Path | None) -> Tokenizer:
    """Return the run's tokenizer: the one it already has, the configured one, or a new one trained on the run's data."""
    if (run_dir / "config.json").exists():
        return Tokenizer.from_pretrained(run_dir / "tokenizer")
    where = resolve(config.tokenizer.path) if config.tokenizer.path else init_from
    if where is not None:
        found = load_tokenizer(where)
        if found is None:
            raise UserError(f"{where} has no tokenizer files; set tokenizer.path.")
    else:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} tokens")
        texts = training_texts(config.data, config.tokenizer.train_records)
        found = train_tokenizer(texts, config.tokenizer.vocab_size, show_progress=False)
    return found


def corpora(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer) -> list[Prepared]:
    """Return the prepared corpus of every source; the first process prepares what is raw, and the others wait for it.

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


def padded_vocabulary(tokens: int) -> int:
    """Return the embedding rows for a tokenizer of so many tokens."""
    return -(-tokens // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def architecture(config: TrainConfig, init_from: Path | None, tokenizer: Tokenizer) -> Qwen3Config:
    """Return the architecture that the configuration describes.

    Raises:
        UserError: it does not fit the tokenizer or the data.
    """
    base = Qwen3Config.from_hf(read_json(init_from / "config.json")) if init_from else None
    found = dataclasses.replace(
        config.model.architecture(base, padded_vocabulary(tokenizer.vocab_size)),
        bos_token_id=tokenizer.endoftext_id,
        eos_token_id=tokenizer.im_end_id,
        dtype=config.model.param_dtype,
    )
    for stage in config.resolved():
        length = stage.run.data.sequence_length
        if length > found.max_position_embeddings:
            where = "" if not config.stages else f"stage {stage.name!r}: "
            raise UserError(
                f"{where}data.sequence_length ({length}) is longer than the model's max_position_embeddings "
                f"({found.max_position_embeddings})."
            )
    return found


def finished(trainer: Trainer, state: TrainState, tokenizer: Tokenizer) -> Qwen3:
    """Return the state's model with the sampling defaults of its tokenizer, ready to be exported."""
    model = trainer.model(state.params)
    model.generation_config = GenerationConfig(
        eos_token_id=tuple(i for i in (tokenizer.im_end_id, tokenizer.endoftext_id) if i is not None),
        bos_token_id=tokenizer.endoftext_id,
        pad_token_id=tokenizer.endoftext_id,
    )
    return model


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "architecture.json").exists() and (folder / "checkpoints").is_dir()


def load_run(run_dir: Path, step: int | None = None) -> tuple[Qwen3, Tokenizer]:
    """Return model and tokenizer of a run's checkpoint, the newest one unless told.

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
        config = _architecture_at(run_dir, saved, step)
        trainer = Trainer(
            config,
            # Not the run's kernels: this may be another platform.
            ModelConfig(**saved["model"] | {"kernels": Kernels()}),
            optimizer := OptimizerConfig(**saved["optimizer"]),
            schedule(optimizer, step + optimizer.warmup_steps + 1),  # plays no part: nothing is trained
            sharding.Placement(),
        )
        state, _ = checkpoints.restore(step, trainer.abstract_state())
    found = Tokenizer.from_pretrained(run_dir / "tokenizer")
    return finished(trainer, state, found), found


def _architecture_at(run_dir: Path, saved: dict[str, Any], step: int) -> Qwen3Config:
    """The architecture after a step: a stage may change the base of the rotary embedding."""
    config, done = Qwen3Config.from_hf(read_json(run_dir / "architecture.json")), 0
    for stage in saved["stages"]:
        if step <= done:
            break
        if stage["rope_theta"] is not None:
            config = dataclasses.replace(config, rope_theta=stage["rope_theta"])
        done += stage["steps"]
    return config


def say(text: str) -> None:
    """Print from one process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _values(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its stages by name, without what a resumed run may change of them."""
    stages = {
        stage["name"]: {name: value for name, value in stage.items() if name not in _FREE_IN_STAGES}
        for stage in values.get("stages", [])
    }
    return values | {"stages": stages}


def _write(path: Path, values: dict[str, Any]) -> None:
    """All or nothing: a run that was killed meanwhile begins anew."""
    replace_file(path, json.dumps(values, indent=2) + "\n")


def _difference(before: Any, now: Any, name: str) -> str:
    """Say where two nested configurations differ first, or nothing."""
    if name in _FREE:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            found = _difference(before.get(key), now.get(key), f"{name}.{key}")
            if found:
                return found
        return ""
    return "" if before == now else f"{name} was {before!r} and is {now!r}"
