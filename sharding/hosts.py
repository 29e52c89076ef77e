"""The processes of one run: joining them, before any device is used, and recognising that one of them is lost.

>>> sharding.initialize()                     # one process, or what Cloud TPU, GKE, SLURM or Open MPI announce
>>> sharding.initialize("10.0.0.1:1234", process_count=2, process_index=0)

Invariant: when a process dies, all others end within a minute, for one of two reasons: JAX's coordination service, whose
heartbeats stop (it ends the process from C++, with its own message), and the collective that waits for the dead peer, where
the transport notices (Python gets an error, which `lost_process` recognises).
"""

import os
import urllib.request

import jax

from sharding.rules import ShardingError

# Environment variables that JAX's own cluster detection reads: a scheduler's, or a TPU pod's.
_ANNOUNCED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")
HEARTBEAT_SECONDS = 30  # JAX's default of 100 keeps a pod idle for longer than a restart takes
# In the errors of transports that have lost a peer: gloo, the coordination service, NCCL, TPU's DCN.
_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "unavailable:", "coordination service",
         "heartbeat", "nccl", "remote process exited", "deadline exceeded", "deadline_exceeded", "megascale")  # fmt: skip


def initialize(
    coordinator: str | None = None, *, process_count: int | None = None, process_index: int | None = None
) -> None:
    """Start `jax.distributed` when this is one of several processes; do nothing for a single one.

    Args:
        coordinator: "host:port" of process 0. Give all three arguments, or none: then the environment decides.
        process_count: processes in the run.
        process_index: this process, from 0.

    Raises:
        ShardingError: only some of the three are given, they contradict each other, or the processes did not find each
            other.
    """
    given = [value is not None for value in (coordinator, process_count, process_index)]
    if any(given) and not all(given):
        raise ShardingError("coordinator, process_count and process_index go together: give all three or none.")
    if all(given):
        assert coordinator is not None
        assert process_count is not None
        assert process_index is not None
        if not 0 <= process_index < process_count:
            raise ShardingError(f"process_index {process_index} must lie in [0, {process_count}).")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ShardingError(f"the coordinator {coordinator!r} must be HOST:PORT of process 0.")
        _join(coordinator, process_count, process_index)
        return
    announced = [name for name in _ANNOUNCED if os.environ.get(name)]
    several = any("," in os.environ[n] or os.environ[n] not in ("", "1", "localhost") for n in announced)
    if (several or _slice_of_several_hosts()) and not jax.distributed.is_initialized():
        _join(None, None, None)


def _slice_of_several_hosts() -> bool:
    """Whether this host is one of several of a Cloud TPU slice: only its metadata server says so, no environment variable."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:  # JAX sets it where it finds no TPU chips
        return False
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10
        ) as reply:
            return b"," in reply.read()
    except OSError:  # no metadata server, or a TPU that belongs to no slice
        return False


def _join(coordinator: str | None, process_count: int | None, process_index: int | None) -> None:
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes=process_count,
            process_id=process_index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        address = f"at {coordinator}" if coordinator else "that the scheduler announces"
        reason = str(error).splitlines()[0]
        raise ShardingError(
            f"the processes of this run did not all meet at the coordinator {address} ({reason})."
        ) from error


def lost_process(error: BaseException) -> bool:
    """Whether an error of a run with several processes means that another process is lost."""
    if jax.process_count() == 1:
        return False
    text = str(error).lower()
    return any(sign in text for sign in _LOST)
