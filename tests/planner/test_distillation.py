"""The phases of distillation are planned from the configuration alone, with what stays on the devices beside each."""

import importlib.util

import pytest

from qwen3_jax.cli import train
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.planner import plan_distillation, topology

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
ROWS, LENGTH, WIDTH, VOCABULARY = 8, 256, 1024, 151_936
STATES = 2 * ROWS * LENGTH * WIDTH // 4  # bytes of a chip

CONFIGURATION = f"""
method: distillation
steps: 100
distillation: {{teacher: Qwen/Qwen3-0.6B}}
model: {{init_from: Qwen/Qwen3-0.6B-Base, dtype: bfloat16, remat: full, config: {{num_hidden_layers: 2}}}}
data: {{sequence_length: {LENGTH}, batch_size: {ROWS}, sources: [{{name: answers, path: no/such/folder}}]}}
mesh: {{data: 4}}
"""
ON_POLICY = [
    "--data.sources=[]",
    '--rl.prompts=[{"name": "queries", "path": "no/such/file"}]',
    "--rl.rollouts.max_new_tokens=99",
]
ON_POLICY += ["--rl.rollouts.prompts=8", "--rl.rollouts.group_size=1"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "run.yaml"
    path.write_text(CONFIGURATION)
    return path


def plans(file, *flags):
    return plan_distillation(parse_train([f"--config={file}", *flags], "train.py").config, topology("v5e:2x2"))


@pytest.fixture(scope="module")
def off_policy(file):
    return plans(file)


def test_the_teacher_s_states_are_its_result_and_an_argument_of_the_update(off_policy):
    teacher, update = off_policy
    assert teacher.title == f"Qwen/Qwen3-0.6B, the teacher's forward pass with sequences of {LENGTH}"
    assert update.title == f"Qwen/Qwen3-0.6B-Base, training with sequences of {LENGTH}"
    assert teacher.compiled.memory.results == pytest.approx(STATES, rel=0.01)
    rest = update.compiled.memory.arguments - sum(update.holds.values())
    batch = 5 * 4 * ROWS * LENGTH // 4
    assert rest == pytest.approx(
        STATES + 2 * VOCABULARY * WIDTH // 4 + batch, rel=0.01
    )  # the tied embedding in bfloat16
    assert "optimizer" not in teacher.holds
    assert teacher.holds["weights"] < update.holds["weights"] * 28 / 2 / 2  # bfloat16 against float32
    assert update.compiled.program.unknown_loops == []


def test_notes_say_what_stays_on_the_devices(off_policy):
    teacher, update = off_policy
    assert any(note.startswith("the training state, ") for note in teacher.notes)
    assert any(note.startswith("the teacher's weights, 0.3 GiB of each chip, stay") for note in update.notes)


@pytest.mark.slow
def test_answers_of_the_student_are_planned_as_rollouts_first(file):
    rollouts, teacher, update = plans(file, *ON_POLICY)
    assert rollouts.title == f"Qwen/Qwen3-0.6B-Base, decoding 8 rows with {LENGTH} slots each, bfloat16"
    assert any("the teacher's weights" in note for note in rollouts.notes)
    for plan in (teacher, update):
        assert any(note.startswith("the engine's weights and cache, ") for note in plan.notes)
    assert teacher.compiled.memory.results == pytest.approx(STATES, rel=0.01)


@pytest.mark.slow
def test_the_policy_gradient_form_is_planned_with_log_probabilities(file):
    flags = [*ON_POLICY, "--distillation.form=policy_gradient", "--rl.rollouts.updates=2"]
    titles = [plan.title.partition(" with ")[0] for plan in plans(file, *flags)]
    assert titles[1:] == [
        "Qwen/Qwen3-0.6B, the teacher's log probabilities", "Qwen/Qwen3-0.6B-Base, log probabilities",
        "Qwen/Qwen3-0.6B-Base, training",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--distillation.teacher=some/where"],
            "distillation.teacher: 'some/where' is no folder with a config.json, and",
        ),
        (["--model.config.vocab_size=1024"], "the teacher has 151936 vocabulary rows and the student 1024"),
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
