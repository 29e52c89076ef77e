"""The best learning rate and batch size, by experiment: sweep, optima, power laws, prediction.

    qwen3 scaling fit --config configs/sweeps/scaling-laptop.yaml
    qwen3 scaling fit --config FILE --runs sweep.jsonl        # fits finished runs, trains nothing

Qwen3's report (section 3) sets learning rate and batch size by scaling laws, one prediction for each stage and model. How such
laws are found follows Li et al. 2025 (arXiv 2503.04715): a grid of learning rates and batch sizes for each (parameters,
tokens), a minimum in each, and a power law through the minima.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.errors import UserError, warn
from qwen3_jax.sweeps import laws, optimum
from qwen3_jax.sweeps.config import ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED, Fitted, Interval
from qwen3_jax.sweeps.optimum import Observation, Optima, Optimum, cell_name, short
from qwen3_jax.sweeps.sweep import Result, read_rows

_VAGUE = 3.0
_FIELDS = ("parameters", "tokens", "batch_tokens", "learning_rate")


@dataclass(frozen=True)
class Scaling:
    """The result of a sweep.

    Attributes:
        observations: the runs.
        optima: the optimum of each cell.
        rate, batch: the fitted laws; batch is None if all runs have one batch size.
    """

    observations: tuple[Observation, ...]
    optima: Optima
    rate: Fitted
    batch: Fitted | None


@dataclass(frozen=True)
class Prediction:
    """Prediction for a target.

    Attributes:
        parameters, tokens: the target.
        rate, batch: by the fitted laws; batch is None if all runs have one batch size.
        published: (learning rate, batch tokens) by each published law.
    """

    parameters: float
    tokens: float
    rate: Interval
    batch: Interval | None
    published: dict[str, tuple[float, float]]


def observations(rows: Sequence[Result], source: str = "results") -> list[Observation]:
    """Convert results to observations; the loss of a diverged run is nan.

    Raises:
        UserError: a field is missing or not a number above 0; names `source`, line and field.
    """
    out = []
    for number, row in enumerate(rows, 1):
        for name in (*_FIELDS, "loss"):
            value = row.get(name)
            if name == "loss" and name in row and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not (name == "loss" or value > 0):
                raise UserError(f"{source}:{number}: {name!r} must be a number above 0, got {value!r}.")
        loss = math.nan if row["loss"] is None else float(row["loss"])
        n, d, batch, rate = (float(row[name]) for name in _FIELDS)
        out.append(Observation(n, d, batch, rate, loss))
    return out


def read(paths: Sequence[Path]) -> list[Observation]:
    """Read the runs of some results files."""
    return [one for path in paths for one in observations(read_rows(path), str(path))]


def fit(config: ScalingConfig, runs: Sequence[Observation]) -> Scaling:
    """Find the optimum of each cell and fit the laws.

    Cells whose optimum lies outside their runs are left out with a warning.

    Raises:
        UserError: too few runs or cells; names them and what to add.
    """
    optima = optimum.find(runs, config.window)
    for cell in optima.cells:
        for sentence in cell.warnings:
            warn(sentence)
        vague = math.exp(math.sqrt(float(np.diag(cell.covariance).max())))
        if cell.usable and vague > _VAGUE:
            name = cell_name(cell.parameters, cell.tokens)
            warn(f"{name}: the optimum is uncertain by a factor of {vague:.2g} and has little weight; add seeds.")
    usable = [cell for cell in optima.cells if cell.usable]
    if not usable:
        raise UserError(
            "no cell of the sweep has its optimum inside its runs, so nothing can be fitted; "
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


def predict(config: ScalingConfig, scaling: Scaling, parameters: float, tokens: float) -> Prediction:
    """Predict for a target.

    Raises:
        UserError: it lies further beyond the sweep than `max_extrapolation`; the message has the published laws' predictions.
    """
    published = {law.name: (law.rate(parameters, tokens), law.batch(parameters, tokens)) for law in PUBLISHED.values()}
    usable = [cell for cell in scaling.optima.cells if cell.usable]
    for what, target, swept in (
        ("parameters", parameters, [cell.parameters for cell in usable]),
        ("tokens", tokens, [cell.tokens for cell in usable]),
    ):
        ratio = max(target / max(swept), min(swept) / target)
        if ratio > config.max_extrapolation:
            alternatives = "; ".join(f"{name}: {rate:.2e}, {short(batch)}" for name, (rate, batch) in published.items())
            raise UserError(
                f"the target's {short(target)} {what} are {ratio:,.0f} times beyond the sweep ({short(min(swept))} to "
                f"{short(max(swept))}), more than max_extrapolation ({config.max_extrapolation:g}): sweep larger ones, raise "
                f"it, or take a published law's learning rate and batch tokens ({alternatives})."
            )
    batch = None if scaling.batch is None else scaling.batch.predict(parameters, tokens, config.level)
    return Prediction(parameters, tokens, scaling.rate.predict(parameters, tokens, config.level), batch, published)


def summary(config: ScalingConfig, scaling: Scaling, prediction: Prediction | None) -> dict[str, Any]:
    """Return all numbers as plain values, for result.json."""

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
        for cell in scaling.optima.cells
    ]  # fmt: skip
    return {
        "runs": len(scaling.observations),
        "noise": scaling.optima.noise,
        "cells": cells,
        "learning_rate": law(scaling.rate),
        "batch_tokens": law(scaling.batch),
        "level": config.level,
        "prediction": None if prediction is None else dataclasses.asdict(prediction),
    }


def fragment(config: ScalingConfig, prediction: Prediction, sequence_length: int) -> str:
    """Return the prediction as YAML for `train.py --config BASE --config THIS`."""
    rate, batch = prediction.rate, prediction.batch
    lines = [
        f"# qwen3 scaling fit: {short(prediction.parameters)} active parameters without embeddings, "
        f"{short(prediction.tokens)} tokens.",
        f"# {config.level:.0%} intervals: learning rate {rate.low:.2e} to {rate.high:.2e}"
        + ("" if batch is None else f", batch {short(batch.low)} to {short(batch.high)} tokens") + ".",
    ]  # fmt: skip
    for law in PUBLISHED.values():
        published_rate, published_batch = prediction.published[law.name]
        lines.append(f"# {law.name} ({law.source}): {published_rate:.2e}, {short(published_batch)} tokens.")
    lines += ["optimizer:", f"  learning_rate: {_yaml(rate.value)}"]
    if batch is not None:
        lines += ["data:", f"  batch_size: {max(round(batch.value / sequence_length), 1)}"]
    return "\n".join(lines) + "\n"


def _yaml(value: float) -> str:
    """Format a number for YAML 1.1, which reads 1e-3 as text: the mantissa needs a decimal point."""
    return f"{value:.3e}"
