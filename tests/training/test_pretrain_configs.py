"""The ready configurations say what the report says, what the cited law gives, and meshes that divide."""

from pathlib import Path

import pytest

from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import parameter_count
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.training_step import mesh_works
from qwen3_jax.training.optimizer import run_schedule

ROOT = Path(__file__).parents[2]
SIZES = {"0.6b": 256, "1.7b": 64, "8b": 64, "30b-a3b": 64, "235b-a22b": 512}


@pytest.mark.parametrize("name", SIZES)
def test_the_stages_are_the_reports_and_the_step_divides_over_the_mesh(name):
    config = parse_config([f"--config={ROOT / f'configs/pretrain/{name}.yaml'}"])
    first, second, third = stages = config.resolved()
    rows = [stage.run.data.batch_size for stage in stages]
    assert [stage.run.data.sequence_length for stage in stages] == [4096, 4096, 32768]
    tokens = [(s.last - s.first) * s.run.data.sequence_length * s.run.data.batch_size for s in stages]
    assert 30e12 <= tokens[0] < 30.01e12
    assert 5e12 <= tokens[1] < 5.01e12
    assert 1e11 < tokens[2] < 1e12
    assert (config.model.config["rope_theta"], second.rope_theta, third.rope_theta) == (1e4, None, 1e6)
    assert [(one.above, one.up_to, one.weight) for one in third.run.data.lengths] == [
        (16384, 32768, 0.75), (4096, 16384, 0.25),
    ]  # fmt: skip

    preset = Qwen3Config.preset(config.model.preset)
    n = parameter_count(preset, active=True)
    compute = 6 * n * 30e12
    assert first.run.optimizer.learning_rate == pytest.approx(0.3118 * compute**-0.125, rel=5e-3)
    assert rows[0] * 4096 == pytest.approx(0.2920 * compute**0.3271, rel=0.06)
    rate = run_schedule([(stage.run.optimizer, stage.last - stage.first) for stage in stages])
    assert float(rate(first.last - 1)) == pytest.approx(first.run.optimizer.learning_rate)
    assert float(rate(second.last)) == pytest.approx(float(rate(second.last - 1)), rel=0.01)  # no jump
    assert float(rate(third.last)) == pytest.approx(0, abs=1e-9)

    for stage in stages:
        mesh = stage.run.mesh
        sizes = (mesh.replica, mesh.data, mesh.expert, mesh.context, mesh.tensor)
        assert mesh.data * mesh.expert * mesh.context * mesh.tensor == SIZES[name]
        assert mesh_works(stage.run, training_architecture(stage.run), sizes), stage.name
