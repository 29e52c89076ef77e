"""The experts' kernels for NVIDIA GPUs equal the formula as plain JAX (Pallas's interpret mode), with the tiles of a card."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, expert_mlp
from qwen3_jax.kernels.experts import dispatch, triton
from qwen3_jax.kernels.experts.dense import dense_mlp
from qwen3_jax.kernels.experts.grouped import grouped_mlp
from qwen3_jax.kernels.quantized import quantize_weight
from sharding import Placement, make_mesh
from tests.helpers.gpu_targets import card
from tests.kernels.test_experts import (
    MESHES,
    TOLERANCE,
    assert_mesh_equals_dense,
    assert_same,
    compiled,
    expected,
    layer,
    on_mesh,
)


@pytest.mark.parametrize("name", [pytest.param("l4", marks=pytest.mark.slow), "h100"])
@pytest.mark.parametrize("sizes", [(1, 128, 8, 64, 4), (40, 72, 4, 200, 2), (600, 96, 3, 40, 2)], ids=str)
def test_the_gpu_product_with_the_blocks_of_a_card(sizes, name, pallas_anywhere):
    """Decode steps and batches; widths and groups that end within a tile, and groups of several tiles."""
    n, d, e, f, k = sizes
    run = compiled(functools.partial(grouped_mlp, product="triton", card=card(name)))
    for routing in ("uneven", "one"):
        arrays = layer(n, d=d, e=e, f=f, k=k, routing=routing)
        assert_same(run(arrays), expected(arrays), 5e-5)


@pytest.mark.parametrize("weight_type", ["int8", "fp8", "int4"])
def test_the_gpu_product_unpacks_weights_itself(weight_type, pallas_anywhere):
    """One scale for a column, or one for 128 numbers of it; groups without rows; and no gradient."""
    x, index, weight, *weights = layer(n=9, d=256, e=4, f=128, routing="few")
    packed = [quantize_weight(w, weight_type, [1]) for w in weights]
    assert all(triton.unpacks(w, x.dtype, card("h100")) for w in packed)
    assert triton.unpacks(packed[0], x.dtype, card("a100")) == (weight_type != "fp8")
    wanted = dense_mlp(x, index, weight, *packed)
    got = grouped_mlp(x, index, weight, *packed, product="triton", card=card("h100"))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * float(jnp.abs(wanted).max()))
    with pytest.raises(UserError, match="quantised weights cannot be trained"):
        jax.grad(lambda x: grouped_mlp(x, index, weight, *packed, product="triton", card=card("h100")).sum())(x)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("replica2_data2_context2", "grouped"),
        ("data2_expert2_tensor2", "all_to_all"),
        pytest.param("data2_tensor4", "grouped", marks=pytest.mark.slow),
        pytest.param("data2_expert2_context2", "all_gather", marks=pytest.mark.slow),
    ],
)
def test_the_gpu_product_on_meshes(name, implementation, pallas_anywhere, monkeypatch):
    """Weights are gathered with their width first, where the mesh splits it; their gradients return to the devices' parts."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "triton")
    axes, rules = MESHES[name]
    assert_mesh_equals_dense(Placement(make_mesh(**axes), rules), implementation, ("random", "one"))


def assert_gradients_have_the_storage_type() -> None:
    """bfloat16 products of float32 weights: the gradient of each has more digits than bfloat16."""
    placement = Placement(make_mesh(data=8))
    x, index, weight, *weights = on_mesh(layer(n=48, e=8, k=2), placement)

    def loss(weights):
        halves = x.astype(jnp.bfloat16), index, weight.astype(jnp.bfloat16)
        y = expert_mlp(*halves, *weights, Execution(placement)).astype(jnp.float32)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    for gradient, stored in zip(jax.jit(jax.grad(loss))(weights), weights, strict=True):
        assert gradient.sharding.is_equivalent_to(stored.sharding, 3)
        assert (gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


def test_gradients_of_gathered_weights_are_summed_in_their_storage_type(pallas_anywhere, monkeypatch):
    """bfloat16 products of float32 weights: the gradient has more digits than bfloat16."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "triton")
    assert_gradients_have_the_storage_type()
