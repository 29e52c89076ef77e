"""Products of a few rows on one CPU against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.kernels import ONE_DEVICE, Execution, linear, project, take_rows
from qwen3_jax.kernels.tiled_cpu import FEW_ROWS, few_rows_einsum
from sharding import Placement

PRODUCTS = [
    ("btd,dnh->btnh", (2, 3, 512), (512, 4, 32)),
    ("btd,dkh->bkth", (2, 3, 512), (512, 2, 32)),
    ("btnh,nhd->btd", (1, 4, 8, 128), (8, 128, 96)),
    ("btf,fd->btd", (1, 1, 768), (768, 100)),
    ("...d,vd->...v", (4, 64), (6144, 64)),
    ("...d,dv->...v", (4, 512), (512, 700)),
]


def operands(x_shape, w_shape):
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in (x_shape, w_shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("equation", "x_shape", "w_shape"), PRODUCTS)
def test_a_few_rows_are_exact_before_they_are_rounded(equation, x_shape, w_shape, dtype):
    x, w = (array.astype(dtype) for array in operands(x_shape, w_shape))
    wanted = np.einsum(equation, np.asarray(x, np.float64), np.asarray(w, np.float64))
    assert few_rows_einsum(equation, x, w) is not None
    got = jax.jit(project, static_argnums=0)(equation, x, w)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if "..." not in equation:
        rounded = jax.jit(linear, static_argnums=0)(equation, x, w)
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(rounded, got.astype(dtype))


def test_where_it_is_not_used():
    x, w = operands((1, FEW_ROWS + 1, 64), (64, 64))
    equation = "btf,fd->btd"
    assert few_rows_einsum(equation, x, w) is None  # many rows: the processor's bfloat16 units are faster
    mesh = Execution(Placement(sharding.make_mesh(data=8), sharding.SERVING))
    for product in (linear, project):
        one_device, on_mesh = (
            str(jax.make_jaxpr(product, static_argnums=(0, 3))(equation, x[:, :1], w, execution))
            for execution in (ONE_DEVICE, mesh)
        )
        assert "dynamic_slice" in one_device
        assert "dynamic_slice" not in on_mesh


@pytest.mark.parametrize("product", [linear, project])
def test_gradients_of_a_few_rows(product):
    x, w = operands((1, 2, 512), (512, 64))

    def loss(product, x, w):
        return jnp.square(product("btf,fd->btd", x, w).astype(jnp.float32)).sum()

    got = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)(product, x, w)
    wanted = jax.grad(loss, argnums=(1, 2))(jnp.einsum, x.astype(jnp.float32), w.astype(jnp.float32))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0, atol=0.02 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_a_table_and_their_gradient(dtype):
    _, w = operands((1,), (40, 16))
    w, index = w.astype(dtype), jnp.asarray([[3, 39, 3], [0, 1, 3]])

    def loss(take, w):
        return (take(w, index).astype(jnp.float32) * jnp.arange(1.0, 7).reshape(2, 3, 1)).sum()

    def take(w, index):
        return take_rows(w, index, dtype)

    np.testing.assert_array_equal(jax.jit(take)(w, index), w[index])
    got, wanted = (jax.grad(loss, argnums=1)(way, w) for way in (take, lambda w, index: w[index]))
    np.testing.assert_array_equal(got, wanted)
