"""The typed configurations of `qwen3 scaling fit` and `qwen3 mixture search`.

Both name a training configuration (`train`, as for `train.py --config`) and set some of its fields for each run, listed below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.errors import UserError

Prior = Literal["step_law", "deepseek", "none"]


@dataclass(frozen=True)
class ModelSize:
    """One model of a sweep.

    Attributes:
        name: a unique label.
        set: changes to the training configuration by dotted name: {model.config.hidden_size: 64}.
    """

    name: str
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The target of a prediction: a training configuration (its architecture, tokens and row length), or numbers.

    Attributes:
        config: a training configuration; a run of several stages is predicted for its first.
        parameters: active, without embeddings.
        tokens: to be trained on.
        sequence_length: tokens in a row; null is that of the sweep's training configuration.
    """

    config: str | None = None
    parameters: float | None = None
    tokens: float | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        if self.config is None and (self.parameters is None) != (self.tokens is None):
            raise UserError("target needs both parameters and tokens, or config.")
        if self.config is not None and self.parameters is not None:
            raise UserError("target.config and target.parameters both set the size of the model; give only one.")
        positive = above(0, finite=True)
        check_bounds(vars(self), "target.", parameters=positive, tokens=positive, sequence_length=whole(1))


@dataclass(frozen=True)
class ScalingConfig:
    """A sweep over learning rate x batch size x model size x tokens, and its fit.

    Every run sets steps, data.batch_size, optimizer.learning_rate and warmup_steps, seed, and eval_batches. Loss is the mean of
    the held-out losses at the end.

    Attributes:
        output: output folder: results.jsonl, tokenizer, data, logs, laws.png, result.json, config.yaml.
        train: a training configuration; not needed with --runs.
        set: changes to it for all runs, by dotted name.
        models: the sizes to sweep, each a name and changes of the training configuration.
        tokens: tokens of a run.
        learning_rates: peaks; null is a grid of `rate_points` around the prediction of the law `start` for each cell.
        batch_tokens: tokens of a step; null is a grid of `batch_points` (powers of two in rows) around the same law.
        start: the published law at the centre of such grids.
        rate_points, rate_ratio, batch_points, batch_ratio: of such grids, and how far `widen` goes.
        widen: how often a row of runs is added to a cell whose best run lies at the edge.
        seeds: of the initial weights; each run is repeated with each.
        warmup_share: share of the steps.
        eval_tokens: held-out tokens of each source (whole rows).
        window: runs up to this many nats above the best of their cell enter its parabola.
        prior: published law that is the prior of the exponents; none fits the sweep alone.
        prior_deviation: standard deviation of the exponents around it (published laws differ by about 0.2).
        level: probability of the intervals.
        target: what to predict for; null fits only.
        max_extrapolation: largest ratio of the target's parameters or tokens to the largest in the sweep.
    """

    output: str
    train: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    models: list[ModelSize] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    learning_rates: list[float] | None = None
    batch_tokens: list[int] | None = None
    start: Literal["step_law", "deepseek"] = "step_law"
    rate_points: int = 5
    rate_ratio: float = 2.0
    batch_points: int = 3
    batch_ratio: float = 2.0
    widen: int = 2
    seeds: list[int] = field(default_factory=lambda: [0])
    warmup_share: float = 0.1
    eval_tokens: int = 65_536
    window: float = 0.15
    prior: Prior = "step_law"
    prior_deviation: float = 0.3
    level: float = 0.9
    target: Target | None = None
    max_extrapolation: float = 100.0

    def __post_init__(self) -> None:
        names = [one.name for one in self.models]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"models has two sizes named {name!r}.")
        positive = above(0, finite=True)
        check_bounds(
            vars(self), tokens=positive, learning_rates=positive, batch_tokens=whole(1), rate_points=whole(3),
            batch_points=whole(1), widen=whole(0), eval_tokens=whole(1), rate_ratio=above(1), batch_ratio=above(1),
            window=positive, prior_deviation=positive, max_extrapolation=positive, warmup_share=between(0, 0.9),
            level=between(0.5, 0.999), seeds=whole(0),
        )  # fmt: skip
        _check_seeds("seeds", self.seeds)


@dataclass(frozen=True)
class Verify:
    """Verification runs: the proposed mixture against the uniform one.

    Attributes:
        seeds: one pair of runs each, other seeds than the search's.
        tokens: of a run; null is the search's.
        set: further changes to the training configuration by dotted name: a larger model.
    """

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    tokens: float | None = None
    set: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(vars(self), "verify.", tokens=above(0, finite=True), seeds=whole(0))
        _check_seeds("verify.seeds", self.seeds)


@dataclass(frozen=True)
class MixtureConfig:
    """A search for the weights of a mixture over sources and instance labels.

    Every run sets the sources' weights, steps, warm-up, seed, and eval_batches.

    Attributes:
        output: output folder: results.jsonl, tokenizer, data, logs, mixture.png, result.json, config.yaml.
        train: a training configuration; its sources are the components of the mixture.
        set: changes to it, by dotted name.
        split: sources that become one component per value of a label: {web: domain}; domain, language, quality or length.
        edges: where quality or length is cut: {web: [0.5, 0.8]}.
        mixtures: proxies, the uniform mixture included.
        concentration: [lowest, highest] of the Dirichlet distributions that weights are drawn from, per component: below 1 most
            weight is on a few, far above 1 all are near uniform.
        tokens: of a run.
        objective: weights of the held-out losses by name; null is the plain mean.
        min_weight: least share of a component.
        target_tokens, max_epochs: a component's share is at most `max_epochs` epochs of it in a run of `target_tokens`
            (4 epochs are about as good as new text: Muennighoff et al. 2023, arXiv 2305.16264).
        warmup_share: share of the steps.
        eval_tokens: held-out tokens of each component (whole rows).
        seed: of the drawn weights, and of the proxies' initial weights.
        verify: of the proposal.
    """

    output: str
    train: str
    tokens: float
    set: dict[str, Any] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)
    edges: dict[str, list[float]] = field(default_factory=dict)
    mixtures: int = 24
    concentration: list[float] = field(default_factory=lambda: [0.5, 4.0])
    objective: dict[str, float] | None = None
    min_weight: float = 0.01
    target_tokens: float | None = None
    max_epochs: float = 4.0
    warmup_share: float = 0.1
    eval_tokens: int = 65_536
    seed: int = 0
    verify: Verify = field(default_factory=Verify)

    def __post_init__(self) -> None:
        positive = above(0, finite=True)
        check_bounds(
            vars(self), tokens=positive, target_tokens=positive, max_epochs=positive, eval_tokens=whole(1), mixtures=whole(4),
            min_weight=between(0, 0.5), warmup_share=between(0, 0.9), seed=whole(0),
        )  # fmt: skip
        if len(self.concentration) != 2 or not 0 < self.concentration[0] <= self.concentration[1]:
            raise UserError(f"concentration must be [lowest, highest], both above 0, got {self.concentration}.")
        for name, label in self.split.items():
            if label not in ("domain", "language", "quality", "length"):
                raise UserError(f"split.{name} is {label!r}; sources split by domain, language, quality or length.")
            if (label in ("quality", "length")) != (name in self.edges):
                raise UserError(
                    f"split.{name} is {label!r}: "
                    + (
                        f"give edges.{name}."
                        if name not in self.edges
                        else f"edges.{name} belongs to quality or length."
                    )
                )
        for name, edges in self.edges.items():
            if name not in self.split:
                raise UserError(f"edges.{name} has no effect: split.{name} is not set.")
            if not edges or sorted(set(edges)) != edges:
                raise UserError(f"edges.{name} must ascend, got {edges}.")
        if self.objective is not None:
            if not self.objective:
                raise UserError("objective names no held-out loss; leave it out for their plain mean.")
            check_bounds(self.objective, "objective.", **dict.fromkeys(self.objective, at_least(0)))
        if self.seed in self.verify.seeds:
            raise UserError(f"verify.seeds holds the search's own seed ({self.seed}); verification needs other seeds.")


def _check_seeds(name: str, seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{name} must hold at least one seed, and none twice; got {seeds}.")
