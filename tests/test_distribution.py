"""The wheel and the source distribution, each in an environment that has nothing else, away from the checkout."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import uv
import yaml

import qwen3_jax
from tests.helpers import quick_xla
from tests.helpers.notebooks import copy_checkout, run_cells, write_kernel
from tests.helpers.repository_url import ROOT, repository_url
from tests.test_named import HELP

PACKAGES = ("qwen3_jax", "sharding")
EXTRAS = {"fastapi", "pydantic", "lm_eval"}  # modules that need an extra fail to import for want of these
SANDBOXED = {"qwen3_jax.sandbox.candidate", "qwen3_jax.sandbox.checker"}  # run as programs, beside their own files
# Imports every module, then asks every command for help; prints what was missing by the module that wanted it, and the lengths.
CHILD = """
import contextlib, importlib, io, json, pkgutil, sys
packages, commands, skipped = map(json.loads, sys.argv[1:])
missing, imported, lengths = {}, [], {}
for name in packages:
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
        if module.name.endswith("__main__") or module.name in skipped:
            continue
        try:
            imported.append(importlib.import_module(module.name).__file__)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name
from qwen3_jax.cli.main import main
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main([*words, "--help"])
        except SystemExit as error:
            code = error.code
    lengths[" ".join(words)] = 0 if code else len(out.getvalue())
print(json.dumps({"missing": missing, "imported": imported, "lengths": lengths}))
"""
SMALL = ["--steps=2", "--eval_every=2", "--checkpoint_every=2", "--optimizer.warmup_steps=1", "--data.batch_size=2"]
SMALL += [
    '--data.sources=[{name: problems, path: "synthetic:running_sum", running_sum: {problems: 200, eval_problems: 8}}]'
]
SMALL += [
    "--tokenizer.vocab_size=320",
    "--model.config.num_hidden_layers=1",
    "--budget_curve=null",
]


def test_the_version_stands_in_one_place():
    known = qwen3_jax.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", known)
    assert version("qwen3-jax") == known, "pip install -e . again"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == known
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", known)
    others = [ROOT / "pyproject.toml", *ROOT.glob("deploy/*"), *ROOT.glob("docs/*.md")]
    assert [path for path in others if path.is_file() and f'"{known}"' in path.read_text("utf-8")] == []


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(wheel, source distribution, wheel that was made from the source distribution)."""
    work = tmp_path_factory.mktemp("distributions")
    checkout = copy_checkout(work / "checkout")
    (checkout / "configs/mine.txt").write_text("not ours")
    run_uv("build", "--wheel", "--out-dir", work / "direct", checkout)
    run_uv("build", "--out-dir", work / "built", checkout)  # the wheel of the source distribution
    (wheel,), (source,), (again,) = (work.glob(name) for name in ("direct/*.whl", "built/*.tar.gz", "built/*.whl"))
    return wheel, source, again


@pytest.mark.slow
def test_both_distributions_hold_every_file_once_and_give_the_same_wheel(distributions):
    wheel, source, again = distributions
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", *PACKAGES, "configs", "examples"], capture_output=True, text=True
    )
    tracked = listed.stdout.split()
    assert len(tracked) > 400
    shipped = {
        f"qwen3_jax/shipped/{name}" for name in [*tracked, "notebooks/install.py"] if not name.startswith(PACKAGES)
    }
    own = {name for name in tracked if name.startswith(PACKAGES)} | {"qwen3_jax_lm_eval.py", "qwen3_jax_lm_eval.pth"}
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(again) as other:
        names = archive.namelist()
        assert len(set(names)) == len(names)
        info = f"qwen3_jax-{qwen3_jax.__version__}.dist-info"
        assert {name for name in names if not name.startswith(info)} == own | shipped
        assert f"{info}/licenses/LICENSE" in names
        contents = {name: archive.read(name) for name in names}
        assert contents == {name: other.read(name) for name in other.namelist()}
    metadata = contents[f"{info}/METADATA"].decode()
    assert f"]({repository_url()}/blob/main/docs/start.md)" in metadata
    assert not re.search(r"\]\((?!https?://|#)", metadata.partition("\n\n")[2]), "a link without an address"
    pages = (ROOT / "README.md").read_text("utf-8") + (ROOT / "docs/start.md").read_text("utf-8")
    for extra in set(re.findall(r"^Provides-Extra: (.+)$", metadata, flags=re.MULTILINE)) - {
        "mutation",
        "test-without-torch",
    }:
        assert f"`{extra}`" in pages, f"no page says what the extra {extra} is for"
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md", "train.py"} < held
    assert not any(name.startswith(("tests", "docs", ".ci")) for name in held)


@pytest.mark.slow
def test_the_source_distribution_alone_imports_everything_and_helps_with_every_command(distributions, tmp_path):
    python = installed(distributions[1], tmp_path)
    words = [json.dumps(one) for one in (PACKAGES, [*HELP, ["run"], ["data"], ["configs"]], sorted(SANDBOXED))]
    done = call([python, "-c", CHILD, *words], tmp_path)
    result = json.loads(done.splitlines()[-1])
    assert set(result["missing"].values()) <= EXTRAS, result["missing"]
    assert len(result["imported"]) > 400
    assert all(Path(file).is_relative_to(python.parents[1]) for file in result["imported"])
    assert [command for command, length in result["lengths"].items() if length < 100] == []
    assert call([python.with_name("qwen3"), "--version"], tmp_path) == f"qwen3-jax {qwen3_jax.__version__}\n"


@pytest.mark.slow
def test_the_wheel_trains_the_quickstart_serves_its_page_and_runs_a_notebook(distributions, tmp_path, monkeypatch):
    python = installed(f"{distributions[0]}[serve,notebook]", tmp_path)
    work = tmp_path / "elsewhere"
    work.mkdir()
    call([python.with_name("qwen3"), "train", "--config", "configs/quickstart.yaml", *SMALL], work)
    model = work / "runs/quickstart/hf"
    assert (model / "config.json").exists()

    command = [python.with_name("qwen3"), "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(command, cwd=work, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1]
            files = {file.name: file.read_text("utf-8") for file in (ROOT / "qwen3_jax/serving/page").iterdir()}
            assert read(address) == files.pop("index.html")
            assert len(files) >= 8
            for name, text in files.items():
                assert read(f"{address}/page/{name}") == text, name
        finally:
            server.terminate()
        assert server.wait(60) in (143, -signal.SIGTERM)  # the second while it compiles

    write_kernel(tmp_path, "installed", python)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("QWEN3_NOTEBOOK", "short")
    monkeypatch.setenv("QWEN3_MODEL", str(model))
    monkeypatch.setenv("QWEN3_REPOSITORY", str(tmp_path / "nothing to clone"))
    notebook = nbformat.read(ROOT / "notebooks/evaluate_a_model.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    printed = run_cells(cells, "installed", work, 300)
    assert f"qwen3-jax is ready: {python.parents[1]}" in printed
    assert "installing" not in printed
    assert not (work / "qwen3-jax").exists()


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["", "cuda", "tpu"])
def test_what_the_images_install_can_be_had_for_the_wheel(distributions, accelerator):
    text = (ROOT / "deploy/Dockerfile").read_text("utf-8").replace("/dist/", f"{distributions[0].parent}/")
    requirements = re.findall(r'RUN pip install --no-cache-dir ("\$\(echo .+\]")', text)
    assert len(requirements) == 2
    for requirement in requirements:
        words = ["bash", "-c", f"echo {requirement}"]
        done = subprocess.run(
            words, env={"ACCELERATOR": accelerator, "PATH": os.environ["PATH"]}, capture_output=True, text=True
        )
        assert done.stdout.startswith(f"{distributions[0]}["), done.stderr
        assert accelerator in done.stdout
        said = run_uv("pip", "install", "--dry-run", "--python", sys.executable, done.stdout.strip())
        assert "does not have an extra" not in said, said


def run_uv(*words: object) -> str:
    """Run uv, which takes packages from its cache: CI's, or this user's. Return what it says."""
    command = [os.environ.get("UV") or uv.find_uv_bin(), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def installed(requirement: Path | str, work: Path) -> Path:
    """The Python of a new environment with this requirement and what it needs."""
    folder = work / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    run_uv("pip", "install", "-q", "--python", folder / "bin/python", requirement)
    return folder / "bin/python"


def environment() -> dict[str, str]:
    """This process's, without what leads to the checkout."""
    unwanted = ("PYTHONPATH", "QWEN3_MODEL", "QWEN3_REPOSITORY", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_xla.FLAGS}


def call(command: list, work: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=work, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as reply:
        return reply.read().decode("utf-8")
