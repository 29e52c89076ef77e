"""Inputs and the comparison that every attention test uses.

Shapes: b batch, t length, n query heads, k key/value heads, h head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.kernels import Execution, Kernels, attention


def inputs(b, t, n, k, h, dtype=jnp.float32, seed=0):
    """Return queries, keys, values and the weights of a loss."""
    random = np.random.default_rng(seed)
    shapes = (b, t, n, h), (b, k, t, h), (b, k, t, h), (b, t, n, h)
    return tuple(jnp.asarray(random.normal(size=shape).astype(dtype)) for shape in shapes)


def packed(b, t, seed=0):
    """Return segment ids [B, T]: documents numbered from 1, then padding, 0; each row is cut elsewhere."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((b, t), np.int32)
    for row in rows:
        cuts = np.sort(rng.choice(np.arange(1, t), 4, replace=False))
        for number, (start, stop) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), start=1):
            row[start:stop] = number
    return jnp.asarray(rows)


def value_and_gradients(function, q_btnh, k_bkth, v_bkth, w_btnh):
    """Return the output of function(q, k, v) and the gradients of its weighted sum, in float32."""

    @jax.jit
    def both(*qkv):
        out_btnh, pull = jax.vjp(function, *qkv)
        return out_btnh, *pull(w_btnh.astype(out_btnh.dtype))

    return [np.asarray(x, np.float32) for x in both(q_btnh, k_bkth, v_bkth)]


def reference(segment_ids_bt=None):
    """Return function(q, k, v): the plain formula on one device."""
    return lambda *qkv: attention(*qkv, segment_ids_bt, Execution(kernels=Kernels(attention="reference")))


@functools.cache
def expected(b, t, n, k, h, pack, dtype=jnp.float32):
    """Return value and gradients of the plain formula in float32 for `inputs` and, with `pack`, `packed` of these sizes."""
    case = [np.asarray(x).astype(np.float32) for x in inputs(b, t, n, k, h, dtype)]
    return value_and_gradients(reference(packed(b, t) if pack else None), *case)


def assert_close(found, expected, part=2e-5):
    """Every array differs by at most this part of the largest expected magnitude."""
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=part * np.abs(b).max(), err_msg=name)
