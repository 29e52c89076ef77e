"""The cache of compiled programs: on in every command that compiles for long, whole after a kill, off where it cannot work."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from qwen3_jax.cli import compile_cache, infer, mixture, quantize, scaling, serve, train
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_compilation_cache_max_size",
         "jax_enable_compilation_cache")  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """The environment of a user, and JAX's settings back as they were."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder() -> str | None:
    return jax.config.values["jax_compilation_cache_dir"]


def test_where_compiled_programs_are_kept(monkeypatch, tmp_path):
    if sys.platform == "linux":
        assert compile_cache.enable() == tmp_path / "cache" / "qwen3-jax" / "compiled"
        assert folder() == str(tmp_path / "cache" / "qwen3-jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))  # as JAX_COMPILATION_CACHE_DIR sets it
    assert compile_cache.enable() == tmp_path / "own"
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "variable"))
    assert compile_cache.enable() == tmp_path / "variable" == Path(folder())
    assert compile_cache.enable(str(tmp_path / "option")) == tmp_path / "option" == Path(folder())
    assert jax.config.values["jax_enable_compilation_cache"]
    assert compile_cache.enable("off") is None
    assert not jax.config.values["jax_enable_compilation_cache"]


def test_a_named_folder_that_cannot_be_used_is_refused_and_the_default_one_left_out(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for named in (str(tmp_path / "file" / "cache"), "gs://bucket/cache", "gs:/bucket/cache", ""):
        with pytest.raises(UserError, match=r"^--compile-cache is "):
            compile_cache.enable(named)
        monkeypatch.setenv(compile_cache.VARIABLE, named)
        with pytest.raises(UserError, match=f"^{compile_cache.VARIABLE} is "):
            compile_cache.enable()
    monkeypatch.delenv(compile_cache.VARIABLE)
    assert folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cache.enable() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert compile_cache.enable() is None
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: compiled programs are not kept for the next start: Not a directory: ")
    assert first.endswith(" (--compile-cache names another folder).")
    assert "Could not determine home directory (--compile-cache names another folder)." in second


def test_several_processes_of_a_run_share_a_named_folder_or_none(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert compile_cache.enable() is None
    assert folder() is None
    assert compile_cache.enable(str(tmp_path / "shared")) == tmp_path / "shared"


def test_a_program_that_a_killed_process_began_to_write_is_removed(tmp_path):
    """JAX neither reads nor replaces it, and no longer stores anything once the folder is full."""
    for name in ("whole-cache", "whole-atime", "cut-cache"):
        (tmp_path / name).write_bytes(b"12345678")
    compile_cache.enable(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*-*")) == ["whole-atime", "whole-cache"]


CHILD = """
import sys, jax
from qwen3_jax.cli import compile_cache
compile_cache.enable(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
for number in range(12):
    jax.jit(lambda x: x + number)(1.0)
print(events.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.slow
def test_processes_that_run_at_the_same_time_share_a_folder(tmp_path):
    """Four at once, without a warning; then one finds all programs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path)]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    for count in (4, 1):
        children = [subprocess.Popen(command, **options) for _ in range(count)]
        outputs = [(*child.communicate(timeout=120), child.returncode) for child in children]
        assert [output[1:] for output in outputs] == [("", 0)] * count
    assert int(outputs[0][0]) == 12


class Reached(Exception):
    """The cache was turned on."""


@pytest.mark.parametrize(
    ("command", "argv", "takes_the_option"),
    [
        (infer, "--model none --prompt Hi", True),
        (serve, "--model none --port 0", True),
        (train, "--config configs/quickstart.yaml", True),
        (quantize, "none --to int8 --out none --text README.md", True),
        (scaling, "fit --config configs/sweeps/scaling-laptop.yaml", False),
        (mixture, "search --config configs/sweeps/mixture-laptop.yaml", False),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else None,
)
def test_every_command_that_compiles_for_long_turns_it_on(command, argv, takes_the_option, monkeypatch):
    given = []

    def enable(choice=None):
        given.append(choice)
        raise Reached

    monkeypatch.setattr(compile_cache, "enable", enable)
    words = [*argv.split(), *(["--compile-cache", "here"] if takes_the_option else [])]
    with pytest.raises(Reached):
        command.main(words)
    assert given == ["here" if takes_the_option else None]


def test_plans_are_compiled_anew():
    with pytest.raises(UserError, match="--compile-cache does not go with --plan"):
        parse_train(["--config", "configs/quickstart.yaml", "--plan", "v5e:2x2", "--compile-cache", "here"], "train.py")
