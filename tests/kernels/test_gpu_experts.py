"""The experts' products that an NVIDIA GPU runs equal the dense formula there. Skipped without one:

JAX_PLATFORMS=cuda pytest tests/kernels/test_gpu_experts.py -p no:cacheprovider --noconftest
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import Execution, Kernels, expert_mlp
from sharding import Placement, make_mesh

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def value_and_gradients(name, x, index, *floats, mesh=None):
    execution = Execution(Placement(mesh), Kernels(experts=name))

    def loss(floats):
        y = expert_mlp(floats[0], index, *floats[1:], execution)
        return jnp.square(y.astype(jnp.float32)).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))([x, *floats])
    return [np.asarray(a, np.float32) for a in (y, *grads)]


def layer(b, t, d, e, f, k, empty):
    """Tokens, routing and weights in float32; with `empty` half of the experts have no token."""
    random = np.random.default_rng(0)
    score = random.normal(size=(b, t, e))
    score[..., : e // 2 if empty else 0] -= 100
    index = jnp.asarray(np.argsort(-score, axis=-1)[..., :k], jnp.int32)
    shapes = (b, t, d), (b, t, k), (e, d, f), (e, d, f), (e, f, d)
    x, weight, gate, up, down = (jnp.asarray(random.normal(size=s) / s[-2] ** 0.5, jnp.float32) for s in shapes)
    return x, index, jnp.abs(weight), gate, up, down


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("sizes", [(2, 256, 256, 8, 128, 2), (1, 7, 128, 4, 128, 2), (2, 512, 2048, 16, 768, 8)])
@pytest.mark.parametrize("name", ["auto", "grouped", "triton"])
def test_bfloat16_is_near_float32(name, sizes, empty):
    x, index, *floats = layer(*sizes, empty)
    with jax.default_matmul_precision("highest"):
        wanted = value_and_gradients("dense", x, index, *floats)
    x, *floats = (a.astype(jnp.bfloat16) for a in (x, *floats))
    for one, other in zip(value_and_gradients(name, x, index, *floats), wanted, strict=True):
        assert np.abs(one - other).max() <= 0.03 * np.abs(other).max()


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["auto", "all_to_all", "all_gather"])
def test_experts_split_over_gpus(name):
    x, index, *floats = layer(2, 64, 256, 8, 128, 2, False)
    with jax.default_matmul_precision("highest"):
        wanted = value_and_gradients("dense", x, index, *floats)
        actual = value_and_gradients(name, x, index, *floats, mesh=make_mesh(expert=2))
    for one, other in zip(actual, wanted, strict=True):
        assert np.abs(one - other).max() <= 1e-2 * np.abs(other).max()
