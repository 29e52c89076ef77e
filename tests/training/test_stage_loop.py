"""What the loop of a stage does at which step: metrics, evaluation, checkpoints, guard, data position. Nothing compiles."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.data import DataConfig, Source
from qwen3_jax.errors import Diverged, Interrupted
from qwen3_jax.training import guard, journal, losses, stage_loop
from qwen3_jax.training.config import OptimizerConfig, TrainConfig
from qwen3_jax.training.journal import Journal
from qwen3_jax.training.stage_config import StageConfig
from qwen3_jax.training.stage_loop import StageLoop, stage_trainer
from qwen3_jax.training.step import TrainState
from qwen3_jax.training.step_metrics import Metrics, fetch_metrics
from sharding import MeshConfig
from tests.helpers.tiny_models import TINY


class FakeTrainer:
    """Steps whose loss is 10 - step; what a step was given is kept."""

    shardings = None
    config = TINY
    lora = base = None

    def __init__(self, skipped_in_row=0):
        self.skipped_in_row = skipped_in_row
        self.batches, self.guards = [], []

    def flops_per_token(self, length):
        return 1000.0 * length

    def local_rows(self, batch_size):
        return list(range(batch_size))

    def place(self, batch, batch_size=None):
        return batch

    def step(self, state, batch):
        self.batches.append(batch)
        self.guards.append(state.guard)
        step = state.step + 1
        routers = losses.router_means(None) | {"router_load": np.full((1, 2), float(step))}
        loss = losses.Loss(10.0 - step, 9.0 - step, 1.0, 0.0, 4.0, **routers)
        metrics = Metrics(loss, 2.0, 3.0, 0.5, 1.0, float(self.skipped_in_row))
        return TrainState(state.params, state.optimizer, state.guard, step), metrics


def position_after(batches: int, tokens: dict | None = None) -> dict:
    """Of the data, in the form of `qwen3_jax.data.mixture`."""
    return {"window": 0, "drawn": {"text": batches}, "tokens": tokens or {}, "carried": [], "row": 0}


class FakeLoader:
    """Counts its batches from the position it was set to."""

    def __init__(self):
        self.position = position_after(0)
        self.set_to = []

    def __iter__(self):
        return self

    def __next__(self):
        drawn = self.position["drawn"]["text"] + 1
        self.position = self.position | {"drawn": {"text": drawn}}
        return drawn

    def get_state(self):
        return self.position

    def set_state(self, position):
        self.set_to.append(position)
        self.position = position

    def close(self):
        pass


class FakeCheckpoints:
    def __init__(self):
        self.saved, self.waits = [], 0

    def save(self, step, state, position, loss):
        self.saved.append((step, int(state.step), position, loss))

    def wait(self):
        self.waits += 1


class FakeHeldOut:
    def __init__(self, *args):
        self.baseline, self.named, self.accuracy = {"a": 5.0, "b": 6.0}, "unigram entropy", {}
        self.router_load = {}

    def losses(self, trainer, params):
        return {"a": 1.0, "b": 2.0}


def loop_of(tmp_path, monkeypatch, stop_at=None, watch=None, plots=None, **changes):
    """A loop over the stages of 7 and 5 steps, with everything around it faked."""
    plots = [] if plots is None else plots
    data = DataConfig([Source("text", "unused", eval_fraction=0.1)], sequence_length=4, batch_size=2)
    values = dict(
        stages=[StageConfig("one", 7), StageConfig("two", 5)], data=data, log_every=3, eval_every=4, checkpoint_every=2,
        optimizer=OptimizerConfig(warmup_steps=0, max_skips=3), mesh=MeshConfig(),
    )  # fmt: skip
    config = TrainConfig(**(values | changes))
    loader = FakeLoader()
    monkeypatch.setattr(stage_loop, "make_train_loader", lambda *args, **kwargs: loader)
    monkeypatch.setattr(stage_loop, "at_boundary", lambda data, *around: data | {"boundary": around})
    monkeypatch.setattr(stage_loop, "HeldOut", FakeHeldOut)
    monkeypatch.setattr(stage_loop.jax, "device_put", lambda state, shardings: state)
    monkeypatch.setattr(journal, "plot_loss", lambda *args: plots.append(args))
    checkpoints = FakeCheckpoints()
    loop = StageLoop(
        config, tmp_path, config.resolved(), TINY, [], checkpoints, Journal(tmp_path, config, 0, 1.0), watch,
        lambda step: "SIGTERM" if step == stop_at else "",
    )  # fmt: skip
    return loop, loader, checkpoints


def state_at(step: int) -> TrainState:
    """With a guard that has seen six values, of which two steps were skipped, the last one too."""
    seen = dataclasses.replace(
        guard.fresh(4), seen=jnp.int32(6), skipped=jnp.int32(2), in_row=jnp.int32(1), losses=jnp.full(4, 7.0)
    )
    return TrainState({}, {}, seen, step)


def rows(tmp_path: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]


def test_each_step_is_logged_evaluated_and_saved_when_the_configuration_says(tmp_path, monkeypatch, capsys):
    watched, plots = [], []
    loop, loader, checkpoints = loop_of(
        tmp_path, monkeypatch, watch=lambda step, row: watched.append((step, row)), plots=plots
    )
    trainer = FakeTrainer()
    state, position = loop.run(loop.stages[0], trainer, state_at(0), None)
    assert state.step == 7
    assert trainer.batches == [1, 2, 3, 4, 5, 6, 7]
    assert loader.set_to == []
    train = [row for row in rows(tmp_path) if "train.total" in row]
    assert [row["step"] for row in train] == [3, 6, 7] == [step for step, _ in watched]
    # The metrics of that step, not of another one.
    assert [row["train.total"] for row in train] == [7, 4, 3] == [row["train.total"] for _, row in watched]
    assert [row["step"] for row in rows(tmp_path) if "eval.a" in row] == [4, 7]
    assert rows(tmp_path)[1] | {"time": 0} == {
        "step": 4, "time": 0, "eval.a": 1.0, "eval.b": 2.0, "eval.a_unigram_entropy": 5.0, "eval.b_unigram_entropy": 6.0,
    }  # fmt: skip
    assert [(row["step"], row["load"]) for row in rows(tmp_path, "router")] == [(4, [[4.0, 4.0]]), (7, [[7.0, 7.0]])]

    def at(step):
        return {"stage": "one", "data": position_after(step)}

    # Held-out loss where it was measured, as the mean over sources; the position is that after the step's batch.
    assert checkpoints.saved == [
        (2, 2, at(2), None), (4, 4, at(4), 1.5), (6, 6, at(6), None), (7, 7, at(7), 1.5),
    ]  # fmt: skip
    assert position == at(7)
    assert plots == [(tmp_path / "metrics.jsonl", tmp_path / "loss.png", {"a": 5.0, "b": 6.0}, "unigram entropy")] * 2


def test_a_stage_restarts_the_guard_at_its_first_step_alone(tmp_path, monkeypatch):
    for stage, first, seen in ((0, 0, 0), (0, 3, 6), (1, 7, 0), (1, 8, 6)):
        loop, *_ = loop_of(tmp_path, monkeypatch)
        trainer = FakeTrainer()
        name = "one" if first <= 7 else "two"
        loop.run(loop.stages[stage], trainer, state_at(first), {"stage": name, "data": position_after(first)})
        given = trainer.guards[0]
        assert (int(given.seen), int(given.skipped), int(given.in_row)) == (seen, 2, 1), (stage, first)
        assert all(one is given for one in trainer.guards)
        assert len(trainer.guards) == loop.stages[stage].last - first


def test_data_go_on_inside_a_stage_and_begin_new_shares_at_a_boundary(tmp_path, monkeypatch):
    position = position_after(7, tokens={"text": 100})
    loop, loader, _ = loop_of(tmp_path, monkeypatch)
    loop.run(loop.stages[1], FakeTrainer(), state_at(9), {"stage": "two", "data": position})
    assert loader.set_to == [position]
    stages = [StageConfig("one", 7, weights={"text": 2.0}), StageConfig("two", 5)]
    loop, loader, checkpoints = loop_of(tmp_path, monkeypatch, stages=stages)
    loop.run(loop.stages[1], FakeTrainer(), state_at(7), {"stage": "one", "data": position})
    one, two = (stage.run.data for stage in loop.stages)
    assert loader.set_to == [position | {"boundary": (one, {"text": 2.0}, two, [])}], (
        "what the stage before has not given"
    )
    assert checkpoints.saved[-1][2]["stage"] == "two"
    assert checkpoints.saved[-1][2]["data"]["drawn"] == {"text": 12}


def test_sigterm_saves_the_step_it_came_at_unless_it_is_the_last(tmp_path, monkeypatch):
    loop, _, checkpoints = loop_of(tmp_path, monkeypatch, stop_at=5)
    with pytest.raises(Interrupted, match=r"stopped at step 5 as asked \(SIGTERM\)"):
        loop.run(loop.stages[0], FakeTrainer(), state_at(0), None)
    assert [step for step, *_ in checkpoints.saved] == [2, 4, 5]
    assert checkpoints.waits == 1
    loop, *_ = loop_of(tmp_path, monkeypatch, stop_at=7)  # the last of its stage, not of the run
    with pytest.raises(Interrupted, match="stopped at step 7"):
        loop.run(loop.stages[0], FakeTrainer(), state_at(0), None)
    loop, _, checkpoints = loop_of(tmp_path, monkeypatch, stop_at=12)
    loop.run(loop.stages[1], FakeTrainer(), state_at(7), {"stage": "one", "data": position_after(7)})
    assert [step for step, *_ in checkpoints.saved] == [8, 10, 12]


def test_a_run_ends_after_max_skips_in_a_row_and_not_one_before(tmp_path, monkeypatch):
    loop, *_ = loop_of(tmp_path, monkeypatch)
    loop.run(loop.stages[0], FakeTrainer(skipped_in_row=2), state_at(0), None)
    with pytest.raises(Diverged, match=r"3 steps in a row were skipped up to step 3 \(loss 7, gradient norm 2\)"):
        loop.run(loop.stages[0], FakeTrainer(skipped_in_row=3), state_at(0), None)


def test_speed_is_tokens_of_the_global_batch_and_flops_of_its_row_length(tmp_path, monkeypatch):
    given = []

    class Meter(stage_loop.Meter):
        def __init__(self, *args):
            given.append(args)
            super().__init__(*args)

    monkeypatch.setattr(stage_loop, "Meter", Meter)
    monkeypatch.setattr(stage_loop, "device_peak", lambda run_dir: 1e9)
    loop, *_ = loop_of(tmp_path, monkeypatch)
    loop.run(loop.stages[0], FakeTrainer(), state_at(0), None)
    assert given == [(8, 4000.0, 1e9, 8)]


def test_progress_lines_say_loss_speed_balance_and_skips():
    row = {"train.cross_entropy": 2.5, "train.balance": 0.0, "train.skipped": 0.0}
    assert stage_loop._note(row) == "loss 2.500"
    row |= {"tokens_per_second": 12345.6, "mfu": 0.423, "train.balance": 8.125, "train.skipped": 2.0}
    assert stage_loop._note(row) == "loss 2.500 | 12,346 tok/s | MFU 42% | balance 8.12 | 2 steps skipped"
    assert stage_loop._note(row | {"train.skipped": 1.0}).endswith("| 1 step skipped")


def test_without_a_bar_about_twenty_lines_tell_of_a_run(tmp_path, monkeypatch, capsys):
    stages = [StageConfig("short", 20), StageConfig("long", 80)]
    loop, *_ = loop_of(tmp_path, monkeypatch, stages=stages, log_every=1, eval_every=0, checkpoint_every=0)
    loop.run(loop.stages[0], FakeTrainer(), state_at(0), None)
    loop.run(loop.stages[1], FakeTrainer(), state_at(20), {"stage": "short", "data": position_after(20)})
    printed = capsys.readouterr()
    lines = [line.partition(":")[0] for line in (printed.out + printed.err).splitlines() if " step " in line]
    assert lines == [f"{'short' if step <= 20 else 'long'}, step {step}/100" for step in range(5, 101, 5)]


def test_loss_by_position_is_that_of_the_stages_own_rotary_base_on_the_longest_rows(tmp_path, monkeypatch):
    data = DataConfig([Source("text", "unused")], sequence_length=4, batch_size=2)
    stages = [StageConfig("short", 2), StageConfig("long", 2, sequence_length=16, rope_theta=1e6)]
    built, measured, loss = [], [], object()

    class HeldOut(FakeHeldOut):
        def __init__(self, stage, corpora, batches):
            super().__init__()
            self.length = stage.run.data.sequence_length

        def by_position(self, trainer, params, edges):
            measured.append((trainer, self.length, edges))
            return {"0-4": loss}

    def trainer(stage, stages, architecture, tokenizer=None):
        built.append((stage.name, stage.rope_theta))
        return SimpleNamespace(shardings=SimpleNamespace(params=None))

    loop, *_ = loop_of(tmp_path, monkeypatch, data=data, stages=stages)
    monkeypatch.setattr(stage_loop, "HeldOut", HeldOut)
    monkeypatch.setattr(stage_loop, "stage_trainer", trainer)
    own = FakeTrainer()
    for stage in loop.stages:
        assert loop._by_position(stage, own, state_at(2), FakeHeldOut()) == {"0-4": loss}
    assert built == [("long", None)]  # the first stage has the architecture's base
    assert [(length, edges) for _, length, edges in measured] == [(16, [0, 4, 8, 16])] * 2
    assert measured[1][0] is own
    same, *_ = loop_of(tmp_path, monkeypatch)
    assert same._by_position(same.stages[0], own, state_at(7), FakeHeldOut()) == {}


def test_the_trainer_of_a_stage_has_its_base_its_batch_and_the_schedule_of_all(monkeypatch):
    data = DataConfig([Source("text", "unused")], sequence_length=8, batch_size=4)
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="constant")
    config = TrainConfig(
        data=data, optimizer=optimizer, mesh=MeshConfig(),
        stages=[StageConfig("a", 3), StageConfig("b", 2, rope_theta=5e6, micro_batches=2)],
    )  # fmt: skip
    stages = config.resolved()
    trainers = [stage_trainer(stage, stages, TINY) for stage in stages]
    assert [one.config.rope_theta for one in trainers] == [TINY.rope_theta, 5e6]
    assert [one.micro_batches for one in trainers] == [1, 2]
    assert all(one._schedule.stages == tuple((stage.run.optimizer, n) for stage, n in zip(stages, (3, 2), strict=True))
               for one in trainers)  # fmt: skip
    assert trainers[0].placement.rules == sharding.TRAINING


def test_metrics_are_flattened_by_name_and_layer():
    loss = losses.Loss(
        *(jnp.float32(i) for i in range(5)), router_entropy=jnp.asarray([1.0, 3.0]),
        router_max_load=jnp.asarray([2.0, 2.0]), router_min_load=None, router_load=jnp.ones((2, 4)),
    )  # fmt: skip
    flat = fetch_metrics(Metrics(loss, *(jnp.float32(i) for i in range(10, 15))))
    assert flat == {
        "loss.total": 0, "loss.cross_entropy": 1, "loss.z": 2, "loss.balance": 3, "loss.tokens": 4, "loss.router_entropy": 2,
        "loss.router_entropy.00": 1, "loss.router_entropy.01": 3, "loss.router_max_load": 2, "loss.router_max_load.00": 2,
        "loss.router_max_load.01": 2, "gradient_norm": 10, "parameter_norm": 11, "learning_rate": 12, "skipped": 13,
        "skipped_in_row": 14,
    }  # fmt: skip
