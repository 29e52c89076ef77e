"""From mixtures to losses and back: planted laws, the simplex, verdicts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.errors import UserError
from qwen3_jax.sweeps import mixture, mixture_proposal, regression
from qwen3_jax.sweeps.config import MixtureConfig, Verify

NAMES = ("code", "docs", "manual", "sums")
OWN = -np.diag([1.5, 3.0, 0.8, 2.0]) - 0.2 * np.random.default_rng(3).random((4, 4))


def config(**changes) -> MixtureConfig:
    return MixtureConfig(output="unused", train="unused", tokens=1e6, **changes)


def exponential(w: np.ndarray) -> np.ndarray:
    return np.array([2.0, 0.5, 3.0, 0.2]) + np.exp(0.5 + w @ OWN.T)


def linear(w: np.ndarray) -> np.ndarray:
    return 3 + 0.5 * w @ OWN.T


def logarithmic(w: np.ndarray) -> np.ndarray:
    return 3 + 0.1 * np.log(w + 0.01) @ OWN.T


def rows(truth, weights: np.ndarray, noise: float = 0.0) -> list[dict]:
    losses = truth(weights) + noise * np.random.default_rng(0).normal(size=weights.shape)
    named = [dict(zip(NAMES, values.tolist(), strict=True)) for values in losses]
    return [
        {"key": f"proxy {i}", "weights": dict(zip(NAMES, w.tolist(), strict=True)), "losses": loss, "loss": 1.0}
        for i, (w, loss) in enumerate(zip(weights, named, strict=True))
    ]


@pytest.mark.parametrize("truth", [linear, logarithmic, exponential])
def test_the_planted_form_is_chosen_and_its_best_mixture_is_found(truth):
    weights = mixture.draw(config(mixtures=16), len(NAMES))
    assert weights[0].tolist() == [0.25] * 4
    result = mixture_proposal.regress(config(), NAMES, rows(truth, weights, noise=0.002))
    assert {chosen.form for chosen in result.chosen.values()} == {truth.__name__}
    assert all(chosen.errors[chosen.form] < 0.006 for chosen in result.chosen.values())
    assert result.fidelity > 0.9
    proposal = mixture_proposal.propose(config(), result, [1e9] * 4)
    assert proposal.weights.sum() == pytest.approx(1)
    # As good as the best of many mixtures by the truth itself, within the noise.
    tried = 0.01 + 0.96 * np.random.default_rng(1).dirichlet(np.ones(4), 20_000)
    assert truth(proposal.weights[None]).mean() < truth(tried).mean(axis=1).min() + 0.01
    assert proposal.predicted == pytest.approx(float(truth(proposal.weights[None]).mean()), abs=0.01)
    assert proposal.predicted < proposal.uniform


def test_bounds_objective_and_diverged_proxies(capsys):
    lines = rows(exponential, mixture.draw(config(mixtures=16), 4))
    lines[3] = lines[3] | {"loss": None, "losses": {}}
    asked = config(objective={"docs": 2.0, "sums": 1.0}, target_tokens=1e6, max_epochs=2.0)
    result = mixture_proposal.regress(asked, NAMES, lines)
    assert "'proxy 3' diverged" in capsys.readouterr().err
    assert len(result.weights) == 15
    assert result.objective == {"docs": pytest.approx(2 / 3), "sums": pytest.approx(1 / 3)}
    proposal = mixture_proposal.propose(asked, result, [1e9, 1e5, 1e9, 1e9])
    assert proposal.weights[1] == pytest.approx(0.2)  # 2 epochs of 100k tokens in a run of 1M
    assert proposal.weights.min() >= 0.01 - 1e-12
    with pytest.raises(UserError, match=r"no mixture satisfies the bounds: .* largest to 0.80"):
        mixture_proposal.propose(asked, result, [1e5] * 4)
    with pytest.raises(UserError, match=r"objective names 'doc'.*Did you mean 'docs'"):
        mixture_proposal.regress(config(objective={"doc": 1.0}), NAMES, lines)
    with pytest.raises(UserError, match="6 runs are too few for 4 components; mixtures must be at least 7"):
        mixture_proposal.regress(config(), NAMES, lines[4:10])


@settings(max_examples=100)
@given(
    weights=st.lists(st.floats(-2, 2), min_size=2, max_size=6),
    low=st.floats(0, 0.15),
    high=st.floats(0.55, 1),
)
def test_weights_are_projected_onto_the_simplex_within_bounds(weights, low, high):
    k = len(weights)
    lows, highs = np.full(k, low), np.full(k, high)
    inside = regression._inside(np.asarray(weights), lows, highs)
    assert inside.sum() == pytest.approx(1, abs=1e-9)
    assert (inside >= low - 1e-12).all()
    assert (inside <= high + 1e-12).all()
    assert regression._inside(inside, lows, highs) == pytest.approx(inside, abs=1e-9)
    # The nearest such weights: no other feasible ones are nearer.
    others = [regression._inside(o, lows, highs) for o in np.random.default_rng(0).dirichlet(np.ones(k), 20)]
    distance = np.linalg.norm(inside - weights)
    assert all(np.linalg.norm(other - weights) >= distance - 1e-9 for other in others)


def test_the_verdict_says_no_more_than_the_runs():
    def pairs(ours: list[float], theirs: list[float]) -> mixture_proposal.Verdict:
        rows_of_both = [[{"losses": {"a": value, "b": value + 1}} for value in values] for values in (ours, theirs)]
        return mixture_proposal.verdict(*rows_of_both, {"a": 0.5, "b": 0.5})

    better = pairs([2.0, 2.1, 2.05], [2.2, 2.31, 2.24])
    # Differences of -0.2, -0.21 and -0.19: a deviation of 0.01, and the 97.5% quantile of t with 2 degrees of freedom.
    reach = 4.302653 * 0.01 / 3**0.5
    assert better.difference == pytest.approx(-0.2)
    assert better.interval == (pytest.approx(-0.2 - reach), pytest.approx(-0.2 + reach))
    np.testing.assert_allclose(better.proposed, [2.5, 2.6, 2.55])
    np.testing.assert_allclose(better.uniform, [2.7, 2.81, 2.74])
    sentence = "the proposal beat the uniform mixture: -0.2000 nats (95% interval -0.2248 to -0.1752, 3 pairs)"
    assert better.sentence == sentence
    assert better.by_loss["b"] == (pytest.approx(3.05), pytest.approx(3.25))
    assert "not beyond the noise" in pairs([2.0, 2.4, 2.2], [2.2, 2.3, 2.3]).sentence
    assert "did not beat" in pairs([2.3, 2.4, 2.2], [2.2, 2.3, 2.0]).sentence
    assert "in one pair of runs: -0.1000 nats" in pairs([2.0], [2.1]).sentence


def test_configurations_are_checked():
    for changes, message in (
        ({"split": {"web": "topic"}}, "split.web is 'topic'"),
        ({"split": {"web": "quality"}}, "give edges.web"),
        ({"edges": {"web": [0.5]}}, "edges.web has no effect"),
        ({"split": {"web": "length"}, "edges": {"web": [9.0, 3.0]}}, "edges.web must ascend"),
        ({"seed": 2}, "verify.seeds holds the search's own seed"),
        ({"verify": Verify(seeds=[5]), "concentration": [0.0, 1.0]}, "concentration must be"),
        ({"mixtures": 2}, "mixtures is 2"),
    ):
        with pytest.raises(UserError, match=message):
            config(**changes)
