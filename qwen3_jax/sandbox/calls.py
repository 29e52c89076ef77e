"""Assertions about a program's functions, checked in another process than the program's.

    check_calls("def f(x): return x + 1", ["assert f(1) == 2"]).ok    # True

Two sandboxes: one runs the program, the other the assertions, in which names of the program stand for objects of the first.
Calls, arguments and results go between them as data. So a program that exits early, replaces built-ins, rewrites its files or
returns objects that equal everything passes nothing that it did not compute.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qwen3_jax.errors import UserError
from qwen3_jax.sandbox.commands import Isolation
from qwen3_jax.sandbox.isolation import find_isolation
from qwen3_jax.sandbox.limits import Limits, Outcome
from qwen3_jax.sandbox.program import Program

_FOLDER = Path(__file__).parent


class CannotTest(UserError):
    """A test can't be run over two processes; says what it does."""


@dataclass(frozen=True)
class Checked:
    """What the assertions said.

    Attributes:
        passed: of each assertion in order, as far as they were run; empty if the program did not get so far.
        reason: why the first one failed; None if all passed.
        program: how the program itself ended.
    """

    passed: tuple[bool, ...]
    reason: str | None
    program: Outcome

    @property
    def ok(self) -> bool:
        """All assertions passed."""
        return self.reason is None and bool(self.passed) and all(self.passed)


def check_calls(
    program: str,
    assertions: Sequence[str],
    *,
    setup: str = "",
    entry_point: str | None = None,
    stop_at_first: bool = True,
    limits: Limits | None = None,
    isolation: str = "auto",
) -> Checked:
    """Run assertions against a program's functions and classes.

    Args:
        program: Python source that defines them.
        assertions: Python source of each; it may be longer than an `assert`.
        setup: source that runs before the assertions, beside them: imports, helpers.
        entry_point: the function that HumanEval's `check(candidate)` is called with, if the assertions define `check`.
        stop_at_first: run none after the first that fails.
        limits: of each of the two processes.
        isolation: see `find_isolation`.

    Raises:
        UserError: this machine gives no isolation.
        CannotTest: an assertion gives the program a function or an object of its own.
        SandboxFailed: a sandbox did not start.
    """
    found = find_isolation(isolation)
    files = {name: (_FOLDER / name).read_text(encoding="utf-8") for name in ("values.py", "candidate.py", "checker.py")}
    plan = {
        "setup": setup,
        "entry_point": entry_point,
        "assertions": list(assertions),
        "stop_at_first": stop_at_first,
    }
    requests, replies = os.pipe(), os.pipe()
    here: Future[Program] = Future()

    def run_program() -> Outcome:
        try:
            inside = {"values.py": files["values.py"], "solution.py": program}
            pipes = (requests[0], replies[1])
            started = _start(files["candidate.py"], found, limits, inside, pipes)
            here.set_result(started)
        except BaseException as error:
            here.set_exception(error)
            raise
        return started.wait()

    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(run_program)
        inside = {"values.py": files["values.py"], "plan.json": json.dumps(plan)}
        try:
            checker = _start(files["checker.py"], found, limits, inside, (replies[0], requests[1]))
            verdict = checker.wait()
        finally:
            here.result().stop()
        ended = outcome.result()
    return _checked(verdict, ended)


def _start(
    source: str, isolation: Isolation, limits: Limits | None, files: dict[str, str], pipes: tuple[int, int]
) -> Program:
    try:
        return Program(source, isolation, limits=limits, files=files, pipes=pipes)
    finally:
        for descriptor in pipes:
            os.close(descriptor)


def _checked(verdict: Outcome, program: Outcome) -> Checked:
    if not verdict.ok:
        why = program if program.ended in ("time", "cpu", "memory", "processes", "output") else verdict
        return Checked((), f"the tests did not end: {why.reason}", program)
    said = json.loads(verdict.stdout)
    if not said["can"]:
        raise CannotTest(said["reason"])
    reason = said["reason"]
    if reason is not None and not said["passed"] and program.ended != "stopped":
        reason = f"{reason}: {program.reason}"
    return Checked(tuple(said["passed"]), reason, program)
