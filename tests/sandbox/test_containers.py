"""The sandbox inside what containers allow: one known user, no namespaces, a /proc that is hidden in part."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from qwen3_jax import UserError
from qwen3_jax.sandbox import find_isolation, run
try:
    print(find_isolation())
    print(run("import os; print(os.getuid(), os.listdir())").stdout)
except UserError as error:
    print(error)
"""
CASES = {
    "one user": (["-Ur"], "", ["as the user that starts it", "65534 ['main.py']"]),
    "no namespaces": (
        ["-Ur"],
        "echo 0 > /proc/sys/user/max_user_namespaces; ",
        [
            "can't be isolated on this machine",
            "namespaces: the sandbox could not be built: ",
            "unshare: ",
            'isolation="none"',
        ],
    ),
    "hidden /proc": (
        ["-m"],
        "mount -t tmpfs none /proc/sys; ",
        ["memory limited for each process alone", "65534 ['main.py']"],
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare(1)")
@pytest.mark.parametrize("name", CASES)
def test_it_says_what_a_container_leaves_of_it(name):
    options, prepare, expected = CASES[name]
    command = ["unshare", *options, "sh", "-c", f'{prepare}exec "$@"', "sh", sys.executable, "-c", CODE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
