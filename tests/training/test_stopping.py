"""Ctrl-C and SIGTERM while a run is under way: heard at once, whatever the program computes, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import small_run

# A run that is inside of C code for some 80 s; `saves` as after the first step.
BUSY = """
import hashlib, os, sys
from qwen3_jax.cli import background
from qwen3_jax.training.stopping import StopSignals
with StopSignals("busy") as stop:
    stop.saves = sys.argv[1] == "saves"
    stop.before_exit.append(lambda: os.write(1, b"told\\n"))  # print may be what was interrupted
    print("begun", flush=True)
    background.call(lambda: hashlib.pbkdf2_hmac("sha256", b"long", b"computation", 160_000_000))
print("asked by", stop.reason, flush=True)
"""


def started(saves: str) -> subprocess.Popen:
    command = [sys.executable, "-c", BUSY, saves]
    environment = os.environ | {"PYTHONPATH": str(small_run.ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, bufsize=0
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_nothing_can_be_lost_a_signal_ends_the_program_at_once(number, code):
    process, since = started("not yet"), time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - since < 20
    assert (process.returncode, err, out) == (code, "\nbusy: stopped.\n", "told\n")


def test_a_first_ctrl_c_is_answered_at_once_and_a_second_one_ends_the_program():
    process, since = started("saves"), time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        "busy: Ctrl-C: saving a checkpoint after this step; Ctrl-C again ends at once.\n"
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - since < 20
    assert (process.returncode, err) == (130, "\nbusy: stopped. The run resumes from its last checkpoint.\n")


def listed(run_dir: Path) -> list[int]:
    folder = run_dir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def wait_for(condition, process, log: Path, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize(
    "after",
    [pytest.param(after, marks=pytest.mark.slow if after == 1.5 else pytest.mark.soak) for after in (0.5, 1.5, 4.0)],
)
def test_ctrl_c_in_the_first_seconds_ends_train_without_a_traceback(tmp_path, after):
    config = small_run.write_config(tmp_path)
    log = tmp_path / "log.txt"
    process = small_run.start(config, tmp_path / "run", 8, log=log)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    code = process.wait(30)
    assert time.monotonic() - since < 20
    if "init_import_site" in log.read_text():
        return  # Python itself was still starting
    assert code in (130, -signal.SIGINT), log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(tmp_path):
    config = small_run.write_config(tmp_path, steps=400, checkpoint_every=0, log_every=1)
    log, run_dir = tmp_path / "log.txt", tmp_path / "run"
    process = small_run.start(config, run_dir, 8, log=log)
    metrics = run_dir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("train.total") >= 3, process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    text = log.read_text()
    assert "train.py: Ctrl-C: saving a checkpoint after this step; Ctrl-C again ends at once." in text
    (step,) = listed(run_dir)
    assert f"stopped at step {step} as asked (Ctrl-C); the same command resumes there." in text
    assert json.loads((run_dir / "history.jsonl").read_text().splitlines()[-1])["event"] == "end"

    process = small_run.start(config, run_dir, 8, log=log)
    wait_for(lambda: f"resumed at step {step}" in log.read_text(), process, log)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "Segmentation" not in log.read_text()
    assert "Traceback" not in log.read_text()
    assert step in listed(run_dir)
