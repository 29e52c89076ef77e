"""The sum of an array over devices, of which each keeps its part (reduce-scatter)."""

import jax
from jax import lax
from jax.sharding import Mesh


def scatter_sum(x: jax.Array, axes: tuple[str, ...], dimension: int, mesh: Mesh) -> jax.Array:
    """Return this device's part of the sum of `x` over mesh axes; call inside `shard_map`.

    On TPUs a barrier keeps a conversion before the sum apart: libtpu 0.0.52 else fuses it into a collective that stops the
    chip, where the sum alone runs beside arithmetic (see `sharding.compiler_options`).

    Args:
        x: in the type in which it is summed.
        axes: names of mesh axes; the parts lie in their order, the first one outermost.
        dimension: of `x` that is split.
        mesh: the mesh of the `shard_map`.
    """
    if mesh.devices.flat[0].platform == "tpu":
        x = lax.optimization_barrier(x)
    return lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)
