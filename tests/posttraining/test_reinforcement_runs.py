"""Runs of the method grpo: they learn, resume to the same bits in the middle of a round, and refuse what they do not read."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

import qwen3_jax
from qwen3_jax.cli import train as cli
from qwen3_jax.cli.main import main
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.errors import Interrupted
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.reinforcement import PolicyLoop, train
from qwen3_jax.training import report_rl
from qwen3_jax.training.rl_config import PASS_RATE_BINS
from qwen3_jax.training.run_log import read_run
from tests.helpers import tiny_models


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model's folder."""
    return qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path_factory.mktemp("base") / "hf")


def write_config(folder: Path, base: Path, **changes) -> Path:
    """Answers are right if they are short, which a random model can learn in a few steps."""
    records = [{"question": f"What is {i} + 3?", "verifier": "length", "answer": {"max": 3}} for i in range(30)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {
        "method": "grpo", "run_dir": str(folder / "run"), "steps": 6, "log_every": 1, "eval_every": 3, "checkpoint_every": 1,
        "eval_at_start": True, "checkpoint_keep": 20, "model": {"init_from": str(base), "scan_layers": False},
        "data": {"sequence_length": 160, "batch_size": 8}, "micro_batches": 2,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0, "weight_decay": 0.0, "schedule": "constant"},
        "mesh": {"data": 1},
        "rl": {
            "prompts": [{"name": "short", "path": str(path), "eval_fraction": 0.2}],
            "rollouts": {
                "prompts": 4, "group_size": 4, "updates": 2, "max_new_tokens": 64, "budget": [0, 8], "thinking": 0.7,
                "refill": 1, "keep_rate": 0.5,
            },
            "policy": {"algorithm": "dapo", "kl": {"coefficient": 0.01}, "importance_cap": 2.0},
            "entropy": {"low": 1.0, "high": 9.0, "step": 0.001, "maximum": 0.01},
            "eval_prompts": 4,
        },
    }  # fmt: skip
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    return file


def metrics(run_dir: Path) -> list[dict]:
    """Without what depends on the clock."""
    kept = ("step", "train.", "held_out.", "rl.")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name.startswith(kept) and "second" not in name} for row in rows
    ]


def rollouts(run_dir: Path) -> dict[str, list]:
    return {file.name: file.read_text().splitlines() for file in sorted((run_dir / "rollouts").glob("*.jsonl"))}


def check_interruptions(file: Path, whole: Path) -> None:
    """A run that is interrupted in the middle of a round, or between two and then in one, gives the bits of `whole`."""
    for stops in ((3,), (2, 5)):
        broken = whole.parent / f"broken-{len(stops)}"
        asked = SimpleNamespace(reason=None, saves=False)
        config = parse_train([f"--config={file}", f"--run_dir={broken}"], "train").config
        for stop in stops:

            def watch(step: int, _row: dict, stop=stop, asked=asked) -> None:
                asked.reason = "a test" if step == stop - 1 else None  # it is asked after the next step

            with pytest.raises(Interrupted, match=f"stopped at step {stop}"):
                train(config, watch, asked)
            asked.reason = None
        train(config)
        assert metrics(broken) == metrics(whole)
        assert rollouts(broken) == rollouts(whole)
        assert (broken / "hf/model.safetensors").read_bytes() == (whole / "hf/model.safetensors").read_bytes()
        shutil.rmtree(broken)


def check_the_report(run: Path) -> None:
    """The page has the newest answers, and every panel draws something."""
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Answers of the round before step 5" in page
    assert "reward of sampled answers" in page
    labels = {}
    for panel in report_rl.panels(read_run(run)):
        axes = Figure().subplots()
        panel(axes, read_run(run))
        assert axes.has_data(), panel.__name__
        labels[panel.__name__] = axes.get_legend_handles_labels()[1]
    assert labels["parts"] == ["record", "answers without a reward"]
    assert labels["pass_rates"] == [f"{name}% right" for name in PASS_RATE_BINS]
    assert len(labels) >= 10


def test_a_run_resumes_to_the_same_bits_in_the_middle_of_a_round(tmp_path, capsys):
    """With experts, which are sampled, replayed and kept with the answers."""
    base = qwen3_jax.save(tiny_models.model(experts=8), tiny_models.tokenizer(), tmp_path / "hf")
    rl = yaml.safe_load(write_config(tmp_path, base).read_text())["rl"]
    rl["policy"] |= {"replay_experts": True}
    config = parse_train([f"--config={write_config(tmp_path, base, rl=rl)}"], "train").config
    whole = train(config).parent
    rows = metrics(whole)
    trained = [row for row in rows if "train.total" in row]
    assert [row["step"] for row in trained] == list(range(1, 7))
    # A round is every second step; its figures stand on the line of its first step.
    assert [("rl.reward" in row) for row in trained] == [True, False] * 3
    assert [row["step"] for row in rows if "held_out.short.reward" in row] == [0, 3, 6]
    for row in trained:
        assert row["train.mismatch_max"] < 1e-4
        assert row["train.mismatch"] <= row["train.mismatch_999"]
        # The weights are those of the rollout in the first update of a round alone.
        assert row["train.router_agreement"] > (0.999 if row["step"] % 2 else 0.5)
        assert (abs(row["train.ratio"] - 1) < 1e-5) == (row["step"] % 2 == 1)
    assert [file.removesuffix(".jsonl") for file in rollouts(whole)] == ["0", "2", "4"]
    some, position, _ = storage.load(whole / "rollouts", 2)
    assert sum(position["draws"]) >= 8
    assert all(one.experts.shape == (one.pairs, 2, 2) for one in some)
    assert {one.about["source"] for one in some} == {"short"}

    check_interruptions(tmp_path / "config.yaml", whole)
    capsys.readouterr()

    check_the_report(whole)
    # Without its round a checkpoint in the middle of it cannot be resumed from, and says so.
    (whole / "rollouts" / "2.npz").unlink()
    for step in (4, 5, 6):
        shutil.rmtree(whole / "checkpoints" / str(step))
    assert cli.main([f"--config={tmp_path / 'config.yaml'}"]) == 2
    assert "lacks 2.npz, the answers of the round that the checkpoint is in the middle of" in capsys.readouterr().err


def test_the_report_shows_answers_without_a_reward_and_parts_whose_names_have_points(tmp_path):
    """Distillation learns from answers that nothing judges, or that could not be judged."""
    row = {
        "group": 0, "messages": [{"role": "user", "content": "Two?"}], "mode": "thinking", "budget": None, "content": "2",
        "finish_reason": "stop", "tokens": 3, "reward": None, "parts": [],
    }  # fmt: skip
    judged = [row | {"group": 1, "reward": reward} for reward in (0.0, None, 0.5)]
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/4.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [row, row, *judged]))
    page = report_rl.transcripts(tmp_path)
    assert "(mean reward 0.25 of 2)" in page
    assert "(2 answers)" in page
    assert page.index("0.25 of 2") < page.index("(2 answers)")  # prompts with different rewards first
    assert "no reward, thinking, 3 tokens" in page
    train = [
        {"step": step, "rl.part.p0.5": 0.5, "rl.part.p0.5.right": 0.5, "rl.part.p0.5.error": 0.1} for step in (1, 2)
    ]
    axes = Figure().subplots()
    report_rl.parts(axes, SimpleNamespace(train=train, steps=[1, 2], stages=list, starts=list))
    assert axes.get_legend_handles_labels()[1] == ["p0.5", "p0.5.error"]


def test_a_round_without_an_answer_to_learn_from_moves_no_entropy_coefficient():
    """Its entropy is a mean over no token, which says nothing of the band."""
    noted: list[float] = []
    loop = SimpleNamespace(rl=SimpleNamespace(entropy=object()), _batches=SimpleNamespace(note_entropy=noted.append))
    for tokens in (0.0, 4.0):
        PolicyLoop.taken(loop, 1, SimpleNamespace(loss=SimpleNamespace(tokens=tokens, entropy=tokens / 8)))
    assert noted == [0.5]


def test_rewards_rise_and_nothing_is_compiled_after_the_first_round(base, tmp_path):
    rl = yaml.safe_load(write_config(tmp_path, base).read_text())["rl"]
    rl["rollouts"] |= {"prompts": 8, "group_size": 8, "updates": 1, "refill": 0, "budget": None}
    rl |= {"policy": {"algorithm": "grpo"}, "entropy": None}
    data = {"sequence_length": 160, "batch_size": 64}
    config = write_config(tmp_path, base, steps=16, eval_every=0, checkpoint_every=0, data=data, micro_batches=8, rl=rl)
    compiled: list[str] = []
    by_step: dict[int, int] = {}

    def note(name: str, _seconds: float, **_: object) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        run = train(
            parse_train([f"--config={config}"], "train").config, lambda step, _: by_step.update({step: len(compiled)})
        ).parent
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert by_step[1] > 5
    assert by_step[15] == by_step[2]
    assert [row["step"] for row in metrics(run) if "held_out.short.reward" in row] == [0, 16]
    rewards = [row["rl.reward"] for row in metrics(run) if "rl.reward" in row]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2, rewards
    assert all(row["train.ratio"] == 1 for row in metrics(run) if "train.ratio" in row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sft"}, "rl is read by method: grpo and distillation, and this run has method: sft"),
        ({"rl": None}, "method: grpo reads its prompts from rl; add that"),
        ({"data": {"sequence_length": 160, "batch_size": 7}}, "data.batch_size is 7; a step learns from 8 answers"),
        ({"data": {"sequence_length": 64, "batch_size": 8}}, "max_new_tokens (64) leaves no room for a prompt"),
        ({"data": {"sequence_length": 160, "batch_size": 8, "packing_rows": 8}}, "data.packing_rows is not read"),
        ({"loss": {"z_loss": 0.1}}, "loss.z_loss is not read by method: grpo"),
        ({"rl": {"rewards": []}}, "rl.rewards is empty, and method: grpo learns from rewards"),
        ({"rl": {"policy": {"replay_experts": True}}}, "rl.policy.replay_experts: the model is dense; leave it out"),
        ({"model": {}}, "method: grpo trains a model that can already answer; set model.init_from"),
    ],
)  # fmt: skip
def test_what_a_run_does_not_read_is_refused(changes, message, base, tmp_path, capsys):
    if changes.get("rl"):
        changes = {"rl": yaml.safe_load(write_config(tmp_path, base).read_text())["rl"] | changes["rl"]}
    assert cli.main([f"--config={write_config(tmp_path, base, **changes)}"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_prompts_that_cannot_be_scored_or_asked_are_named(base, tmp_path, capsys):
    rl = yaml.safe_load(write_config(tmp_path, base).read_text())["rl"]
    rl["prompts"][0]["eval_fraction"] = 0.0
    config = write_config(tmp_path, base, rl=rl)
    long = {"question": "What is 2 + 3? " * 60, "verifier": "number", "answer": "5"}
    for record, message in (
        ({"question": "One?", "answer": "1"}, "prompts.jsonl:1: its answers cannot be scored"),
        (long, "of one round cannot be asked; the last: the prompt has"),
    ):
        (tmp_path / "prompts.jsonl").write_text(json.dumps(record) + "\n")
        assert cli.main([f"--config={config}"]) == 2
        assert message in capsys.readouterr().err
    config = write_config(tmp_path, base, method="pretrain", rl=None)
    assert cli.main([f"--config={config}", f"--run_dir={tmp_path / 'other'}"]) == 2
    assert "data.sources is empty: nothing to train on" in capsys.readouterr().err
