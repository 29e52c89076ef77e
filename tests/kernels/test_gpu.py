"""Every implementation that an NVIDIA GPU runs equals the formula there. Skipped without one:

JAX_PLATFORMS=cuda pytest tests/kernels/test_gpu.py -p no:cacheprovider --noconftest
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import assert_close, inputs, packed, value_and_gradients

from qwen3_jax.kernels import attention

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


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
            lambda *qkv: attention(*qkv, segments, implementation="reference"),
            *(x.astype(jnp.float32) for x in (q, k, v, w)),
        )
    found = value_and_gradients(lambda *qkv: attention(*qkv, segments, implementation=name), q, k, v, w)
    assert all(np.isfinite(x).all() for x in found)
    assert_close(found, expected, part=0.02)


@pytest.mark.parametrize("pack", [False, True], ids=["whole", "packed"])
def test_chunked_in_float32(pack):
    q, k, v, w = inputs(2, 300, 4, 2, 64)
    segments = packed(2, 300) if pack else None
    with jax.default_matmul_precision("highest"):
        found, expected = (
            value_and_gradients(lambda *qkv, name=name: attention(*qkv, segments, implementation=name), q, k, v, w)
            for name in ("chunked", "reference")
        )
    assert_close(found, expected)
