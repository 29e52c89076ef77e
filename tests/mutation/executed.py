"""Which tests execute which lines: one run per test file under coverage, kept for as long as the package and its tests stay."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mutation import runs

if TYPE_CHECKING:
    import coverage

_IMPORT = "(import)"
_FIXTURE = "(fixture)"


@dataclasses.dataclass
class Executed:
    """`lines[path][line]` are the tests that execute a line; "file::(import)" and "file::(fixture)" stand for all tests of a
    file. `seconds` are the tests' CPU seconds, and `failing` those that fail without any change."""

    lines: dict[str, dict[int, set[str]]] = dataclasses.field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failing: set[str] = dataclasses.field(default_factory=set)

    def of_lines(self, path: str, first: int, last: int) -> set[str]:
        """Tests that execute one of the lines `first` to `last` of `path`."""
        by_line = self.lines.get(path, {})
        return set().union(*(by_line.get(line, ()) for line in range(first, last + 1)))

    def of_name(self, tree: Path, name: str) -> set[str]:
        """Tests that execute a line in which the word `name` is, anywhere in the package."""
        tests: set[str] = set()
        for path, by_line in self.lines.items():
            text = (tree / path).read_text().splitlines()
            for line, executing in by_line.items():
                if line <= len(text) and name in text[line - 1]:
                    tests |= executing
        return tests

    def order(self, tests: Iterable[str]) -> tuple[list[str], list[str]]:
        """The files that hold `tests`, and the tests, cheapest first; tests of one file stay together."""
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in tests:
            by_file[test.partition("::")[0]].append(test)
        cost = {file: sum(self.seconds.get(test, 1.0) for test in names) for file, names in by_file.items()}
        files = sorted(by_file, key=lambda file: (not any(is_test(name) for name in by_file[file]), cost[file]))
        ordered = [
            test for file in files for test in sorted(by_file[file], key=lambda name: self.seconds.get(name, 1.0))
        ]
        return files, [test for test in ordered if is_test(test)]


def is_import(name: str) -> bool:
    return name.endswith(_IMPORT)


def is_fixture(name: str) -> bool:
    return name.endswith(_FIXTURE)


def is_test(name: str) -> bool:
    return not name.endswith((_IMPORT, _FIXTURE))


class _Contexts:
    """Names for coverage what is being executed: a test, a fixture of several tests, or the import of a file."""

    def __init__(self, measured: coverage.Coverage, file: str):
        self.measured, self.file = measured, file
        self.seconds: dict[str, float] = {}
        self.failing: set[str] = set()
        self._switch(f"{file}::{_IMPORT}")

    def _switch(self, name: str) -> None:
        self.current = name
        self.measured.switch_context(name)
        os.environ["MUTATION_CONTEXT"] = name  # of the processes that tests start

    def pytest_runtest_logstart(self, nodeid):
        self._switch(nodeid)
        self.seconds[nodeid] = -runs.cpu_seconds()

    def pytest_runtest_logfinish(self, nodeid):
        self.seconds[nodeid] += runs.cpu_seconds()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failing.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before = self.current
        if fixturedef.scope != "function":
            self._switch(f"{self.file}::{_FIXTURE}")
        try:
            return (yield)
        finally:
            self._switch(before)


def measure(tree: Path, package: str, test_files: list[str], cache: Path, log: Path) -> Executed:
    """Runs `test_files` one by one, each once; what was measured before for the same sources is read from `cache`."""
    executed = Executed()
    sources = _digest(tree, [*_python(tree, f"qwen3_jax/{package}"), *_python(tree, "tests/helpers")])
    for file in test_files:
        kept = cache / "executed" / f"{package}-{Path(file).stem}-{_digest(tree, [file], sources)}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            print(f"  which lines {file} executes", flush=True)
            _measure_file(tree, package, file, cache, kept, log)
        measured = json.loads(kept.read_text())
        executed.seconds |= measured["seconds"]
        executed.failing |= set(measured["failing"])
        for path, by_line in measured["lines"].items():
            for line, tests in by_line.items():
                executed.lines[path][int(line)] |= set(tests)
    return executed


def _python(tree: Path, folder: str) -> list[str]:
    return sorted(str(file.relative_to(tree)) for file in (tree / folder).rglob("*.py"))


def _digest(tree: Path, files: list[str], start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for file in files:
        digest.update(file.encode() + (tree / file).read_bytes())
    return digest.hexdigest()[:16]


def _measure_file(tree: Path, package: str, file: str, cache: Path, kept: Path, log: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runs.enter(tree, log)
            kept.with_suffix(".part").write_text(json.dumps(_in_child(tree, package, file, cache)))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if runs.wait(child, float("inf")) != 0:
        raise RuntimeError(f"{file} ends its process; see {log}")
    kept.with_suffix(".part").rename(kept)


def _in_child(tree: Path, package: str, file: str, cache: Path) -> dict:
    import coverage  # of the extra `mutation`

    with tempfile.TemporaryDirectory(prefix="mutants-coverage-") as folder:
        settings = Path(folder) / "coveragerc"
        settings.write_text(
            f"[run]\ninclude = {tree}/qwen3_jax/{package}/*\ncore = ctrace\nparallel = true\nsigterm = true\n"
            f"data_file = {folder}/data\ncontext = ${{MUTATION_CONTEXT-}}\n"
        )
        os.environ["COVERAGE_PROCESS_START"] = str(settings)
        os.environ["MUTATION_CONTEXT"] = ""
        measured = coverage.Coverage(config_file=str(settings))
        measured.start()
        contexts = _Contexts(measured, file)
        arguments = [argument for argument in runs.pytest_arguments(cache) if argument != "-x"]
        pytest.main([*arguments, f"--basetemp={folder}/tests", file], plugins=[contexts])
        measured.stop()
        measured.save()
        lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for data_file in Path(folder).glob("data*"):
            data = coverage.CoverageData(str(data_file))
            data.read()
            for path in data.measured_files():
                for line, tests in data.contexts_by_lineno(path).items():
                    lines[str(Path(path).relative_to(tree))][line] |= set(filter(None, tests))
    return {
        "lines": {path: {line: sorted(tests) for line, tests in by_line.items()} for path, by_line in lines.items()},
        "seconds": {name: round(seconds, 2) for name, seconds in contexts.seconds.items()},
        "failing": sorted(contexts.failing),
    }
