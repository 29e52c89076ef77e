"""The notebooks run top to bottom on CPU, each in under four minutes; their short forms take one."""

import os
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import run_kernel

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SECONDS = 240


@pytest.mark.parametrize(
    "form", [pytest.param("short", marks=pytest.mark.slow), pytest.param("whole", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_top_to_bottom(name, form, tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3_NOTEBOOK", form)  # "short": the same cells with smaller sizes
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    if "QWEN3_MODEL" in (NOTEBOOKS / name).read_text() and "QWEN3_MODEL" not in os.environ:
        quickstart = NOTEBOOKS.parent / "runs/quickstart/hf"
        if not quickstart.exists():
            pytest.skip(
                "needs the quickstart's model: python train.py --config configs/quickstart.yaml, or QWEN3_MODEL=DIR"
            )
        monkeypatch.setenv("QWEN3_MODEL", str(quickstart))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    work = tmp_path / "notebooks"  # a folder beside the configurations, as in a clone
    work.mkdir()
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(NOTEBOOKS.parent / folder)
    deadline = time.monotonic() + SECONDS
    errors = []  # of widgets as well, which show them and let the cell go on

    def look(message):
        if message["msg_type"] == "error":
            errors.append("\n".join(message["content"]["traceback"]))

    # Not nbclient: on a busy machine it may not notice the reply to a cell with widgets before its timeout (its issue 312).
    with run_kernel(kernel_name="python3", cwd=str(work)) as kernel:
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            try:
                reply = kernel.execute_interactive(cell.source, timeout=deadline - time.monotonic(), output_hook=look)
            except TimeoutError:
                pytest.fail(f"after {SECONDS} s the notebook was here:\n{cell.source}")
            assert not errors, "\n".join([cell.source, *errors])
            assert reply["content"]["status"] == "ok"
            assert reply["content"]["execution_count"] == number
