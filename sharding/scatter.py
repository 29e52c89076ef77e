"""The sum of an array over devices, of which each keeps its part (reduce-scatter), in the form that TPUs run beside arithmetic.

libtpu 0.0.52 turns a reduce-scatter over three dimensions of a torus into an all-reduce, which sends twice as much, and fuses
a conversion before it into a collective that stops the chip. So there the sum is made over two dimensions first and then over
the third, which sends no more than one step does (of n parts, each device sends n - 1), and a conversion is kept apart by a
barrier. Elsewhere it is one collective.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from sharding.mesh import AXES

Groups = list[list[int]]


def scatter_sum(x: jax.Array, axes: tuple[str, ...], dimension: int, mesh: Mesh) -> jax.Array:
    """Return this device's part of the sum of `x` over mesh axes; call inside `shard_map`.

    Args:
        x: in the type in which it is summed.
        axes: names of mesh axes; the parts lie in their order, the first one outermost.
        dimension: of `x` that is split.
        mesh: the mesh of the `shard_map`.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)
    return scatter_in_phases(lax.optimization_barrier(x), phases(mesh, axes), dimension)


def scatter_in_phases(x: jax.Array, steps: list[tuple[tuple[str, ...], Groups | None]], dimension: int) -> jax.Array:
    """Return this device's part of the sum of `x` over the mesh axes of `phases`, one after the other."""
    for axes, groups in steps:
        name = axes[0] if groups is not None else axes
        x = lax.psum_scatter(x, name, scatter_dimension=dimension, axis_index_groups=groups, tiled=True)
    return x


def phases(mesh: Mesh, axes: tuple[str, ...]) -> list[tuple[tuple[str, ...], Groups | None]]:
    """Return the collectives that together scatter over mesh axes: their axes, and groups of indices of a single axis.

    One collective where the axes span at most two dimensions of the torus; else one for each axis, and two for an axis that
    spans three: over all dimensions but the one that changes fastest along it, then over that one.
    """
    coords = _coordinates(mesh, axes)
    if _spanned(coords) < 3:
        return [(axes, None)]
    steps: list[tuple[tuple[str, ...], Groups | None]] = []
    for number, axis in enumerate(axes):
        along = coords[tuple(slice(None) if n == number else 0 for n in range(len(axes)))]  # [devices, dimensions]
        line = _line(along)
        if _spanned(along) < 3 or len(along) % line:
            steps.append(((axis,), None))
        else:
            steps += [((axis,), groups) for groups in two_phases(len(along), line)]
    return steps


def two_phases(size: int, line: int) -> tuple[Groups, Groups]:
    """Split an axis into lines of neighbouring indices: groups of the indices at the same place of all lines, and the lines.

    Scattering over the first and then over the second leaves the i-th part on the i-th device.
    """
    index = np.arange(size).reshape(size // line, line)
    return index.T.tolist(), index.tolist()


@functools.lru_cache(maxsize=64)
def _coordinates(mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    """Places on the torus of the devices along mesh axes, int [size of each axis, ..., dimensions]; 0 on the other axes."""
    places = [AXES.index(axis) for axis in axes]
    devices = np.moveaxis(mesh.devices, places, range(len(axes)))
    devices = devices.reshape(*devices.shape[: len(axes)], -1)[..., 0]
    return np.asarray([device.coords for device in devices.flat]).reshape(*devices.shape, -1)


def _spanned(coords: np.ndarray) -> int:
    """Along how many dimensions of the torus devices differ."""
    flat = coords.reshape(-1, coords.shape[-1])
    return int((flat != flat[0]).any(axis=0).sum())


def _line(coords: np.ndarray) -> int:
    """How many devices, from the first on, differ along one dimension only."""
    counts = [size for size in range(1, len(coords) + 1) if _spanned(coords[:size]) <= 1]
    return max(counts)
