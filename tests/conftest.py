"""Every test runs on 8 fake CPU devices. Tests of one process share their compiled programs; all processes share one
compilation cache. Workers are started for the whole suite only: `python -m pytest tests/some/test_file.py` runs in one process.
"""

import ctypes
import gc
import importlib.util
import os
import re
from pathlib import Path

from tests.helpers import quick_xla
from tests.helpers.tiers import LONG, MOVED_TO_SLOW

# Before JAX is imported anywhere: the device count is read once, at backend start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", quick_xla.FLAGS]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
# Most programs of tests are single operations, which compile in 20 ms and are read back in 3.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Else the folder is part of the key of a program, by way of options for GPUs, and `.ci/run` keeps programs in another one.
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
# More torch threads, spinning beside those of other workers, took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # dozens of child processes import the package

import hypothesis
import jax
import pytest

# Examples compile, and machines are busy. CI asks for Hypothesis's own profile instead, whose examples are the same each time.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

_MAPPINGS = 40_000  # of the kernel's limit, vm.max_map_count, 65,530
_MAPPINGS_BETWEEN_MODULES = 20_000
_COMPILED_BETWEEN_LOOKS = 300


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        return  # this process runs no test
    gc.disable()  # until all is imported
    jax.jit(lambda: 1)()  # reads the flags; libtpu, which is loaded later, does not know all of them
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].removesuffix(quick_xla.CPU_ALONE)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Workers for the whole suite; none for a folder, a file or a test, whose start would take longer.

    One more than cores: a fifth of the time is waiting for disks, child processes and single-threaded compilers.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    whole = {Path(name).resolve() for name in config.args} & {config.rootpath, config.rootpath / "tests"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1 if whole else 0


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.nodeid in LONG:
        item.add_marker("soak")
    if item.nodeid in MOVED_TO_SLOW:
        item.add_marker("slow")


# Tests of a minute or more: at the end they would run while all other workers have ended.
_FIRST = ("test_notebooks.py", "test_processes.py", "test_load.py", "test_sweeps.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module's slow tests follow its others, whose programs and fixtures they share: `-m "not soak"` runs both tiers."""
    modules = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    slow = {item: item.get_closest_marker("slow") is not None for item in items}
    items.sort(key=lambda item: (item.path.name not in _FIRST, modules[item.path], slow[item]))


def pytest_collection_finish() -> None:
    """A tenth of the time of tests was collecting garbage among the objects of imported packages."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 20)


_WITH_TORCH = importlib.util.find_spec("torch") is not None
_NEEDS_TORCH = re.compile(r"^(import torch|from tests\.helpers import .*hf_checkpoints)", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what needs torch where it is not installed; see tests/pythons.sh."""
    if _WITH_TORCH or collection_path.suffix != ".py":
        return None
    return bool(_NEEDS_TORCH.search(collection_path.read_text(encoding="utf-8"))) or None


class _Programs:
    """Counts what is compiled. XLA:CPU keeps about ten memory mappings and 700 KB per program; a process that passes the
    kernel's limit of mappings aborts inside LLVM, and workers of 5 GB each leave no memory to the tests."""

    since_look = 0

    def __init__(self):
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, _seconds: float, **_details) -> None:
        self.since_look += event == "/jax/core/compile/backend_compile_duration"

    def forget_if_many(self, most: int) -> None:
        """Drop all programs if they have more than `most` mappings; the compilation cache on disk keeps them."""
        self.since_look = 0
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > most:
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)


_programs = _Programs()


@pytest.fixture(autouse=True, scope="module")
def _few_compiled_programs_between_modules():
    """Modules share few programs."""
    yield
    _programs.forget_if_many(_MAPPINGS_BETWEEN_MODULES)


@pytest.fixture(autouse=True)
def _few_compiled_programs():
    yield
    if _programs.since_look >= _COMPILED_BETWEEN_LOOKS:
        _programs.forget_if_many(_MAPPINGS)
