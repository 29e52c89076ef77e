"""A mesh with rules: logical axes -> sharding of an array.

Invariant: the placement of an array follows from its logical axes and the rules alone. Parameters are placed strictly
(a dimension that does not divide is an error); activations are placed as hints, dropped where they do not divide, since
they change no result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharding.rules import TRAINING, LogicalAxes, Rules, ShardingError


@dataclass(frozen=True)
class Placement:
    """A mesh with rules; without a mesh every method is the identity, so single-device code needs no branches."""

    mesh: Mesh | None = None
    rules: Rules = TRAINING

    def __post_init__(self) -> None:
        if self.mesh is None:
            return
        for name, mesh_axes in self.rules.table:
            for axis in mesh_axes:
                if axis not in self.mesh.shape:
                    raise ShardingError(
                        f"the rule for {name!r} names the mesh axis {axis!r}; the mesh has {list(self.mesh.shape)}."
                    )

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Return the PartitionSpec for logical axes; see `Rules.spec`."""
        return self.rules.spec(axes)

    def sharding(self, axes: LogicalAxes, shape: Sequence[int], name: str = "array") -> jax.sharding.Sharding:
        """Return the sharding of a parameter of this shape; without a mesh, the first local device.

        Raises:
            ShardingError: a dimension does not divide by the mesh axes it is split over; `name` stands in the message.
        """
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        spec = self.spec(axes)
        for dimension, (size, entry) in enumerate(zip(shape, spec, strict=True)):
            parts = _parts(self.mesh, entry)
            if size % parts:
                raise ShardingError(
                    f"{name}: dimension {dimension} ({axes[dimension]!r}, {size}) does not divide by {parts}, the size "
                    f"of mesh axis {' x '.join(map(repr, self.axes(str(axes[dimension]))))}; choose a size that divides {size}."
                )
        return NamedSharding(self.mesh, spec)

    def constrain(self, x: jax.Array, axes: LogicalAxes) -> jax.Array:
        """Constrain the sharding of an activation; an axis that does not divide is left to the compiler."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        spec = self.spec(axes)
        entries = [e if size % _parts(self.mesh, e) == 0 else None for size, e in zip(x.shape, spec, strict=True)]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*entries)))

    def axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes larger than 1 over which a logical axis is split."""
        return () if self.mesh is None else tuple(a for a in _names(self.spec((axis,))[0]) if self.mesh.shape[a] > 1)

    def parts(self, axis: str) -> int:
        """Into how many parts a logical axis is split."""
        return 1 if self.mesh is None else _parts(self.mesh, self.spec((axis,))[0])


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _parts(mesh: Mesh, entry: Any) -> int:
    """Into how many parts one entry of a PartitionSpec splits its dimension."""
    return math.prod(mesh.shape[axis] for axis in _names(entry))
