"""Fits recover the laws of synthetic sweeps, with intervals that cover as often as they claim."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qwen3_jax.errors import UserError
from qwen3_jax.sweeps import laws, scaling
from qwen3_jax.sweeps.config import ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED, Law
from qwen3_jax.sweeps.optimum import Observation, find

RATE, BATCH = Law(0.9, -0.5, 0.2), Law(0.7, 0.0, 0.5)
SIZES, TOKENS = (1e5, 4e5, 1.6e6), (2e6, 8e6)
ALONE = ScalingConfig(output="unused", prior="none", max_extrapolation=1e6)


def planted(
    rng: np.random.Generator,
    noise: float,
    rate: Law = RATE,
    batch: Law = BATCH,
    sizes=SIZES,
    tokens=TOKENS,
    scatter: float = 0.0,
    shift: float = 0.5,
    batches: int = 3,
) -> list[Observation]:
    """A sweep of 5 learning rates x `batches` batch sizes, off its optimum by up to `shift`, with a parabolic loss."""
    out = []
    for n, d in itertools.product(sizes, tokens):
        x0 = math.log(rate(n, d)) + scatter * rng.normal()
        y0 = math.log(batch(n, d)) + scatter * rng.normal()
        x_middle, y_middle = x0 + rng.uniform(-shift, shift), y0 + rng.uniform(-shift, shift) * (batches > 1)
        for i, j in itertools.product(range(-2, 3), range(batches)):
            dx = x_middle + i * math.log(2) - x0
            dy = y_middle + (j - (batches - 1) / 2) * math.log(2) - y0
            loss = 3 + 0.03 * dx * dx + 0.02 * dy * dy - 0.02 * dx * dy + noise * rng.normal()
            out.append(Observation(n, d, math.exp(y0 + dy), math.exp(x0 + dx), loss))
    return out


@pytest.mark.parametrize(("noise", "scatter"), [(0.002, 0.0), (0.005, 0.0), (0.002, 0.15)])
def test_a_planted_law_is_recovered_and_its_intervals_cover_as_often_as_they_say(noise, scatter):
    sweeps, inside, exponents = 150, {"rate": 0, "batch": 0}, []
    for seed in range(sweeps):
        fitted = scaling.fit(ALONE, planted(np.random.default_rng(seed), noise, scatter=scatter, shift=0.3))
        prediction = scaling.predict(ALONE, fitted, 2e7, 1e8)
        inside["rate"] += prediction.rate.low <= RATE(2e7, 1e8) <= prediction.rate.high
        inside["batch"] += prediction.batch.low <= BATCH(2e7, 1e8) <= prediction.batch.high
        exponents.append([fitted.rate.exponent("N")[0], fitted.rate.exponent("D")[0], fitted.batch.exponent("D")[0]])
    # 90% intervals over 150 sweeps: 135 +- 3.7; four standard deviations below, and not so wide that they always hold.
    for hits in inside.values():
        assert 120 <= hits <= 149
    mean, error = np.mean(exponents, axis=0), np.std(exponents, axis=0) / math.sqrt(sweeps)
    assert (np.abs(mean - [-0.5, 0.2, 0.5]) < 4 * error + 1e-3).all()


@settings(max_examples=40)
@given(
    alpha=st.floats(-1.0, 0.2), beta=st.floats(-0.3, 0.6), gamma=st.floats(0.1, 0.8), constant=st.floats(1e-3, 1e2),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_without_noise_any_law_is_found_exactly(alpha, beta, gamma, constant, seed):
    rate, batch = Law(constant, alpha, beta), Law(constant, 0.0, gamma)
    runs = planted(np.random.default_rng(seed), 0.0, rate, batch, shift=0.3)
    fitted = scaling.fit(ALONE, runs)
    prediction = scaling.predict(ALONE, fitted, 1e7, 1e8)
    assert prediction.rate.value == pytest.approx(rate(1e7, 1e8), rel=1e-3)
    assert prediction.batch.value == pytest.approx(batch(1e7, 1e8), rel=1e-3)
    assert prediction.rate.low < prediction.rate.value < prediction.rate.high
    # Nothing but the runs matters: not their order, nor runs that diverged.
    mixed = [runs[i] for i in np.random.default_rng(seed).permutation(len(runs))]
    mixed.append(Observation(runs[0].parameters, runs[0].tokens, runs[0].batch_tokens, 1e9, math.nan))
    again = scaling.predict(ALONE, scaling.fit(ALONE, mixed), 1e7, 1e8)
    assert again.rate.value == pytest.approx(prediction.rate.value, rel=1e-6)


def test_published_laws_give_what_their_authors_used():
    """DeepSeek LLM 7B and 67B, both on 2T tokens with rows of 4,096 (arXiv 2401.02954, table 2)."""
    for parameters, rate, rows in ((6.5e9, 4.2e-4, 2304), (66e9, 3.2e-4, 4608)):
        law = PUBLISHED["deepseek"]
        assert law.rate(parameters, 2e12) == pytest.approx(rate, rel=0.08)
        assert law.batch(parameters, 2e12) == pytest.approx(rows * 4096, rel=0.08)
    # Step Law: the optimum of 1B parameters and 100B tokens lies between 1e-3 and 2e-3, at one to two million tokens.
    step = PUBLISHED["step_law"]
    assert 1e-3 < step.rate(1e9, 1e11) < 2e-3
    assert 1e6 < step.batch(1e9, 1e11) < 2e6


def test_a_published_law_stands_in_for_what_the_sweep_does_not_determine(capsys):
    rng = np.random.default_rng(0)
    one_size = planted(rng, 0.002, sizes=(4e5,), shift=0.2)
    with pytest.raises(UserError, match=r"does not determine the exponent of parameters: 2 usable cells with 1 model"):
        scaling.fit(ALONE, one_size)
    fitted = scaling.fit(ScalingConfig(output="unused"), one_size)
    assert fitted.rate.undetermined == ("N",)
    value, error = fitted.rate.exponent("N")
    assert value == pytest.approx(PUBLISHED["step_law"].rate.parameters, abs=0.01)
    assert error == pytest.approx(0.3, abs=0.01)
    # Tokens that grow with the model: which of the two it is cannot be told.
    diagonal = [
        run for n, d in ((1e5, 2e6), (4e5, 8e6)) for run in planted(rng, 0.002, sizes=(n,), tokens=(d,), shift=0.2)
    ]
    with pytest.raises(UserError, match="exponent of parameters and tokens"):
        scaling.fit(ALONE, diagonal)
    # A single cell, one batch size: the law's exponents through the measured optimum.
    single = planted(rng, 0.002, sizes=(4e5,), tokens=(2e6,), shift=0.2, batches=1)
    fitted = scaling.fit(ScalingConfig(output="unused"), single)
    assert fitted.batch is None
    assert fitted.rate.law(4e5, 2e6) == pytest.approx(RATE(4e5, 2e6), rel=0.2)
    # The prior gives way to many cells.
    many = planted(rng, 0.001, sizes=(1e4, 1e5, 1e6, 1e7), tokens=(1e6, 1e7, 1e8), shift=0.3)
    assert scaling.fit(ScalingConfig(output="unused"), many).rate.exponent("N")[0] == pytest.approx(-0.5, abs=0.03)
    assert capsys.readouterr().err == ""


def test_what_the_sweep_cannot_say_is_warned_of_or_refused_by_name(capsys):
    rng = np.random.default_rng(1)
    runs = planted(rng, 0.001, shift=0.1)
    # One cell of six was swept too low: its optimum is beyond the highest learning rate.
    low = [
        Observation(o.parameters, o.tokens, o.batch_tokens, o.learning_rate, o.loss)
        for o in runs
        if not (o.parameters == 1e5 and o.tokens == 2e6 and o.learning_rate > 0.6 * RATE(1e5, 2e6))
    ]
    # (Three learning rates are left of it.)
    extra = [
        Observation(1e5, 2e6, o.batch_tokens, o.learning_rate / 8, o.loss + 0.03 * math.log(8) ** 2 * 2)
        for o in low
        if (o.parameters, o.tokens) == (1e5, 2e6)
    ]
    fitted = scaling.fit(ALONE, [*low, *extra])
    warned = capsys.readouterr().err
    assert (
        "100k parameters, 2M tokens: the optimum lies at the sweep's edge, beyond its highest learning rate" in warned
    )
    assert [cell.usable for cell in fitted.optima.cells].count(False) == 1

    with pytest.raises(UserError, match=r"50 times beyond the sweep \(100k to 1.6M\).*Step Law"):
        scaling.predict(ScalingConfig(output="unused", max_extrapolation=10), fitted, 8e7, 8e6)
    with pytest.raises(UserError, match=r"the target's 1k tokens are 2,000 times beyond"):
        scaling.predict(ScalingConfig(output="unused"), fitted, 4e5, 1e3)
    two = [o for o in runs if round(math.log2(o.learning_rate / runs[0].learning_rate)) in (0, 1)]
    with pytest.raises(UserError, match="100k parameters, 2M tokens: 2 learning rates with a loss"):
        scaling.fit(ALONE, two[:6])
    with pytest.raises(UserError, match="noise cannot be measured"):
        find(planted(rng, 0.0, sizes=(1e5,), tokens=(2e6,), batches=1)[1:4], 0.2)
    lost = [Observation(o.parameters, o.tokens, o.batch_tokens, o.learning_rate, math.nan) for o in runs]
    with pytest.raises(UserError, match="100k parameters, 2M tokens: every run diverged"):
        scaling.fit(ALONE, lost)
    hill = [
        Observation(o.parameters, o.tokens, o.batch_tokens, o.learning_rate, 6 - o.loss) for o in planted(rng, 0.001)
    ]
    with pytest.raises(UserError, match="no cell of the sweep has its optimum inside its runs"):
        scaling.fit(ScalingConfig(output="unused", window=1.0), hill)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"parameters": 1, "tokens": 1, "batch_tokens": 1, "learning_rate": 1}, "runs.jsonl:1: 'loss' must be"),
        ({"parameters": 0, "tokens": 1, "batch_tokens": 1, "learning_rate": 1, "loss": 1}, "'parameters' must be"),
        ({"parameters": 1, "tokens": "x", "batch_tokens": 1, "learning_rate": 1, "loss": 1}, "'tokens' must be"),
    ],
)
def test_a_line_of_results_without_a_number_is_named(row, message):
    with pytest.raises(UserError, match=message):
        scaling.observations([row], "runs.jsonl")


def test_scatter_between_cells_widens_the_interval():
    widths = []
    for scatter in (0.0, 0.3):
        runs = planted(np.random.default_rng(5), 0.001, scatter=scatter, shift=0.2, sizes=(1e5, 2e5, 4e5, 8e5))
        optima = find(runs, 1.0)
        fitted = laws.fit(
            ("1", "N", "D"),
            [c.parameters for c in optima.cells],
            [c.tokens for c in optima.cells],
            [c.log_rate for c in optima.cells],
            [float(c.covariance[0, 0]) for c in optima.cells],
            optima.degrees,
            None,
        )
        prediction = fitted.predict(1e6, 1e7, 0.9)
        widths.append(math.log(prediction.high / prediction.low))
    assert widths[1] > 3 * widths[0]


def test_noise_optima_and_their_covariance_follow_from_least_squares():
    """Noise: residual squares of all parabolas over their degrees of freedom. Covariance: by finite differences of refits."""
    runs = planted(np.random.default_rng(2), 0.003, sizes=(1e5, 4e5), tokens=(2e6,), shift=0.2)
    optima = find(runs, 10.0)
    fits, squares = [], 0.0
    for cell in optima.cells:
        own = [run for run in runs if run.parameters == cell.parameters]
        x, y = (np.log([getattr(run, name) for run in own]) for name in ("learning_rate", "batch_tokens"))
        losses = np.array([run.loss for run in own])
        design = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=1)

        def minimum(losses, design=design):
            b = np.linalg.lstsq(design, losses, rcond=None)[0]
            return -np.linalg.solve([[2 * b[2], b[5]], [b[5], 2 * b[4]]], b[[1, 3]])

        squares += float(((design @ np.linalg.lstsq(design, losses, rcond=None)[0] - losses) ** 2).sum())
        assert (cell.log_rate, cell.log_batch) == pytest.approx(tuple(minimum(losses)), rel=1e-6)
        assert cell.runs == 15
        nudges = 1e-4 * np.eye(15)
        fits.append(np.stack([(minimum(losses + e) - minimum(losses - e)) / 2e-4 for e in nudges], axis=1))
    assert optima.degrees == 2 * (15 - 6)
    assert optima.noise == pytest.approx(math.sqrt(squares / optima.degrees), rel=1e-6)
    for cell, jacobian in zip(optima.cells, fits, strict=True):
        np.testing.assert_allclose(cell.covariance, optima.noise**2 * jacobian @ jacobian.T, rtol=1e-3)


def test_runs_far_above_the_best_of_their_cell_stay_out_of_its_parabola():
    runs = planted(np.random.default_rng(2), 0.0, sizes=(1e5,), tokens=(2e6,), batches=1, shift=0.2)
    far = [Observation(1e5, 2e6, runs[0].batch_tokens, runs[-1].learning_rate * 8, min(run.loss for run in runs) + 0.5)]
    narrow, wide = (find([*runs, *far], window).cells[0] for window in (0.45, 0.55))
    assert (narrow.runs, wide.runs) == (5, 6)
    assert find([*runs, *far], 1e-9).cells[0].runs == 4  # as many as leave a residual
    assert narrow.log_rate == pytest.approx(math.log(RATE(1e5, 2e6)), abs=1e-6)
    assert abs(wide.log_rate - narrow.log_rate) > 0.003


def test_a_prediction_has_the_uncertainty_of_the_law_and_the_scatter_around_it():
    covariance, alone = np.diag([4e-4, 1e-2, 9e-4]), np.diag([1e-4, 4e-3, 4e-4])
    fitted = laws.Fitted(
        ("1", "N", "D"), np.array([-6.0, -0.5, 0.25]), covariance, alone, 0.05, (18, 3), (math.log(1e6), math.log(1e8)),
        prior=None, undetermined=(),
    )  # fmt: skip
    row = np.array([1.0, math.log(10), math.log(0.5)])
    variance = row @ covariance @ row + 0.05**2
    of_noise = row @ alone @ row
    degrees = variance**2 / (of_noise**2 / 18 + (variance - of_noise) ** 2 / 3)
    reach = stats.t.ppf(0.95, degrees) * math.sqrt(variance)
    mean = row @ fitted.coefficients
    interval = fitted.predict(1e7, 5e7, 0.9)
    np.testing.assert_allclose(
        [interval.low, interval.value, interval.high], np.exp([mean - reach, mean, mean + reach]), rtol=1e-9
    )
    assert fitted.law(1e7, 5e7) == pytest.approx(interval.value)
    assert fitted.exponent("N") == (-0.5, pytest.approx(0.1))


def test_without_a_prior_a_law_is_weighted_least_squares_and_a_prior_is_one_more_cell_for_each_exponent():
    rng = np.random.default_rng(4)
    n, d = (a.ravel() for a in np.meshgrid([1e5, 4e5, 1.6e6], [2e6, 8e6]))
    variances = np.array([1.0, 2, 3, 1, 2, 3]) * 1e-2
    values = np.log(RATE(n, d)) + 0.02 * rng.normal(size=6)
    centred = [np.ones(6), np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()]

    def solve(design, values, variances):
        weight = 1 / variances
        covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
        return covariance @ design.T @ (weight * values), covariance

    plain = laws.fit(("1", "N", "D"), n, d, values, variances, 9, None)
    coefficients, covariance = solve(np.stack(centred, axis=1), values, variances)
    np.testing.assert_allclose(plain.coefficients, coefficients)
    np.testing.assert_allclose(plain.covariance, covariance)
    assert (plain.scatter, plain.degrees) == (0.0, (9, 3))

    design = np.concatenate([np.stack(centred, axis=1), [[0, 1, 0], [0, 0, 1]]])
    prior = laws.fit(("1", "N", "D"), n, d, values, variances, 9, ("law", Law(1.0, -0.9, 0.6), 0.2))
    coefficients, covariance = solve(design, np.append(values, [-0.9, 0.6]), np.append(variances, [0.04, 0.04]))
    np.testing.assert_allclose(prior.coefficients, coefficients)
    np.testing.assert_allclose(prior.covariance, covariance)
    # Scatter (Paule & Mandel): the weighted squares equal the 3 cells that are left.
    wide = laws.fit(("1", "N", "D"), n, d, values + np.array([1, -1, 1, -1, -1, 1]), variances, 9, None)
    residuals = values + np.array([1, -1, 1, -1, -1, 1]) - np.stack(centred, axis=1) @ wide.coefficients
    assert (residuals**2 / (variances + wide.scatter**2)).sum() == pytest.approx(3)
