"""`tests/first_hour.py` on this checkout, and the proof that it notices what it is there for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import first_hour
from tests.helpers.repository_url import ROOT

ALONE = "it measures times, so no worker runs it: .ci/run does, and `python -m pytest -m slow tests/test_first_hour.py`"


@pytest.mark.slow
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason=ALONE)
def test_the_first_hour():
    done = subprocess.run([sys.executable, ROOT / "tests/first_hour.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.fixture
def hour(tmp_path):
    return first_hour.Hour(tmp_path, silence=0.6, ending=0.6)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sleep 0.9; echo late", "silent for"),
        ("echo early; sleep 0.9", "silent for"),
        ("echo 'Traceback (most recent call last):'", "printed 'Traceback"),
        ("echo 'E0000 12:00:00.0 1 file.cc] no TPU'", "printed 'E0000"),
        ("exit 3", "exit code 3, not 0"),
        ("for i in 1 2 3; do sleep 0.3; echo $i; done", None),
        ("test -t 0 && test -t 1 && test -t 2", None),
    ],
)
def test_what_a_command_does_wrong_is_noticed(hour, script, words):
    hour.run(f'sh -c "{script}"')
    assert bool(hour.failures) == (words is not None), hour.failures
    assert words is None or words in hour.failures[0]


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        ("trap 'exit 130' INT; trap 'exit 143' TERM", None),
        ("trap '' INT TERM", "still there"),
        ("trap 'sleep 0.9; exit 130' INT; trap 'sleep 0.9; exit 143' TERM", "still there"),
        ("trap 'exit 0' INT TERM", "exit code 0, not"),
    ],
)
@pytest.mark.parametrize(("how", "codes"), [("Ctrl-C", {130}), ("SIGTERM", {143})])
def test_a_command_that_is_deaf_to_signals_is_noticed(hour, trap, words, how, codes):
    script = f"{trap}; i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.1; done"
    hour.stop(f"bash -c {first_hour.shlex.quote(script)}", how, "3", codes)
    assert bool(hour.failures) == (words is not None), hour.failures
    assert words is None or words in hour.failures[0]


def test_a_word_that_names_no_case_is_refused(capsys):
    assert first_hour.main(["nothing"]) == 2
    assert "train_is_stopped" in capsys.readouterr().err


def test_it_runs_on_a_plain_install():
    source = Path(first_hour.__file__).read_text("utf-8")
    names = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert names <= set(sys.stdlib_module_names)


def test_a_case_that_was_only_late_is_run_again_and_any_other_failure_stands(hour):
    seconds = iter((0.9, 0.9, 0.0, 0.9, 0.9, 0.9))

    def case(hour):
        hour.run(f'sh -c "sleep {next(seconds)}; echo done"')

    first_hour.run_case(hour, case)
    assert hour.failures == []
    first_hour.run_case(hour, case)
    assert len(hour.failures) == 1
    first_hour.run_case(hour, lambda hour: hour.run('sh -c "sleep 0.9; exit 3"'))
    assert [words in failure for failure, words in zip(hour.failures[1:], ("exit code 3", "silent"), strict=True)] == [
        True
    ] * 2


def test_the_limits_follow_the_time_that_imports_take(hour, monkeypatch):
    clock = iter((0.0, 9.0, 10.0, 15.0, 20.0, 21.0, 22.0, 24.0))
    monkeypatch.setattr(first_hour.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(first_hour.subprocess, "run", lambda *_, **__: None)
    assert first_hour.slowness(hour.environment) == 5.0 / first_hour.IMPORTS
    assert first_hour.slowness(hour.environment) == 1.0


def test_commands_that_are_stopped_compile_anew(hour):
    hour.stop('sh -c "echo cache $QWEN3_COMPILE_CACHE; exec sleep 9"', "Ctrl-C", "cache off", {-2})
    assert hour.failures == []
