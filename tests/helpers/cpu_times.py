"""A pytest plugin: CPU seconds by module and by what they went to, the slowest tests, and a budget for the default tier.

    python -m pytest -p tests.helpers.cpu_times --cpu-report=20 --cpu-budget=480

The budget leaves out tests marked `slow` or `soak`, so that a run of both tiers holds the default one to it.

CPU time (user and system, of the test's process and of the children it waited for) changes less than wall time with what
else the machine does. What a fixture of a module costs counts for the test that asks for it first; imports and collection
count for "(start)". Children that nobody waited for are not counted.

Columns: all of a module; of it child processes; of the rest tracing and lowering, compiling, and reading compiled programs from
the cache (wall times, which are CPU times in a process that has a core); and how many programs were compiled.
"""

from __future__ import annotations

import collections
import os
import threading
import time

import pytest

_PROPERTY = "cpu_seconds"
_COLUMNS = ("all", "children", "tracing", "compiling", "reading", "programs")
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "tracing",
    "/jax/core/compile/backend_compile_duration": "compiling",
    "/jax/compilation_cache/cache_retrieval_time_sec": "reading",
}


def _now() -> float:
    return sum(os.times()[:4])


class _Phases:
    """Seconds of each of JAX's phases, without those of the phases inside: a trace may compile, and compiling may only read."""

    def __init__(self):
        self.seconds: collections.Counter[str] = collections.Counter()
        self._ended = threading.local()  # start and length of the events that no later event has contained yet
        import jax  # when conftest.py has set what JAX reads as it is imported

        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, seconds: float, **_details) -> None:
        if (phase := _EVENTS.get(event)) is None:
            return
        ended = self._ended.__dict__.setdefault("events", [])
        start, inside, read = time.time() - seconds, 0.0, False
        while ended and ended[-1][0] >= start - 1e-4:
            _, length, of = ended.pop()
            inside, read = inside + length, read or of == "reading"
        ended.append((start, seconds, phase))
        del ended[:-50]
        self.seconds[phase] += seconds - inside
        self.seconds["programs"] += phase == "compiling" and not read

    def now(self) -> dict[str, float]:
        """All columns up to now, of this process and the children that it waited for."""
        return {"all": _now(), "children": sum(os.times()[2:4]), **self.seconds}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cpu times")
    group.addoption(
        "--cpu-report", type=int, default=0, metavar="N", help="print CPU seconds by module and the N slowest tests"
    )
    group.addoption(
        "--cpu-budget", type=float, default=0, metavar="SECONDS", help="fail when the default tests together use more"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_CpuTimes(config), "cpu-times-of-this-run")


class _CpuTimes:
    def __init__(self, config: pytest.Config):
        self.config = config
        if not config.getoption("numprocesses", None):  # else this process runs no test
            self.phases = _Phases()
        self.tests: dict[str, dict[str, float]] = {}
        self.marked: set[str] = set()  # slow or soak
        self.whole = 0.0  # of the workers, where there are some
        self.running: dict[str, dict[str, float]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.running[item.nodeid] = self.phases.now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "teardown":
            before, now = self.running.pop(item.nodeid), self.phases.now()
            report.user_properties.append(
                (_PROPERTY, {name: now.get(name, 0) - before.get(name, 0) for name in _COLUMNS})
            )
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            if not {"slow", "soak"}.isdisjoint(report.keywords):
                self.marked.add(report.nodeid)
            self.tests[report.nodeid] = dict(report.user_properties).get(_PROPERTY, dict.fromkeys(_COLUMNS, 0.0))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        self.whole += getattr(node, "workeroutput", {}).get(_PROPERTY, 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[_PROPERTY] = _now()
            return
        budget = self.config.getoption("--cpu-budget")
        self.total = self.whole + _now()
        self.default = self.total - sum(self.tests[name]["all"] for name in self.marked)
        if budget and self.default > budget and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        count, budget = self.config.getoption("--cpu-report"), self.config.getoption("--cpu-budget")
        if count:
            modules: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
            for name, columns in self.tests.items():
                modules[name.partition("::")[0]].update(columns)
            tests = sum(modules.values(), collections.Counter())
            modules["(start)"]["all"] = self.total - tests["all"]
            modules["(all)"].update(tests | {"all": self.total})
            self._table(terminalreporter, "CPU seconds by module", modules)
            slowest = sorted(self.tests.items(), key=lambda item: -item[1]["all"])[:count]
            self._table(terminalreporter, f"the {count} slowest tests, CPU seconds", dict(slowest))
        if count:
            slow = self.total - self.default
            terminalreporter.write_line(f"{self.default:.0f} CPU s for the default tier, {slow:.0f} for the slow one")
        if budget and self.default > budget:
            spent = f"The default tier used {self.default:.0f} CPU s, more than its budget of {budget:.0f}."
            terminalreporter.write_line(spent, red=True)

    @staticmethod
    def _table(terminalreporter, title: str, rows) -> None:
        terminalreporter.section(title)
        terminalreporter.write_line("".join(f"{name:>10}" for name in _COLUMNS))
        for name, columns in sorted(rows.items(), key=lambda row: -row[1]["all"]):
            terminalreporter.write_line(
                "".join(f"{columns[key]:10.1f}" for key in _COLUMNS[:-1]) + f"{columns['programs']:10.0f}  {name}"
            )
