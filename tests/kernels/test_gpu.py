"""Every implementation that an NVIDIA GPU runs equals the formula there. Skipped without one:

JAX_PLATFORMS=cuda pytest tests/kernels/test_gpu.py -p no:cacheprovider --noconftest
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import Execution, Kernels, attention
from qwen3_jax.kernels.card import card_of
from qwen3_jax.kernels.paged import loop, triton
from qwen3_jax.kernels.paged.pages import HeadMajor
from sharding import Placement
from tests.helpers.attention_cases import assert_close, inputs, packed, value_and_gradients

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def by(name):
    return Execution(kernels=Kernels(attention=name))


@pytest.mark.parametrize(("t", "n", "k", "h"), [(128, 2, 2, 64), (1000, 8, 2, 128), (2048, 4, 1, 128)])
@pytest.mark.parametrize(
    ("name", "pack"),
    [("cudnn", False), ("triton", False), ("triton", True), ("chunked", True), ("auto", False), ("auto", True)],
)
def test_bfloat16_is_near_float32(name, pack, t, n, k, h):
    q, k, v, w = inputs(2, t, n, k, h, jnp.bfloat16)
    segments = packed(2, t) if pack else None
    with jax.default_matmul_precision("highest"):
        expected = value_and_gradients(
            lambda *qkv: attention(*qkv, segments, by("reference")),
            *(x.astype(jnp.float32) for x in (q, k, v, w)),
        )
    actual = value_and_gradients(lambda *qkv: attention(*qkv, segments, by(name)), q, k, v, w)
    assert all(np.isfinite(x).all() for x in actual)
    assert_close(actual, expected, part=0.02)


@pytest.mark.parametrize("pack", [False, True], ids=["whole", "packed"])
def test_chunked_in_float32(pack):
    q, k, v, w = inputs(2, 300, 4, 2, 64)
    segments = packed(2, 300) if pack else None
    with jax.default_matmul_precision("highest"):
        actual, expected = (
            value_and_gradients(lambda *qkv, name=name: attention(*qkv, segments, by(name)), q, k, v, w)
            for name in ("chunked", "reference")
        )
    assert_close(actual, expected)


@pytest.mark.parametrize("quantized", [None, "int8", "fp8"])
@pytest.mark.parametrize("t", [1, 4])
@pytest.mark.parametrize(("n", "k", "h"), [(16, 8, 128), (64, 4, 128)])
def test_paged_decoding_is_near_the_loop_in_float32(n, k, h, t, quantized):
    """Of rows of 1 to 3,000 tokens whose pages lie in any order."""
    random, size, count = np.random.default_rng(0), 32, 400
    lengths = np.asarray([0, 1, 31, 32, 700, 3000])
    width = 128
    tables = np.zeros((len(lengths), width), np.int32)
    free = iter(random.permutation(np.arange(1, count)).tolist())
    for row, length in zip(tables, lengths, strict=True):
        used = -(-(length + t) // size)
        row[:used] = [next(free) for _ in range(used)]
    tables, lengths = jnp.asarray(tables), jnp.asarray(lengths)
    empty = HeadMajor.empty(1, count, k, size, h, jnp.bfloat16, quantized)
    pages = jax.tree.map(
        lambda x: jnp.asarray(
            random.integers(-127, 128, x.shape) if x.dtype == jnp.int8 else random.normal(size=x.shape) / 30, x.dtype
        ),
        empty,
    )
    q = jnp.asarray(random.normal(size=(len(lengths), t, n, h)), jnp.bfloat16)
    if quantized is None:
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), pages)
    else:
        k_float, v_float = (x.astype(jnp.float32) for x in (pages.k, pages.v))
        exact = HeadMajor(k_float * pages.k_scale[..., None], v_float * pages.v_scale[..., None])
    with jax.default_matmul_precision("highest"):
        expected, _ = loop.decode(q[None].astype(jnp.float32), exact, tables, lengths)
    actual = jax.jit(functools.partial(triton.decode, card=card_of(Placement())))(q, pages, tables, lengths)
    assert actual.dtype == jnp.bfloat16
    assert np.abs(actual.astype(np.float32) - expected).max() <= 0.02 * np.abs(expected).max()
