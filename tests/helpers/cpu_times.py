"""A pytest plugin: CPU seconds by module, the slowest tests, and a budget for a run.

    python -m pytest -p tests.helpers.cpu_times --cpu-report=20 --cpu-budget=480

CPU time (user and system, of the test's process and of the children it waited for) changes less than wall time with what
else the machine does. What a fixture of a module costs counts for the test that asks for it first; imports and collection
count for "(start)". Children that nobody waited for are not counted.
"""

from __future__ import annotations

import collections
import os

import pytest

_PROPERTY = "cpu_seconds"


def _now() -> float:
    return sum(os.times()[:4])


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cpu times")
    group.addoption(
        "--cpu-report", type=int, default=0, metavar="N", help="print CPU seconds by module and the N slowest tests"
    )
    group.addoption(
        "--cpu-budget", type=float, default=0, metavar="SECONDS", help="fail when all tests together use more"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_CpuTimes(config), "cpu-times-of-this-run")


class _CpuTimes:
    def __init__(self, config: pytest.Config):
        self.config = config
        self.tests: dict[str, float] = {}
        self.whole = 0.0  # of the workers, where there are some
        self.running: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.running[item.nodeid] = _now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "teardown":
            report.user_properties.append((_PROPERTY, _now() - self.running.pop(item.nodeid)))
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.tests[report.nodeid] = dict(report.user_properties).get(_PROPERTY, 0.0)

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
        if budget and self.total > budget and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        count, budget = self.config.getoption("--cpu-report"), self.config.getoption("--cpu-budget")
        if count:
            modules: collections.Counter[str] = collections.Counter()
            for name, seconds in self.tests.items():
                modules[name.partition("::")[0]] += seconds
            modules["(start)"] = self.total - sum(self.tests.values())
            terminalreporter.section("CPU seconds by module")
            for name, seconds in modules.most_common():
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
            terminalreporter.section(f"the {count} slowest tests, CPU seconds")
            for name, seconds in collections.Counter(self.tests).most_common(count):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
            terminalreporter.write_line(f"{self.total:8.1f}  all")
        if budget and self.total > budget:
            terminalreporter.write_line(f"CPU time {self.total:.0f} s exceeds the budget of {budget:.0f} s.", red=True)
