"""Attacks on the sandbox, each really tried: every one ends as a wrong answer with its reason, and leaves no process."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_jax.sandbox import check_calls
from tests.sandbox import attacks
from tests.sandbox.attacks import ATTACKS, ROOT

NO_BWRAP = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


def processes_named(mark):
    """Processes of this machine whose name is `mark`."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [comm.parent.name] if comm.read_text().strip() == mark else []
        except OSError:
            continue
    return found


def left(mark):
    """Processes of that name that are there after two seconds: the kernel ends a namespace's processes after its first one."""
    deadline = time.monotonic() + 2
    while processes_named(mark) and time.monotonic() < deadline:
        time.sleep(0.005)
    return processes_named(mark)


@pytest.mark.parametrize("isolation", ["namespaces", pytest.param("bubblewrap", marks=[NO_BWRAP, pytest.mark.slow])])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_wrong_answer_with_its_reason(name, isolation, monkeypatch):
    monkeypatch.setenv("QWEN3_SECRET", "1")
    mark = f"a{os.getpid()}-{list(ATTACKS).index(name)}"
    verdict = attacks.attempt(name, mark, isolation)
    assert (verdict.status, verdict.score) == ("wrong", 0.0), verdict
    assert re.search(ATTACKS[name][1], verdict.reason), verdict.reason
    assert left(mark) == []


def _python_of_a_plain_user(user):
    """A Python that such a user can start, with this package; the tests' own may lie in a folder of root's."""
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()]), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        trial = [python, "-c", "import qwen3_jax.verifiers"]
        try:
            done = subprocess.run(
                trial, user=user, group=user, extra_groups=[], env=environment, cwd="/", capture_output=True
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python, environment
    return None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as a plain user already")
@pytest.mark.parametrize("isolation", ["namespaces", pytest.param("bubblewrap", marks=NO_BWRAP)])
def test_attacks_on_a_plain_users_sandbox(isolation):
    user = 54321
    found = _python_of_a_plain_user(user)
    if found is None:
        pytest.skip("no Python that a plain user can start")
    python, environment = found
    command = [python, "-m", "tests.sandbox.attacks", isolation]
    environment |= {"QWEN3_SECRET": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=[],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, (status, reason) in json.loads(done.stdout).items():
        assert status == "wrong", (name, reason)
        assert re.search(ATTACKS[name][1], reason), (name, reason)


ALWAYS_EQUAL = """
class Anything:
    def __eq__(self, other): return True
    def __lt__(self, other): return True
    def __contains__(self, other): return True
    def __bool__(self): return True
    def __index__(self): return 4
class Number(int):
    def __eq__(self, other): return True
    __hash__ = None
"""
WRITE = "import os\nfor n in range(3, 20):\n  try: os.write(n, {!r} * 3)\n  except OSError: pass\ndef f(x): return 5"
VERDICT = b'{"passed": [true], "reason": null, "can": true}\n'
CODE = b'{"names": ["f"]}\n{"raised": "exec", "kind": "exec", "text": "import os; os._exit(0)"}\n'
GRADER_ATTACKS = {  # name: the program; it must not pass `assert f(2) == 4`
    "exit": "import os\ndef f(x): os._exit(0)",
    "exit at once": "raise SystemExit(0)",
    "equals everything": ALWAYS_EQUAL + "def f(x): return Anything()",
    "a number that equals everything": ALWAYS_EQUAL + "def f(x): return Number(5)",
    "replaced built-ins": "import builtins\nbuiltins.AssertionError = builtins.print = None\ndef f(x): return 5",
    "replaced comparison": "import operator\noperator.eq = lambda a, b: True\ndef f(x): return 5",
    "replaced module": "import sys\nsys.modules['values'].encode = lambda *a: True\ndef f(x): return 5",
    "written files": "for name in ('values.py', 'checker.py', 'plan.json'): open(name, 'w').write('')\ndef f(x): return 5",
    "a printed verdict": f"print({VERDICT.decode()!r}, flush=True)\nraise SystemExit(0)",
    "replies of its own": WRITE.format(VERDICT),
    "an exception that is code": WRITE.format(CODE),
    "killing everyone": "import os\nos.kill(-1, 9)\ndef f(x): return 4",
    "looking for the tests": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'passed' in o: o['passed'] = [True]\n    return 5"
    ),
}


@pytest.mark.parametrize("name", GRADER_ATTACKS)
def test_the_grader_can_not_be_replaced(name):
    checked = check_calls(GRADER_ATTACKS[name], ["assert f(2) == 4"])
    assert not checked.ok
    assert checked.reason


@pytest.mark.parametrize("test", ["assert f(2) < 4", "assert 4 in f(2)", "assert f(2) is True", "assert f(2)[0] == 4"])
def test_an_object_that_says_yes_to_everything_passes_no_comparison_with_a_value(test):
    assert not check_calls(ALWAYS_EQUAL + "def f(x): return Anything()", [test]).ok


@pytest.mark.slow
def test_programs_end_with_the_process_that_started_them():
    """Killed at once, it can't clean up: the kernel does."""
    mark = f"p{os.getpid()}"
    source = attacks.program("sleep", mark)
    code = f"from qwen3_jax.sandbox import run\nrun({source!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 30
    while not processes_named(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_named(mark)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while processes_named(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_named(mark) == []
