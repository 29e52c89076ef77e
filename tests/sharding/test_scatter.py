"""What TPUs' compiler makes of a sum of which each device keeps its part, with the options of a training step."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sharding
from qwen3_jax import planner
from qwen3_jax.planner.compile import compile_for
from sharding import MeshConfig
from sharding.scatter import scatter_sum

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@needs_libtpu
@pytest.mark.parametrize(("name", "size"), [("v5p:4x4x4", 64), pytest.param("v5p:2x2x1", 4, marks=pytest.mark.slow)])
def test_a_scattered_sum_is_one_and_runs_beside_arithmetic(name, size):
    """A gradient of a bfloat16 product, summed in float32: n - 1 of n parts leave a device, and the next products hide them."""
    slices = planner.topology(name)
    mesh = planner.topology_mesh(slices, MeshConfig(data=size))

    def step(x, w):
        def local(x, w):
            gradient = jnp.einsum("md,mf->df", x, x).astype(jnp.float32)
            part = scatter_sum(gradient, ("data",), 0, mesh)
            for _ in range(6):
                x = jnp.tanh(x @ w)
            return part, x

        specs = P("data"), P()
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P("data"), P("data")), check_vma=False)(x, w)

    def abstract(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    jitted = jax.jit(step, compiler_options=sharding.compiler_options(mesh))
    lowered = jitted.lower(abstract((size * 16384, 2048), P("data")), abstract((2048, 2048), P()))
    compiled = compile_for(lowered, slices, mesh)
    assert compiled.program is not None
    assert compiled.roofline is not None
    (collective, times), *others = [c for c in compiled.program.collectives if c[0].bytes > 1e6]
    assert not others
    assert (collective.kind, times, collective.groups.shape) == ("reduce-scatter", 1, (1, size))
    assert collective.bytes == 2048 * 2048 * 4 * (size - 1) / size
    assert collective.key is not None
    assert compiled.roofline.waiting_s < 1e-5 < sum(compiled.roofline.ici_s.values())
