"""However a run was interrupted, the same command resumes to the same bits: parameters, optimizer, data position, metrics."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from qwen3_jax.training import metrics
from qwen3_jax.training.run_folder import load_run
from tests.helpers import staged_run
from tests.helpers.staged_run import STEPS, lines, output_of, run, saved, start, weights

TOTAL, ENDS = sum(STEPS), np.cumsum(STEPS).tolist()


@pytest.fixture(scope="module")
def unbroken(request, tmp_path_factory):
    """(config, finished run folder) of a run of three stages that nothing interrupted; a mixture of experts unless told."""
    moe = getattr(request, "param", "moe") == "moe"
    folder = tmp_path_factory.mktemp("moe" if moe else "dense")
    config = staged_run.write_config(folder, moe=moe)
    run(config, folder / "whole")
    return config, folder / "whole"


both = pytest.mark.parametrize("unbroken", ["moe", "dense"], indirect=True)


def assert_equal(run_dir: Path, whole: Path) -> None:
    assert lines(run_dir) == lines(whole)
    assert lines(run_dir, "router") == lines(whole, "router")
    for step in ENDS:
        assert saved(run_dir, step) == saved(whole, step)
    assert weights(run_dir) == weights(whole)


def wait_for_lines(run_dir: Path, count: int, process) -> bool:
    """Wait for metrics; False where the run ended first."""
    while process.exitcode is None:
        if len(lines(run_dir)) >= count:
            return True
        time.sleep(0.002)
    return False


def learning_rates() -> np.ndarray:
    """What `staged_run` asks for, stage by stage."""
    first, second, third = (np.arange(steps) for steps in STEPS)
    warmed = np.minimum((first + 1) / 4, 1.0)
    decayed = 1 - 0.9 * np.maximum(first - 7, 0) / 7  # over the last half, to a tenth
    return np.concatenate([
        4e-3 * warmed * decayed, 2e-3 * (1 - 0.9 * second / STEPS[1]), 1e-3 * (1 + np.cos(np.pi * third / STEPS[2])) / 2,
    ])  # fmt: skip


def check_positions(run: Path) -> None:
    """positions.jsonl has each range of each stage's end once, the same batches of all, with the mean of metrics.jsonl."""
    found = {(row["step"], row["positions"]): row for row in metrics.read(run / "positions.jsonl")}
    assert len(found) == len(metrics.read(run / "positions.jsonl"))
    assert [end for end, name in found if name == "64-128"] == ENDS
    assert len({len(row["losses"]) for row in found.values()}) == 1
    for row in lines(run):
        for name in (name for name in row if name.startswith("position.")):
            one = found[row["step"], name.removeprefix("position.")]
            assert row[name] == pytest.approx(np.average(one["losses"], weights=one["tokens"]), rel=1e-9)


@both
@pytest.mark.slow
def test_three_stages_change_what_they_say_and_carry_the_rest_over(unbroken):
    _, whole = unbroken
    rows = lines(whole)
    train = [row for row in rows if "train.total" in row]
    assert [row["step"] for row in train] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose([row["train.learning_rate"] for row in train], learning_rates(), rtol=2e-6)
    evaluated = {*range(5, TOTAL, 5), *ENDS}
    assert [row["step"] for row in rows if "eval.problems" in row] == sorted(evaluated)
    assert [row["step"] for row in rows if "position.64-128" in row] == ENDS
    assert {"eval.north/north0", "eval.north/north1", "eval.south/south1"} <= set(rows[-2])
    check_positions(whole)

    kept = {int(name) for name in os.listdir(whole / "checkpoints")}
    means = {
        row["step"]: np.mean([v for k, v in row.items() if k.startswith("eval.") and "entropy" not in k])
        for row in rows
        if "eval.problems" in row and (row["step"] % 2 == 0 or row["step"] in ENDS)
    }
    assert kept == {*ENDS, TOTAL - 2, min(means, key=means.get)}
    for step, theta in zip(ENDS, (1e4, 1e4, 1e6), strict=True):
        model, _ = load_run(whole, step)
        assert model.config.rope_theta == theta
    state = ocp.StandardCheckpointer().restore(whole / "checkpoints" / str(TOTAL) / "state")
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "count" in str(path[-1])]
    assert counts
    assert all(int(count) == TOTAL for count in counts)

    # Shares of the tokens that were drawn; a piece is at most a row.
    for end, length, shares in (
        (ENDS[0], 32, {"north": 1.0}),
        (ENDS[1], 32, {"north": 0.3, "south": 0.3, "problems": 0.4}),
        (ENDS[2], 128, {f"{name}/{part}": 0.5 * share for name in ("north", "south")
                        for part, share in (("64-128", 0.75), ("16-64", 0.25))}),
    ):  # fmt: skip
        drawn = saved(whole, end)["position"]["data"]["tokens"]
        assert set(drawn) == set(shares)
        total = sum(drawn.values())
        for name, share in shares.items():
            assert abs(drawn[name] - share * total) <= 2 * length, (end, name)


@pytest.mark.parametrize(
    ("unbroken", "count"),
    [pytest.param("moe", 3, marks=pytest.mark.slow)]
    + [pytest.param(kind, 15, marks=pytest.mark.soak) for kind in ("moe", "dense")],
    indirect=["unbroken"],
)
def test_kills_at_random_moments_leave_no_trace(unbroken, count):
    """A third of the kills come at any time since the start, a third some steps later, and a third while a checkpoint is
    being written."""
    config, whole = unbroken
    rng = random.Random(whole.parent.name)
    run_dir, kills, during_save = whole.parent / "killed", 0, 0
    while kills < count or not during_save:
        process = start(config, run_dir)
        kind = ("anywhere", "steps", "save")[kills % 3]
        if kind == "anywhere":
            time.sleep(rng.uniform(0, 6))
        elif wait_for_lines(run_dir, len(lines(run_dir)) + rng.randrange(1, 6), process) and kind == "steps":
            time.sleep(rng.uniform(0, 0.05))
        elif kind == "save":
            while process.exitcode is None and not _being_written(run_dir):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.03))
            during_save += _being_written(run_dir)
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            assert_equal(run_dir, whole)
            shutil.rmtree(run_dir)
        else:
            assert process.exitcode == -9, output_of(run_dir)
    run(config, run_dir)
    assert_equal(run_dir, whole)


def _being_written(run_dir: Path) -> bool:
    return any("orbax-checkpoint-tmp" in name for name in os.listdir(run_dir / "checkpoints"))


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(unbroken):
    """At a step that is no checkpoint's and no line's."""
    config, whole = unbroken
    run_dir = whole.parent / "ended"
    process = start(config, run_dir, "--checkpoint_every=0")
    assert wait_for_lines(run_dir, 9, process)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143, output_of(run_dir)
    step = lines(run_dir)[-1]["step"]
    assert f"stopped at step {step} as asked (SIGTERM); the same command resumes there." in output_of(run_dir)
    ends = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert ends[-1]["event"] == "end"
    assert "SIGTERM" in ends[-1]["reason"]
    run(config, run_dir)
    assert f"resumed at step {step}" in output_of(run_dir)
    assert_equal(run_dir, whole)
    # A finished run trains nothing and gives the same again.
    run(config, run_dir)
    assert f"resumed at step {TOTAL}" in output_of(run_dir)
    assert_equal(run_dir, whole)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(unbroken):
    config, whole = unbroken
    run_dir = whole.parent / "damaged"
    process = start(config, run_dir)
    assert wait_for_lines(run_dir, 21, process)
    process.kill()
    process.join()
    newest = max(int(name) for name in os.listdir(run_dir / "checkpoints") if name.isdigit())
    largest = max((run_dir / "checkpoints" / str(newest) / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    run(config, run_dir)
    assert f"warning: checkpoint {run_dir}/checkpoints/{newest}" in output_of(run_dir)
    assert "It is set aside, and the one before is tried." in output_of(run_dir)
    assert (run_dir / f"checkpoints/damaged-{newest}").exists()
    assert_equal(run_dir, whole)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_old_checkpoint(unbroken):
    config, whole = unbroken
    run_dir = whole.parent / "full"
    run_dir.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", run_dir], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        kept = 0
        for size in ("1270k", "1620k", "2m", "2300k", "64m"):  # full while metrics, or a checkpoint, are written
            subprocess.run(["mount", "-o", f"remount,size={size}", run_dir], check=True)
            before = len(output_of(run_dir)) if kept else 0
            run(config, run_dir, code=0 if size == "64m" else 2)
            printed = output_of(run_dir)[before:]
            assert "Traceback" not in printed
            assert (f"resumed at step {kept}\n" in printed) == (kept > 0)
            if size != "64m":
                last = printed.strip().splitlines()[-1]
                assert f"the disk of {run_dir}/checkpoints is full" in last
                assert "; the newest whole checkpoint is that of step" in last
                kept = int(last.split("that of step ")[1].split(".")[0])
                assert kept == max(int(name) for name in os.listdir(run_dir / "checkpoints") if name.isdigit())
        assert_equal(run_dir, whole)
    finally:
        subprocess.run(["umount", run_dir], check=True)


@pytest.mark.slow
def test_another_mesh_and_more_processes_continue_the_same_curve(unbroken):
    """Begun on one device, continued on four and then on two with other micro-batches."""
    config, whole = unbroken
    run_dir = whole.parent / "moved"
    for until, devices, mesh in (
        (9, 1, ["--mesh.data=1"]),
        (20, 4, ["--mesh.data=2", "--mesh.tensor=2"]),
        (None, 2, ["--mesh.data=2", "--micro_batches=2"]),
    ):
        process = start(config, run_dir, *mesh, devices=devices)
        if until:
            assert wait_for_lines(run_dir, until, process), output_of(run_dir)
            process.terminate()
        process.join(300)
        assert process.exitcode == (143 if until else 0), output_of(run_dir)
    ours, theirs = lines(run_dir), lines(whole)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    check_positions(run_dir)
    for mine, row in zip(ours, theirs, strict=True):
        for name in ("train.cross_entropy", "train.gradient_norm", "eval.north/north0", "position.64-128"):
            if name in row:
                np.testing.assert_allclose(mine[name], row[name], rtol=2e-4, err_msg=f"step {row['step']} {name}")
