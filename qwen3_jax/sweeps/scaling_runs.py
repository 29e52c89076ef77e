"""The runs of a scaling sweep: a grid of learning rates and batch sizes for each model size and token count, widened at its
edges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.sweeps.config import ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED
from qwen3_jax.sweeps.optimum import Observation, short
from qwen3_jax.sweeps.scaling import observations
from qwen3_jax.sweeps.sweep import PlannedRun, Result, Sweep, active_parameters, sized
from qwen3_jax.training import run_folder
from qwen3_jax.training.config import TrainConfig


def run_sweep(config: ScalingConfig, models: Mapping[str, TrainConfig]) -> list[Observation]:
    """Train the runs that have no result yet; return the observations of all.

    Args:
        config: the sweep.
        models: the training configuration of each of `config.models`, by name.

    Raises:
        UserError: a configuration is invalid.
    """
    if not models or not config.tokens:
        raise UserError("a sweep needs models and tokens; give --runs to read finished runs instead.")
    folder = Sweep(config.output)
    first = next(iter(models.values()))
    shared, tokenizer = folder.prepare_shared(first)
    planned: list[PlannedRun] = []
    for name, train in models.items():
        if train.data != first.data or train.tokenizer != first.tokenizer:
            raise UserError(f"model {name!r} changes data or tokenizer; the sizes of a sweep share them.")
        ready = dataclasses.replace(train, data=shared.data, tokenizer=shared.tokenizer)
        parameters = active_parameters(run_folder.architecture(ready, ready.resolved(), None, tokenizer))
        for tokens in config.tokens:
            batches = _batches(config, tokens, ready)
            for batch in batches:
                for rate in _rates(config, parameters, tokens):
                    planned += _runs(config, name, ready, parameters, tokens, batch, rate)
    rows = folder.run(planned, "sweep")
    for _ in range(config.widen):
        more = _wider(config, planned, rows)
        if not more:
            break
        planned += more
        rows += folder.run(more, "widening")
    return observations(rows, str(folder.path))


def _rates(config: ScalingConfig, parameters: float, tokens: float) -> list[float]:
    if config.learning_rates is not None:
        return sorted(config.learning_rates)
    middle = PUBLISHED[config.start].rate(parameters, tokens)
    steps = np.arange(config.rate_points) - (config.rate_points - 1) / 2
    # Two digits: keys stay short, and a repeated sweep has the same keys as its results.
    return [float(f"{middle * config.rate_ratio**step:.2g}") for step in steps]


def _batches(config: ScalingConfig, tokens: float, train: TrainConfig) -> list[int]:
    """Return batch sizes in rows, ascending."""
    length = train.data.sequence_length
    if config.batch_tokens is not None:
        for batch in config.batch_tokens:
            if batch % length:
                raise UserError(f"batch_tokens {batch} is no multiple of data.sequence_length ({length}).")
        return sorted(batch // length for batch in config.batch_tokens)
    middle = PUBLISHED[config.start].batch(1.0, tokens) if config.start == "step_law" else math.nan
    if math.isnan(middle):
        raise UserError(
            "the batch size of start deepseek depends on the model too; give batch_tokens, or set start to step_law."
        )
    steps = np.arange(config.batch_points) - (config.batch_points - 1) / 2
    sizes = {max(2 ** round(math.log2(middle * config.batch_ratio**step / length)), 1) for step in steps}
    return sorted(sizes)


def _runs(
    config: ScalingConfig, name: str, train: TrainConfig, parameters: float, tokens: float, batch: int, rate: float
) -> list[PlannedRun]:
    batch_tokens = batch * train.data.sequence_length
    out = []
    for seed in config.seeds:
        key = f"{name} D={short(tokens)} B={batch_tokens} lr={rate:.3g} seed={seed}"
        sized_config = sized(train, tokens, batch, config.warmup_share, config.eval_tokens, seed, key)
        optimizer = dataclasses.replace(sized_config.optimizer, learning_rate=rate)
        run_config = dataclasses.replace(sized_config, optimizer=optimizer)
        labels = {
            "model": name, "parameters": parameters, "tokens": tokens, "batch_tokens": batch_tokens, "learning_rate": rate,
            "seed": seed,
        }  # fmt: skip
        out.append(PlannedRun(key, labels, run_config))
    return out


def _wider(config: ScalingConfig, planned: Sequence[PlannedRun], rows: Sequence[Result]) -> list[PlannedRun]:
    """Return one more row of runs for each cell whose best run lies at the edge of its grid."""
    cells: dict[tuple[str, float], list[tuple[PlannedRun, Result]]] = {}
    for run, row in zip(planned, rows, strict=True):
        cells.setdefault((row["model"], row["tokens"]), []).append((run, row))
    out = []
    for (name, tokens), members in cells.items():
        finished = [pair for pair in members if pair[1]["loss"] is not None]
        if not finished:
            continue
        run, best = min(finished, key=lambda pair: pair[1]["loss"])
        rates = sorted({row["learning_rate"] for _, row in members})
        batches = sorted({row["batch_tokens"] for _, row in members})
        length = run.config.data.sequence_length
        more: set[tuple[int, float]] = set()
        if (rate := _beyond(best["learning_rate"], rates, config.rate_ratio)) is not None:
            more |= {(batch // length, float(f"{rate:.2g}")) for batch in batches}
        if len(batches) > 1 and (batch := _beyond(best["batch_tokens"], batches, config.batch_ratio)) is not None:
            near = sorted(rates, key=lambda value: abs(math.log(value / best["learning_rate"])))[:3]
            wide = round(batch / length)
            if wide >= 1 and wide * length not in batches and tokens / (wide * length) >= 40:
                more |= {(wide, value) for value in near}
        for rows_of_batch, value in sorted(more):
            out += _runs(config, name, run.config, best["parameters"], tokens, rows_of_batch, value)
    return out


def _beyond(best: float, swept: Sequence[float], ratio: float) -> float | None:
    if best == swept[0]:
        return best / ratio
    return best * ratio if best == swept[-1] else None
