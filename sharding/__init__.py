"""Devices, meshes, and where arrays live. Knows JAX and hardware; never imports qwen3_jax and never names a layer.

    >>> import sharding
    >>> mesh = sharding.make_mesh(data=2, tensor=2, expert=2)       # any axis left out is 1
    >>> place = sharding.Placement(mesh, sharding.TRAINING)
    >>> place.spec(("embed", "mlp"))
    PartitionSpec('data', 'tensor')

A model names what each dimension *is* ("embed", "heads", "expert"); `Rules` say which mesh axis that dimension is split
over; a `Placement` is a mesh with rules and turns names into `jax.sharding.NamedSharding`s.
"""

from sharding.context import balanced_order
from sharding.hosts import initialize, lost_process
from sharding.mesh import AXES, MeshConfig, make_mesh
from sharding.placement import Placement
from sharding.rules import SERVING, TRAINING, Rules, ShardingError
from sharding.xla import compiler_options

__all__ = [
    "AXES",
    "SERVING",
    "TRAINING",
    "MeshConfig",
    "Placement",
    "Rules",
    "ShardingError",
    "balanced_order",
    "compiler_options",
    "initialize",
    "lost_process",
    "make_mesh",
]
