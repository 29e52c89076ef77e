"""The weights of a data mixture, by experiment: proxies, regression, proposal, verification.

    qwen3 mixture search --config configs/sweeps/mixture-laptop.yaml

RegMix (Liu et al. 2024, arXiv 2407.01492) on components that are sources, or instance labels of sources: Qwen3's report
(section 3.1) optimises its mixture at the level of instances by ablations on small proxy models. Weights are drawn from
Dirichlet distributions, one proxy is trained on each, regressions (`qwen3_jax.sweeps.regression`) go from weights to
held-out losses, and the weights with the lowest predicted loss are trained against the uniform mixture: same tokens, same
seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from qwen3_jax.data import Prepared, Source
from qwen3_jax.data.config import Where
from qwen3_jax.errors import UserError, nearest, warn
from qwen3_jax.sweeps.config import MixtureConfig
from qwen3_jax.sweeps.regression import FORMS, Chosen, Predictor, choose, minimise
from qwen3_jax.sweeps.sweep import Row, Run, Sweep, sized
from qwen3_jax.training.config import TrainConfig

_RESAMPLED = 32


@dataclass(frozen=True)
class Regression:
    """What the proxies say.

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
        """What the regression says of each proxy when fitted to the others [n]."""
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
    """The verification runs.

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
        """What the runs say, and no more."""
        pairs = len(self.proposed)
        if self.interval is None:
            word = "beat" if self.difference < 0 else "did not beat"
            return f"the proposal {word} the uniform mixture in one pair of runs: {self.difference:+.4f} nats"
        said = f"{self.difference:+.4f} nats (95% interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}, {pairs} pairs)"
        if self.interval[1] < 0:
            return f"the proposal beat the uniform mixture: {said}"
        if self.difference < 0:
            return f"the proposal was better on average, but not beyond the noise of the seeds: {said}"
        return f"the proposal did not beat the uniform mixture: {said}"


class Search:
    """The proxies of a search.

    Args:
        config: the search.
        train: its training configuration.
        verify: the same with the changes of `config.verify`.

    Raises:
        UserError: data cannot be read or split, or a name is of nothing; says which.
    """

    def __init__(self, config: MixtureConfig, train: TrainConfig, verify: TrainConfig):
        self.config = config
        for name in config.split:
            train.data.source(name)
        if verify.data != train.data or verify.tokenizer != train.tokenizer:
            raise UserError("verify.set changes data or tokenizer; the verification must be held against the search.")
        self._sweep = Sweep(config.output)
        shared, _ = self._sweep.share(train)
        sources, self.sources, self.tokens = [], [], []
        for prepared, raw in zip(shared.data.sources, train.data.sources, strict=True):
            corpus = Prepared(prepared.paths[0])
            for name, where in _parts(config, raw, corpus):
                sources.append(dataclasses.replace(prepared, name=name, where=where))
                self.sources.append(dataclasses.replace(raw, name=name, where=where))
                used = corpus.select(where) & ~corpus.held_out(raw.eval_fraction)
                self.tokens.append(float(np.asarray(corpus.lengths, np.int64)[used].sum()))
        if len(sources) < 2:
            raise UserError("a mixture takes two components or more: add sources, or split one by a label.")
        data = dataclasses.replace(shared.data, sources=sources)
        self._train, self._verify = (
            dataclasses.replace(one, data=data, tokenizer=shared.tokenizer) for one in (train, verify)
        )
        self.components = tuple(source.name for source in sources)

    def proxies(self) -> list[Row]:
        """Train the proxies (or read their results); the first is the uniform mixture."""
        drawn = draw(self.config, len(self.components))
        runs = [
            self._run(self._train, f"proxy {number}", weights, self.config.tokens, self.config.seed)
            for number, weights in enumerate(drawn)
        ]
        return self._sweep.run(runs, "proxies")

    def verify(self, proposal: Proposal, objective: dict[str, float]) -> Verdict:
        """Train the proposal and the uniform mixture on the same tokens with the same seeds."""
        tokens = self.config.verify.tokens or self.config.tokens
        uniform = np.full(len(self.components), 1 / len(self.components))
        label = "-".join(f"{weight:.4f}" for weight in proposal.weights)
        runs = []
        for seed in self.config.verify.seeds:
            runs.append(self._run(self._verify, f"verify {label}", proposal.weights, tokens, seed))
            runs.append(self._run(self._verify, "verify uniform", uniform, tokens, seed))
        rows = self._sweep.run(runs, "verification")
        for row in rows:
            if row["loss"] is None:
                raise UserError(f"{row['key']!r} diverged, so nothing is verified; lower optimizer.learning_rate.")
        return verdict(rows[::2], rows[1::2], objective)

    def _run(self, train: TrainConfig, name: str, weights: np.ndarray, tokens: float, seed: int) -> Run:
        key = f"{name} seed={seed}"
        made = sized(train, tokens, train.data.batch_size, self.config.warmup_share, self.config.eval_tokens, seed, key)
        sources = [
            # A source of weight 0 is refused; one of a millionth gives no token.
            dataclasses.replace(source, weight=max(float(weight), 1e-6))
            for source, weight in zip(made.data.sources, weights, strict=True)
        ]
        made = dataclasses.replace(made, data=dataclasses.replace(made.data, sources=sources))
        return Run(key, {"weights": dict(zip(self.components, weights.tolist(), strict=True)), "seed": seed}, made)


def _parts(config: MixtureConfig, source: Source, corpus: Prepared) -> list[tuple[str, Where]]:
    """The components of a source: (name, which documents)."""
    label = config.split.get(source.name)
    if label is None:
        return [(source.name, source.where)]
    where, parts = source.where, []
    if label in ("domain", "language"):
        kept = corpus.select(where)
        numbers = np.unique(np.asarray(getattr(corpus, label))[kept])
        for value in sorted(corpus.names(label)[i] for i in numbers):
            part = dataclasses.replace(where, **{label: [value]})
            parts.append((f"{source.name} {value}".replace("/", "_"), part))
    else:
        if getattr(where, label) is not None:
            raise UserError(f"source {source.name!r}: where.{label} and split.{source.name} both cut by {label}.")
        edges: list[float | None] = [None, *config.edges[source.name], None]
        parts = [_between(source.name, where, label, low, high) for low, high in itertools.pairwise(edges)]
    for name, part in parts:
        if not (corpus.select(part) & ~corpus.held_out(source.eval_fraction)).any():
            raise UserError(f"component {name!r} has no document to train on; split {source.name!r} otherwise.")
    if len(parts) < 2:
        raise UserError(f"split.{source.name}: every document has the same {label}, so there is nothing to split.")
    return parts


def _between(source: str, where: Where, label: str, low: float | None, high: float | None) -> tuple[str, Where]:
    """The component of the documents whose quality or length is at least `low` and below `high`."""
    name = f"below {high:g}" if low is None else f"from {low:g}" if high is None else f"{low:g} to {high:g}"
    name = f"{source} {label} {name}"
    # A range holds both its ends: the next smaller number keeps the components apart.
    if label == "length":
        length = [None if low is None else math.ceil(low), None if high is None else math.ceil(high) - 1]
        return name, dataclasses.replace(where, length=length)
    top = None if high is None else float(np.nextafter(np.float32(high), np.float32(-np.inf)))
    return name, dataclasses.replace(where, quality=[low, top])


def draw(config: MixtureConfig, components: int) -> np.ndarray:
    """The weights of the proxies [mixtures, k]: the uniform ones first, then Dirichlet draws whose concentration is spread
    evenly (in its logarithm) from the lowest to the highest."""
    rng = np.random.default_rng(config.seed)
    low, high = config.concentration
    concentrations = np.geomspace(low, high, config.mixtures - 1)
    drawn = [rng.dirichlet(np.full(components, value)) for value in concentrations]
    return np.stack([np.full(components, 1 / components), *drawn])


def regress(config: MixtureConfig, components: Sequence[str], rows: Sequence[Row]) -> Regression:
    """Choose and fit the regressions; proxies that diverged are warned of and left out.

    Raises:
        UserError: too few runs, or the objective names a loss that there is not.
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
    found = Regression(tuple(components), weights, losses, shares, chosen, 0.0)
    return dataclasses.replace(found, fidelity=float(stats.spearmanr(found.values, found.left_out).statistic))


def propose(config: MixtureConfig, found: Regression, tokens: Sequence[float]) -> Proposal:
    """Minimise the objective's mean over regressions of resampled proxies, within the bounds.

    Args:
        tokens: that each component has to train on [k].

    Raises:
        UserError: no weights are within the bounds.
    """
    n, k = found.weights.shape
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
            (share, FORMS[found.chosen[name].form](found.weights[sample], found.losses[name][sample]))
            for name, share in found.objective.items()
        ]
        return lambda w: sum((share * part(w) for share, part in parts), np.zeros(len(w)))

    predictors = [predictor(sample) for sample in samples]
    uniform = np.full(k, 1 / k)
    starts = np.stack([uniform, found.weights[found.values.argmin()], *rng.dirichlet(np.ones(k), 4)])

    def mean(w: np.ndarray) -> float:
        return float(np.mean([one(w[None])[0] for one in predictors]))

    weights, value = minimise(mean, low, high, starts)

    def alone(one: Predictor) -> np.ndarray:
        return minimise(lambda w: float(one(w[None])[0]), low, high, weights[None])[0]

    each = [alone(one) for one in predictors[1:]]
    return Proposal(weights, np.std(each, axis=0), value, mean(uniform))


def verdict(proposed: Sequence[Row], uniform: Sequence[Row], objective: dict[str, float]) -> Verdict:
    """Compare pairs of runs."""

    def values(rows: Sequence[Row]) -> np.ndarray:
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


def summary(found: Regression, proposal: Proposal, result: Verdict) -> dict[str, Any]:
    """Everything as plain values, for result.json."""
    return {
        "proxies": len(found.weights),
        "regressions": {
            name: {"form": one.form, "left_out_error": one.errors, "spread": float(found.losses[name].std())}
            for name, one in found.chosen.items()
        },
        "rank_correlation": found.fidelity,
        "weights": {
            name: {"weight": float(weight), "deviation": float(deviation)}
            for name, weight, deviation in zip(found.components, proposal.weights, proposal.deviations, strict=True)
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
    """The proposal as YAML that `train.py --config BASE --config THIS` reads."""
    rows = []
    for source, weight in zip(sources, proposal.weights, strict=True):
        plain = _without_defaults(source)
        rows.append(plain | {"weight": round(float(weight), 4)})
    body = yaml.safe_dump({"data": {"sources": rows}}, sort_keys=False, allow_unicode=True)
    return f"# qwen3 mixture search: {result.sentence}.\n{body}"


def _without_defaults(value: Any) -> Any:
    """A dataclass as a mapping of what is not its default."""
    if not dataclasses.is_dataclass(value):
        return value
    out = {}
    for one in dataclasses.fields(value):
        here = getattr(value, one.name)
        default = one.default if one.default is not dataclasses.MISSING else (
            one.default_factory() if one.default_factory is not dataclasses.MISSING else dataclasses.MISSING
        )  # fmt: skip
        if here != default:
            out[one.name] = _without_defaults(here)
    return out


def plot(found: Regression, proposal: Proposal, result: Verdict, output: Path) -> None:
    """Draw how well the regression predicts, what it proposes, and what the verification runs say."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.1, 1.1])
    left.plot(found.left_out, found.values, "o", color="C0", markersize=5)
    ends = [min(found.left_out.min(), found.values.min()), max(found.left_out.max(), found.values.max())]
    left.plot(ends, ends, color="0.6", lw=1)
    left.set(
        xlabel="predicted, the run left out (nats)", ylabel="measured (nats)", aspect="equal", adjustable="datalim"
    )
    left.set_title(f"{len(found.weights)} proxies, rank correlation {found.fidelity:.2f}", fontsize=10)
    k = len(found.components)
    rows = np.arange(k)[::-1]
    middle.barh(rows, proposal.weights, xerr=proposal.deviations, color="C3", alpha=0.75, height=0.55, capsize=3)
    middle.axvline(1 / k, color="0.4", lw=1, ls="--", label="uniform")
    best = found.weights[found.values.argmin()]
    middle.plot(best, rows, "o", color="black", markersize=5, label="best proxy")
    middle.set_yticks(rows, [_wrapped(name) for name in found.components], fontsize=8)
    middle.set(xlabel="share of tokens", xlim=(0, None))
    middle.set_title("proposed weights (bars: over resampled proxies)", fontsize=10)
    middle.legend(fontsize=8)
    names = list(result.by_loss)
    rows = np.arange(len(names) + 1)[::-1]
    differences = [a - b for a, b in result.by_loss.values()]
    colors = ["C2" if value < 0 else "C1" for value in differences]
    right.barh(rows[:-1], differences, color=colors, alpha=0.6, height=0.55)
    error = None if result.interval is None else [[result.difference - result.interval[0]]] * 2
    right.barh(
        rows[-1:],
        [result.difference],
        xerr=error,
        color="C2" if result.difference < 0 else "C1",
        height=0.55,
        capsize=4,
    )
    right.set_yticks(rows, [*(_wrapped(name) for name in names), "objective"], fontsize=8)
    right.axvline(0, color="0.3", lw=1)
    right.set(xlabel="held-out loss, proposal - uniform (nats; below 0 is better)")
    right.set_title(f"verification, {len(result.proposed)} pairs of runs", fontsize=10)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    figure.savefig(output, dpi=130)


def _wrapped(name: str) -> str:
    words = name.split(" ", 1)
    return "\n".join(words)
