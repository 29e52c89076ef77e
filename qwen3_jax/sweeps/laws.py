"""Power laws of the best learning rate and batch size: the published ones, and fits to the optima of a sweep.

    learning_rate = a N^alpha D^beta          batch_tokens = c D^gamma

N: active parameters without embeddings, D: tokens. In logarithms a law is linear, so a fit is a regression that weighs each
cell by its own uncertainty plus the unexplained scatter between cells (random effects; Paule & Mandel 1982,
J. Res. Natl. Bur. Stand. 87(5)). A published law is the prior of the exponents; how far it may be off is a setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from qwen3_jax.errors import UserError


@dataclass(frozen=True)
class Law:
    """constant * N^parameters * D^tokens."""

    constant: float
    parameters: float
    tokens: float

    def __call__(self, parameters: float, tokens: float) -> float:
        return self.constant * parameters**self.parameters * tokens**self.tokens


@dataclass(frozen=True)
class Published:
    """A pair of published laws; batch sizes in tokens."""

    name: str
    source: str
    rate: Law
    batch: Law


def _of_compute(constant: float, exponent: float) -> Law:
    """Return the law of C = 6 N D."""
    return Law(constant * 6**exponent, exponent, exponent)


PUBLISHED = {
    "step_law": Published(
        "Step Law",
        "Li et al. 2025, arXiv 2503.04715",
        Law(1.79, -0.713, 0.307),
        Law(0.58, 0.0, 0.571),
    ),
    # Their C is non-embedding FLOPs with attention; at short rows 6 N D differs from it by a few percent.
    "deepseek": Published(
        "DeepSeek LLM",
        "DeepSeek-AI 2024, arXiv 2401.02954",
        _of_compute(0.3118, -0.1250),
        _of_compute(0.2920, 0.3271),
    ),
}


@dataclass(frozen=True)
class Interval:
    """A prediction with its interval at the requested probability."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A fitted law, in logarithms.

    Attributes:
        names: of the coefficients: "1", "N", "D".
        coefficients, covariance: [k], [k, k].
        alone: the covariance if there were no scatter [k, k].
        scatter: unexplained standard deviation between cells, in log units.
        degrees: of freedom of the noise of the cells, and of the scatter.
        centre: mean logarithms of N and D; coefficients[0] belongs there.
        prior: the published law the exponents were drawn to, or None.
        undetermined: exponents that the sweep alone does not determine; they are the prior's.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    alone: np.ndarray
    scatter: float
    degrees: tuple[int, int]
    centre: tuple[float, float]
    prior: str | None
    undetermined: tuple[str, ...]

    @property
    def law(self) -> Law:
        """The law in the form of the published ones."""
        slopes = dict(zip(self.names, self.coefficients.tolist(), strict=True))
        n, d = slopes.get("N", 0.0), slopes.get("D", 0.0)
        return Law(math.exp(slopes["1"] - n * self.centre[0] - d * self.centre[1]), n, d)

    def exponent(self, name: str) -> tuple[float, float]:
        """Return (value, standard error) of the exponent of "N" or "D"."""
        i = self.names.index(name)
        return float(self.coefficients[i]), float(math.sqrt(self.covariance[i, i]))

    def predict(self, parameters: float, tokens: float, level: float) -> Interval:
        """Return the optimum of a new cell; the interval has the uncertainty of the law and the scatter around it."""
        row = _row(self.names, math.log(parameters) - self.centre[0], math.log(tokens) - self.centre[1])
        mean = float(row @ self.coefficients)
        variance = float(row @ self.covariance @ row) + self.scatter**2
        # Welch & Satterthwaite: the noise comes from many runs, the scatter from few cells.
        of_noise = min(float(row @ self.alone @ row), variance)
        of_scatter = variance - of_noise
        degrees = variance**2 / (of_noise**2 / self.degrees[0] + of_scatter**2 / max(self.degrees[1], 1))
        reach = float(stats.t.ppf(0.5 + level / 2, degrees)) * math.sqrt(variance)
        return Interval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def fit(
    names: Sequence[str],
    parameters: Sequence[float],
    tokens: Sequence[float],
    values: Sequence[float],
    variances: Sequence[float],
    degrees: int,
    prior: tuple[str, Law, float] | None,
) -> Fitted:
    """Fit log values [cells] = coefficients . (1, log N, log D).

    Args:
        names: the terms: "1" and any of "N", "D".
        parameters, tokens: of each cell.
        values: natural logarithm of the optimum of each cell.
        variances: of `values`.
        degrees: of freedom of the noise that `variances` come from.
        prior: (name, law, standard deviation of its exponents), or None.

    Raises:
        UserError: the sweep does not determine the exponents and there is no prior.
    """
    log_n, log_d = np.log(parameters), np.log(tokens)
    centre = float(log_n.mean()), float(log_d.mean())
    design = np.stack([_row(names, n - centre[0], d - centre[1]) for n, d in zip(log_n, log_d, strict=True)])
    y, variance = np.asarray(values, float), np.asarray(variances, float)
    undetermined = _undetermined(names, design)
    if prior is None and undetermined:
        what = " and ".join({"N": "parameters", "D": "tokens"}[name] for name in undetermined)
        raise UserError(
            f"the sweep does not determine the exponent of {what}: {len(y)} usable cells with "
            f"{len(set(parameters))} model sizes and {len(set(tokens))} token counts; sweep two or more of each, crossed, or "
            "set a prior (step_law)."
        )
    strength = np.zeros(len(names))
    means = np.zeros(len(names))
    if prior is not None:
        exponents = {"N": prior[1].parameters, "D": prior[1].tokens}
        for i, name in enumerate(names):
            if name in exponents:
                strength[i], means[i] = prior[2] ** -2, exponents[name]

    def solve(scatter: float) -> tuple[np.ndarray, np.ndarray, float]:
        weight = 1 / (variance + scatter)
        covariance = np.linalg.inv(design.T @ (design * weight[:, None]) + np.diag(strength))
        coefficients = covariance @ (design.T @ (weight * y) + strength * means)
        return coefficients, covariance, float((weight * (y - design @ coefficients) ** 2).sum())

    left = len(y) - (len(names) - len(undetermined))
    scatter = _paule_mandel(lambda s: solve(s)[2], left, float(np.var(y)) + 1.0)
    coefficients, covariance, _ = solve(scatter)
    return Fitted(
        tuple(names), coefficients, covariance, solve(0.0)[1], math.sqrt(scatter), (degrees, left), centre,
        prior[0] if prior else None, undetermined,
    )  # fmt: skip


def _paule_mandel(squares: Callable[[float], float], degrees: int, top: float) -> float:
    """Return the variance between cells at which the weighted squares equal their degrees of freedom; 0 if they are below."""
    if degrees <= 0 or squares(0.0) <= degrees:
        return 0.0
    while squares(top) > degrees:
        top *= 4
    return float(optimize.brentq(lambda scatter: squares(scatter) - degrees, 0.0, top))


def _row(names: Sequence[str], n: float, d: float) -> np.ndarray:
    return np.array([{"1": 1.0, "N": n, "D": d}[name] for name in names])


def _undetermined(names: Sequence[str], design: np.ndarray) -> tuple[str, ...]:
    """Return the slopes that these cells do not determine; all slopes if they are collinear."""
    slopes = design[:, 1:]
    spread = np.sqrt((slopes**2).mean(axis=0)) if len(slopes) else np.zeros(slopes.shape[1])
    flat = [name for name, size in zip(names[1:], spread, strict=True) if size < 0.05]
    rest = [i for i, size in enumerate(spread) if size >= 0.05]
    if len(rest) > 1:
        scaled = slopes[:, rest] / spread[rest]
        if np.linalg.svd(scaled / math.sqrt(len(scaled)), compute_uv=False).min() < 0.05:
            return tuple(names[1:])
    return tuple(flat)
