"""Facts about the platform; other packages ask for them by purpose, never by the platform's name."""

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sharding import Placement


def device_of(placement: Placement) -> Any:
    """Return a device that a program for this placement runs on.

    A mesh may consist of devices that are not attached (a topology to compile for); without a mesh it is the default device.
    """
    if placement.mesh is not None:
        return placement.mesh.devices.flat[0]
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None or isinstance(chosen, str):
        return jax.devices(chosen)[0]
    return chosen


def platform_of(placement: Placement) -> str:
    """Return the platform that a program for this placement runs on: "cpu", "gpu" or "tpu"."""
    platform = device_of(placement).platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def prefers_unrolled_decoding(placement: Placement) -> bool:
    """Whether decoding is faster with one array per layer than with stacked layers.

    True on CPU and GPU, where XLA copies each layer's slice out of the stack: a decode step of one row then takes about twice
    as long on CPU, and moves three times its weights on GPU.
    """
    return platform_of(placement) in ("cpu", "gpu")


def default_compute_dtype() -> str:
    """The compute type when the user names none.

    XLA:CPU's bf16 matrix-vector product is many times slower per byte than fp32; accelerators are built for bf16.
    """
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def free_memory(placement: Placement) -> int | None:
    """Return the free bytes on each device of a placement, or None where the backend and the system do not report them.

    CPU devices share the host's memory equally.
    """
    device = jax.local_devices()[0] if placement.mesh is None else placement.mesh.local_devices[0]
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    free = available_host_memory()
    return None if free is None else _share_of_host(free, placement)


def available_host_memory() -> int | None:
    """Return the available host memory in bytes; None where the operating system does not report it.

    Cached file pages count as available: the kernel drops them when a program needs memory. A container's limit counts too.
    """
    available = _meminfo("MemAvailable")
    if available is None:
        try:
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):  # not on every system
            return None
    for limit, used, stats, cached in _CONTAINER:
        left = _container_memory(limit, used, stats, cached)
        available = available if left is None else min(available, left)
    return available


# Files of the control group of a container, versions 2 and 1: the limit, what is used, and the file whose entry has the cached
# file pages among the used ones.
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def _meminfo(name: str) -> int | None:
    """Bytes of an entry of /proc/meminfo, which gives KiB."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return None
    entry = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if entry is None else int(entry[1]) * 1024


def _container_memory(limit: str, used: str, stats: str, cached: str) -> int | None:
    """Bytes that a control group may still use; None without one, or without a limit."""
    try:
        most = int(Path(limit).read_text("ascii"))  # or the word "max"
        held = int(Path(used).read_text("ascii"))
        entry = re.search(rf"^{cached} (\d+)$", Path(stats).read_text("ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(most - held + (0 if entry is None else int(entry[1])), 0)


def early_cache_bytes(placement: Placement) -> int | None:
    """Return how much of a device's memory a cache may take before requests need it; None is any amount.

    A GB of a host's memory, which the user's other programs share. An accelerator's own memory is there for the model.
    """
    if platform_of(placement) != "cpu":
        return None
    return _share_of_host(1 << 30, placement)


def is_one_cpu(placement: Placement) -> bool:
    """Return whether everything runs on one CPU device, whose programs the host can call one after another at little cost."""
    return placement.mesh is None and platform_of(placement) == "cpu"


def _share_of_host(size: int, placement: Placement) -> int:
    """Bytes of the host's memory for each of its devices."""
    return size // (1 if placement.mesh is None else len(placement.mesh.local_devices))


def return_freed_memory() -> None:
    """Give freed memory back to the system, which glibc would keep: compiling one program of Qwen3-0.6B leaves up to 0.7 GB."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
