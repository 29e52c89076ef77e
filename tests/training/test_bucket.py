"""A run whose folder is a bucket (a local server): trained, killed, resumed on two processes, exported, reported."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax import paths
from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.cli.train import main as train
from qwen3_jax.errors import UserError
from tests.helpers import small_run
from tests.helpers.fake_gcs import FakeGcs

needs_gcsfs = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs")
RUN = "gs://bucket/runs/one"


@pytest.fixture
def gcs():
    with FakeGcs() as server:
        server.create("bucket")
        yield server


def lines(gcs: FakeGcs, name: str) -> list[dict]:
    return [json.loads(line) for line in gcs.objects["bucket"].get(f"runs/one/{name}.jsonl", b"").splitlines()]


def steps(gcs: FakeGcs) -> list[int]:
    """Steps of whole checkpoints."""
    names = [name.split("/") for name in gcs.objects["bucket"]]
    return sorted({int(n[3]) for n in names if n[2] == "checkpoints" and n[-1] == "commit_success.txt" and len(n) == 5})


def check_that_commands_read_it(gcs: FakeGcs, tmp_path: Path) -> None:
    """The export loads from there, a checkpoint is converted, and the report is drawn there."""
    command = [sys.executable, "-m", "qwen3_jax.cli"]
    environment = os.environ | {"PYTHONPATH": str(small_run.ROOT), "JAX_PLATFORMS": "cpu"}
    said = subprocess.run([*command, "report", RUN, "--json"], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["starts"] == 2
    assert gcs.objects["bucket"]["runs/one/report.png"].startswith(b"\x89PNG")
    assert gcs.objects["bucket"]["runs/one/report.html"].startswith(b"<!doctype html>")
    load = f"import qwen3_jax; print(qwen3_jax.load('{RUN}/hf')[1].vocab_size)"
    said = subprocess.run([sys.executable, "-c", load], env=environment, capture_output=True, text=True)
    assert said.stdout == "290\n", said.stderr
    said = subprocess.run(
        [*command, "convert", RUN, str(tmp_path / "hf"), "--to", "hf"], env=environment, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "hf/model.safetensors").read_bytes() == gcs.objects["bucket"]["runs/one/hf/model.safetensors"]


@needs_gcsfs
@pytest.mark.soak  # six minutes on a busy machine; not timed on a quiet one
def test_a_run_in_a_bucket_is_killed_resumed_on_two_processes_exported_and_reported(gcs, tmp_path, monkeypatch):
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    config = small_run.write_config(tmp_path, log_every=1, eval_every=4)

    def output(name: str = "one-0") -> str:
        return (tmp_path / f"{name}.log").read_text()[-4000:]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "host-0"))
    process = small_run.start(config, RUN, 8, log=tmp_path / "one-0.log")
    deadline = time.monotonic() + 300
    while not steps(gcs):
        assert process.poll() is None, output()
        assert time.monotonic() < deadline, output()
        time.sleep(0.05)
    process.kill()
    process.wait()
    saved = max(steps(gcs))
    assert saved < 12, "killed on the way"
    assert [row["step"] for row in lines(gcs, "metrics") if "train.total" in row][:saved] == list(range(1, saved + 1))

    # Another host, which has none of the files, and two processes.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "host-1"))
    processes = small_run.start_pair(config, RUN, tmp_path)
    assert [process.wait(400) for process in processes] == [0, 0], output() + output("one-1")
    assert f"resumed at step {saved}" in output()
    rows = [row for row in lines(gcs, "metrics") if "train.total" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [(row["event"], row["step"]) for row in lines(gcs, "history")] == [
        ("start", 0),
        ("start", saved),
        ("end", 12),
    ]

    # The same numbers as a run on a local disk.
    local = small_run.start(config, tmp_path / "local", 8, log=tmp_path / "local-0.log")
    assert local.wait(300) == 0, output("local-0")
    expected = [json.loads(line) for line in (tmp_path / "local/metrics.jsonl").read_text().splitlines()]
    for row, other in zip(rows, (row for row in expected if "train.total" in row), strict=True):
        np.testing.assert_allclose(row["train.total"], other["train.total"], rtol=2e-5)
    here = {
        path.relative_to(tmp_path / "local").as_posix() for path in (tmp_path / "local").rglob("*") if path.is_file()
    }
    there = {name.removeprefix("runs/one/") for name in gcs.objects["bucket"]}
    assert {name for name in here if not name.startswith(("checkpoints", "tensorboard"))} <= there
    assert not (tmp_path / "gs:").exists(), "no local folder of that name"

    check_that_commands_read_it(gcs, tmp_path)


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("s3://bucket/run", "run_dir is 's3://bucket/run': s3:// is not supported, a local folder or gs:// is"),
        ("gs:/bucket/run", "run_dir is 'gs:/bucket/run', which has one slash after the colon; a URL has two"),
        ("gs://bucket", "give bucket and folder, gs://BUCKET/FOLDER"),
        ("file:///tmp/run", "file:// is not supported"),
        ("hdfs://node/run", "hdfs:// is not supported"),
    ],
)
def test_a_scheme_that_nothing_supports_is_refused_before_anything_is_done(
    run_dir, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert train([f"--config={small_run.write_config(tmp_path)}", f"--run_dir={run_dir}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "text"]


def test_gcs_without_its_package_is_refused_with_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    assert train([f"--config={small_run.write_config(tmp_path)}", "--run_dir=gs://bucket/run"]) == 2
    assert 'gs:// needs the package gcsfs: pip install "qwen3-jax[gcs]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenizer", "train", "--input", "a.txt", "--vocab-size", "300", "--output", "gs://bucket/tokenizer"],
        ["quantize", "model", "--to", "int8", "--out", "gs://bucket/int8", "--text", "a.txt"],
        ["data", "prepare", "--path", "a.txt", "--tokenizer", "t", "--output", "gs://bucket/data"],
        ["convert", "model", "s3://bucket/hf", "--to", "hf"],
        ["convert", "model", "gs://bucket/orbax", "--to", "orbax"],
        ["report", "s3://bucket/run"],
    ],
)
def test_what_cannot_be_written_to_a_url_says_so_and_makes_no_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = qwen3(arguments)
    except SystemExit as error:  # of the parser
        code = error.code
    assert code == 2
    assert "://bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_prepared_data_are_cached_on_a_local_disk(tmp_path, capsys):
    config = small_run.write_config(tmp_path)
    assert train([f"--config={config}", f"--run_dir={tmp_path / 'run'}", "--data.cache=gs://bucket/data"]) == 2
    assert "data.cache is 'gs://bucket/data': it must be a local path" in capsys.readouterr().err


@needs_gcsfs
def test_a_bucket_is_read_and_written_as_a_folder_and_a_missing_one_named(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    from gcsfs.core import GCSFileSystem

    GCSFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="there is no bucket 'other' that you may read"):
        paths.run_path("gs://other/run", "run_dir")
    folder = paths.as_path("gs://bucket/folder")
    assert not (folder / "a.txt").exists()
    paths.replace_file(folder / "a.txt", "one\r\ntwo")
    assert gcs.objects["bucket"]["folder/a.txt"] == b"one\r\ntwo"
    (folder / "b.txt").write_text("two")
    assert (folder / "b.txt").read_text() == "two"
    copy = paths.fetch("gs://bucket/folder")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {"a.txt": b"one\r\ntwo", "b.txt": b"two"}
    assert copy.name == "folder"
    paths.replace_file(folder / "a.txt", "changed")
    assert (paths.fetch("gs://bucket/folder") / "a.txt").read_text() == "changed"
    GCSFileSystem.clear_instance_cache()


def test_a_working_copy_of_a_local_folder_is_the_folder(tmp_path):
    copy = paths.WorkingCopy(tmp_path)
    assert copy.folder == tmp_path
    (copy.folder / "a").write_text("a")
    copy.push()
    copy.close()
    assert (tmp_path / "a").read_text() == "a"


def test_paths_are_what_they_were(tmp_path):
    for text in (str(tmp_path), "runs/one", "~/runs", "C:/runs", "a:b/c"):
        assert paths.run_path(text, "run_dir") == Path(text).expanduser()
        assert paths.local_path(text, "run_dir") == Path(text).expanduser()
