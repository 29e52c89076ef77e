"""From proxies to a proposal: regressions from weights to losses, the weights with the lowest predicted loss, and the verdict
of the verification runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from scipy import stats

from qwen3_jax.data import Source
from qwen3_jax.errors import UserError, nearest, warn
from qwen3_jax.sweeps.config import MixtureConfig
from qwen3_jax.sweeps.regression import FORMS, Chosen, Predictor, choose, minimise
from qwen3_jax.sweeps.sweep import Result

_RESAMPLED = 32


@dataclass(frozen=True)
class Regression:
    """Regressions from the proxies' weights to their held-out losses.

    Attributes:
        components: names, k.
        weights: [n, k] of the proxies.
        losses: held-out losses by name, each [n].
        objective: weights of the losses by name, summing to one.
        chosen: the regression of each loss.
        fidelity: Spearman's rank correlation of objective and prediction, each run left out in turn.
    """

    components: tuple[str, ...]
    weights: np.ndarray
    losses: dict[str, np.ndarray]
    objective: dict[str, float]
    chosen: dict[str, Chosen]
    fidelity: float

    @property
    def values(self) -> np.ndarray:
        """The objective of each proxy [n]."""
        return sum((share * self.losses[name] for name, share in self.objective.items()), np.zeros(len(self.weights)))

    @property
    def left_out(self) -> np.ndarray:
        """The predicted objective of each proxy by a regression fitted to the others [n]."""
        parts = (share * self.chosen[name].left_out for name, share in self.objective.items())
        return sum(parts, np.zeros(len(self.weights)))


@dataclass(frozen=True)
class Proposal:
    """The weights with the lowest predicted objective.

    Attributes:
        weights: [k].
        deviations: [k], of the weights over resampled proxies.
        predicted, uniform: the predicted objectives of it and of the uniform mixture.
    """

    weights: np.ndarray
    deviations: np.ndarray
    predicted: float
    uniform: float


@dataclass(frozen=True)
class Verdict:
    """Comparison of the verification runs.

    Attributes:
        proposed, uniform: objective of each pair of runs [seeds].
        by_loss: mean of (proposed, uniform) of each held-out loss.
        difference: mean of proposed - uniform.
        interval: 95% interval of it (paired t); None for a single pair.
    """

    proposed: np.ndarray
    uniform: np.ndarray
    by_loss: dict[str, tuple[float, float]]
    difference: float
    interval: tuple[float, float] | None

    @property
    def sentence(self) -> str:
        """The comparison as one sentence, with its interval."""
        pairs = len(self.proposed)
        if self.interval is None:
            word = "beat" if self.difference < 0 else "did not beat"
            return f"the proposal {word} the uniform mixture in one pair of runs: {self.difference:+.4f} nats"
        low, high = self.interval
        numbers = f"{self.difference:+.4f} nats (95% interval {low:+.4f} to {high:+.4f}, {pairs} pairs)"
        if high < 0:
            return f"the proposal beat the uniform mixture: {numbers}"
        if self.difference < 0:
            return f"the proposal was better on average, but not beyond the noise of the seeds: {numbers}"
        return f"the proposal did not beat the uniform mixture: {numbers}"


def regress(config: MixtureConfig, components: Sequence[str], rows: Sequence[Result]) -> Regression:
    """Choose and fit the regressions; proxies that diverged are left out with a warning.

    Raises:
        UserError: too few runs, or the objective names a loss that does not exist.
    """
    good = [row for row in rows if row["loss"] is not None]
    for row in rows:
        if row["loss"] is None:
            warn(f"{row['key']!r} diverged and is left out of the regression.")
    if not good:
        raise UserError("every proxy diverged; lower optimizer.learning_rate.")
    names = list(good[0]["losses"])
    objective = config.objective or dict.fromkeys(names, 1.0)
    for name in objective:
        if name not in names:
            raise UserError(f"objective names {name!r}; held-out losses are {names}.{nearest(name, names)}")
    total = sum(objective.values())
    if total <= 0:
        raise UserError("objective weighs every held-out loss 0.")
    weights = np.array([[row["weights"][name] for name in components] for row in good])
    losses = {name: np.array([row["losses"][name] for row in good]) for name in names}
    chosen = {name: choose(weights, values) for name, values in losses.items()}
    shares = {name: share / total for name, share in objective.items() if share}
    regression = Regression(tuple(components), weights, losses, shares, chosen, 0.0)
    fidelity = float(stats.spearmanr(regression.values, regression.left_out).statistic)
    return dataclasses.replace(regression, fidelity=fidelity)


def propose(config: MixtureConfig, regression: Regression, tokens: Sequence[float]) -> Proposal:
    """Minimise the objective's mean over regressions of resampled proxies, within the bounds.

    Args:
        tokens: training tokens of each component [k].

    Raises:
        UserError: no weights satisfy the bounds.
    """
    n, k = regression.weights.shape
    low, high = np.full(k, config.min_weight), np.ones(k)
    if config.target_tokens is not None:
        high = np.minimum(high, config.max_epochs * np.asarray(tokens) / config.target_tokens)
    rng = np.random.default_rng(config.seed)
    samples: list[np.ndarray] = [np.arange(n)]
    while len(samples) <= _RESAMPLED:
        sample = np.asarray(rng.integers(0, n, n))
        if len(np.unique(sample)) >= k + 2:
            samples.append(sample)

    def predictor(sample: np.ndarray) -> Predictor:
        parts = [
            (share, FORMS[regression.chosen[name].form](regression.weights[sample], regression.losses[name][sample]))
            for name, share in regression.objective.items()
        ]
        return lambda w: sum((share * part(w) for share, part in parts), np.zeros(len(w)))

    predictors = [predictor(sample) for sample in samples]
    uniform = np.full(k, 1 / k)
    starts = np.stack([uniform, regression.weights[regression.values.argmin()], *rng.dirichlet(np.ones(k), 4)])

    def mean(w: np.ndarray) -> float:
        return float(np.mean([one(w[None])[0] for one in predictors]))

    weights, value = minimise(mean, low, high, starts)

    def alone(one: Predictor) -> np.ndarray:
        return minimise(lambda w: float(one(w[None])[0]), low, high, weights[None])[0]

    each = [alone(one) for one in predictors[1:]]
    return Proposal(weights, np.std(each, axis=0), value, mean(uniform))


def verdict(proposed: Sequence[Result], uniform: Sequence[Result], objective: dict[str, float]) -> Verdict:
    """Compare pairs of runs."""

    def values(rows: Sequence[Result]) -> np.ndarray:
        return np.array([sum(share * row["losses"][name] for name, share in objective.items()) for row in rows])

    ours, theirs = values(proposed), values(uniform)
    difference = ours - theirs
    mean, interval = float(difference.mean()), None
    if len(difference) > 1:
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        reach = float(stats.t.ppf(0.975, len(difference) - 1)) * error
        interval = (mean - reach, mean + reach)
    by_loss = {
        name: (
            float(np.mean([row["losses"][name] for row in proposed])),
            float(np.mean([row["losses"][name] for row in uniform])),
        )
        for name in proposed[0]["losses"]
    }
    return Verdict(ours, theirs, by_loss, mean, interval)


def summary(regression: Regression, proposal: Proposal, result: Verdict) -> dict[str, Any]:
    """Return all numbers as plain values, for result.json."""
    return {
        "proxies": len(regression.weights),
        "regressions": {
            name: {"form": one.form, "left_out_error": one.errors, "spread": float(regression.losses[name].std())}
            for name, one in regression.chosen.items()
        },
        "rank_correlation": regression.fidelity,
        "weights": {
            name: {"weight": float(weight), "deviation": float(deviation)}
            for name, weight, deviation in zip(regression.components, proposal.weights, proposal.deviations, strict=True)
        },
        "predicted": {"proposal": proposal.predicted, "uniform": proposal.uniform},
        "verification": {
            "proposal": result.proposed.tolist(), "uniform": result.uniform.tolist(),
            "difference": result.difference, "interval": result.interval,
            "losses": {name: {"proposal": a, "uniform": b} for name, (a, b) in result.by_loss.items()},
            "sentence": result.sentence,
        },
    }  # fmt: skip


def fragment(sources: Sequence[Source], proposal: Proposal, result: Verdict) -> str:
    """Return the proposal as YAML for `train.py --config BASE --config THIS`."""
    rows = []
    for source, weight in zip(sources, proposal.weights, strict=True):
        plain = _without_defaults(source)
        rows.append(plain | {"weight": round(float(weight), 4)})
    body = yaml.safe_dump({"data": {"sources": rows}}, sort_keys=False, allow_unicode=True)
    return f"# qwen3 mixture search: {result.sentence}.\n{body}"


def _without_defaults(value: Any) -> Any:
    """Return the fields of a dataclass that differ from their defaults, as a mapping."""
    if not dataclasses.is_dataclass(value):
        return value
    out = {}
    for one in dataclasses.fields(value):
        field_value = getattr(value, one.name)
        default = one.default if one.default is not dataclasses.MISSING else (
            one.default_factory() if one.default_factory is not dataclasses.MISSING else dataclasses.MISSING
        )  # fmt: skip
        if field_value != default:
            out[one.name] = _without_defaults(field_value)
    return out
