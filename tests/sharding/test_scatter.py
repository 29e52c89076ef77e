"""A sum scattered in phases is the plain one, and the phases follow the torus."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import sharding
from qwen3_jax import planner
from sharding import MeshConfig
from sharding.scatter import phases, scatter_in_phases, two_phases

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(
    ("mesh_axes", "axes", "steps"),
    [
        ({"data": 8}, ("data",), [(("data",), groups) for groups in two_phases(8, 2)]),
        ({"data": 8}, ("data",), [(("data",), groups) for groups in two_phases(8, 4)]),
        ({"data": 4, "tensor": 2}, ("data",), [(("data",), groups) for groups in two_phases(4, 2)]),
        ({"data": 4, "context": 2}, ("data", "context"), [(("data",), None), (("context",), None)]),
        (
            {"data": 4, "context": 2},
            ("data", "context"),
            [*((("data",), groups) for groups in two_phases(4, 2)), (("context",), None)],
        ),
    ],
)
def test_phases_give_the_plain_sum_and_every_device_its_part(mesh_axes, axes, steps):
    mesh = sharding.make_mesh(**mesh_axes)
    x = jax.random.normal(jax.random.key(0), (8, 3, 16, 5))  # one [3, 16, 5] for each device

    def scattered(sum_of):
        spec = P(tuple(mesh.axis_names))
        run = jax.shard_map(lambda own: sum_of(own[0])[None], mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return np.asarray(jax.jit(run)(x))

    plain = scattered(functools.partial(jax.lax.psum_scatter, axis_name=axes, scatter_dimension=1, tiled=True))
    np.testing.assert_allclose(scattered(lambda own: scatter_in_phases(own, steps, 1)), plain, rtol=6e-6, atol=6e-6)
    assert jnp.abs(plain).max() > 1


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "axes", "over", "groups"),
    [
        ("v5p:2x2x1", {"data": 4}, ("data",), [None]),
        ("v6e:8x8", {"data": 64}, ("data",), [None]),
        ("v5p:4x4x4", {"data": 64}, ("data",), [(4, 16), (16, 4)]),
        ("v5p:8x8x8", {"data": 512}, ("data",), [(8, 64), (64, 8)]),
        ("v5p:4x4x4", {"data": 16, "context": 4}, ("data", "context"), [None, None]),
        ("v5p:8x8x8", {"data": 128, "context": 4}, ("data", "context"), [(8, 16), (16, 8), None]),
        ("tpu7x:4x4x4", {"data": 128}, ("data",), [(8, 16), (16, 8)]),
    ],
)
def test_phases_follow_the_torus(name, axes, over, groups):
    """No collective spans three dimensions; a plane comes before the line, whose devices are neighbours."""
    mesh = planner.topology_mesh(planner.topology(name), MeshConfig(**axes))
    steps = phases(mesh, over)
    assert [None if step is None else np.asarray(step).shape for _, step in steps] == groups
    for names, step in steps:
        devices = np.moveaxis(mesh.devices, [mesh.axis_names.index(n) for n in names], range(len(names)))
        devices = devices.reshape(*devices.shape[: len(names)], -1)[..., 0].reshape(-1)
        for group in [range(len(devices))] if step is None else step:
            coords = np.asarray([devices[index].coords for index in group])
            assert (coords != coords[0]).any(axis=0).sum() <= 2
