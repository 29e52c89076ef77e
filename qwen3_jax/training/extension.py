"""A run that is given more steps: it resumes at its end, with its optimizer state and data position.

`--steps=40` for a run of 20 steps makes the steps 21 to 40 a stage of their own, with the learning rate, batch and row length
of the new command; the first 20 stay what they were. A run of stages is extended by stages added at its end. config.json then
has the new settings, and under "extended" what the steps before were taken with:

    {"earlier": [{"steps": 20, "data": {...}, "optimizer": {...}}], "warmup_steps": 0}
"""

from __future__ import annotations

import dataclasses
from typing import Any

from qwen3_jax.data import LengthShare
from qwen3_jax.training.config import OptimizerConfig, Stage, TrainConfig
from qwen3_jax.training.optimizer import peak_of

# What an extension may change.
CHANGEABLE = {
    "data": ("sequence_length", "batch_size", "lengths"),
    "optimizer": ("learning_rate", "warmup_steps", "schedule", "final_learning_rate", "decay_share"),
}
CHANGEABLE_NAMES = ("steps", *(f"{section}.{name}" for section, names in CHANGEABLE.items() for name in names))


def is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a configuration (as JSON values) asks for more steps than the recorded one, or for further stages."""
    if before["steps"] is not None and now["steps"] is not None:
        return now["steps"] > before["steps"]
    names, more = ([stage["name"] for stage in values["stages"]] for values in (before, now))
    return bool(names) and len(more) > len(names) and more[: len(names)] == names


def extended(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any] | None:
    """Return what "extended" of config.json becomes; None for a run of stages, whose stages say it.

    Args:
        before: the recorded configuration.
        now: one for which `is_longer` holds.
    """
    if before["steps"] is None:
        return None
    so_far = before.get("extended") or {"earlier": [], "warmup_steps": before["optimizer"]["warmup_steps"]}
    part: dict[str, Any] = {"steps": before["steps"]}
    for section, names in CHANGEABLE.items():
        part[section] = {name: before[section][name] for name in names}
    part["optimizer"]["warmup_steps"] = so_far["warmup_steps"]
    # The warm-up of the recorded configuration was that of its first steps.
    warmup = now["optimizer"]["warmup_steps"]
    return {
        "earlier": [*so_far["earlier"], part],
        "warmup_steps": 0 if warmup == before["optimizer"]["warmup_steps"] else warmup,
    }


def stages(config: TrainConfig, extended: dict[str, Any] | None) -> list[Stage]:
    """Return the stages of a run: those of its configuration, and of the steps before it was extended.

    Raises:
        UserError: the warm-up is longer than the extension.
    """
    if not extended or config.steps is None:
        return config.resolved()
    last = {"steps": config.steps, "data": {}, "optimizer": {"warmup_steps": extended["warmup_steps"]}}
    out: list[Stage] = []
    for part in [*extended["earlier"], last]:
        first = out[-1].last if out else 0
        data = dict(part["data"])
        if "lengths" in data:
            data["lengths"] = [LengthShare(**share) for share in data["lengths"]]
        run = dataclasses.replace(
            config,
            steps=part["steps"] - first,
            data=dataclasses.replace(config.data, **data),
            optimizer=dataclasses.replace(config.optimizer, **part["optimizer"]),
        )
        out.append(Stage(f"train from step {first + 1}" if first else "train", first, part["steps"], run, None, None))
    return out


def note(stages: list[Stage], steps: int) -> str:
    """Return sentences about an extension: what is kept, and what the learning rate does.

    Args:
        stages: of the extended run.
        steps: of the run before.
    """
    added = [stage for stage in stages if stage.first >= steps]
    rates = " ".join(
        f"Steps {s.first + 1:,} to {s.last:,}: {course(s.run.optimizer, s.last - s.first)}." for s in added
    )
    return f"extended from {steps:,} to {stages[-1].last:,} steps, with its optimizer state and data position. {rates}"


def course(optimizer: OptimizerConfig, steps: int) -> str:
    """Describe the learning rate of a stage in words."""
    peak = peak_of(optimizer)
    end = peak * optimizer.final_learning_rate
    rest = steps - optimizer.warmup_steps
    decaying = min(max(round(steps * optimizer.decay_share), 1), rest)
    decay = {
        "cosine": f"{peak:.3g} falling to {end:.3g} (cosine)",
        "linear": f"{peak:.3g} falling to {end:.3g} (linear)",
        "constant": f"{peak:.3g} (constant)",
        "wsd": f"{peak:.3g}, falling to {end:.3g} over the last {decaying:,} (wsd)",
    }[optimizer.schedule]
    warmup = f" after {optimizer.warmup_steps:,} of warm-up" if optimizer.warmup_steps else ""
    return f"learning rate {decay}{warmup}"
