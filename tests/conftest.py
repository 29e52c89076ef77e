"""Every test runs on 8 fake CPU devices and shares one compilation cache, so that a second run is quick."""

import gc
import os
from pathlib import Path

from tests.helpers import quick_xla

# Before JAX is imported anywhere: the device count is read once, at backend start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", quick_xla.FLAGS]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# More torch threads, spinning beside those of other workers, took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import jax
import pytest

jax.jit(lambda: 1)()  # reads the flags; libtpu, which is loaded later, does not know all of them
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].removesuffix(quick_xla.CPU_ALONE)

# Examples compile, and machines are busy. CI asks for Hypothesis's own profile instead, whose examples are the same each time.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

_MAPPINGS = 30_000


def _forget_compiled_programs():
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs():
    """Each program that XLA:CPU compiles keeps memory, and about ten mappings of it; a whole suite in one process would pass
    the kernel's limit (vm.max_map_count, 65,530) and abort inside LLVM."""
    yield
    _forget_compiled_programs()


@pytest.fixture(autouse=True)
def _few_mappings():
    """Some modules come near the limit by themselves."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAPPINGS:
        _forget_compiled_programs()
