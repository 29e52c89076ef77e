"""A peer's verdicts from a process of its own: what its package imports stays there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def verdicts(module: str, cases: Iterable[Any]) -> list[Any]:
    """What `python -m MODULE` writes of each case, one line of JSON each, in both directions."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    command, environment = [sys.executable, "-m", module], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
