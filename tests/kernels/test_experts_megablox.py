"""The experts as TPUs compute them equal the formula as plain JAX (Pallas's interpret mode)."""

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.kernels import Execution, expert_mlp
from qwen3_jax.kernels.experts import dispatch, parallel
from sharding import Placement, make_mesh
from tests.kernels.test_experts import MESHES, assert_mesh_equals_dense, layer, on_mesh


@pytest.mark.parametrize("name", ["replica2_data2_context2", pytest.param("data2_tensor4", marks=pytest.mark.slow)])
def test_the_tpu_product_on_meshes(name, pallas_anywhere, monkeypatch):
    """Down is gathered transposed, gate and up as one; their gradients return to the devices' parts."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    axes, rules = MESHES[name]
    assert_mesh_equals_dense(Placement(make_mesh(**axes), rules), "grouped", ("random", "one"))


def test_gradients_have_the_storage_type(pallas_anywhere, monkeypatch):
    """bfloat16 products of float32 weights: the gradient has more digits than bfloat16."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    placement = Placement(make_mesh(data=8))
    x, index, weight, *weights = on_mesh(layer(n=48, e=8, k=2), placement)

    def loss(weights):
        halves = x.astype(jnp.bfloat16), index, weight.astype(jnp.bfloat16)
        y = expert_mlp(*halves, *weights, Execution(placement)).astype(jnp.float32)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    for gradient, stored in zip(jax.jit(jax.grad(loss))(weights), weights, strict=True):
        assert gradient.sharding.is_equivalent_to(stored.sharding, 3)
        assert (gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


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
