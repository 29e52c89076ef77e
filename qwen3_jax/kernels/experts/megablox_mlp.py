"""The experts' MLP on TPU where devices split the weights by the width of the model (FSDP) and every row has its expert here.

Weights are gathered, and their gradients scattered, along a dimension that is not the last, so that neither is laid out anew:
down is held transposed, and gate and up are one array, whose product reads the rows once and gives the sum of both gradients
of the rows. The gradients leave the kernel in the storage type: they are not converted before they are summed over devices.

Shapes: n tokens, m rows sorted by expert, d width, e experts, f expert width, p devices, w: f of down, 2 f of gate and up.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from qwen3_jax.kernels.experts.megablox import rows_product, weight_gradient
from qwen3_jax.kernels.experts.rows import ExpertRows, sum_rows, take_rows, take_weights
from qwen3_jax.kernels.names import GATE
from sharding.scatter import scatter_sum


@struct.dataclass
class Gathered:
    """Weights of all devices' parts; the gradient is that of this device's part, in its type.

    Attributes:
        array: [E, D, W] in the compute type.
        shard: [E, D / p, W] in the storage type.
        axes: the mesh axes of the p devices.
        mesh: the mesh.
    """

    array: jax.Array
    shard: jax.Array
    axes: tuple[str, ...] = struct.field(pytree_node=False)
    mesh: Mesh = struct.field(pytree_node=False)

    @property
    def experts(self) -> int:
        return self.array.shape[0]


def gathered(gate_edf, up_edf, down_efd, axes: tuple[str, ...], dtype: Any, mesh: Mesh) -> tuple[Gathered, Gathered]:
    """Gather this device's parts of gate and up, [E, D / p, F], and of down, [E, F, D / p]; call inside `shard_map`."""

    def whole(shard_edw: jax.Array) -> Gathered:
        own = lax.stop_gradient(shard_edw).astype(dtype)
        return Gathered(lax.all_gather(own, axes, axis=1, tiled=True), shard_edw, axes, mesh)

    return whole(jnp.concatenate([gate_edf, up_edf], axis=2)), whole(down_efd.swapaxes(1, 2))


def gathered_mlp(
    x_nd: jax.Array,
    weight_nk: jax.Array,
    rows: ExpertRows,
    gate_up: Gathered,
    down: Gathered,
    interpret: bool = False,
) -> jax.Array:
    """Return the weighted sum of the chosen experts' outputs, [N, D] in x's dtype.

    Args:
        x_nd: tokens.
        weight_nk: of the outputs, in x's dtype.
        rows: from `sort_by_expert`; every row has its expert here.
        gate_up, down: from `gathered`.
        interpret: run the kernels as plain JAX, for tests without a TPU.
    """
    both_mw = checkpoint_name(_dot(take_rows(x_nd, rows), gate_up, rows.sizes_e, False, interpret), GATE)
    gate_mf, up_mf = jnp.split(both_mw, 2, axis=1)
    hidden_mf = jax.nn.silu(gate_mf) * up_mf * take_weights(weight_nk, rows)[:, None]
    return sum_rows(_dot(hidden_mf, down, rows.sizes_e, True, interpret), rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _dot(x_mi, w: Gathered, sizes_e, transposed: bool, interpret: bool):
    """Multiply each expert's rows by its weights, [D, W], or (`transposed`) by their transpose."""
    return rows_product(x_mi, w.array, sizes_e, transposed, interpret)


def _forward(x_mi, w: Gathered, sizes_e, transposed: bool, interpret: bool):
    return _dot(x_mi, w, sizes_e, transposed, interpret), (x_mi, w, sizes_e)


def _backward(transposed: bool, interpret: bool, residuals, dy_mo):
    x_mi, w, sizes_e = residuals
    dx_mi = rows_product(dy_mo, w.array, sizes_e, not transposed, interpret)
    left, right = (dy_mo, x_mi) if transposed else (x_mi, dy_mo)
    dw_edw = weight_gradient(left, right, sizes_e, w.shard.dtype, interpret)
    return dx_mi, w.replace(array=None, shard=scatter_sum(dw_edw, w.axes, 1, w.mesh)), None


_dot.defvjp(_forward, _backward)
