"""Reinforcement learning killed with -9 at random moments, on two processes, and with adapters."""

import random
import shutil
import time

import numpy as np
import pytest
import yaml

from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.posttraining.reinforcement import train
from tests.helpers import small_run
from tests.helpers.staged_run import output_of, run, start, weights
from tests.posttraining.test_reinforcement_runs import base, metrics, rollouts, write_config

__all__ = ["base"]  # a fixture


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_kills_at_random_moments_leave_no_trace(count, base, tmp_path):
    """Answers, metrics and weights are those of a run that was never interrupted."""
    config = write_config(tmp_path, base, steps=12, eval_every=5, checkpoint_every=1)
    run(config, tmp_path / "whole")
    expected = metrics(tmp_path / "whole"), rollouts(tmp_path / "whole"), weights(tmp_path / "whole")
    rng, kills, folder = random.Random(count), 0, tmp_path / "killed"
    while kills < count:
        process = start(config, folder)
        # In the middle of a round, of writing it, or of the start.
        wanted = (
            len(metrics(folder)) + rng.randrange(1, 5) if (folder / "metrics.jsonl").exists() else rng.randrange(1, 4)
        )
        until = time.monotonic() + (240 if rng.random() < 0.8 else rng.uniform(0, 10))
        while process.exitcode is None and time.monotonic() < until:
            if (folder / "metrics.jsonl").exists() and len(metrics(folder)) >= wanted:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -9), output_of(folder)
        if process.exitcode == 0:
            assert (metrics(folder), rollouts(folder), weights(folder)) == expected
            shutil.rmtree(folder)
    run(config, folder)
    assert (metrics(folder), rollouts(folder), weights(folder)) == expected


@pytest.mark.slow
def test_two_processes_sample_and_learn_as_one(base, tmp_path):
    """Rewards are computed by the first one, for both."""
    rl = yaml.safe_load(write_config(tmp_path, base).read_text())["rl"]
    rl["rollouts"] |= {"prompts": 8, "refill": 0}
    data = {"sequence_length": 160, "batch_size": 16}
    config = write_config(tmp_path, base, steps=2, eval_every=0, mesh={"data": 2}, rl=rl, data=data)
    codes = small_run.ended(small_run.start_pair(config, tmp_path / "two", tmp_path, devices=1), seconds=400)
    assert codes == [0, 0], [file.read_text()[-2000:] for file in tmp_path.glob("*.log")]
    train(parse_train([f"--config={config}", f"--run_dir={tmp_path / 'one'}"], "train").config)
    assert rollouts(tmp_path / "two") == rollouts(tmp_path / "one")
    first, second = ([row for row in metrics(tmp_path / name) if "train.total" in row] for name in ("one", "two"))
    assert len(first) == len(second) == 2
    for one, two in zip(first, second, strict=True):
        for name in ("train.total", "train.policy", "train.kl", "train.entropy", "train.gradient_norm"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_adapters_learn_and_their_base_is_the_reference(base, tmp_path):
    rl = yaml.safe_load(write_config(tmp_path, base).read_text())["rl"]
    rl["rollouts"] |= {"prompts": 8, "group_size": 8, "updates": 1, "refill": 0, "budget": None}
    rl |= {"policy": {"algorithm": "grpo", "kl": {"coefficient": 0.001}}, "entropy": None}
    config = write_config(
        tmp_path, base, steps=12, eval_every=0, checkpoint_every=0, micro_batches=8, rl=rl, lora={"rank": 8, "merge": True},
        data={"sequence_length": 160, "batch_size": 64},
        optimizer={"learning_rate": 2e-2, "warmup_steps": 0, "schedule": "constant"},
    )  # fmt: skip
    folder = train(parse_train([f"--config={config}"], "train").config).parent
    rows = [row for row in metrics(folder) if "rl.reward" in row]
    rewards = [row["rl.reward"] for row in rows]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2, rewards
    # Adapters begin as nothing, so that the first round's KL is 0; the engine has them in every round.
    assert abs(rows[0]["train.kl"]) < 1e-6 < rows[-1]["train.kl"]
    assert max(row["train.mismatch_max"] for row in rows) < 1e-4
    assert (folder / "adapter/adapter_model.safetensors").exists()
    assert (folder / "hf/model.safetensors").exists()
