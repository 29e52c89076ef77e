"""The folder of a run: configuration, tokenizer, architecture, and loading a checkpoint of it.

The folder is local or in a bucket (gs://).

RUN/config.json         the configuration, and of a run that was extended the settings of its earlier steps
RUN/architecture.json   the model's config.json
RUN/tokenizer/          the tokenizer
RUN/rollouts/           of runs whose model samples answers (`rl`), those of the newest rounds
RUN/data/               prepared corpora of raw sources
RUN/checkpoints/STEP/   state and data position (Orbax)
RUN/metrics.jsonl, router.jsonl, positions.jsonl, history.jsonl, tensorboard/, loss.png
RUN/hf/                 the exported checkpoint, written at the end
RUN/adapter/            of a run with `lora:` the adapter in its place; hf/ too if `lora.merge` asks for it
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

import sharding
from qwen3_jax.checkpoint import load_tokenizer
from qwen3_jax.checkpoint.adapters.folders import base_and_adapter
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.training import TrainCheckpoints
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import training_texts
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.json_fields import read_config, read_json
from qwen3_jax.kernels import Kernels
from qwen3_jax.model import Qwen3
from qwen3_jax.paths import as_path, is_url, local_path, replace_file
from qwen3_jax.progress import clear_status
from qwen3_jax.text import Tokenizer, train_tokenizer
from qwen3_jax.training import adapters, extension, metrics
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, Stage, TrainConfig
from qwen3_jax.training.losses import LANGUAGE_MODEL
from qwen3_jax.training.methods import LoraConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.preferences import REWARD_MODEL
from qwen3_jax.training.step import Trainer, TrainState

# What a resumed run must not change,
_FIXED = (
    "method",
    "model",
    "tokenizer",
    "data",
    "optimizer",
    "loss",
    "dpo",
    "distillation",
    "lora",
    "rl",
    "seed",
    "steps",
    "stages",
)
# except these, which change no result: the restart may be on other hardware.
_FREE = (
    "model.remat", "model.kernels", "lora.merge", "data.cache", "data.prefetch_batches", "rl.rollouts.keep", "rl.eval_prompts",
    "rl.eval_samples", "distillation.mesh", "distillation.server",
)  # fmt: skip
_FREE_IN_STAGES = ("mesh", "remat", "micro_batches")


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a start of a run comes to.

    Attributes:
        stages: all stages; of an extended run, each part is one.
        record: what config.json must hold; None where it does.
        note: what an extension does, "" where there is none.
    """

    stages: list[Stage]
    record: dict[str, Any] | None
    note: str = ""


def check(run_dir: Path, config: TrainConfig) -> RunPlan:
    """Check that a run which the folder already holds has the same settings, or is asked for more steps.

    Raises:
        UserError: a setting differs; names the first.
    """
    path, values = run_dir / "config.json", _values(config)
    if not path.exists():
        return RunPlan(config.resolved(), values)
    recorded = read_json(path)
    longer = extension.is_longer(recorded, values)
    free = (*_FREE, *extension.CHANGEABLE_NAMES) if longer and config.steps is not None else _FREE
    before, now = _comparable(recorded), _comparable(values)
    if longer:
        now["stages"] = {name: stage for name, stage in now["stages"].items() if name in before["stages"]}
    for name in _FIXED:
        changed = _difference(before.get(name), now[name], name, free)
        if changed:
            raise UserError(f"{run_dir} holds a run with other settings: {changed}; {_advice(recorded, changed)}.")
    if not longer:
        return RunPlan(extension.stages(config, recorded.get("extended")), None)
    extended = extension.extended(recorded, values)
    stages = extension.stages(config, extended)
    done = recorded["steps"] or sum(stage["steps"] for stage in recorded["stages"])
    record = values if extended is None else values | {"extended": extended}
    return RunPlan(stages, record, f"{run_dir}: {extension.note(stages, done)}")


def _advice(recorded: dict[str, Any], changed: str) -> str:
    """What to do about a setting of a run that differs."""
    advice = "set run_dir to another folder, or delete this one"
    if recorded["steps"] is None and changed.startswith("stages"):
        return f"to go on with other settings and its optimizer, add a stage behind its last one; or {advice}"
    if recorded["steps"] is None or not changed.startswith(extension.CHANGEABLE_NAMES):
        return f"{advice} (model.init_from: RUN/hf starts from its weights, with a new optimizer)"
    names = ", ".join(extension.CHANGEABLE_NAMES[1:])
    return (
        f"to train it on with its optimizer, give more steps than {recorded['steps']}: from there on {names} may differ; "
        f"or {advice}"
    )


def check_options(config: TrainConfig) -> None:
    """Refuse what cannot work before anything is done.

    Raises:
        UserError: data.cache is a URL, or wandb is not installed.
    """
    metrics.check_wandb(config.wandb)
    if config.data.cache is not None:
        local_path(config.data.cache, "data.cache")


def claim(run_dir: Path, plan: RunPlan, tokenizer: Tokenizer, architecture: Qwen3Config) -> None:
    """Write tokenizer, architecture and, last, config.json, unless the folder holds the run; of an extension, config.json."""
    if jax.process_index() != 0 or plan.record is None:
        return
    if not (run_dir / "config.json").exists():
        if not is_url(run_dir):  # a bucket has no folders
            run_dir.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(run_dir / "tokenizer")
        _write(run_dir / "architecture.json", architecture.to_hf())
    _write(run_dir / "config.json", plan.record)


def trains_tokenizer(run_dir: Path, config: TrainConfig) -> bool:
    """Whether this start trains a tokenizer."""
    return not (config.tokenizer.path or config.model.init_from or (run_dir / "config.json").exists())


def load_or_train_tokenizer(run_dir: Path, config: TrainConfig, init_from: Path | None) -> Tokenizer:
    """Return the run's tokenizer: the one it already has, the configured one, or a new one trained on the run's data."""
    if (run_dir / "config.json").exists():
        return Tokenizer.from_pretrained(run_dir / "tokenizer")
    folder = resolve(config.tokenizer.path, key="tokenizer.path") if config.tokenizer.path else init_from
    if folder is None:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} tokens")
        texts = training_texts(config.data, config.tokenizer.train_records)
        return train_tokenizer(texts, config.tokenizer.vocab_size, show_progress=False)
    tokenizer = load_tokenizer(folder) or load_tokenizer(base_and_adapter(folder)[0])
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer files; set tokenizer.path.")
    return tokenizer


def architecture(
    config: TrainConfig, stages: Sequence[Stage], init_from: Path | None, tokenizer: Tokenizer
) -> Qwen3Config:
    """Return the architecture that the configuration describes.

    Raises:
        UserError: it does not fit the tokenizer or the data.
    """
    base = Qwen3Config.from_hf(read_config(base_and_adapter(init_from)[0])) if init_from else None
    architecture = dataclasses.replace(
        config.model.architecture(base, tokenizer.vocab_size),
        bos_token_id=tokenizer.endoftext_id,
        eos_token_id=tokenizer.im_end_id,
        dtype=config.model.param_dtype,
    )
    check_lengths(stages, architecture)
    return architecture


def expected_architecture(config: TrainConfig, stages: Sequence[Stage]) -> Qwen3Config:
    """Return the architecture with a tokenizer of the configured size, which is yet to be trained.

    Raises:
        UserError: it does not fit the tokenizer or the data.
    """
    expected = config.model.architecture(None, config.tokenizer.vocab_size)
    check_lengths(stages, expected)
    return expected


def check_lengths(stages: Sequence[Stage], architecture: Qwen3Config) -> None:
    """Refuse rows that are longer than the model's positions.

    Raises:
        UserError: a stage has such rows.
    """
    for stage in stages:
        length = stage.run.data.sequence_length
        if length > architecture.max_position_embeddings:
            prefix = "" if len(stages) == 1 else f"stage {stage.name!r}: "
            raise UserError(
                f"{prefix}data.sequence_length ({length}) is longer than the model's max_position_embeddings "
                f"({architecture.max_position_embeddings})."
            )


def exportable_model(trainer: Trainer, state: TrainState, tokenizer: Tokenizer) -> Qwen3:
    """Return the model with the state's parameters and the generation config that belongs to the tokenizer."""
    model = trainer.model(state.params)
    model.generation_config = generation_config_of(tokenizer)
    return model


def generation_config_of(tokenizer: Tokenizer) -> GenerationConfig:
    """Return the generation config of a model that is trained with a tokenizer."""
    return GenerationConfig(
        eos_token_id=tuple(i for i in (tokenizer.im_end_id, tokenizer.endoftext_id) if i is not None),
        bos_token_id=tokenizer.endoftext_id,
        pad_token_id=tokenizer.endoftext_id,
    )


def load_run(run_dir: Path, step: int | None = None) -> tuple[Qwen3, Tokenizer]:
    """Return model and tokenizer of a checkpoint of a run.

    Args:
        run_dir: the run's folder.
        step: of the checkpoint; None is the newest.

    Raises:
        UserError: the run has no checkpoint, or none of that step.
    """
    run_dir = as_path(run_dir)
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
        # The run's kernels may not exist on this platform.
        model = ModelConfig(**saved["model"] | {"kernels": Kernels()})
        lora = LoraConfig(**saved["lora"]) if saved.get("lora") else None
        trainer = Trainer(
            config,
            model,
            optimizer := OptimizerConfig(**saved["optimizer"]),
            schedule(optimizer, step + optimizer.warmup_steps + 1),  # any schedule does: nothing is trained
            sharding.Placement(),
            lora=adapters.lora_of(lora, config),
            objective=REWARD_MODEL if saved["method"] == "reward_model" else LANGUAGE_MODEL,
        )
        if lora is not None and model.init_from is not None:
            whole = dataclasses.replace(lora, quantize=None)  # to be merged
            adapters.load_base(model, whole, trainer, resolve(model.init_from, key="model.init_from"))
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
        clear_status()
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


def _difference(before: Any, now: Any, name: str, free: Collection[str]) -> str:
    """Return the first difference of two nested configurations as a sentence, "" where they are equal."""
    if name in free:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            if difference := _difference(before.get(key), now.get(key), f"{name}.{key}", free):
                return difference
        return ""
    return "" if before == now else f"{name} was {before!r} and is {now!r}"
