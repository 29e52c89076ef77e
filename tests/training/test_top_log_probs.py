"""The most probable tokens and their log-probabilities equal those of all logits, on every mesh."""

import jax
import numpy as np
import pytest

import sharding
from qwen3_jax.training.top_log_probs import top_log_probs
from tests.training.test_divergence import MESHES, B, Case, T, V, softmax


@pytest.mark.parametrize(
    "meshes", [pytest.param((1, 4), id="some"), pytest.param(range(8), id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_most_probable_tokens_are_those_of_all_logits_on_every_mesh(tied, meshes):
    """For k below and above the part of the vocabulary that a device has, up to all of it; equal logits in order of ids."""
    case = Case(tied)
    columns = case.weight.T if not tied else case.weight
    columns[V - 3] = columns[5]  # two tokens with one logit, on different devices where the vocabulary is split
    logits = case.states.astype(np.float64) @ columns.astype(np.float64).T / 0.6
    expected = np.log(softmax(logits))
    order = np.argsort(-logits, axis=-1, kind="stable")
    for mesh in (None, *(MESHES[i] for i in meshes)):
        placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**mesh), sharding.TRAINING)
        states = jax.device_put(case.states, placement.sharding(("batch", "length", None), case.states.shape))
        axes = ("vocab", "embed") if tied else ("embed", "vocab")
        weight = jax.device_put(case.weight, placement.sharding(axes, case.weight.shape))
        for k in (1, 6, V):
            compute = jax.jit(
                lambda x, w, k=k, placement=placement: top_log_probs(
                    x, w, k, tied=tied, chunk=7, placement=placement, temperature=0.6
                )
            )
            ids, log_probs = (np.asarray(value) for value in compute(states, weight))
            assert ids.shape == log_probs.shape == (B, T, k)
            np.testing.assert_allclose(
                log_probs, np.take_along_axis(expected, order, -1)[..., :k], rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(log_probs, np.take_along_axis(expected, ids, -1), rtol=1e-5, atol=1e-5)
            assert (np.diff(log_probs, axis=-1) <= 0).all()
            assert all(len(set(row)) == k for row in ids.reshape(-1, k))
            places = np.argmax(ids == 5, -1), np.argmax(ids == V - 3, -1)
            if k == V:
                assert (places[0] < places[1]).all(), mesh


def test_impossible_settings_of_the_most_probable_tokens_are_refused():
    case = Case(tied=False)
    with pytest.raises(ValueError, match=f"k is {V + 1}; it must be from 1 to {V}"):
        top_log_probs(case.states, case.weight, V + 1, tied=False)
    with pytest.raises(ValueError, match="temperature is 0"):
        top_log_probs(case.states, case.weight, 2, tied=False, temperature=0.0)
