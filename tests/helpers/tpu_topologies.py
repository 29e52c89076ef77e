"""Compile for TPUs that are not here: libtpu describes a slice, and XLA compiles for its devices on any Linux machine.

    jax.jit(f, in_shardings=...).lower(ShapeDtypeStructs).compile()       # with shardings on a `topology_mesh`

Nothing runs. What this finds is what lowering and compiling refuse: Pallas block shapes, memory that does not fit (VMEM and
HBM), programs that cannot be partitioned.
"""

import os

# Read when libtpu loads: without the first it asks the cloud's metadata server, with long time-outs; without the second
# two test processes on one machine exclude each other.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import functools

import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from sharding import make_mesh

# As many devices as one host of each generation has; a v7x chip is two devices.
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}


@functools.cache
def _devices(name: str) -> tuple:
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs; pip install libtpu")
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=SLICES.get(name, name)).devices)


def topology_mesh(name: str, **axes: int) -> Mesh:
    """Return a mesh over TPUs that are not here, with all five axes of `sharding.AXES`, of type Auto.

    Skips the test where libtpu is not installed.

    Args:
        name: a generation ("v5e", "v5p", "v6e": 4 devices; "v7x": 8) or a libtpu topology ("v5e:4x4").
        axes: as for `sharding.make_mesh`; an axis left out is 1. Fewer devices than the slice has may be used.
    """
    return make_mesh(devices=_devices(name), **axes)
