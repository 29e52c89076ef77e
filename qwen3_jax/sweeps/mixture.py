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

import numpy as np

from qwen3_jax.data import Prepared, Source
from qwen3_jax.data.config import Where
from qwen3_jax.errors import UserError
from qwen3_jax.sweeps.config import MixtureConfig
from qwen3_jax.sweeps.mixture_proposal import Proposal, Verdict, verdict
from qwen3_jax.sweeps.sweep import PlannedRun, Result, Sweep, sized
from qwen3_jax.training.config import TrainConfig


class Search:
    """The components and runs of a search.

    Args:
        config: the search.
        train: its training configuration.
        verify: the same with the changes of `config.verify`.

    Raises:
        UserError: data cannot be read or split, or a source does not exist.
    """

    def __init__(self, config: MixtureConfig, train: TrainConfig, verify: TrainConfig):
        self.config = config
        for name in config.split:
            train.data.source(name)
        if verify.data != train.data or verify.tokenizer != train.tokenizer:
            raise UserError("verify.set changes data or tokenizer; the verification must use those of the search.")
        self._sweep = Sweep(config.output)
        shared, _ = self._sweep.prepare_shared(train)
        sources, self.sources, self.tokens = [], [], []
        for prepared, raw in zip(shared.data.sources, train.data.sources, strict=True):
            corpus = Prepared(prepared.paths[0])
            for name, where in _parts(config, raw, corpus):
                sources.append(dataclasses.replace(prepared, name=name, where=where))
                self.sources.append(dataclasses.replace(raw, name=name, where=where))
                used = corpus.select(where) & ~corpus.held_out(raw.eval_fraction)
                self.tokens.append(float(np.asarray(corpus.lengths, np.int64)[used].sum()))
        if len(sources) < 2:
            raise UserError("a mixture needs two components or more: add sources, or split one by a label.")
        data = dataclasses.replace(shared.data, sources=sources)
        self._train, self._verify = (
            dataclasses.replace(one, data=data, tokenizer=shared.tokenizer) for one in (train, verify)
        )
        self.components = tuple(source.name for source in sources)

    def train_proxies(self) -> list[Result]:
        """Train the proxies that have no result yet; return the results of all. The first is the uniform mixture."""
        drawn = draw(self.config, len(self.components))
        runs = [
            self._run(self._train, f"proxy {number}", weights, self.config.tokens, self.config.seed)
            for number, weights in enumerate(drawn)
        ]
        return self._sweep.run(runs, "proxies")

    def train_verification(self, proposal: Proposal, objective: dict[str, float]) -> Verdict:
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
                raise UserError(f"{row['key']!r} diverged, so there is no verification; lower optimizer.learning_rate.")
        return verdict(rows[::2], rows[1::2], objective)

    def _run(self, train: TrainConfig, name: str, weights: np.ndarray, tokens: float, seed: int) -> PlannedRun:
        key = f"{name} seed={seed}"
        config = sized(
            train, tokens, train.data.batch_size, self.config.warmup_share, self.config.eval_tokens, seed, key
        )
        sources = [
            # Weight 0 is refused; a millionth is no token in practice.
            dataclasses.replace(source, weight=max(float(weight), 1e-6))
            for source, weight in zip(config.data.sources, weights, strict=True)
        ]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
        return PlannedRun(
            key, {"weights": dict(zip(self.components, weights.tolist(), strict=True)), "seed": seed}, config
        )


def _parts(config: MixtureConfig, source: Source, corpus: Prepared) -> list[tuple[str, Where]]:
    """Return the components of a source: (name, selection of its documents)."""
    label = config.split.get(source.name)
    if label is None:
        return [(source.name, source.where)]
    where, parts = source.where, []
    if label in ("domain", "language"):
        kept = corpus.select(where)
        numbers = np.unique(np.asarray(getattr(corpus, label))[kept])
        for value in sorted(corpus.names(label)[i] for i in numbers):
            part = {**where, label: [value]}
            parts.append((f"{source.name} {value}".replace("/", "_"), part))
    else:
        if label in where:
            raise UserError(f"source {source.name!r}: where.{label} and split.{source.name} both cut by {label}.")
        edges: list[float | None] = [None, *config.edges[source.name], None]
        parts = [_between(source.name, where, label, low, high) for low, high in itertools.pairwise(edges)]
    for name, part in parts:
        if not (corpus.select(part) & ~corpus.held_out(source.eval_fraction)).any():
            raise UserError(f"component {name!r} has no document to train on; split {source.name!r} in another way.")
    if len(parts) < 2:
        raise UserError(f"split.{source.name}: every document has the same {label}, so there is nothing to split.")
    return parts


def _between(source: str, where: Where, label: str, low: float | None, high: float | None) -> tuple[str, Where]:
    """Return the component of the documents whose quality or length is at least `low` and below `high`."""
    name = f"below {high:g}" if low is None else f"from {low:g}" if high is None else f"{low:g} to {high:g}"
    name = f"{source} {label} {name}"
    # Ranges of `where` include both ends, so the upper one is the next smaller number.
    if label == "length":
        length = [None if low is None else math.ceil(low), None if high is None else math.ceil(high) - 1]
        return name, {**where, "length": length}
    top = None if high is None else float(np.nextafter(np.float32(high), np.float32(-np.inf)))
    return name, {**where, "quality": [low, top]}


def draw(config: MixtureConfig, components: int) -> np.ndarray:
    """Return the weights of the proxies [mixtures, k]: uniform ones, then Dirichlet draws with concentrations in geometric
    sequence from the lowest to the highest."""
    rng = np.random.default_rng(config.seed)
    low, high = config.concentration
    concentrations = np.geomspace(low, high, config.mixtures - 1)
    drawn = [rng.dirichlet(np.full(components, value)) for value in concentrations]
    return np.stack([np.full(components, 1 / components), *drawn])
