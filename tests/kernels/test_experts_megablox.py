"""The experts as TPUs compute them equal the formula as plain JAX (Pallas's interpret mode)."""

import functools

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.kernels import Execution, expert_mlp
from qwen3_jax.kernels.experts import dispatch, megablox_mlp, parallel
from sharding import Placement, make_mesh
from sharding.scatter import scatter_in_phases, two_phases
from tests.kernels.test_experts import MESHES, assert_mesh_equals_dense, layer, on_mesh


@pytest.mark.parametrize("name", ["replica2_data2_context2", pytest.param("data2_tensor4", marks=pytest.mark.slow)])
def test_the_tpu_product_on_meshes(name, pallas_anywhere, monkeypatch):
    """Down is gathered transposed, gate and up as one; their gradients return to the devices' parts."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    axes, rules = MESHES[name]
    assert_mesh_equals_dense(Placement(make_mesh(**axes), rules), "grouped", ("random", "one"))


def test_gradients_are_those_of_the_storage_type_also_in_two_phases(pallas_anywhere, monkeypatch):
    """bfloat16 products of float32 weights: the gradient has more digits than bfloat16, on all devices of the axis."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    placement = Placement(make_mesh(data=8))
    x, index, weight, *weights = on_mesh(layer(n=48, e=8, k=2), placement)

    def gradients():
        def loss(weights):
            halves = x.astype(jnp.bfloat16), index, weight.astype(jnp.bfloat16)
            y = expert_mlp(*halves, *weights, Execution(placement)).astype(jnp.float32)
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

        return jax.jit(jax.grad(loss))(weights)

    plain = gradients()
    steps = [(("data",), groups) for groups in two_phases(8, 4)]
    in_phases = functools.partial(scatter_in_phases, steps=steps)
    monkeypatch.setattr(megablox_mlp, "scatter_sum", lambda x, axes, dimension, mesh: in_phases(x, dimension=dimension))
    for one, other, stored in zip(plain, gradients(), weights, strict=True):
        assert other.sharding.is_equivalent_to(stored.sharding, 3)
        assert (other != other.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9
        assert jnp.abs(one - other).max() <= 6e-6 * jnp.abs(one).max()


@pytest.mark.slow
def test_all_to_all_in_a_buffer_that_grows_to_the_worst_case(monkeypatch):
    """The decode step of a TPU: a buffer of twice what a device sends, and of all rows where the routing needs it."""
    monkeypatch.setattr(parallel, "_always_in_full", lambda platform: 0)
    sent = []
    exchange_of = parallel.exchange
    monkeypatch.setattr(
        parallel, "exchange", lambda x, counts, rows, *rest: sent.append(rows) or exchange_of(x, counts, rows, *rest)
    )
    assert_mesh_equals_dense(Placement(make_mesh(expert=8)), "all_to_all", ("random", "one"))
    assert {24, 96} <= set(sent)  # 6 tokens of a device for 2 experts each, twice; and those of 8 devices
