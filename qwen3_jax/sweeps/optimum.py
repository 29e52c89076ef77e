"""The minimum of the loss of one (parameters, tokens) cell, by a parabola through the runs around the best one.

    x = log learning_rate, y = log batch_tokens
    loss(x, y) ~ b0 + b1 x + b2 x^2 [+ b3 y + b4 y^2 + b5 x y]        optimum: gradient = 0

Near its minimum the loss is convex in both and flat enough for that (Li et al. 2025, arXiv 2503.04715, section 3). The noise
is measured on all cells together, from the residuals of the parabolas, and propagated to the optima by the delta method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen3_jax.errors import UserError


@dataclass(frozen=True)
class Observation:
    """The measured loss of one run.

    Attributes:
        parameters: active, without embeddings.
        tokens: trained on.
        batch_tokens: of one step.
        learning_rate: peak.
        loss: held-out, nats per token; nan where the run diverged.
    """

    parameters: float
    tokens: float
    batch_tokens: float
    learning_rate: float
    loss: float


@dataclass(frozen=True)
class Optimum:
    """The fitted minimum of one cell.

    Attributes:
        parameters, tokens: the cell.
        log_rate, log_batch: natural logarithms; log_batch is None if all runs have one batch size.
        covariance: [1, 1] or [2, 2], of (log_rate, log_batch).
        loss: at the optimum, by the parabola.
        coefficients, centre: of the parabola, in (x, y) minus centre; for plots.
        runs: number of runs in the parabola's fit.
        warnings: sentences about the optimum.
        usable: whether it lies inside the sweep; others do not enter the laws.
    """

    parameters: float
    tokens: float
    log_rate: float
    log_batch: float | None
    covariance: np.ndarray
    loss: float
    coefficients: np.ndarray
    centre: tuple[float, float]
    runs: int
    warnings: tuple[str, ...] = ()
    usable: bool = True

    def at(self, log_rate: np.ndarray, log_batch: float | None) -> np.ndarray:
        """Return the loss by the parabola."""
        x = np.asarray(log_rate) - self.centre[0]
        y = None if self.log_batch is None or log_batch is None else np.full_like(x, log_batch - self.centre[1])
        return _design(x, y) @ self.coefficients


@dataclass(frozen=True)
class Optima:
    """The optima of all cells, and the standard deviation of one run's loss with its degrees of freedom."""

    cells: tuple[Optimum, ...]
    noise: float
    degrees: int


def cell_name(parameters: float, tokens: float) -> str:
    """Return the name of a cell for messages."""
    return f"{short(parameters)} parameters, {short(tokens)} tokens"


def short(number: float) -> str:
    """Format a count with three digits and a unit: 1.5M, 20B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def cells(observations: Iterable[Observation]) -> dict[tuple[float, float], list[Observation]]:
    """Group runs by (parameters, tokens), ascending."""
    out: dict[tuple[float, float], list[Observation]] = {}
    for one in observations:
        out.setdefault((one.parameters, one.tokens), []).append(one)
    return dict(sorted(out.items()))


def find(observations: Sequence[Observation], window: float) -> Optima:
    """Fit the optimum of every cell.

    Args:
        observations: all runs of a sweep.
        window: runs up to this many nats above the best of their cell enter its parabola; more if those are too few.

    Raises:
        UserError: a cell has too few runs, or there are no residuals to measure noise by.
    """
    fits = [_fit(key, runs, window) for key, runs in cells(observations).items()]
    degrees = sum(fit.degrees for fit in fits)
    if not degrees:
        raise UserError(
            "no parabola has residuals, so the noise cannot be measured; add a learning rate, a batch size or a "
            "seed to the sweep."
        )
    noise = float(np.sqrt(sum(fit.squares for fit in fits) / degrees))
    # Losses are float32, so even noiseless ones (of a formula) have this much.
    noise = max(noise, 1e-7)
    return Optima(tuple(_with_noise(fit, noise) for fit in fits), noise, degrees)


@dataclass(frozen=True)
class _Fit:
    optimum: Optimum
    inverse: np.ndarray  # (X^T X)^-1
    squares: float
    degrees: int


def _fit(key: tuple[float, float], runs: list[Observation], window: float) -> _Fit:
    name = cell_name(*key)
    finished = [one for one in runs if np.isfinite(one.loss)]
    if not finished:
        raise UserError(f"{name}: every run diverged; add lower learning rates.")
    both = len({one.batch_tokens for one in runs}) > 1
    for what, values in (("learning rates", {one.learning_rate for one in finished}),) + (
        (("batch sizes", {one.batch_tokens for one in finished}),) if both else ()
    ):
        if len(values) < 3:
            raise UserError(f"{name}: {len(values)} {what} with a loss; a minimum needs three or more.")
    columns = 6 if both else 3
    finished.sort(key=lambda one: one.loss)
    best = finished[0]
    centre = float(np.log(best.learning_rate)), float(np.log(best.batch_tokens))
    x = np.log([one.learning_rate for one in finished]) - centre[0]
    y = np.log([one.batch_tokens for one in finished]) - centre[1] if both else None
    loss = np.asarray([one.loss for one in finished])
    # Far from the optimum the loss is no parabola: leave out much worse runs, but keep the fit determined.
    count = int((loss <= loss[0] + window).sum())
    design = _design(x, y)
    while count < len(loss) and (count < columns + 1 or np.linalg.matrix_rank(design[:count]) < columns):
        count += 1
    design, loss = design[:count], loss[:count]
    if np.linalg.matrix_rank(design) < columns:
        raise UserError(
            f"{name}: {count} runs do not determine a minimum in learning rate{' and batch size' if both else ''}; run a "
            "grid of three by three or more."
        )
    coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
    squares = float(((design @ coefficients - loss) ** 2).sum())
    inverse = np.linalg.inv(design.T @ design)
    place, fitted, problems, usable = _minimum(coefficients, x[:count], None if y is None else y[:count], name, runs)
    optimum = Optimum(
        *key, centre[0] + place[0], centre[1] + place[1] if both else None, np.eye(len(place)), fitted, coefficients,
        centre, count, tuple(problems), usable,
    )  # fmt: skip
    return _Fit(optimum, inverse, squares, count - columns)


def _minimum(
    coefficients: np.ndarray, x: np.ndarray, y: np.ndarray | None, name: str, runs: list[Observation]
) -> tuple[np.ndarray, float, list[str], bool]:
    """Return the minimum (relative to the centre), its loss, warnings, and whether it lies inside the sweep."""
    hessian, gradient = _hessian(coefficients), _gradient(coefficients)
    if np.linalg.eigvalsh(hessian).min() <= 0:
        sentence = f"{name}: the loss has no minimum within the sweep; widen it."
        return np.zeros(len(gradient)), float(coefficients[0]), [sentence], False
    place = -np.linalg.solve(hessian, gradient)
    problems, usable = [], True
    axes = [("learning rate", "learning_rate", x)] + ([] if y is None else [("batch size", "batch_tokens", y)])
    for (what, attribute, values), coordinate in zip(axes, place, strict=True):
        swept = sorted({getattr(one, attribute) for one in runs})
        side = "lowest" if coordinate < values.min() else "highest" if coordinate > values.max() else ""
        if side:
            edge = swept[0] if side == "lowest" else swept[-1]
            problems.append(
                f"{name}: the optimum lies at the sweep's edge, beyond its {side} {what} ({short_rate(edge)}); add "
                f"{'lower' if side == 'lowest' else 'higher'} ones."
            )
            usable = False
    loss = float(coefficients[0] + gradient @ place + 0.5 * place @ hessian @ place)
    return place, loss, problems, usable


def _with_noise(fit: _Fit, noise: float) -> Optimum:
    """Propagate the noise of the losses to the minimum: H x = -g, so H dx = -(dg + dH x)."""
    optimum, coefficients = fit.optimum, fit.optimum.coefficients
    hessian = _hessian(coefficients)
    if np.linalg.eigvalsh(hessian).min() <= 0:
        return optimum
    place = -np.linalg.solve(hessian, _gradient(coefficients))
    jacobian = np.zeros((len(place), len(coefficients)))
    for i in range(len(coefficients)):
        unit = np.eye(len(coefficients))[i]
        jacobian[:, i] = -np.linalg.solve(hessian, _gradient(unit) + _hessian(unit) @ place)
    return replace(optimum, covariance=noise**2 * jacobian @ fit.inverse @ jacobian.T)


def short_rate(value: float) -> str:
    """Format a learning rate (2.00e-03) or a batch size (2k)."""
    return f"{value:.2e}" if value < 1 else short(value)


def _design(x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    columns = [np.ones_like(x), x, x * x]
    return np.stack(columns if y is None else [*columns, y, y * y, x * y], axis=1)


def _gradient(b: np.ndarray) -> np.ndarray:
    return b[1:2] if len(b) == 3 else b[[1, 3]]


def _hessian(b: np.ndarray) -> np.ndarray:
    return 2 * b[2:3, None] if len(b) == 3 else np.array([[2 * b[2], b[5]], [b[5], 2 * b[4]]])
