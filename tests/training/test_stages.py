"""Stages are filled in, resumed, loaded and compared as their configuration says. Nothing compiles."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import DataConfig, LengthShare, Source
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.training import loop, run_folder
from qwen3_jax.training.config import (
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    padded_vocabulary,
)
from qwen3_jax.training.optimizer import run_schedule
from qwen3_jax.training.run_folder import architecture_after
from qwen3_jax.training.run_log import RunLog
from qwen3_jax.training.stage_config import StageConfig, StageOptimizer
from sharding import MeshConfig
from tests.helpers import tiny_models
from tests.helpers.tiny_models import TINY

DATA = DataConfig([Source("a", "unused"), Source("b", "unused")], sequence_length=32, batch_size=8)
OPTIMIZER = OptimizerConfig(learning_rate=3.0, warmup_steps=4, schedule="wsd", final_learning_rate=0.3, decay_share=0.5)


def three_stages(**changes) -> TrainConfig:
    stages = [
        StageConfig("one", 10, weights={"a": 1.0}),
        StageConfig("two", 6, rope_theta=5e5, batch_size=4, optimizer=StageOptimizer(learning_rate=2.0, schedule="linear")),
        StageConfig(
            "three", 5, sequence_length=64, lengths=[LengthShare(32, 64, 1.0)], micro_batches=2, mesh=MeshConfig(data=2),
            remat="full", optimizer=StageOptimizer(warmup_steps=2, final_learning_rate=0.0, decay_share=0.1),
        ),
    ]  # fmt: skip
    model = ModelConfig(remat="dots")
    return TrainConfig(**(dict(data=DATA, stages=stages, optimizer=OPTIMIZER, model=model, log_every=7) | changes))


def test_a_stage_takes_what_it_says_and_the_rest_from_the_run():
    config = three_stages()
    assert config.total_steps == 21
    stages = config.resolved()
    assert [(s.name, s.first, s.last, s.run.steps) for s in stages] == [
        ("one", 0, 10, 10), ("two", 10, 16, 6), ("three", 16, 21, 5),
    ]  # fmt: skip
    assert [s.weights for s in stages] == [{"a": 1.0}, None, None]
    assert [s.rope_theta for s in stages] == [None, 5e5, 5e5]  # carried over
    assert [s.run.data.sequence_length for s in stages] == [32, 32, 64]
    assert [s.run.data.batch_size for s in stages] == [8, 4, 8]  # not carried over
    assert [s.run.data.lengths for s in stages] == [[], [], [LengthShare(32, 64, 1.0)]]
    assert [s.run.micro_batches for s in stages] == [1, 1, 2]
    assert [s.run.mesh for s in stages] == [config.mesh, config.mesh, MeshConfig(data=2)]
    assert [s.run.model.remat for s in stages] == ["dots", "dots", "full"]
    # The run's warm-up is the first stage's alone.
    assert [s.run.optimizer for s in stages] == [
        OPTIMIZER,
        dataclasses.replace(OPTIMIZER, warmup_steps=0, learning_rate=2.0, schedule="linear"),
        dataclasses.replace(OPTIMIZER, warmup_steps=2, final_learning_rate=0.0, decay_share=0.1),
    ]
    assert all(s.run.log_every == 7 and not s.run.stages for s in stages)
    assert config.stage("two") == stages[1].run
    plain = TrainConfig(data=DATA, steps=5, optimizer=OPTIMIZER)
    assert [(s.name, s.first, s.last, s.run, s.weights, s.rope_theta) for s in plain.resolved()] == [
        ("train", 0, 5, plain, None, None)
    ]
    assert plain.stage(None) is plain


def test_warm_up_must_leave_a_step_of_its_stage():
    assert TrainConfig(data=DATA, steps=5, optimizer=OPTIMIZER)
    with pytest.raises(UserError, match=r"warmup_steps is 4; it must be below the number of steps \(4\)"):
        TrainConfig(data=DATA, steps=4, optimizer=OPTIMIZER)
    with pytest.raises(UserError, match=r"stage 'b': .*warmup_steps is 3; it must be below the number of steps \(3\)"):
        TrainConfig(data=DATA, stages=[StageConfig("a", 9), StageConfig("b", 3, optimizer=StageOptimizer(warmup_steps=3))],
                    optimizer=OPTIMIZER)  # fmt: skip
    for message, stages in {
        "two stages are named 'a'": [StageConfig("a", 9), StageConfig("a", 9)],
        "no source 'c'|'c'": [StageConfig("a", 9, weights={"c": 1.0})],
    }.items():
        with pytest.raises(UserError, match=message):
            TrainConfig(data=DATA, stages=stages, optimizer=OPTIMIZER)
    with pytest.raises(UserError, match=r"stage 'a': weights\.a is 0; it must be above 0"):
        StageConfig("a", 9, weights={"a": 0})


def test_a_checkpoint_at_a_boundary_has_the_base_of_the_stage_that_ended_there():
    stages = [
        {"steps": 10, "rope_theta": None}, {"steps": 6, "rope_theta": 5e5}, {"steps": 5, "rope_theta": None},
        {"steps": 5, "rope_theta": 1e6},
    ]  # fmt: skip
    base = dataclasses.replace(TINY, rope_theta=1e4)
    for step, theta in ((0, 1e4), (9, 1e4), (10, 1e4), (11, 5e5), (16, 5e5), (21, 5e5), (22, 1e6), (26, 1e6)):
        assert architecture_after(base, stages, step) == dataclasses.replace(base, rope_theta=theta), step
    assert architecture_after(base, [], 3) is base


def test_the_architecture_is_that_of_the_checkpoint_or_preset_with_the_configured_fields_over_it():
    base = dataclasses.replace(TINY, rope_theta=3e5, rms_norm_eps=1e-5, vocab_size=300)
    own = ModelConfig(config={"hidden_size": 64, "rope_theta": 7e4})
    assert own.architecture(base, 200) == dataclasses.replace(base, hidden_size=64, rope_theta=7e4)
    assert ModelConfig().architecture(base, 300) == base
    assert ModelConfig().architecture(None, 300) == dataclasses.replace(Qwen3Config(), vocab_size=384)  # padded
    preset = Qwen3Config.preset("Qwen3-0.6B")
    assert ModelConfig(preset="Qwen3-0.6B").architecture(None, 384) == preset
    with pytest.raises(UserError, match="vocab_size is 300; the tokenizer has 301 tokens"):
        ModelConfig().architecture(base, 301)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"checkpoint_keep": 2}')
    steps = []
    monkeypatch.setattr(
        run_folder, "TrainCheckpoints", lambda *_: SimpleNamespace(steps=lambda: steps, close=lambda: None)
    )
    with pytest.raises(UserError, match="has no checkpoint; steps: none"):
        run_folder.load_run(tmp_path)
    steps += [5, 9]
    with pytest.raises(UserError, match=r"has no checkpoint of step 7; steps: \[5, 9\]"):
        run_folder.load_run(tmp_path, 7)


def test_a_run_is_claimed_once_and_loaded_at_the_step_that_was_asked_for(tmp_path, monkeypatch):
    class Checkpoints:
        def __init__(self, folder, keep):
            assert (folder, keep) == (tmp_path / "checkpoints", 2)

        def steps(self):
            return [5, 9, 7]

        def restore(self, step, abstract_state):
            return f"state {step}", None

        def close(self):
            pass

    monkeypatch.setattr(run_folder, "TrainCheckpoints", Checkpoints)
    monkeypatch.setattr(run_folder, "exportable_model", lambda trainer, state, tokenizer: (trainer.config, state))
    config = TrainConfig(
        data=DataConfig([Source("text", "unused")]), optimizer=OptimizerConfig(warmup_steps=0),
        stages=[StageConfig("a", 6), StageConfig("b", 6, rope_theta=5e6)],
    )  # fmt: skip
    run_folder.claim(tmp_path, run_folder.check(tmp_path, config), tiny_models.tokenizer(), TINY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    run_folder.claim(tmp_path, run_folder.check(tmp_path, config), None, None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    model, tokenizer = run_folder.load_run(tmp_path)
    assert tokenizer.encode("What?") == tiny_models.tokenizer().encode("What?")
    assert model == (dataclasses.replace(TINY, rope_theta=5e6), "state 9")
    assert run_folder.load_run(tmp_path, 5)[0] == (TINY, "state 5")


def test_an_exported_model_ends_at_either_end_token_of_its_tokenizer():
    trainer = SimpleNamespace(model=lambda params: SimpleNamespace(params=params))
    state = SimpleNamespace(params={"a": 1})
    model = run_folder.exportable_model(trainer, state, SimpleNamespace(im_end_id=7, endoftext_id=3))
    assert model.params == {"a": 1}
    assert model.generation_config == GenerationConfig(eos_token_id=(7, 3), bos_token_id=3, pad_token_id=3)
    other = run_folder.exportable_model(trainer, state, SimpleNamespace(im_end_id=None, endoftext_id=3))
    assert other.generation_config.eos_token_id == (3,)


def test_the_embedding_has_the_next_multiple_of_128_rows():
    assert [padded_vocabulary(n) for n in (1, 127, 128, 129, 151_669)] == [128, 128, 128, 256, 151_680]


def test_a_resumed_run_may_change_hardware_and_nothing_that_changes_its_result(tmp_path, monkeypatch):
    config = three_stages()
    run_folder._write(tmp_path / "config.json", run_folder._values(config))
    stages = config.stages

    def with_stage(**changes):
        return dataclasses.replace(config, stages=[stages[0], dataclasses.replace(stages[1], **changes), stages[2]])

    for free in (
        config,
        dataclasses.replace(config, mesh=MeshConfig(tensor=2), micro_batches=4, log_every=1, eval_every=3),
        dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none")),
        dataclasses.replace(config, data=dataclasses.replace(DATA, cache="elsewhere", prefetch_batches=9)),
        with_stage(mesh=MeshConfig(data=4), micro_batches=2, remat="full"),
    ):
        run_folder.check(tmp_path, free)
    for changed, message in (
        (dataclasses.replace(config, seed=1), "seed was 0 and is 1"),
        (
            dataclasses.replace(config, model=ModelConfig(remat="dots", dtype="bfloat16")),
            "model.dtype was 'float32' and is",
        ),
        (dataclasses.replace(config, data=dataclasses.replace(DATA, seed=3)), "data.seed was 0 and is 3"),
        (with_stage(rope_theta=7e5), "stages.two.rope_theta was 500000.0 and is 700000.0"),
        (with_stage(batch_size=2), "stages.two.batch_size was 4 and is 2"),
        (
            with_stage(optimizer=StageOptimizer(learning_rate=1.0)),
            "stages.two.optimizer.learning_rate was 2.0 and is 1.0",
        ),
        (
            dataclasses.replace(config, loss=dataclasses.replace(config.loss, z_loss=0.1)),
            "loss.z_loss was 0.0 and is 0.1",
        ),
        (dataclasses.replace(config, optimizer=dataclasses.replace(OPTIMIZER, beta2=0.9)), "optimizer.beta2 was 0.95"),
    ):
        with pytest.raises(UserError, match=f"holds a run with other settings: {message}"):
            run_folder.check(tmp_path, changed)


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """`train` with nothing but the order of stages left: what it calls is noted in `calls`."""
    calls = []

    class StageLoop:
        def __init__(self, *args):
            calls.append(("stages", [stage.name for stage in args[2]]))

        def run(self, stage, trainer, state, position):
            calls.append((stage.name, trainer.name, state, position))
            return f"state {stage.last}", f"position {stage.last}"

    class Checkpoints:
        def __init__(self, folder, keep, keep_best, ends):
            calls.append(("checkpoints", keep, keep_best, ends))

        def disk_full_is_user_error(self, _):
            return contextlib.nullcontext()

        def wait(self):
            calls.append("waited")

        def close(self):
            pass

    def trainer(stage, stages, architecture):
        return SimpleNamespace(
            name=f"trainer of {stage.name}", abstract_batch=lambda *shape: calls.append(("checked", *shape)),
            abstract_state=lambda: f"state of {stage.name}", structure=SimpleNamespace(shapes={}), config=TINY,
            placement=SimpleNamespace(mesh=None), lora=None, base=None,
        )  # fmt: skip

    for name in ("load_or_train_tokenizer", "architecture", "claim", "trains_tokenizer"):
        monkeypatch.setattr(loop.run_folder, name, lambda *_: None)
    monkeypatch.setattr(loop, "prepare_corpora", lambda *_: None)
    monkeypatch.setattr(loop.run_folder, "exportable_model", lambda trainer, state, _: (trainer.name, state))
    monkeypatch.setattr(loop, "stage_trainer", trainer)
    monkeypatch.setattr(loop, "StageLoop", StageLoop)
    monkeypatch.setattr(loop, "TrainCheckpoints", Checkpoints)
    monkeypatch.setattr(loop, "_initial_state", lambda config, trainer, source: f"initial of {trainer.name}")
    monkeypatch.setattr(loop, "save", lambda model, *args, **kwargs: calls.append(("exported", model)))
    return calls


@pytest.mark.parametrize("at", [None, 3, 10, 11, 16, 21])
def test_a_run_goes_through_the_stages_that_are_left(faked, monkeypatch, tmp_path, at):
    def restore(checkpoints, abstract_state):
        if at is None:
            return None
        faked.append(("restored as", abstract_state(at)))
        return at, f"state {at}", f"position {at}"

    monkeypatch.setattr(loop, "restore_newest", restore)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    loop.train(three_stages(run_dir=str(run_dir)))
    assert faked[:4] == [
        ("checked", 8, 32), ("checked", 4, 32), ("checked", 8, 64), ("checkpoints", 2, 1, [10, 16, 21]),
    ]  # fmt: skip
    # A finished stage's last checkpoint is restored by the stage that takes the next step.
    restored = {3: "one", 10: "two", 11: "two", 16: "three", 21: "three"}
    assert [call[1] for call in faked if call[0] == "restored as"] == ([f"state of {restored[at]}"] if at else [])
    done, expected = at or 0, []
    state, position = ("initial of trainer of one", None) if at is None else (f"state {at}", f"position {at}")
    for name, last in (("one", 10), ("two", 16), ("three", 21)):
        if done < last:
            expected.append((name, f"trainer of {name}", state, position))
            state, position = f"state {last}", f"position {last}"
    assert [call for call in faked if call[0] in ("one", "two", "three")] == expected
    assert faked[-2:] == ["waited", ("exported", ("trainer of three", "state 21"))]


@pytest.mark.parametrize(
    ("first", "last", "window"), [(0, 100, (5, 10)), (20, 23, (22, 23)), (0, 8, (5, 8)), (90, 100, (95, 100))]
)
def test_a_trace_is_of_five_steps_after_five(monkeypatch, tmp_path, first, last, window):
    from qwen3_jax.training import profiler

    calls = []
    monkeypatch.setattr(profiler.jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with profiler.Profiler(True, tmp_path, first, last, calls.append) as trace:
        for step in range(first, last):
            trace.before(step)
            calls.append(step)
            trace.after(step + 1, None)
    begin, end = calls.index("start"), calls.index("stop")
    assert calls[begin + 1 : end] == list(range(*window))
    assert f"a trace of steps {window[0] + 1} to {window[1]} is in" in calls[end + 1]
    with profiler.Profiler(False, tmp_path, first, last, calls.append) as trace:
        trace.before(window[0])
    assert calls.count("start") == 1


def written(folder, config):
    plan = run_folder.check(folder, config)
    if plan.record is not None:
        run_folder._write(folder / "config.json", plan.record)
    return plan


def test_more_steps_go_on_as_a_stage_with_the_settings_of_the_new_command(tmp_path):
    """The steps before keep theirs, in any number of extensions, and a resume of the extended run finds the same stages."""
    optimizer = OptimizerConfig(warmup_steps=4, learning_rate=2.0, schedule="wsd", decay_share=0.5)
    first = TrainConfig(data=DATA, steps=20, optimizer=optimizer)
    assert written(tmp_path, first).stages == first.resolved()
    cosine = dataclasses.replace(optimizer, schedule="cosine", learning_rate=1.0)
    second = dataclasses.replace(
        first, steps=40, optimizer=cosine, data=dataclasses.replace(DATA, batch_size=2 * DATA.batch_size)
    )
    plan = written(tmp_path, second)
    old, new = plan.stages
    assert (old.name, old.first, old.last) == ("train", 0, 20)
    assert (old.run.steps, old.run.optimizer, old.run.data) == (20, optimizer, DATA)
    assert (new.name, new.first, new.last) == ("train from step 21", 20, 40)
    assert (new.run.steps, new.run.data.batch_size) == (20, 2 * DATA.batch_size)
    assert new.run.optimizer == dataclasses.replace(cosine, warmup_steps=0), "the warm-up is over"
    assert plan.note == (
        f"{tmp_path}: extended from 20 to 40 steps, with its optimizer state and data position. "
        "Steps 21 to 40: learning rate 1 falling to 0.1 (cosine)."
    )
    again = run_folder.check(tmp_path, second)
    assert (again.stages, again.record, again.note) == (plan.stages, None, "")
    rate = run_schedule([(stage.run.optimizer, stage.last - stage.first) for stage in plan.stages])
    before = run_schedule([(optimizer, 20)])
    np.testing.assert_allclose([rate(s) for s in range(20)], [before(s) for s in range(20)])
    np.testing.assert_allclose(rate(20), 1.0)

    third = dataclasses.replace(second, steps=50, optimizer=dataclasses.replace(cosine, warmup_steps=2))
    plan = written(tmp_path, third)
    assert [(s.first, s.last, s.run.optimizer.warmup_steps) for s in plan.stages] == [
        (0, 20, 4),
        (20, 40, 0),
        (40, 50, 2),
    ]
    assert "Steps 41 to 50: learning rate 1 falling to 0.1 (cosine) after 2 of warm-up." in plan.note

    log = SimpleNamespace(config=json.loads((tmp_path / "config.json").read_text()))
    tokens = DATA.batch_size * DATA.sequence_length
    assert list(RunLog.stages(log)) == [
        ("train", 0, 20, tokens), ("train from step 21", 20, 40, 2 * tokens), ("train from step 41", 40, 50, 2 * tokens),
    ]  # fmt: skip


def test_what_an_extension_cannot_change_is_refused_with_a_way_that_keeps_the_optimizer(tmp_path):
    config = TrainConfig(data=DATA, steps=20, optimizer=OPTIMIZER)
    written(tmp_path, config)
    longer = dataclasses.replace(config, steps=40)
    for changed, message in (
        (
            dataclasses.replace(config, data=dataclasses.replace(DATA, batch_size=16)),
            "to train it on with its optimizer, give more steps than 20: from there on data.sequence_length",
        ),
        (dataclasses.replace(config, steps=10), "steps was 20 and is 10; to train it on with its optimizer, give more"),
        (
            dataclasses.replace(longer, seed=3),
            r"seed was 0 and is 3; set run_dir to another folder, or delete this one \(model.init_from",
        ),
        (dataclasses.replace(longer, optimizer=dataclasses.replace(OPTIMIZER, beta2=0.5)), "optimizer.beta2 was"),
        (dataclasses.replace(longer, model=ModelConfig(dtype="bfloat16")), "model.dtype was"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            run_folder.check(tmp_path, changed)


def test_a_run_of_stages_goes_on_with_stages_added(tmp_path):
    config = three_stages()
    written(tmp_path, config)
    more = dataclasses.replace(config, stages=[*config.stages, StageConfig("four", 9)])
    plan = written(tmp_path, more)
    assert [stage.name for stage in plan.stages] == ["one", "two", "three", "four"]
    assert "extended from 21 to 30 steps" in plan.note
    assert run_folder.check(tmp_path, more).note == ""
    with pytest.raises(
        UserError, match=r"stages\.one\.steps was 10 and is 11; to go on with other settings and its optim"
    ):
        run_folder.check(
            tmp_path,
            dataclasses.replace(more, stages=[StageConfig("one", 11), *more.stages[1:], StageConfig("five", 1)]),
        )
