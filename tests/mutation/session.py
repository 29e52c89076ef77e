"""What both commands share: the private copy, the tests to run for a change, and the lines of results."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from tests.mutation import executed, runs
from tests.mutation.tree import Tree

PACKAGES = ("data", "text", "checkpoint", "training", "serving", "generation")
_OF_EVERY_PACKAGE = ("tests/test_bounds.py",)
# Of what is traced once or kept, only the first test that needs it executes the lines.
_EXECUTED_ONCE = re.compile(r"^\s*(import|from) (jax|flax)|functools\.(lru_)?cache|cached_property", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="the checkout to measure")
    parser.add_argument("--results", type=Path, help="JSON lines; what is in it already is not run again")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "qwen3-jax-mutation",
        help="folder for what is kept between calls",
    )
    parser.add_argument(
        "--cpu-limit", type=float, default=90, help="CPU seconds of tests after which a change has survived"
    )
    parser.add_argument("--tests", nargs="*", help="test files or folders instead of the package's own")


def diff(original: str, changed: str) -> str:
    """The lines that differ, without the names of files."""
    return "\n".join(list(difflib.unified_diff(original.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:])


class Session:
    """One package's tests against one change after another."""

    def __init__(self, options: argparse.Namespace, tree: Tree, package: str):
        self.options, self.tree, self.package = options, tree, package
        self.log = options.cache / f"last-run-{os.getpid()}.log"
        folders = options.tests or [f"tests/{package}", *_OF_EVERY_PACKAGE]
        files = [str(f.relative_to(tree.folder)) for folder in folders for f in _test_files(tree.folder / folder)]
        self.executed = executed.measure(tree.folder, package, files, options.cache, self.log)
        if self.executed.failing:
            print(f"  fail without any change, and are left out: {', '.join(sorted(self.executed.failing))}")

    def selection(
        self, path: str, statement: tuple[int, int], scope: tuple[int, int], defines: str | None = None
    ) -> runs.Selection | None:
        """The tests that execute the statement, cheapest first; None where nothing does.

        What is executed at import is a default, a constant, or what makes one. Then come those that execute the function, or
        a line with the constant's name; else all tests of the files that import it.
        """
        executing = self.executed.of_lines(path, *statement)
        if not executing:
            return None
        importing = {test.partition("::")[0] for test in executing if executed.is_import(test)}
        whole = set()
        if importing and scope != statement:
            executing |= self.executed.of_lines(path, *scope)
        elif importing and defines:
            executing |= self.executed.of_name(self.tree.folder, defines)
        elif importing:
            whole |= importing
        whole |= {test.partition("::")[0] for test in executing if executed.is_fixture(test)}
        files, ordered = self.executed.order(executing)
        if not ordered or _EXECUTED_ONCE.search((self.tree.folder / path).read_text()):
            whole |= set(files)
        return runs.Selection(tuple(ordered), tuple(f for f in files if f in whole), frozenset(self.executed.failing))

    def run(self, path: str, source: str, selection: runs.Selection | None) -> dict:
        """The result of the tests with `path` changed to `source`."""
        if selection is None:
            return {"status": "uncovered", "killed_by": None, "tests": 0, "cpu_seconds": 0.0, "seconds": 0.0}
        limit = self.options.cpu_limit
        expected = min(limit, sum(self.executed.seconds.get(test, 1.0) for test in selection.tests))
        with self.tree.changed(path, source):
            outcome = runs.run_tests(
                self.tree.folder,
                selection,
                cpu_limit=limit,
                time_limit=90 + 5 * expected,
                cache=self.options.cache,
                log=self.log,
            )
        status = {"failed": "killed", "passed": "survived", "stopped": "survived"}.get(outcome.status, outcome.status)
        result = {"status": status, "killed_by": outcome.failed, **dataclasses.asdict(outcome)}
        del result["failed"]
        return result | {"status": status, "stopped": outcome.status == "stopped"}


def _test_files(folder: Path) -> list[Path]:
    return [folder] if folder.suffix == ".py" else sorted(folder.rglob("test_*.py"))


class Results:
    """A file of JSON lines, one per change, written as soon as it is known."""

    def __init__(self, path: Path, root: Path):
        self.path = path
        self.commit = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        ).stdout.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["commit"] == self.commit]

    def known(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def add(self, row: dict) -> None:
        self.rows.append({"commit": self.commit} | row)
        with self.path.open("a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")

    def print_shares(self) -> None:
        """Caught / all by package: killed and timeout count as caught."""
        for package in sorted({row["package"] for row in self.rows}):
            states = Counter(row["status"] for row in self.rows if row["package"] == package)
            caught = states["killed"] + states["timeout"]
            print(f"{package}: {caught} of {states.total()} caught ({dict(states)})")
