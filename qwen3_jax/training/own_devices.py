"""Devices that a part of a run has for itself: the last ones. The run's mesh has the others."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh

import sharding
from qwen3_jax.errors import UserError
from sharding import MeshConfig

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def check_own_mesh(sizes: MeshConfig | None, key: str) -> None:
    """Refuse a mesh of own devices that does not give each axis.

    Args:
        sizes: of the mesh; None is checked too.
        key: of the configuration that has them.

    Raises:
        UserError: an axis is -1.
    """
    if sizes is not None and -1 in dataclasses.astuple(sizes):
        raise UserError(f"{key} has an axis of -1; give each axis, since the run's mesh takes the other devices.")


def own_mesh(sizes: MeshConfig, key: str, instead: str) -> Mesh:
    """Return the mesh of the last devices.

    Args:
        sizes: of the mesh, all axes given.
        key: of the configuration that has them.
        instead: what happens without the key, for the error.

    Raises:
        UserError: the run has several processes.
        ShardingError: it does not fit the devices.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"{key} is for one process, and this run has {jax.process_count()}; leave it out, and {instead}."
        )
    return sharding.make_mesh(**dataclasses.asdict(sizes), devices=jax.devices()[-_count(sizes) :])


def devices_to_train_on(run: TrainConfig) -> list[jax.Device]:
    """Return the devices of the run's own mesh: all but those of rollouts or of a teacher.

    Raises:
        ShardingError: none is left.
    """
    devices = jax.devices()
    meshes = {
        "rl.rollouts.mesh": None if run.rl is None else run.rl.rollouts.mesh,
        "distillation.mesh": None if run.distillation is None else run.distillation.mesh,
    }
    for key, sizes in meshes.items():  # `method_checks` refuses both together
        if sizes is None:
            continue
        if _count(sizes) >= len(devices):
            raise sharding.ShardingError(
                f"{key} takes {_count(sizes)} of {len(devices)} devices, which leaves none to train on; make it smaller."
            )
        devices = devices[: -_count(sizes)]
    return devices


def _count(sizes: MeshConfig) -> int:
    return math.prod(dataclasses.astuple(sizes))
