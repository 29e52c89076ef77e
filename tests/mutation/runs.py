"""Runs pytest in a forked child that has the large libraries already: a run of one small test takes two or three seconds.

Nothing of the project is imported before the fork, and no thread is started, so that every child reads the changed file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

_LIBRARIES = (
    "numpy", "jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "grain", "torch", "transformers", "tokenizers",
    "safetensors.numpy", "hypothesis", "pytest", "httpx", "fastapi", "uvicorn", "openai", "matplotlib.pyplot", "jsonargparse",
    "huggingface_hub", "jinja2", "pyarrow.parquet",
)  # fmt: skip
_ENVIRONMENT = {  # read when JAX is imported, so before tests/conftest.py
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
_NOTHING_COLLECTED, _OVER_BUDGET = 5, 77  # exit codes of pytest, and of ours


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run of tests ended. `failed` is the first test that failed; `status` is "passed", "failed" (a test, the
    collection, or the process), "timeout" or "stopped" (`cpu_limit` was reached without a failure)."""

    status: str
    failed: str | None
    tests: int
    cpu_seconds: float
    seconds: float


def prepare(cache: Path) -> None:
    """Imports what children share, and lets SIGTERM end this process as Ctrl-C does.

    `cache` is JAX's compilation cache, kept from one call of the tool to the next.
    """
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax"))
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):  # what the tests of this environment skip
            importlib.import_module(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that nothing is left behind


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to run: `tests` in this order, then the rest of `whole_files`; never what is in `excluded`."""

    tests: tuple[str, ...]
    whole_files: tuple[str, ...]
    excluded: frozenset[str] = frozenset()

    @property
    def files(self) -> list[str]:
        names = [test.partition("::")[0] for test in self.tests]
        return list(dict.fromkeys([*names, *self.whole_files]))


class _Plugin:
    """Orders the tests, stops over budget, and writes down what failed first."""

    def __init__(self, report: Path, selection: Selection, cpu_limit: float):
        self.report, self.selection, self.cpu_limit = report, selection, cpu_limit
        self.tests = 0
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items):
        place = {name: i for i, name in enumerate(self.selection.tests)}
        whole, excluded = self.selection.whole_files, self.selection.excluded
        kept = [i for i in items if i.nodeid in place or i.nodeid.partition("::")[0] in whole]
        items[:] = [i for i in kept if i.nodeid not in excluded]
        items.sort(key=lambda item: place.get(item.nodeid, len(place)))  # stable

    def pytest_runtest_logreport(self, report):
        self.tests += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtest_logfinish(self, nodeid):
        if self.failed is None and cpu_seconds() > self.cpu_limit:
            pytest.exit("over budget", returncode=_OVER_BUDGET)

    def pytest_unconfigure(self):
        self.report.write_text(json.dumps({"failed": self.failed, "tests": self.tests, "cpu_seconds": cpu_seconds()}))


def enter(tree: Path, log: Path) -> None:
    """In a child: makes `tree` the project, and `log` what is printed to."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(tree)
    here = str(Path(__file__).parents[2])
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", here))]
    os.environ["PYTHONPATH"] = str(tree)  # of the processes that tests start
    for name in [n for n in sys.modules if n.partition(".")[0] in ("tests", "qwen3_jax", "sharding")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def pytest_arguments(cache: Path) -> list[str]:
    """One process, stop at the first failure, examples of Hypothesis that are the same each time."""
    workers = ["-n0"] if importlib.util.find_spec("xdist") else []
    return ["-x", "--tb=short", "--hypothesis-profile=ci", "-o", f"cache_dir={cache / 'pytest'}", *workers]


def run_tests(
    tree: Path, selection: Selection, *, cpu_limit: float, time_limit: float, cache: Path, log: Path
) -> Outcome:
    """Runs the default tier's tests that `selection` names in `tree`, up to the first failure. `cache` is for what pytest and
    its fixtures keep."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-run-") as folder:
        report = Path(folder) / "report.json"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                enter(tree, log)
                arguments = [*pytest_arguments(cache), f"--basetemp={folder}/tests", *selection.files]
                code = int(pytest.main(arguments, plugins=[_Plugin(report, selection, cpu_limit)]))
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = wait(child, started + time_limit)
        seconds = time.monotonic() - started
        written = (
            json.loads(report.read_text()) if report.exists() else {"failed": None, "tests": 0, "cpu_seconds": 0.0}
        )
    if code == _NOTHING_COLLECTED:
        raise RuntimeError(f"no test was collected from {selection.files}; see {log}")
    status = {None: "timeout", 0: "passed", _OVER_BUDGET: "stopped"}.get(code, "failed")
    if status == "failed" and written["failed"] is None:
        written["failed"] = f"(collection or process, exit code {code})"
    return Outcome(status, written["failed"], written["tests"], round(written["cpu_seconds"], 1), round(seconds, 1))


def wait(child: int, deadline: float) -> int | None:
    """The exit code of `child`, negative for a signal; None past the deadline. Processes that it left behind are ended, and it
    as well, whatever ends this wait."""
    code = None
    try:
        while code is None and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
    return code
