"""Rounds that are sampled one ahead, on devices of their own: what is learned from, and the resume to the same bits."""

import numpy as np
import pytest
import yaml

from qwen3_jax.checkpoint import load_model
from qwen3_jax.cli import train as cli
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.model import flatten
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.log_probs import log_probs_of_state
from qwen3_jax.posttraining.reinforcement import train
from qwen3_jax.training.stage_loop import stage_trainer
from tests.helpers import tiny_models
from tests.posttraining.test_reinforcement_runs import base, check_interruptions, metrics, write_config

__all__ = ["base"]  # a fixture


def ahead(folder, base, **changes):
    """Six steps, two in a round; device 0 trains, the last two sample."""
    rl = yaml.safe_load(write_config(folder, base).read_text())["rl"]
    rl["rollouts"] |= {"mesh": {"data": 2}} | changes.pop("rollouts", {})
    rl["policy"] |= changes.pop("policy", {})
    return write_config(folder, base, rl=rl, **changes)


@pytest.mark.slow
def test_a_round_is_sampled_while_the_one_before_is_learned_and_resumes_to_the_same_bits(base, tmp_path):
    file = ahead(tmp_path, base)
    config = parse_train([f"--config={file}"], "train").config
    whole = train(config).parent
    trained = [row for row in metrics(whole) if "train.total" in row]
    assert [row["rl.staleness"] for row in trained if "rl.staleness" in row] == [0, 2, 2]
    for row in trained:
        assert (abs(row["train.ratio"] - 1) < 1e-5) == (row["step"] % 2 == 1)  # r is against the round's first weights
        # log pi_o - log mu: the answers of later rounds are those of the weights two updates before.
        assert row["train.mismatch_max"] < 1e-4 if row["step"] <= 2 else row["train.mismatch_max"] > 0.01

    # The second round has the log probabilities of the very first weights, and `old` those of the weights after step 2.
    samples, *_ = storage.load(whole / "rollouts", 2)
    (stage,) = config.resolved()
    trainer = stage_trainer(stage, [stage], load_model(base).config, tiny_models.tokenizer())
    assert len(trainer.placement.mesh.devices.flat) == 1
    first = log_probs_of_state(trainer, config, tiny_models.tokenizer())(
        flatten(load_model(base, scan_layers=False)), samples[: stage.run.data.batch_size]
    )
    for one, values in zip(samples, first, strict=False):
        np.testing.assert_allclose(values[one.learned], one.behaviour[one.learned], atol=1e-4)
        assert np.isfinite(one.old[one.learned]).all()

    check_interruptions(file, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"importance_cap": None}}, "set rl.policy.importance_cap, which corrects for that"),
        ({"rollouts": {"mesh": {"data": -1}}}, "rl.rollouts.mesh has an axis of -1; give each axis"),
        ({"rollouts": {"mesh": {"data": 8}}}, "rl.rollouts.mesh takes 8 of 8 devices, which leaves none to train on"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_ahead_is_refused(changes, message, base, tmp_path, capsys):
    assert cli.main([f"--config={ahead(tmp_path, base, **changes)}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
