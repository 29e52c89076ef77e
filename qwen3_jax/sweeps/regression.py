"""From the weights of a mixture to a held-out loss: three small regressions, and the choice between them.

    linear:        loss = sum_i t_i w_i
    logarithmic:   loss = c + sum_i t_i log(w_i + 0.01)
    exponential:   loss = c + exp(sum_i t_i w_i)         Ye et al. 2024, "Data Mixing Laws", arXiv 2403.16952

(Weights sum to one, so the linear form needs no constant and the exponential one no factor.) Proxies are few, so the
form of each held-out loss is chosen by its leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from qwen3_jax.errors import UserError

Predictor = Callable[[np.ndarray], np.ndarray]
_FLOOR = 0.01  # shares far below this are alike to the logarithmic form
_RIDGE = 1e-4  # of the slopes, in nats: keeps them finite where weights hardly vary


def linear(weights: np.ndarray, losses: np.ndarray) -> Predictor:
    """Fit the linear form to weights [n, k] and losses [n]."""
    slopes = _ridge(weights, losses - losses.mean())
    mean = losses.mean()
    return lambda w: w @ slopes + mean


def logarithmic(weights: np.ndarray, losses: np.ndarray) -> Predictor:
    """Fit the logarithmic form."""
    features = np.log(weights + _FLOOR)
    centre, mean = features.mean(axis=0), losses.mean()
    slopes = _ridge(features - centre, losses - mean)
    return lambda w: (np.log(w + _FLOOR) - centre) @ slopes + mean


def exponential(weights: np.ndarray, losses: np.ndarray) -> Predictor:
    """Fit the exponential form, from a start that is linear in log(loss - c)."""
    low, spread = losses.min(), max(float(np.ptp(losses)), 1e-6)

    def residuals(p: np.ndarray) -> np.ndarray:
        fitted = p[0] + np.exp(np.clip(weights @ p[1:], -50, 20))
        return np.concatenate([fitted - losses, np.sqrt(_RIDGE) * spread * (p[1:] - p[1:].mean())])

    def slopes(p: np.ndarray) -> np.ndarray:
        grown = np.exp(np.clip(weights @ p[1:], -50, 20))[:, None]
        k = len(p) - 1
        pull = np.sqrt(_RIDGE) * spread * (np.eye(k) - 1 / k)
        return np.block([[np.ones_like(grown), grown * weights], [np.zeros((k, 1)), pull]])

    best = None
    for below in (0.3, 3.0):
        c = max(low - below * spread, 0.0)
        start = np.concatenate([[c], np.linalg.lstsq(weights, np.log(losses - c + 1e-9), rcond=None)[0]])
        upper = np.concatenate([[low], np.full(weights.shape[1], np.inf)])
        lower = np.concatenate([[-1e-9], np.full(weights.shape[1], -np.inf)])
        start = np.clip(start, lower + 1e-12, upper - 1e-12)
        solution = optimize.least_squares(residuals, start, slopes, bounds=(lower, upper), max_nfev=100)
        if best is None or solution.cost < best.cost:
            best = solution
    assert best is not None
    p = best.x
    return lambda w: p[0] + np.exp(np.clip(w @ p[1:], -50, 20))


FORMS: Mapping[str, Callable[[np.ndarray, np.ndarray], Predictor]] = {
    "linear": linear,
    "logarithmic": logarithmic,
    "exponential": exponential,
}


@dataclass(frozen=True)
class Chosen:
    """The regression of one held-out loss.

    Attributes:
        form: its name in FORMS.
        errors: of each form, root mean square over the runs left out in turn, in nats.
        left_out: prediction of the chosen form for each run when fitted to the others [n].
    """

    form: str
    errors: dict[str, float]
    left_out: np.ndarray


def choose(weights: np.ndarray, losses: np.ndarray) -> Chosen:
    """Choose a form for weights [n, k] and losses [n].

    Raises:
        UserError: fewer than k + 3 runs.
    """
    n, k = weights.shape
    if n < k + 3:
        raise UserError(f"{n} runs are too few for {k} components; mixtures must be at least {k + 3}.")
    errors, left_out = {}, {}
    for name, fit in FORMS.items():
        kept = [np.arange(n) != i for i in range(n)]
        left_out[name] = np.array([fit(weights[keep], losses[keep])(weights[~keep])[0] for keep in kept])
        errors[name] = float(np.sqrt(((left_out[name] - losses) ** 2).mean()))
    form = min(errors, key=errors.__getitem__)
    return Chosen(form, errors, left_out[form])


def minimise(
    loss: Callable[[np.ndarray], float], low: np.ndarray, high: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, float]:
    """Minimise a loss over weights on the simplex within [low, high] per component; return the weights and the loss.

    Args:
        loss: of weights [k].
        low, high: [k].
        starts: initial weights [m, k]; infeasible ones are projected first.

    Raises:
        UserError: no weights satisfy the bounds.
    """
    if low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9 or (low > high).any():
        raise UserError(
            f"no mixture satisfies the bounds: least shares sum to {low.sum():.2f}, largest to {high.sum():.2f}; lower "
            "min_weight or target_tokens, or raise max_epochs."
        )
    best, value = None, np.inf
    for start in starts:
        solution = optimize.minimize(
            loss,
            _inside(start, low, high),
            method="SLSQP",
            bounds=list(zip(low, high, strict=True)),
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}],
            options={"maxiter": 200, "ftol": 1e-10},
        )
        weights = _inside(solution.x, low, high)
        candidate = loss(weights)
        if candidate < value:
            best, value = weights, candidate
    assert best is not None
    return best, float(value)


def _inside(weights: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Project weights onto the simplex within bounds; the shift is found by bisection."""

    def total(shift: float) -> float:
        return float(np.clip(weights + shift, low, high).sum() - 1)

    reach = 2 + float(np.abs(weights).max())
    if total(-reach) >= 0:
        return low.copy()
    if total(reach) <= 0:
        return high.copy()
    return np.clip(weights + optimize.brentq(total, -reach, reach, xtol=1e-14), low, high)


def _ridge(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    scale = _RIDGE * len(values) * float((features**2).mean())
    k = features.shape[1]
    return np.linalg.solve(features.T @ features + scale * np.eye(k), features.T @ values)
