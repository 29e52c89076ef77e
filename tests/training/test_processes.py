"""Several processes train as one run with the same losses; the loss of one is reported, and a restart resumes."""

import functools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax.cli.train import main as train
from tests.helpers import small_run

# Of the smallest mesh that is split over two processes and inside of each: most of the time goes into what they send.
DEVICES, MESH, STEPS = 4, {"data": 2, "expert": 2}, 16
start_pair = functools.partial(small_run.start_pair, devices=DEVICES // 2)


def metrics(run_dir: Path) -> dict[int, dict]:
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: row for row in rows if "train.total" in row}


def output(run_dir: Path, index: int = 0) -> str:
    return (run_dir.parent / f"{run_dir.name}-{index}.log").read_text()[-3000:]


def last_words(run_dir: Path) -> str:
    """Return the end of a process's output. Waits for the last message, which a child may print after its parent has ended."""
    deadline = time.monotonic() + 30
    while "resumes from its last checkpoint" not in output(run_dir):
        assert time.monotonic() < deadline, output(run_dir)
        time.sleep(0.05)
    return output(run_dir)


def wait_for_step(run_dir: Path, step: int, processes) -> None:
    """Wait until a step is logged, by processes that must not end before."""
    deadline = time.monotonic() + 200
    while max(metrics(run_dir), default=0) < step and time.monotonic() < deadline:
        assert all(p.poll() is None for p in processes), output(run_dir) + output(run_dir, 1)
        time.sleep(0.05)


def assert_same_curve(run_dir: Path, expected: dict[int, dict]) -> None:
    logged = metrics(run_dir)
    assert sorted(logged) == sorted(expected) == list(range(1, STEPS + 1))
    for step, row in expected.items():
        for name in ("train.total", "train.balance", "train.gradient_norm"):
            np.testing.assert_allclose(logged[step][name], row[name], rtol=2e-5, err_msg=f"step {step} {name}")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A finished run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    config = small_run.write_config(folder, steps=STEPS, mesh=MESH)
    assert train(["--config", str(config), "--run_dir", str(folder / "one")]) == 0
    return folder, config, metrics(folder / "one")


@pytest.mark.slow
def test_two_processes_survive_a_loss_and_a_request_to_end_and_one_goes_on_alone(one_process, capsys):
    """2 x 2 devices give the losses of 1 x 4. After SIGKILL of one process the other says so and ends within a minute. The same
    command resumes from the last checkpoint; SIGTERM to one stops both after the same step with the checkpoint of that step.
    Another host count continues."""
    folder, config, expected = one_process
    run_dir = folder / "two"
    processes = start_pair(config, run_dir, folder)
    try:
        wait_for_step(run_dir, 5, processes)
        processes[1].kill()
        killed = time.monotonic()
        assert processes[0].wait(60) != 0
        waited = time.monotonic() - killed
    finally:
        for process in processes:
            process.kill()
    assert waited < 60
    printed = last_words(run_dir)
    assert "process 0 of 2 lost another one" in printed or "because another one was lost" in printed
    reached = max(metrics(run_dir))
    assert reached < STEPS - 2  # killed on the way

    processes = start_pair(config, run_dir, folder)
    try:
        wait_for_step(run_dir, reached + 1, processes)
        processes[0].terminate()
        codes = [process.wait(100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [143, 143], output(run_dir) + output(run_dir, 1)
    assert any(f"resumed at step {step}" in output(run_dir) for step in range(4, reached + 1, 4))
    step = max(metrics(run_dir))
    assert f"stopped at step {step} as asked (SIGTERM)" in output(run_dir)
    assert step < STEPS

    capsys.readouterr()
    assert train(["--config", str(config), "--run_dir", str(run_dir)]) == 0
    assert f"resumed at step {step}" in "".join(capsys.readouterr())
    assert_same_curve(run_dir, expected)
    one, two = ((folder / name / "hf" / "config.json").read_text() for name in ("one", "two"))
    assert one == two
    shutil.rmtree(run_dir)


@pytest.mark.soak
def test_a_finished_run_is_extended_on_two_processes_with_twice_the_batch(one_process):
    """It resumes with its optimizer and data position, says what the learning rate does, and is resumed as usual."""
    folder, config, expected = one_process
    run_dir = folder / "longer"
    shutil.copytree(folder / "one", run_dir)
    longer = STEPS + 6
    more = (
        f"--steps={longer}",
        "--data.batch_size=32",
        "--optimizer.schedule=linear",
        "--optimizer.learning_rate=0.001",
    )
    processes = start_pair(config, run_dir, folder, *more)
    assert small_run.ended(processes) == [0, 0], output(run_dir) + output(run_dir, 1)
    assert f"extended from {STEPS} to {longer} steps, with its optimizer state and data position." in output(run_dir)
    assert f"Steps {STEPS + 1} to {longer}: learning rate 0.001 falling to 0.0001 (linear)." in output(run_dir)
    assert f"resumed at step {STEPS}" in output(run_dir)
    logged = metrics(run_dir)
    assert {step: row for step, row in logged.items() if step <= STEPS} == expected
    assert sorted(logged) == list(range(1, longer + 1))
    rates = [logged[step]["train.learning_rate"] for step in range(STEPS + 1, longer + 1)]
    np.testing.assert_allclose(rates, [0.001 * (1 - 0.9 * i / 6) for i in range(6)], rtol=1e-5)
    before, after = (
        json.loads((run_dir / f"checkpoints/{step}/position/metadata").read_text()) for step in (STEPS, longer)
    )
    counts = [value for name, value in after["fingerprints"].items() if "count" in name]  # a scalar's is its value
    assert counts
    assert set(counts) == {longer}, "the step count of the optimizer is restored"
    window, row = ([saved["position"]["data"][name] for saved in (before, after)] for name in ("window", "row"))
    assert (window[1] - window[0], row[0]) in ((0, 16 * STEPS), (1, 16 * STEPS)), "batches of 16 rows"
    assert window[1] > window[0] or row[1] == 16 * STEPS + 6 * 32, "the data go on, now in batches of 32"

    process = small_run.start(config, run_dir, DEVICES, *more, log=folder / "longer-0.log")
    assert process.wait(200) == 0, output(run_dir)
    assert f"resumed at step {longer}" in output(run_dir)
    process = small_run.start(config, run_dir, DEVICES, log=folder / "longer-0.log")
    assert process.wait(200) == 2
    said = f"data.batch_size was 32 and is 16; to train it on with its optimizer, give more steps than {longer}"
    assert said in output(run_dir)
    shutil.rmtree(run_dir)


def test_processes_that_cannot_meet_say_so(tmp_path, capsys):
    """Before anything is joined, so in this process."""
    command = ["--config", str(small_run.write_config(tmp_path)), "--run_dir", str(tmp_path / "none")]
    cases = {
        "--process-count=2": "go together",
        "--coordinator=nowhere --process-count=2 --process-index=0": "'nowhere' must be HOST:PORT",
        "--coordinator=127.0.0.1:1 --process-count=2 --process-index=2": "process_index 2 must lie in [0, 2)",
    }
    for flags, message in cases.items():
        assert train([*command, *flags.split()]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
