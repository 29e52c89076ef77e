"""The notebooks run top to bottom on CPU, each in under four minutes."""

import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SECONDS = 240


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_top_to_bottom(name, tmp_path, monkeypatch):
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
    started = time.monotonic()
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(work)}}).execute(env=dict(os.environ))
    assert time.monotonic() - started < SECONDS
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
