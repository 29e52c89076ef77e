"""The phases of distillation are planned from the configuration alone, with what stays on the devices beside each."""

import dataclasses
import importlib.util
import json

import pytest

from qwen3_jax.cli import train
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.config import Qwen3Config
from qwen3_jax.planner import plan_distillation, reinforcement, topology

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
ROWS, LENGTH, WIDTH, VOCABULARY, LAYERS = 8, 256, 1024, 2048, 3
STATES = 2 * ROWS * LENGTH * WIDTH // 4  # bytes of a chip
FIELDS = dict(intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=VOCABULARY)
TEACHER = Qwen3Config(hidden_size=WIDTH, num_hidden_layers=LAYERS, tie_word_embeddings=True, **FIELDS)
STUDENT = FIELDS | dict(hidden_size=512, num_hidden_layers=2, tie_word_embeddings=False)
ON_POLICY = ["--data.sources=[]", '--rl.prompts=[{"name": "queries", "path": "no/such/file"}]']
ON_POLICY += [f"--rl.rollouts.{setting}" for setting in ("max_new_tokens=99", "prompts=8", "group_size=1")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    for name, model in (("teacher", TEACHER), ("student", Qwen3Config(**STUDENT))):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(model.to_hf()))
    config = {
        "method": "distillation", "steps": 1000, "distillation": {"teacher": str(folder / "teacher")},
        "model": {"init_from": str(folder / "student"), "dtype": "bfloat16", "remat": "full"},
        "data": {
            "sequence_length": LENGTH, "batch_size": ROWS, "sources": [{"name": "answers", "path": "no/such/folder"}],
        },
        "mesh": {"data": 4},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(json.dumps(config))
    return path


def plans(file, *flags):
    return plan_distillation(parse_train([f"--config={file}", *flags], "train.py").config, topology("v5e:2x2"))


@pytest.fixture(scope="module")
def off_policy(file):
    return plans(file)


@pytest.mark.slow
def test_the_teacher_s_states_are_its_result_and_an_argument_of_the_update(off_policy):
    teacher, update = off_policy
    assert teacher.title.endswith(f"/teacher, the teacher's forward pass with sequences of {LENGTH}")
    assert update.title.endswith(f"/student, training with sequences of {LENGTH}")
    assert teacher.compiled.memory.results == pytest.approx(STATES, rel=0.01)
    rest = update.compiled.memory.arguments - sum(update.holds.values())
    batch = 5 * 4 * ROWS * LENGTH // 4
    assert rest == pytest.approx(
        STATES + 2 * VOCABULARY * WIDTH // 4 + batch, rel=0.01
    )  # the tied embedding in bfloat16
    assert "optimizer" not in teacher.holds
    per_layer = WIDTH * 64 * (2 * 4 + 2 * 2) + 3 * WIDTH * 256
    assert teacher.holds["weights"] == pytest.approx(
        2 * (LAYERS * per_layer + VOCABULARY * WIDTH) / 4, rel=0.02
    )  # bfloat16
    assert update.compiled.program.unknown_loops == []


@pytest.mark.slow
def test_notes_say_what_stays_on_the_devices(off_policy):
    teacher, update = off_policy
    assert any(note.startswith("the training state, ") for note in teacher.notes)
    assert any(note.startswith("the teacher's weights, 0.0 GiB of each chip, stay") for note in update.notes)


@pytest.mark.slow
def test_answers_of_the_student_are_planned_as_rollouts_first(file):
    rollouts, teacher, update = plans(file, *ON_POLICY)
    assert rollouts.title.endswith(f"/student, decoding 8 rows with {LENGTH} slots each, bfloat16")
    assert any("the teacher's weights" in note for note in rollouts.notes)
    for plan in (teacher, update):
        assert any(note.startswith("the engine's weights and cache, ") for note in plan.notes)
    assert teacher.compiled.memory.results == pytest.approx(STATES, rel=0.01)


@pytest.mark.slow
def test_the_policy_gradient_form_is_planned_with_log_probabilities(file, off_policy, monkeypatch):
    held = dataclasses.replace(off_policy[0], holds={"weights": 0, "cache": 0})  # in place of rollouts, which take long
    monkeypatch.setattr(reinforcement, "plan_decoding", lambda *_: held)
    flags = [*ON_POLICY, "--distillation.form=policy_gradient", "--rl.rollouts.updates=2"]
    titles = [plan.title.partition(" with ")[0].rpartition("/")[2] for plan in plans(file, *flags)]
    assert titles[1:] == ["teacher, the teacher's log probabilities", "student, log probabilities", "student, training"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--distillation.teacher=some/where"],
            "distillation.teacher: 'some/where' is no folder with a config.json, and",
        ),
        (["--distillation.teacher=Qwen/Qwen3-32B"], "the teacher has 151936 vocabulary rows and the student 2048"),
        (
            ["--distillation.mesh={data: 1, tensor: 1, expert: 1, context: 1, replica: 1}"],
            "distillation.mesh is not planned",
        ),
        (["--search"], "--search is for one program, and method: distillation has several"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(file, flags, message, capsys):
    assert train.main([f"--config={file}", "--plan=v5e:2x2", *flags], "train.py") == 2
    assert message in capsys.readouterr().err
