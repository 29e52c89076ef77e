"""The best learning rate and batch size, by experiment: sweep, optima, power laws, prediction.

    qwen3 scaling fit --config configs/sweeps/scaling-laptop.yaml
    qwen3 scaling fit --config FILE --runs sweep.jsonl        # of runs that were made elsewhere

Qwen3's report (section 3) sets learning rate and batch size by scaling laws, one prediction for each stage and model. How such
laws are found follows Li et al. 2025 (arXiv 2503.04715): a grid of learning rates and batch sizes for each (parameters,
tokens), a minimum in each, and a power law through the minima.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.errors import UserError, warn
from qwen3_jax.sweeps import laws, optimum
from qwen3_jax.sweeps.config import ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED, Fitted, Interval
from qwen3_jax.sweeps.optimum import Observation, Optima, Optimum, cell_name, short
from qwen3_jax.sweeps.sweep import Row, Run, Sweep, active_parameters, read_rows, sized
from qwen3_jax.training import run_folder
from qwen3_jax.training.config import TrainConfig

_VAGUE = 3.0
_FIELDS = ("parameters", "tokens", "batch_tokens", "learning_rate")


@dataclass(frozen=True)
class Scaling:
    """What a sweep says.

    Attributes:
        observations: its runs.
        optima: of each cell.
        rate, batch: the laws; batch is None where one batch size was run.
    """

    observations: tuple[Observation, ...]
    optima: Optima
    rate: Fitted
    batch: Fitted | None


@dataclass(frozen=True)
class Prediction:
    """For a target: the sweep's laws (batch None as above), and each published law's (learning rate, batch tokens)."""

    parameters: float
    tokens: float
    rate: Interval
    batch: Interval | None
    published: dict[str, tuple[float, float]]


def observations(rows: Sequence[Row], where: str = "results") -> list[Observation]:
    """Read runs from lines of results; those that diverged have the loss nan.

    Raises:
        UserError: a line lacks a number; names it.
    """
    out = []
    for number, row in enumerate(rows, 1):
        for name in (*_FIELDS, "loss"):
            value = row.get(name)
            if name == "loss" and name in row and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not (name == "loss" or value > 0):
                raise UserError(f"{where}:{number}: {name!r} must be a number above 0, got {value!r}.")
        loss = math.nan if row["loss"] is None else float(row["loss"])
        n, d, batch, rate = (float(row[name]) for name in _FIELDS)
        out.append(Observation(n, d, batch, rate, loss))
    return out


def read(paths: Sequence[Path]) -> list[Observation]:
    """Read the runs of some results files."""
    return [one for path in paths for one in observations(read_rows(path), str(path))]


def sweep(config: ScalingConfig, models: Mapping[str, TrainConfig]) -> list[Observation]:
    """Make the runs that are not made yet and return all.

    Args:
        config: the sweep.
        models: the training configuration of each of `config.models`, by name.

    Raises:
        UserError: a configuration is at fault; names what.
    """
    if not models or not config.tokens:
        raise UserError("a sweep needs models and tokens; runs that were made elsewhere are given with --runs.")
    folder = Sweep(config.output)
    first = next(iter(models.values()))
    shared, tokenizer = folder.share(first)
    planned: list[Run] = []
    for name, train in models.items():
        if train.data != first.data or train.tokenizer != first.tokenizer:
            raise UserError(f"model {name!r} changes data or tokenizer; the sizes of a sweep share them.")
        ready = dataclasses.replace(train, data=shared.data, tokenizer=shared.tokenizer)
        parameters = active_parameters(run_folder.architecture(ready, None, tokenizer))
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
    return observations(rows, str(folder.results))


def _rates(config: ScalingConfig, parameters: float, tokens: float) -> list[float]:
    if config.learning_rates is not None:
        return sorted(config.learning_rates)
    middle = PUBLISHED[config.start].rate(parameters, tokens)
    steps = np.arange(config.rate_points) - (config.rate_points - 1) / 2
    # Two figures: names stay short, and a sweep that is laid out again meets its results.
    return [float(f"{middle * config.rate_ratio**step:.2g}") for step in steps]


def _batches(config: ScalingConfig, tokens: float, train: TrainConfig) -> list[int]:
    """Rows of a batch."""
    length = train.data.sequence_length
    if config.batch_tokens is not None:
        for batch in config.batch_tokens:
            if batch % length:
                raise UserError(f"batch_tokens {batch} is no multiple of data.sequence_length ({length}).")
        return sorted(batch // length for batch in config.batch_tokens)
    middle = PUBLISHED[config.start].batch(1.0, tokens) if config.start == "step_law" else math.nan
    if math.isnan(middle):
        raise UserError("start deepseek says batch sizes for a model and not for tokens alone; give batch_tokens.")
    steps = np.arange(config.batch_points) - (config.batch_points - 1) / 2
    found = {max(2 ** round(math.log2(middle * config.batch_ratio**step / length)), 1) for step in steps}
    return sorted(found)


def _runs(
    config: ScalingConfig, name: str, train: TrainConfig, parameters: float, tokens: float, batch: int, rate: float
) -> list[Run]:
    batch_tokens = batch * train.data.sequence_length
    out = []
    for seed in config.seeds:
        key = f"{name} D={short(tokens)} B={batch_tokens} lr={rate:.3g} seed={seed}"
        made = sized(train, tokens, batch, config.warmup_share, config.eval_tokens, seed, key)
        made = dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, learning_rate=rate))
        labels = {
            "model": name, "parameters": parameters, "tokens": tokens, "batch_tokens": batch_tokens, "learning_rate": rate,
            "seed": seed,
        }  # fmt: skip
        out.append(Run(key, labels, made))
    return out


def _wider(config: ScalingConfig, planned: Sequence[Run], rows: Sequence[Row]) -> list[Run]:
    """One more row of runs for each cell whose best run lies at the edge of its grid."""
    cells: dict[tuple[str, float], list[tuple[Run, Row]]] = {}
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


def fit(config: ScalingConfig, runs: Sequence[Observation]) -> Scaling:
    """Find the optimum of each cell and fit the laws.

    Cells whose optimum lies outside their runs are warned of by name and left out.

    Raises:
        UserError: too few runs or cells; says which and what to add.
    """
    optima = optimum.find(runs, config.window)
    for cell in optima.cells:
        for sentence in cell.warnings:
            warn(sentence)
        vague = math.exp(math.sqrt(float(np.diag(cell.covariance).max())))
        if cell.usable and vague > _VAGUE:
            name = cell_name(cell.parameters, cell.tokens)
            warn(f"{name}: the optimum is known to within a factor of {vague:.2g} only and counts little; add seeds.")
    usable = [cell for cell in optima.cells if cell.usable]
    if not usable:
        raise UserError(
            "no cell of the sweep has its optimum inside its runs, so there is nothing to fit; "
            f"first: {optima.cells[0].warnings[0]}"
        )
    prior = None if config.prior == "none" else PUBLISHED[config.prior]

    def of(names: tuple[str, ...], k: int, law: str) -> Fitted:
        return laws.fit(
            names,
            [cell.parameters for cell in usable],
            [cell.tokens for cell in usable],
            [_log(cell)[k] for cell in usable],
            [float(cell.covariance[k, k]) for cell in usable],
            optima.degrees,
            None if prior is None else (prior.name, getattr(prior, law), config.prior_deviation),
        )

    both = all(cell.log_batch is not None for cell in usable)
    return Scaling(tuple(runs), optima, of(("1", "N", "D"), 0, "rate"), of(("1", "D"), 1, "batch") if both else None)


def _log(cell: Optimum) -> tuple[float, float]:
    return cell.log_rate, math.nan if cell.log_batch is None else cell.log_batch


def predict(config: ScalingConfig, found: Scaling, parameters: float, tokens: float) -> Prediction:
    """Predict for a target.

    Raises:
        UserError: it lies too far beyond the sweep; says what published laws say there.
    """
    published = {law.name: (law.rate(parameters, tokens), law.batch(parameters, tokens)) for law in PUBLISHED.values()}
    usable = [cell for cell in found.optima.cells if cell.usable]
    for what, here, swept in (
        ("parameters", parameters, [cell.parameters for cell in usable]),
        ("tokens", tokens, [cell.tokens for cell in usable]),
    ):
        ratio = max(here / max(swept), min(swept) / here)
        if ratio > config.max_extrapolation:
            said = "; ".join(f"{name}: {rate:.2e}, {short(batch)}" for name, (rate, batch) in published.items())
            raise UserError(
                f"the target's {short(here)} {what} are {ratio:,.0f} times beyond the sweep ({short(min(swept))} to "
                f"{short(max(swept))}), more than max_extrapolation ({config.max_extrapolation:g}): sweep larger ones, raise "
                f"it, or take a published law's learning rate and batch tokens ({said})."
            )
    batch = None if found.batch is None else found.batch.predict(parameters, tokens, config.level)
    return Prediction(parameters, tokens, found.rate.predict(parameters, tokens, config.level), batch, published)


def summary(config: ScalingConfig, found: Scaling, prediction: Prediction | None) -> dict[str, Any]:
    """Everything as plain values, for result.json."""

    def law(fitted: Fitted | None) -> Any:
        if fitted is None:
            return None
        exponents = {name: fitted.exponent(name) for name in fitted.names[1:]}
        return {
            "constant": fitted.law.constant,
            "exponents": {
                name: {"value": value, "standard_error": error} for name, (value, error) in exponents.items()
            },
            "scatter": fitted.scatter,
            "prior": fitted.prior,
            "exponents_of_the_prior_alone": list(fitted.undetermined),
        }

    cells = [
        {
            "cell": cell_name(cell.parameters, cell.tokens), "parameters": cell.parameters, "tokens": cell.tokens,
            "learning_rate": math.exp(cell.log_rate), "log_error": math.sqrt(cell.covariance[0, 0]),
            "batch_tokens": None if cell.log_batch is None else math.exp(cell.log_batch),
            "log_batch_error": None if cell.log_batch is None else math.sqrt(cell.covariance[1, 1]),
            "loss": cell.loss, "runs": cell.runs, "usable": cell.usable, "warnings": list(cell.warnings),
        }
        for cell in found.optima.cells
    ]  # fmt: skip
    return {
        "runs": len(found.observations),
        "noise": found.optima.noise,
        "cells": cells,
        "learning_rate": law(found.rate),
        "batch_tokens": law(found.batch),
        "level": config.level,
        "prediction": None if prediction is None else dataclasses.asdict(prediction),
    }


def fragment(config: ScalingConfig, prediction: Prediction, sequence_length: int) -> str:
    """The prediction as YAML that `train.py --config BASE --config THIS` reads."""
    rate, batch = prediction.rate, prediction.batch
    lines = [
        f"# qwen3 scaling fit: {short(prediction.parameters)} active parameters without embeddings, "
        f"{short(prediction.tokens)} tokens.",
        f"# {config.level:.0%} intervals: learning rate {rate.low:.2e} to {rate.high:.2e}"
        + ("" if batch is None else f", batch {short(batch.low)} to {short(batch.high)} tokens") + ".",
    ]  # fmt: skip
    for law in PUBLISHED.values():
        said = prediction.published[law.name]
        lines.append(f"# {law.name} ({law.source}): {said[0]:.2e}, {short(said[1])} tokens.")
    lines += ["optimizer:", f"  learning_rate: {_yaml(rate.value)}"]
    if batch is not None:
        lines += ["data:", f"  batch_size: {max(round(batch.value / sequence_length), 1)}"]
    return "\n".join(lines) + "\n"


def _yaml(value: float) -> str:
    """YAML 1.1 reads 1e-3 as text: a mantissa needs its point."""
    return f"{value:.3e}"
