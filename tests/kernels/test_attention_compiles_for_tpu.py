"""The attention that a TPU would run compiles for TPUs, forward and backward, on every kind of mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, Kernels, attention
from sharding import Placement
from tests.helpers.tpu_topologies import topology_mesh

pytestmark = pytest.mark.usefixtures("no_compilation_cache")

BALANCED = {"context": 2, "tensor": 2}


def program(placement, shape, packed, balanced, dtype=jnp.bfloat16, name="auto"):
    """Return the text of the compiled gradient for queries, keys and values; shape: (b, t, n, k, h)."""
    b, t, n, k, h = shape

    def array(shape, axes, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(placement.mesh, placement.spec(axes)))

    kv = array((b, k, t, h), ("batch", "kv_heads", "length", None), dtype)
    segments = array((b, t), ("batch", "length"), jnp.int32) if packed else None

    def loss(q, k, v, segments):
        out = attention(q, k, v, segments, Execution(placement, Kernels(attention=name), balanced=balanced))
        return (out.astype(jnp.float32) ** 2).sum()

    q = array((b, t, n, h), ("batch", "length", "heads", None), dtype)
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, segments).compile().as_text()


CASES = {
    "whole": ({"data": 2, "tensor": 2}, (2, 1024, 4, 2, 128), False, False),
    "packed": ({"data": 4}, (4, 1000, 2, 1, 128), True, False),
    "balanced": (BALANCED, (1, 2048, 4, 2, 128), True, True),
    "32k balanced": ({"context": 4}, (1, 32_768, 4, 2, 128), True, True),
    "32k in order": ({"context": 4}, (1, 32_768, 4, 2, 128), False, False),
    "32k unsplit": ({"tensor": 4}, (1, 32_768, 8, 4, 128), True, False),
}
ELSEWHERE = ("balanced", "32k balanced")  # on generations whose compiler differs little from v5's


def tier(generation, case):
    """Of 32k tokens one case; the others by hand. "balanced" has the same program in a few blocks."""
    if generation == "v6e" or ("32k" in case and (generation, case) != ("v5p", "32k in order")):
        return pytest.mark.soak
    return (pytest.mark.slow,) * (generation == "v7x" or "32k" in case)


@pytest.mark.parametrize(
    ("generation", "case"),
    [
        pytest.param(g, case, marks=tier(g, case))
        for g, cases in {"v5e": CASES, "v5p": CASES, "v6e": ELSEWHERE, "v7x": ELSEWHERE}.items()
        for case in cases
    ],
)
def test_splash_compiles(generation, case):
    axes, shape, packed, balanced = CASES[case]
    text = program(Placement(topology_mesh(generation, **axes)), shape, packed, balanced)
    assert "tpu_custom_call" in text
    assert f"[{shape[1]},{shape[1]}]" not in text
    # Keys are gathered and their gradients summed where they belong, only where the length is split.
    assert ("all-gather" in text) == ("context" in axes)
    # (The compiler may write the scattered sum as a whole sum and a slice.)
    assert ("reduce-scatter" in text or "all-reduce" in text) == ("context" in axes)
    assert "all-to-all" not in text


@pytest.mark.parametrize(("head_size", "dtype"), [(16, jnp.bfloat16), (64, jnp.bfloat16), (128, jnp.float32)])
def test_other_head_sizes_and_float32_compile(head_size, dtype):
    placement = Placement(topology_mesh("v5e"))
    assert "tpu_custom_call" in program(placement, (2, 200, 2, 1, head_size), True, False, dtype)


def test_chunked_compiles_for_tpu_too():
    """What "auto" falls back to where a part of the length is no multiple of 128."""
    placement = Placement(topology_mesh("v5e", **BALANCED))
    text = program(placement, (1, 400, 4, 2, 128), True, True)
    assert "tpu_custom_call" not in text
    assert "all-gather" in text
    with pytest.raises(UserError, match="'splash' needs parts of the length that divide by 128; 400 tokens in 2 parts"):
        program(placement, (1, 400, 4, 2, 128), True, True, name="splash")
