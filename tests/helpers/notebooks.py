"""Notebooks in kernels of other environments, and a copy of this checkout that they can be made from."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from jupyter_client.manager import run_kernel

from tests.helpers.repository_url import ROOT


def copy_checkout(folder: Path) -> Path:
    """Copy the files of this checkout as they are, committed or not."""
    listed = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def write_kernel(work: Path, name: str, python: Path) -> None:
    """Write a kernel specification; JUPYTER_PATH is WORK/jupyter."""
    kernel = work / "jupyter/kernels" / name / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))


def run_cells(cells: list[str], kernel_name: str, work: Path, seconds: int) -> str:
    """Execute cells in one kernel that never restarts; fail at the first error, of widgets as well. Return what they print."""
    deadline = time.monotonic() + seconds
    errors, printed = [], []

    def look(message):
        if message["msg_type"] == "error":
            errors.append("\n".join(message["content"]["traceback"]))
        elif message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    # Not nbclient: on a busy machine it may not notice the reply to a cell with widgets before its timeout (its issue 312).
    with run_kernel(kernel_name=kernel_name, cwd=str(work)) as kernel:
        for number, source in enumerate(cells, 1):
            try:
                reply = kernel.execute_interactive(source, timeout=deadline - time.monotonic(), output_hook=look)
            except TimeoutError:
                pytest.fail(f"after {seconds} s the notebook was here:\n{source}")
            assert not errors, "\n".join([source, *errors])
            assert reply["content"]["status"] == "ok"
            assert reply["content"]["execution_count"] == number
    return "".join(printed)
