"""Which runs a sweep makes, with which settings, and what it writes of them. Nothing is trained."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax.data import DataConfig, Source
from qwen3_jax.data.config import Where
from qwen3_jax.errors import Diverged, UserError
from qwen3_jax.model import parameter_count
from qwen3_jax.sweeps import mixture, scaling, scaling_runs, sweep
from qwen3_jax.sweeps.config import MixtureConfig, ScalingConfig
from qwen3_jax.sweeps.laws import PUBLISHED, Interval
from qwen3_jax.training.config import OptimizerConfig, StageConfig, TrainConfig
from sharding import MeshConfig
from tests.helpers.tiny_models import TINY, TINY_MOE

DATA = DataConfig([Source("a", "unused", eval_fraction=0.1), Source("b", "unused")], sequence_length=32, batch_size=8)
BASE = TrainConfig(
    data=DATA,
    steps=30,
    optimizer=OptimizerConfig(warmup_steps=2),
    eval_every=5,
    checkpoint_every=5,
    wandb="p",
    profile=True,
)


def test_a_run_of_so_many_tokens_is_that_long_and_measures_the_same_held_out_rows_whatever_the_batch():
    config = sweep.sized(BASE, 10_240, 4, 0.1, 1_000, 7, "x")
    assert (config.steps, config.data.batch_size, config.optimizer.warmup_steps, config.seed) == (80, 4, 8, 7)
    assert (config.eval_batches, config.eval_every, config.checkpoint_every, config.log_every) == (
        7,
        0,
        0,
        4,
    )  # 31 rows in 4s
    assert (config.wandb, config.profile, config.budget_curve, config.checkpoint_keep_best) == (None, False, None, 0)
    assert sweep.sized(BASE, 10_240, 8, 0.1, 1_000, 7, "x").eval_batches == 3
    assert sweep.sized(BASE, 10_240, 4, 0.99, 1, 0, "x").optimizer.warmup_steps == 79  # leaves a step
    assert sweep.sized(BASE, 10_240, 4, 0.1, 1, 0, "x").eval_batches == 1
    assert sweep.sized(BASE, 20 * 256, 8, 0.1, 1, 0, "x").steps == 20
    with pytest.raises(UserError, match="x: 4,864 tokens in batches of 256 are 19 steps"):
        sweep.sized(BASE, 19 * 256, 8, 0.1, 1, 0, "x")
    staged = dataclasses.replace(BASE, steps=None, stages=[StageConfig("s", 30)])
    with pytest.raises(UserError, match="trains in one stage"):
        sweep.sized(staged, 10_240, 8, 0.1, 1, 0, "x")


def test_parameters_of_a_law_are_the_active_ones_without_embeddings():
    for config in (TINY, TINY_MOE):
        for tied in (True, False):
            one = dataclasses.replace(config, tie_word_embeddings=tied)
            names = parameter_count(one, active=True) - (1 if tied else 2) * 64 * 32
            assert sweep.active_parameters(one) == names
    assert sweep.active_parameters(TINY_MOE) < parameter_count(TINY_MOE) - 64 * 32


def test_the_fingerprint_of_a_run_changes_with_what_decides_its_result_and_with_nothing_else():
    first = sweep._fingerprint(BASE, [{"tokens": 5}])
    same = dataclasses.replace(
        BASE, run_dir="elsewhere", mesh=MeshConfig(), log_every=3, checkpoint_keep=9,
        data=dataclasses.replace(DATA, cache="c", prefetch_batches=7, sources=[
            dataclasses.replace(source, path="moved") for source in DATA.sources
        ]),
        tokenizer=dataclasses.replace(BASE.tokenizer, path="moved"),
    )  # fmt: skip
    assert sweep._fingerprint(same, [{"tokens": 5}]) == first
    weights = [dataclasses.replace(DATA.sources[0], weight=3.0), DATA.sources[1]]
    for other in (
        dataclasses.replace(BASE, seed=1),
        dataclasses.replace(BASE, optimizer=OptimizerConfig(warmup_steps=3)),
        dataclasses.replace(BASE, data=dataclasses.replace(DATA, sources=weights)),
        dataclasses.replace(BASE, data=dataclasses.replace(DATA, seed=1)),
    ):
        assert sweep._fingerprint(other, [{"tokens": 5}]) != first
    assert sweep._fingerprint(BASE, [{"tokens": 6}]) != first


@pytest.fixture
def trained(monkeypatch):
    """`train` without training: writes the losses that `outcomes` holds for a seed, or raises."""
    outcomes, configs = {}, []

    def train(config: TrainConfig, watch) -> None:
        configs.append(config)
        losses = outcomes[config.seed]
        if isinstance(losses, Exception):
            raise losses
        watch(config.steps // 2, {})
        run_dir = Path(config.run_dir)
        (run_dir / "hf").mkdir()
        early = dict.fromkeys(losses, 99.0)
        rows = [{"step": step, **{f"eval.{name}": value for name, value in row.items()}, "eval.a_unigram_entropy": 1.0}
                for step, row in ((1, early), (2, losses))]  # fmt: skip
        (run_dir / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3, "train.x": 1}])
        )

    monkeypatch.setattr(sweep, "train", train)
    return outcomes, configs


def runs(*seeds: int):
    return [sweep.PlannedRun(f"run/{seed}", {"seed": seed}, dataclasses.replace(BASE, seed=seed)) for seed in seeds]


def test_each_run_is_made_once_and_its_line_is_the_mean_of_its_last_losses(tmp_path, trained):
    outcomes, configs = trained
    outcomes |= {0: {"a": 2.0, "b": 3.0}, 1: {"a": 2.0, "b": None}, 2: Diverged("too many skips"), 3: {"a": 1.0}}
    results = sweep.Sweep(tmp_path / "out").run(runs(0, 1, 2), "sweep")
    assert [row["loss"] for row in results] == [2.5, None, None]  # one that is not finite is no loss
    assert [row["losses"] for row in results] == [{"a": 2.0, "b": 3.0}, {"a": 2.0, "b": None}, {}]
    assert [row.get("diverged") for row in results] == [None, None, "too many skips"]
    assert [row["seed"] for row in results] == [0, 1, 2]
    assert [Path(config.run_dir).name for config in configs] == ["run_0", "run_1", "run_2"]
    assert not (tmp_path / "out/runs/run_0/hf").exists()
    assert sweep.read_rows(tmp_path / "out/results.jsonl") == results

    again = sweep.Sweep(tmp_path / "out")
    assert again.run(runs(3, 0, 1), "sweep")[1:] == results[:2]  # in the order asked for
    assert len(configs) == 4
    with pytest.raises(UserError, match="'run/0' was run with other settings"):
        again.run([dataclasses.replace(runs(0)[0], config=dataclasses.replace(BASE, seed=9))], "sweep")
    outcomes[5] = UserError("no such file")
    with pytest.raises(UserError, match="run 'run/5': no such file"):
        again.run(runs(5), "sweep")
    assert not any(row["key"] == "run/5" for row in sweep.read_rows(tmp_path / "out/results.jsonl"))


def test_an_unfinished_last_line_is_cut_off_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": 1}\n\n{"key": 2}\n{"ke')
    with pytest.raises(UserError, match=r"results.jsonl:4 is not a JSON object"):
        sweep.read_rows(path)
    assert sweep.read_rows(path, cut=True) == [{"key": 1}, {"key": 2}]
    assert path.read_text() == '{"key": 1}\n\n{"key": 2}\n'
    path.write_text('{"key": 1}\n[2]\n')
    with pytest.raises(UserError, match=r"results.jsonl:2 is not a JSON object"):
        sweep.read_rows(path, cut=True)


def test_grids_lie_around_the_published_law_in_equal_ratios():
    config = ScalingConfig(output="unused", rate_points=3, rate_ratio=2.0, batch_points=3, batch_ratio=2.0)
    law = PUBLISHED["step_law"]
    middle = law.rate(1e6, 1e8)
    assert scaling_runs._rates(config, 1e6, 1e8) == [float(f"{middle * factor:.2g}") for factor in (0.5, 1, 2)]
    even = dataclasses.replace(config, rate_points=4)
    assert scaling_runs._rates(even, 1e6, 1e8) == [float(f"{middle * 2**step:.2g}") for step in (-1.5, -0.5, 0.5, 1.5)]
    rows = law.batch(1.0, 1e8) / 32
    assert scaling_runs._batches(config, 1e8, BASE) == [2 ** (round(math.log2(rows)) + i) for i in (-1, 0, 1)]
    given = dataclasses.replace(config, learning_rates=[3e-3, 1e-3], batch_tokens=[512, 64])
    assert scaling_runs._rates(given, 1e6, 1e8) == [1e-3, 3e-3]
    assert scaling_runs._batches(given, 1e8, BASE) == [2, 16]
    with pytest.raises(UserError, match="batch_tokens 80 is no multiple"):
        scaling_runs._batches(dataclasses.replace(config, batch_tokens=[80]), 1e8, BASE)


def cell(losses: dict[tuple[int, float], float | None], config: ScalingConfig, tokens: float = 1e6):
    """Planned runs of one cell with the rows that a sweep wrote of them, by (batch rows, learning rate)."""
    planned, rows = [], []
    for (batch, rate), loss in losses.items():
        [run] = scaling_runs._runs(config, "m", BASE, 5e4, tokens, batch, rate)
        planned.append(run)
        rows.append({"key": run.key, **run.labels, "loss": loss})
    return planned, rows


def test_a_cell_whose_best_run_lies_at_the_edge_gets_one_more_row_of_runs():
    config = ScalingConfig(output="unused", rate_ratio=2.0, batch_ratio=2.0)

    def wider(losses, tokens=1e6):
        return [(run.config.data.batch_size, run.config.optimizer.learning_rate) for run in
                scaling_runs._wider(config, *cell(losses, config, tokens))]  # fmt: skip

    rates = (1e-3, 2e-3, 4e-3)
    assert wider({(8, rate): loss for rate, loss in zip(rates, (2, 1, 2), strict=True)}) == []
    assert wider({(8, rate): loss for rate, loss in zip(rates, (3, 2, 1), strict=True)}) == [(8, 8e-3)]
    assert wider({(8, rate): loss for rate, loss in zip(rates, (1, 2, 3), strict=True)}) == [(8, 5e-4)]
    # The highest rate diverged: the edge is where runs were made, not where they finished.
    assert wider({(8, rate): loss for rate, loss in zip(rates, (2, 1, None), strict=True)}) == []
    assert wider({(8, rate): None for rate in rates}) == []
    two = {(batch, rate): abs(math.log(rate / 2e-3)) + (batch == 8) for batch in (8, 16) for rate in rates}
    assert wider(two) == [(32, rate) for rate in rates]
    corner = {(batch, rate): rate + (batch == 8) for batch in (8, 16) for rate in rates}
    assert wider(corner) == [(8, 5e-4), (16, 5e-4), (32, 1e-3), (32, 2e-3), (32, 4e-3)]
    # Nearest to the best rate are the three that differ from it by the smallest factors.
    four = {(batch, rate): abs(math.log(rate / 4e-3)) + (batch == 8) for batch in (8, 16) for rate in (*rates, 8e-3)}
    assert wider(four) == [(32, rate) for rate in (2e-3, 4e-3, 8e-3)]
    # A batch of which fewer than 40 steps would be left is not config.
    assert wider(two, tokens=40 * 32 * 32) == [(32, rate) for rate in rates]
    assert wider(two, tokens=40 * 32 * 32 - 1) == []


def test_runs_of_a_cell_carry_its_numbers():
    config = ScalingConfig(output="unused", seeds=[0, 4], warmup_share=0.25)
    first, second = scaling_runs._runs(config, "m", BASE, 5e4, 102_400, 16, 2e-3)
    assert first.key == "m D=102k B=512 lr=0.002 seed=0"
    assert first.labels == {
        "model": "m", "parameters": 5e4, "tokens": 102_400, "batch_tokens": 512, "learning_rate": 2e-3, "seed": 0,
    }  # fmt: skip
    assert (first.config.steps, first.config.data.batch_size, first.config.optimizer.learning_rate) == (200, 16, 2e-3)
    assert (first.config.optimizer.warmup_steps, first.tokens) == (50, 102_400)
    assert (second.config.seed, second.labels["seed"]) == (4, 4)


def test_the_prediction_is_written_as_yaml_that_training_reads():
    published = {law.name: (1e-2, 2048.0) for law in PUBLISHED.values()}
    prediction = scaling.Prediction(2e6, 3e8, Interval(1e-3, 5e-4, 2e-3), Interval(1050.0, 500.0, 2000.0), published)
    text = scaling.fragment(ScalingConfig(output="unused"), prediction, 96)
    assert "optimizer:\n  learning_rate: 1.000e-03\ndata:\n  batch_size: 11\n" in text
    assert "90% intervals: learning rate 5.00e-04 to 2.00e-03, batch 500 to 2k tokens" in text
    alone = scaling.fragment(ScalingConfig(output="unused"), dataclasses.replace(prediction, batch=None), 96)
    assert "data:" not in alone


def test_mixtures_are_drawn_from_even_to_concentrated_and_the_first_is_uniform():
    config = MixtureConfig("out", "train", 1e6, mixtures=200, concentration=[0.2, 50.0])
    drawn = mixture.draw(config, 4)
    assert drawn.shape == (200, 4)
    np.testing.assert_array_equal(drawn[0], 0.25)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    # A Dirichlet's variance: (1/k)(1 - 1/k) / (k c + 1).
    for part, low, high in ((slice(1, 50), 0.2, 0.8), (slice(150, 200), 12.5, 50.0)):
        variance = drawn[part].var(axis=0).mean()
        assert 0.1875 / (4 * high + 1) < variance < 0.1875 / (4 * low + 1)
    np.testing.assert_array_equal(drawn, mixture.draw(config, 4))


def test_ranges_of_a_label_hold_their_lower_end_and_not_the_next_ones():
    assert mixture._between("a", Where(), "length", None, 60.5) == ("a length below 60.5", Where(length=[None, 60]))
    assert mixture._between("a", Where(), "length", 60, 80) == ("a length 60 to 80", Where(length=[60, 79]))
    name, selection = mixture._between("a", Where(), "quality", 0.25, 0.5)
    assert name == "a quality 0.25 to 0.5"
    assert selection["quality"][0] == 0.25
    assert selection["quality"][1] < 0.5 <= float(np.nextafter(np.float32(selection["quality"][1]), np.float32(1)))


def test_the_prediction_of_a_target_too_far_away_is_refused_at_its_bound():
    rows = [
        {"parameters": n, "tokens": d, "batch_tokens": 1000, "learning_rate": rate, "loss": 3 + math.log(rate / 1e-2) ** 2 + e}
        for n in (1e5, 4e5) for d in (1e6, 4e6) for rate in (5e-3, 1e-2, 2e-2) for e in (0.0, 1e-4)
    ]  # fmt: skip
    config = ScalingConfig(output="unused", max_extrapolation=10.0)
    fitted = scaling.fit(config, scaling.observations(rows))
    for n, d in ((4e6, 1e6), (1e4, 1e6), (1e5, 4e7), (1e5, 1e5)):
        prediction = scaling.predict(config, fitted, n, d)
        assert prediction.published["Step Law"] == (PUBLISHED["step_law"].rate(n, d), PUBLISHED["step_law"].batch(n, d))
        assert prediction.rate.low < prediction.rate.value < prediction.rate.high
    for n, d in ((4.1e6, 1e6), (0.9e4, 1e6), (1e5, 4.1e7), (1e5, 0.9e5)):
        with pytest.raises(UserError, match="times beyond the sweep"):
            scaling.predict(config, fitted, n, d)
