"""Joining the processes of one run, before any device is touched.

>>> sharding.initialize()                     # one process, or what Cloud TPU, GKE, SLURM or Open MPI announce
>>> sharding.initialize("10.0.0.1:1234", process_count=2, process_index=0)
"""

import os

import jax

from sharding.placement import ShardingError

# Where JAX's own cluster detection finds its answer: a scheduler, or a TPU pod's metadata.
_ANNOUNCED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")


def initialize(
    coordinator: str | None = None, *, process_count: int | None = None, process_index: int | None = None
) -> None:
    """Start `jax.distributed` when this is one of several processes; do nothing for a single one.

    Args:
        coordinator: "host:port" of process 0; all three arguments go together, or none and the environment decides.
        process_count: processes in the run.
        process_index: this process, from 0.

    Raises:
        ShardingError: some of the three are given and some are not, or they contradict each other.
    """
    given = [value is not None for value in (coordinator, process_count, process_index)]
    if any(given) and not all(given):
        raise ShardingError("coordinator, process_count and process_index go together: give all three or none.")
    if all(given):
        assert process_count is not None
        assert process_index is not None
        if not 0 <= process_index < process_count:
            raise ShardingError(f"process_index {process_index} must lie in [0, {process_count}).")
        jax.distributed.initialize(coordinator, num_processes=process_count, process_id=process_index)
        return
    announced = [name for name in _ANNOUNCED if os.environ.get(name)]
    several = any("," in os.environ[n] or os.environ[n] not in ("", "1", "localhost") for n in announced)
    if several and not jax.distributed.is_initialized():
        jax.distributed.initialize()
