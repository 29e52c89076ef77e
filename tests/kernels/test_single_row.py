"""On GPUs a single row is multiplied as two, and a divided table is not gathered to look up a single token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import Execution, take_rows
from qwen3_jax.kernels import execution as execution_module
from qwen3_jax.kernels.single_row import einsum
from sharding import SERVING, Placement, make_mesh

EQUATIONS = {
    "btd,dnh->btnh": ((4,), (4, 2, 3)),
    "btd,dkh->bkth": ((4,), (4, 2, 3)),
    "btnh,nhd->btd": ((2, 3), (2, 3, 4)),
    "...d,vd->...v": ((4,), (5, 4)),
    "...d,dv->...v": ((4,), (4, 5)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("lead", [(1, 1), (2, 1), (1, 3)], ids=str)
def test_a_single_row_is_the_row_alone(equation, lead, monkeypatch):
    monkeypatch.setattr(execution_module, "platform_of", lambda placement: "gpu")
    summed, shape = EQUATIONS[equation]
    random = np.random.default_rng(0)
    x, w = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((*lead, *summed), shape))
    np.testing.assert_allclose(einsum(equation, x, w, None, Execution()), jnp.einsum(equation, x, w), rtol=1e-5)


@pytest.mark.parametrize(("rows", "axes", "padded"), [(1, {}, True), (2, {}, False), (8, {"data": 8}, True)], ids=str)
def test_what_a_device_multiplies(rows, axes, padded, monkeypatch):
    """One row of each device is padded, also where other devices have others."""
    monkeypatch.setattr(execution_module, "platform_of", lambda placement: "gpu")
    execution = Execution(Placement(make_mesh(**axes) if axes else None, SERVING))
    x, w = jnp.zeros((rows, 1, 4)), jnp.zeros((4, 5))
    text = str(jax.make_jaxpr(lambda x, w: einsum("btd,df->btf", x, w, None, execution))(x, w))
    assert ("pad" in text) == padded


def test_a_divided_table_stays_divided():
    placement = Placement(make_mesh(tensor=4), SERVING)
    table = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=placement.sharding(("vocab", "embed"), (64, 8)))
    index = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def look_up(table, index):
        return take_rows(table, index, jnp.float32, Execution(placement))

    text = jax.jit(look_up).lower(table, index).compile().as_text()
    assert "[64,8]" not in text
    table = jnp.arange(512.0).reshape(64, 8)
    np.testing.assert_array_equal(jax.jit(look_up)(table, jnp.asarray([[9]])), table[None, 9:10])
