"""Products with quantised weights are products with the numbers that they stand for, which are near the original ones."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import sharding
from qwen3_jax import UserError
from qwen3_jax.kernels import (
    ONE_DEVICE,
    Execution,
    Kernels,
    check_weight_type,
    expert_mlp,
    is_quantized,
    linear,
    quantize_weight,
    take_rows,
)
from qwen3_jax.kernels.quantized import dequantize, quantized_einsum
from qwen3_jax.kernels.tiled_cpu import floats, tile_size
from sharding import SERVING, TRAINING, Placement

KINDS = ["int8", "fp8", "int4"]
# Half a step at most: of 127 or 7 to the largest number; of e4m3's 3 binary digits to the number itself.
HALF_STEP = {"int8": 0.5 / 127, "fp8": 2.0**-4, "int4": 0.5 / 7}
# equation, shape of x, shape of w, summed axes of w
PRODUCTS = {
    "q": ("btd,dnh->btnh", (2, 3, 256), (256, 4, 32), (0,)),
    "k": ("btd,dkh->bkth", (2, 3, 256), (256, 2, 32), (0,)),
    "o": ("btnh,nhd->btd", (2, 3, 4, 128), (4, 128, 96), (0, 1)),
    "down": ("btf,fd->btd", (2, 3, 96), (96, 64), (0,)),
    "head": ("...d,dv->...v", (2, 3, 64), (64, 96), (0,)),
    "tied": ("...d,vd->...v", (5, 64), (96, 64), (1,)),
}


def by(experts: str, mesh=None, rules=SERVING) -> Execution:
    return Execution(Placement(mesh, rules), Kernels(experts=experts))


def normal(shape, seed: int = 0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


@functools.cache
def packed_weight(name: str, kind: str):
    """A weight of `PRODUCTS`, and the same one quantised."""
    _, _, shape, summed = PRODUCTS[name]
    return normal(shape, 2), pack(normal(shape, 2), kind, summed)


pack = jax.jit(quantize_weight, static_argnums=(1, 2))


def _product_cases():
    """Every pair of product, kind and type; the slow tier has every triple."""
    for (i, name), (j, kind), (k, dtype) in itertools.product(
        enumerate(PRODUCTS), enumerate(KINDS), enumerate(("float32", "bfloat16", "float16"))
    ):
        yield pytest.param(name, kind, dtype, marks=() if (i + j) % 3 == k else pytest.mark.slow)


@pytest.mark.parametrize(("name", "kind", "dtype"), list(_product_cases()))
def test_a_product_is_that_of_the_numbers_the_weight_stands_for(name, kind, dtype):
    equation, x_shape, _, summed = PRODUCTS[name]
    x, (w, packed) = normal(x_shape, 1, dtype), packed_weight(name, kind)
    assert is_quantized(packed)
    assert (packed.shape, packed.scale.dtype) == (w.shape, jnp.float32)
    meant = np.asarray(qwix.dequantize(packed), np.float64)
    spread = np.abs(np.asarray(w)) if kind == "fp8" else np.abs(w).max(axis=summed, keepdims=True)
    smallest = np.asarray(packed.scale).max() * 2.0**-10 if kind == "fp8" else 1e-6
    assert (np.abs(meant - np.asarray(w)) <= HALF_STEP[kind] * spread + smallest).all()
    expected = np.einsum(equation, np.asarray(x, np.float64), meant)
    # Tile by tile on one CPU; whole, as on other platforms, on a mesh.
    for execution in (ONE_DEVICE, Execution(Placement(sharding.make_mesh(data=2), SERVING))):
        function = jax.jit(functools.partial(quantized_einsum, equation, sums=jnp.float32, execution=execution))
        actual = np.asarray(function(x, packed), np.float64)
        # In float32 only the order of the sum differs; else a group's scale is rounded into each weight.
        precision = 2e-6 if dtype == "float32" else float(jnp.finfo(dtype).eps)
        most = np.einsum(equation, np.abs(np.asarray(x, np.float64)), np.abs(meant)).max()
        assert np.abs(actual - expected).max() <= precision * most
    if name not in ("head", "tied"):
        assert linear(equation, x, packed).dtype == x.dtype
        exact = np.asarray(linear(equation, normal(x_shape, 1, dtype).astype(np.float32), packed), np.float64)
        assert np.abs(exact - expected).max() <= 2e-6 * most


def test_e4m3_is_unpacked_through_float16_to_the_same_numbers():
    every = jax.lax.bitcast_convert_type(jnp.arange(256, dtype=jnp.uint8), jnp.float8_e4m3fn)
    finite = jnp.asarray([i for i in range(256) if i & 0x7F != 0x7F])
    expected = np.asarray(every).astype(np.float32)[np.asarray(finite)]
    np.testing.assert_array_equal(np.asarray(jax.jit(floats)(every))[np.asarray(finite)], expected)


def test_tiles_divide_the_rows_and_keep_groups_whole():
    assert tile_size((1024, 3072), (1, 3072), [0]) == 256
    assert tile_size((16, 128, 1024), (1, 1, 1024), [0, 1]) == 2  # 2 heads of 128
    assert tile_size((9728, 2560), (76, 2560), [0]) == 256  # groups of 128
    assert tile_size((384, 64), (3, 64), [0]) == 128
    assert tile_size((151_936, 1024), (151_936, 1), [1]) == 1187
    assert tile_size((1009, 64), (1, 64), [0]) is None  # a prime


def test_int4_has_groups_of_128_or_of_what_divides_the_last_summed_axis():
    assert quantize_weight(normal((256, 4, 32)), "int4", (0,)).scale.shape == (2, 4, 32)
    assert quantize_weight(normal((4, 64, 8)), "int4", (0, 1)).scale.shape == (4, 1, 8)
    assert quantize_weight(normal((96, 8)), "int4", (0,)).scale.shape == (3, 8)
    assert quantize_weight(normal((4, 96, 8)), "int8", (1,)).scale.shape == (4, 1, 8)


def test_a_table_unpacks_only_the_rows_that_are_looked_up():
    table = quantize_weight(normal((50, 16)), "int8", (1,))
    index = jnp.asarray([[3, 49], [0, 3]])
    np.testing.assert_array_equal(
        take_rows(table, index, jnp.float32), np.asarray(dequantize(table, jnp.float32))[index]
    )
    with pytest.raises(ValueError, match="one scale per row"):
        take_rows(quantize_weight(normal((50, 16)), "int8", (0,)), index, jnp.float32)


@functools.cache
def case(kind: str):
    """Arguments of the experts, their weights packed, and the numbers that these stand for."""
    e, d, f, b, t, k = 8, 64, 64, 2, 8, 2
    random = np.random.default_rng(0)
    index = np.stack([random.permutation(e)[:k] for _ in range(b * t)]).reshape(b, t, k).astype(np.int32)
    weights = [np.asarray(normal(shape, i + 1)) / 8 for i, shape in enumerate([(e, d, f), (e, d, f), (e, f, d)])]
    packed = [pack(w, kind, (1,)) for w in weights]
    routing = jnp.asarray(index), jnp.asarray(random.uniform(size=(b, t, k)).astype(np.float32))
    return normal((b, t, d), 4), *routing, packed, [jax.jit(qwix.dequantize)(w) for w in packed]


@functools.cache
def dense_experts(kind: str) -> np.ndarray:
    x, index, weight, _, plain = case(kind)
    return np.asarray(jax.jit(functools.partial(expert_mlp, execution=by("dense")))(x, index, weight, *plain))


MESHES = {
    "dense": {},
    "grouped": {},
    "ragged_dot": {},
    "all_gather": dict(expert=4, tensor=2),
    "all_to_all": dict(expert=2, data=2, tensor=2),
    "auto": dict(data=2, tensor=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", MESHES)
def test_experts_are_those_that_the_weights_stand_for(kind, implementation):
    x, index, weight, packed, _ = case(kind)
    expected = dense_experts(kind)
    axes = MESHES[implementation]
    execution = by(implementation, sharding.make_mesh(**axes) if axes else None)
    twice = [np.tile(a, (2, 1, 1)) for a in (x, index, weight)]
    actual = np.asarray(jax.jit(functools.partial(expert_mlp, execution=execution))(*twice, *packed))
    for half in (actual[:2], actual[2:]):
        np.testing.assert_allclose(half, expected, atol=2e-6 * float(np.abs(expected).max()), rtol=2e-6)


def test_only_experts_with_tokens_are_unpacked_on_cpu():
    """A weight that nobody is sent to may be anything: it is not touched."""
    x, index, weight, packed, _ = case("int8")
    index = np.asarray(index) % 3
    broken = [types.SimpleNamespace(w=w) for w in packed]
    scales = [b.w.replace(scale=b.w.scale.at[3:].set(jnp.nan)) for b in broken]
    run = jax.jit(functools.partial(expert_mlp, execution=by("grouped")))
    expected = run(x, index, weight, *packed)
    np.testing.assert_array_equal(run(x, index, weight, *scales), expected)
    assert np.isfinite(expected).all()


def test_training_and_unknown_names_are_refused():
    def with_scale(w, scale):
        return dataclasses.replace(w, scale=scale)

    packed = quantize_weight(normal((64, 32)), "int8", (0,))
    x = normal((2, 3, 64))
    with pytest.raises(UserError, match="quantised weights cannot be trained"):
        jax.grad(lambda scale: linear("btd,df->btf", x, with_scale(packed, scale)).sum())(packed.scale)
    with pytest.raises(UserError, match="quantization='fp8' is for training"):
        linear("btd,df->btf", x, packed, Execution(quantization="fp8"))
    x, index, weight, experts, _ = case("int8")

    def mlp(x, gate):
        return expert_mlp(x, index, weight, gate, *experts[1:], by("grouped")).sum()

    with pytest.raises(UserError, match="quantised weights cannot be trained"):
        jax.grad(lambda scale: mlp(x, with_scale(experts[0], scale)))(experts[0].scale)
    # An adapter below or above frozen weights learns through them.
    plain = tuple(dequantize(w, np.float32) for w in experts)
    through = jax.grad(mlp)(x, experts[0])
    expected = jax.grad(lambda x: expert_mlp(x, index, weight, *plain, by("grouped")).sum())(x)
    np.testing.assert_allclose(through, expected, atol=2e-5 * np.abs(expected).max())
    training = by("grouped", sharding.make_mesh(data=2), TRAINING)
    y = expert_mlp(x, index, weight, *plain, by("grouped"))
    run = jax.jit(functools.partial(expert_mlp, execution=training))
    np.testing.assert_allclose(run(x, index, weight, *experts), y, atol=2e-5 * np.abs(y).max())
    with pytest.raises(UserError, match="no quantize='int16'; choose one of"):
        check_weight_type("int16")
