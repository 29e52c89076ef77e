"""The experts as TPUs compute them equal the formula as plain JAX (Pallas's interpret mode)."""

import pytest

from qwen3_jax.kernels.experts import dispatch, parallel
from sharding import Placement, make_mesh
from tests.kernels.test_experts import MESHES, assert_mesh_equals_dense
from tests.kernels.test_experts_triton import assert_gradients_have_the_storage_type


@pytest.mark.parametrize("name", ["replica2_data2_context2", pytest.param("data2_tensor4", marks=pytest.mark.slow)])
def test_the_tpu_product_on_meshes(name, pallas_anywhere, monkeypatch):
    """Down is gathered transposed, gate and up as one; their gradients return to the devices' parts."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    axes, rules = MESHES[name]
    assert_mesh_equals_dense(Placement(make_mesh(**axes), rules), "grouped", ("random", "one"))


def test_gradients_have_the_storage_type(pallas_anywhere, monkeypatch):
    """bfloat16 products of float32 weights: the gradient has more digits than bfloat16."""
    monkeypatch.setattr(dispatch, "choose_product", lambda *_: "megablox")
    assert_gradients_have_the_storage_type()


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
