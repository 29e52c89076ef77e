"""Post-training killed with -9 at random moments and on two processes; the laptop configurations from end to end."""

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import qwen3_jax
from examples import posttrain_data
from qwen3_jax.cli import train as cli
from qwen3_jax.model import RewardModel
from tests.helpers import small_run, tiny_models
from tests.helpers.staged_run import lines, output_of, run, start, weights
from tests.training.test_posttraining_runs import chats, pairs, write_config

CONFIGS = Path(__file__).parents[2] / "configs/posttrain"


def made(run_dir: Path) -> tuple:
    """Metrics, reference parts and weights."""
    parts = {file.name: file.read_bytes() for file in sorted((run_dir / "reference").rglob("*.npy"))}
    return lines(run_dir), parts, weights(run_dir)


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.parametrize("method", ["sft", "dpo", "reward_model"])
def test_kills_at_random_moments_leave_no_trace(method, count, tmp_path):
    base = qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path / "base")
    records = chats(60) if method == "sft" else pairs(60)
    config = write_config(tmp_path, base, method, records, steps=30, eval_every=7, checkpoint_every=4)
    run(config, tmp_path / "whole")
    whole, rng, kills, folder = made(tmp_path / "whole"), random.Random(f"{method} {count}"), 0, tmp_path / "killed"
    assert len([row for row in whole[0] if "train.total" in row]) == 30
    while kills < count:
        process = start(config, folder)
        marks = (
            len(lines(folder)) + rng.randrange(1, 8)
            if (folder / "metrics.jsonl").exists() and rng.random() < 0.8
            else 0
        )
        until = time.monotonic() + (30 if marks else rng.uniform(0, 5))
        while process.exitcode is None and time.monotonic() < until and not 0 < marks <= len(lines(folder)):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -9), output_of(folder)
        if process.exitcode == 0:
            assert made(folder) == whole
            shutil.rmtree(folder)
    run(config, folder)
    assert made(folder) == whole


@pytest.mark.slow
def test_two_processes_compute_the_same_reference_together(tmp_path):
    """Also where a part is there already: all of them pass over it."""
    base = qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path / "base")
    mesh = {"data": 4}  # more devices than cores wait for each other
    config = write_config(tmp_path, base, "dpo", pairs(60), steps=1, mesh=mesh, data={
        "sequence_length": 128, "batch_size": 4, "packing_rows": 8,
        "sources": [{"name": "sums", "path": str(tmp_path / "sums.jsonl"), "eval_fraction": 0.1}],
    })  # fmt: skip
    codes = small_run.ended(small_run.start_pair(config, tmp_path / "two", tmp_path, devices=2))
    assert codes == [0, 0], [file.read_text()[-2000:] for file in tmp_path.glob("*.log")]
    assert cli.main([f"--config={config}", f"--run_dir={tmp_path / 'one'}"]) == 0
    parts = [np.load(tmp_path / name / "reference/sums/00000.npy") for name in ("one", "two")]
    np.testing.assert_allclose(*parts, rtol=1e-5)
    shutil.copytree(tmp_path / "two/reference", tmp_path / "again/reference")
    assert small_run.ended(small_run.start_pair(config, tmp_path / "again", tmp_path, devices=2)) == [0, 0]
    for name in ("one", "two", "again"):
        (first,) = [row["train.preference"] for row in lines(tmp_path / name) if "train.preference" in row]
        np.testing.assert_allclose(first, np.log(2), rtol=1e-5)


@pytest.mark.slow
def test_the_laptop_configurations_run_and_learn(tmp_path, monkeypatch):
    """With a tiny model in the place of the quickstart's, and a tenth of the steps."""
    monkeypatch.chdir(tmp_path)
    base = qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path / "runs/quickstart/hf")
    posttrain_data.main(["--output", "posttrain", "--problems", "200"])
    for name, measured in (
        ("sft", "train.cross_entropy"),
        ("dpo", "train.preference"),
        ("reward-model", "train.preference"),
    ):
        saved = yaml.safe_load((CONFIGS / f"{name}-laptop.yaml").read_text())
        options = ["--steps=24", "--eval_every=12", "--checkpoint_every=12", "--optimizer.learning_rate=3e-3"]
        options += ["--data.sequence_length=320", "--data.batch_size=4", "--data.packing_rows=16"]
        assert saved["model"]["init_from"] == "runs/quickstart/hf"
        assert cli.main([f"--config={CONFIGS / f'{name}-laptop.yaml'}", *options]) == 0
        rows = [json.loads(line) for line in (tmp_path / saved["run_dir"] / "metrics.jsonl").read_text().splitlines()]
        losses = [row[measured] for row in rows if measured in row]
        assert losses[-1] < losses[0], name
        model, _ = qwen3_jax.load(tmp_path / saved["run_dir"] / "hf")
        assert isinstance(model, RewardModel) == (name == "reward-model")
    assert base.exists()
