"""Options of XLA's TPU compiler that overlap the collectives of a training step with its arithmetic.

v5p, v6e and tpu7x chips have sparse cores, small processors that can run collectives while the tensor cores compute; by
default libtpu 0.0.52 runs most collectives on the tensor cores, which then do not compute. With these options the gathers
and sums of an FSDP step run beside the arithmetic (seen in compiled schedules, not measured on a TPU). v5e has no sparse cores;
there the compiler spreads collectives over fusions by itself.

The set is that of MaxText's recipes for these chips (github.com/AI-Hypercomputer/maxtext, "SPARSECORE_OFFLOADING").
"""

from jax.sharding import Mesh

from sharding.hardware import CHIPS

_SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    # Gathers over two and three dimensions of the torus; without these a three-dimensional one becomes an all-reduce.
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    # The same for sums of which each device keeps a part.
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_prefer_async_allgather_to_allreduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_disable_megacore_partitioning": "true",
}


def compiler_options(mesh: Mesh | None) -> dict[str, str] | None:
    """Return `compiler_options` for `jax.jit` of a training step on this mesh; None where the defaults are right."""
    if mesh is None or mesh.devices.flat[0].platform != "tpu" or mesh.size == 1:
        return None
    kind = mesh.devices.flat[0].device_kind
    with_sparse_cores = [k for name in ("v5p", "v6e", "tpu7x") for k in CHIPS[name].kinds]
    without = [k for name in ("v4", "v5e") for k in CHIPS[name].kinds]
    matches = [k for k in with_sparse_cores + without if kind.startswith(k)]
    return dict(_SPARSE_CORES) if matches and max(matches, key=len) in with_sparse_cores else None
