"""Each notebook runs top to bottom on CPU, in a kernel without the project and from a folder without it, as on Colab.

The kernel's environment has every package but this one, and the first cell clones a copy of this checkout (`QWEN3_REPOSITORY`)
and installs it. Short forms (`QWEN3_NOTEBOOK=short`: smaller sizes) take one minute, whole ones up to four.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from tests.helpers import quick_xla
from tests.helpers.notebooks import copy_checkout, run_cells, write_kernel
from tests.helpers.repository_url import ROOT, repository_url

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SHORT = [
    path for path in NOTEBOOKS if path.name != "evaluate_a_model.ipynb"
]  # which tests/test_distribution.py runs short
INSTALLING = re.compile(r"\n(?:WORK = )?install\(")  # the rest of the first cell differs
SECONDS = 360
LONGER = {"the_whole_recipe.ipynb": 7200}  # of the whole form


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A repository to clone: this checkout as it is, committed or not."""
    folder = copy_checkout(tmp_path_factory.mktemp("origin") / "qwen3-jax")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", folder]
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a copy"], check=True)
    return folder


def kernel_without_the_project(work: Path) -> Path:
    """Write a kernel specification below `work`; return its environment's Python.

    The environment is empty but for links to all packages of this one, without the project's own: pip finds nothing else to do.
    """
    python = work / "environment/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
    links = work / "packages"
    links.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("qwen3", "sharding", "__editable__")) and entry.suffix != ".pth":
                (links / entry.name).symlink_to(entry)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (python.parents[1] / f"lib/{version}/site-packages/links.pth").write_text(f"{links}\n")
    write_kernel(work, "without_the_project", python)
    return python


@pytest.mark.parametrize(
    ("form", "notebook"),
    [
        *(pytest.param("short", path, marks=pytest.mark.slow, id=f"short-{path.name}") for path in SHORT),
        *(pytest.param("whole", path, marks=pytest.mark.soak, id=f"whole-{path.name}") for path in NOTEBOOKS),
    ],
)
def test_a_notebook_runs_where_the_project_is_not_installed_from_another_folder(
    notebook, form, origin, tmp_path, monkeypatch
):
    python = kernel_without_the_project(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    imported = subprocess.run([python, "-c", "import qwen3_jax"], cwd=elsewhere, capture_output=True, text=True)
    assert "No module named 'qwen3_jax'" in imported.stderr
    monkeypatch.setenv("QWEN3_NOTEBOOK", form)
    monkeypatch.setenv("QWEN3_REPOSITORY", str(origin))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    if form == "short":  # `.ci/run` builds the package with tools that pip fetches, before
        monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads 0 as: no isolation
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    if not any("planner" in source for source in cells):  # it loads libtpu, which does not know all of these
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {quick_xla.FLAGS}")
    if any("QWEN3_MODEL" in source for source in cells) and "QWEN3_MODEL" not in os.environ:
        quickstart = ROOT / "runs/quickstart/hf"
        if not quickstart.exists():
            pytest.skip(
                "needs the quickstart's model: python train.py --config configs/quickstart.yaml, or QWEN3_MODEL=DIR"
            )
        monkeypatch.setenv("QWEN3_MODEL", str(quickstart))
    run_cells(
        cells, "without_the_project", elsewhere, LONGER.get(notebook.name, SECONDS) if form == "whole" else SECONDS
    )
    assert (elsewhere / "qwen3-jax/notebooks/install.py").exists()
    assert not list((elsewhere / "qwen3-jax").glob("**/metrics.jsonl")), "a run belongs to the reader's folder"
    written = [path.relative_to(elsewhere) for path in elsewhere.iterdir() if path.name != "qwen3-jax"]
    for name in written:  # the same in a checkout, where Jupyter runs notebooks in their own folder
        assert not subprocess.run(["git", "check-ignore", "-q", f"notebooks/{name}"], cwd=ROOT).returncode, name
    clone = ["git", "-C", elsewhere / "qwen3-jax", "status", "--porcelain"]
    assert subprocess.run(clone, check=True, capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_opens_in_colab_and_installs_the_project_by_itself(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    target = repository_url().replace("https://github.com/", "https://colab.research.google.com/github/")
    assert f"]({target}/blob/main/notebooks/{notebook.name})" in cells[0].source
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    others = [
        next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code") for path in NOTEBOOKS
    ]
    assert {INSTALLING.split(source)[0] for source in others} == {INSTALLING.split(first)[0]}, "one form"
    assert not any(cell.get("outputs") for cell in cells), "no outputs in the repository"


def test_the_first_cell_finds_a_checkout_above_and_says_what_it_cannot_clone(tmp_path):
    first = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    source = INSTALLING.split(next(cell.source for cell in first if cell.cell_type == "code"))[0]
    below = tmp_path / "checkout/notebooks"
    below.mkdir(parents=True)
    shutil.copy2(ROOT / "notebooks/install.py", below)
    environment = {**os.environ, "QWEN3_REPOSITORY": str(tmp_path / "nothing")}
    environment.pop("PYTHONPATH", None)
    found = [sys.executable, "-I", "-S", "-c", source + "\nprint(ROOT)"]  # -S: no installed packages
    done = subprocess.run(found, cwd=below, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "checkout"), done.stderr
    (tmp_path / "empty").mkdir()
    done = subprocess.run(found, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert f"RuntimeError: {tmp_path / 'nothing'} cannot be cloned: set QWEN3_REPOSITORY" in done.stderr
