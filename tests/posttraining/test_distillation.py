"""Distillation: gradients of a step equal those of all logits on every mesh, runs in every form resume to the same bits, and
what does not fit is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import qwen3_jax
import sharding
from qwen3_jax.checkpoint import load_model
from qwen3_jax.cli import train as cli
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.model import flatten
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.log_probs import batch_of
from qwen3_jax.posttraining.reinforcement import train
from qwen3_jax.training.losses import hidden_of
from qwen3_jax.training.stage_loop import stage_trainer
from qwen3_jax.training.teacher import Teacher
from tests.helpers import tiny_models
from tests.posttraining.test_reinforcement_runs import base, check_interruptions, metrics, write_config

__all__ = ["base"]  # a fixture

MESHES = [
    dict(data=2), dict(data=4, tensor=2), dict(data=2, context=2), dict(expert=2, tensor=2),
    dict(replica=2, data=2, tensor=2), dict(data=8), dict(tensor=2), dict(data=2, expert=4),
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher with experts and other weights."""
    folder = tmp_path_factory.mktemp("teacher") / "hf"
    return qwen3_jax.save(tiny_models.model(seed=3, experts=8), tiny_models.tokenizer(), folder)


def on_policy(folder, base, teacher, *, form="exact", **changes):
    """Six steps on answers of the student, two in a round."""
    rl = yaml.safe_load(write_config(folder, base).read_text())["rl"]
    rl["rollouts"] = {
        "prompts": 4,
        "group_size": 2,
        "updates": 2,
        "max_new_tokens": 64,
        "budget": [0, 8],
        "thinking": 0.7,
    }
    rl |= {"policy": {}, "entropy": None} | changes.pop("rl", {})
    settings = {"teacher": str(teacher), "form": form} | changes.pop("distillation", {})
    return write_config(folder, base, method="distillation", distillation=settings, rl=rl, **changes)


def off_policy(folder, base, teacher, **changes):
    """Four steps on chats."""
    pairs = [(f"What is {i}?", f"It is {i}." * (i % 3 + 1)) for i in range(60)]
    rows = [{"messages": [dict(role="user", content=a), dict(role="assistant", content=b)]} for a, b in pairs]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"teacher": str(teacher)} | changes.pop("distillation", {})
    data = {
        "sequence_length": 160, "batch_size": 8, "packing_rows": 8,
        "sources": [{"name": "answers", "path": str(path), "eval_fraction": 0.1}],
    }  # fmt: skip
    return write_config(
        folder,
        base,
        method="distillation",
        rl=None,
        distillation=settings,
        data=data | changes.pop("data", {}),
        **changes,
    )


def config_of(file):
    return parse_train([f"--config={file}"], "train").config


def trainer_of(config, **changes):
    """The trainer of a run, with its teacher."""
    config = dataclasses.replace(config, **changes)
    (stage,) = config.resolved()
    trainer = stage_trainer(stage, [stage], load_model(Path(config.model.init_from)).config, tiny_models.tokenizer())
    Teacher(config, trainer, tiny_models.tokenizer()).attach()
    return trainer


def test_a_teacher_on_devices_of_its_own_leaves_the_others_to_the_student(base, teacher, tmp_path):
    """Where the run's mesh takes what is left; all devices for the teacher are refused."""
    config = config_of(on_policy(tmp_path, base, teacher, distillation={"mesh": {"data": 4}}, mesh={"data": -1}))
    student = trainer_of(config).placement.mesh.devices
    assert [device.id for device in student.flat] == list(range(4))
    whole = dataclasses.replace(config.distillation, mesh=dataclasses.replace(config.mesh, data=8))
    with pytest.raises(sharding.ShardingError, match=r"distillation\.mesh takes 8 of 8 devices"):
        trainer_of(config, distillation=whole)


def some_samples(count=9):
    """Answers with forced and banned tokens."""
    random, out = np.random.default_rng(0), []
    think = tiny_models.tokenizer().think_start_id
    for number in range(count):
        prompt, size = random.integers(0, 300, random.integers(2, 9)), random.integers(1, 20)
        tokens, learned = random.integers(0, 300, size), random.random(size) < 0.8
        banned = (random.random(size) < 0.3) & (tokens != think)
        out.append(
            storage.Sample(
                prompt.astype(np.int32), tokens.astype(np.int32), learned, banned,
                np.where(learned, -1.0, np.nan).astype(np.float32), number, 0,
            )
        )  # fmt: skip
    return out


def divergence_of_all_logits(trainer, teacher, batch, temperature):
    """A function of the parameters: the mean of the exact reverse KL, from the logits [B, T, V] of both models."""
    think, learned = tiny_models.tokenizer().think_start_id, batch["loss_mask"] > 0
    model = load_model(teacher)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}

    def log_probs(of):
        weight, tied = of.output_matrix()
        logits = hidden_of(of, {n: batch[n] for n in ("tokens", "positions", "segment_ids")}).states
        logits = logits @ (weight.T if tied else weight) / temperature
        gone = (batch["banned"] > 0)[..., None] & (jnp.arange(logits.shape[-1]) == think)
        return jax.nn.log_softmax(jnp.where(gone, -1e30, logits))

    nu = log_probs(model)

    def loss(params):
        pi = log_probs(trainer.merge(params, None))
        return jnp.where(learned, (jnp.exp(pi) * (pi - nu)).sum(axis=-1), 0).sum() / learned.sum()

    return loss


@pytest.mark.parametrize(
    "meshes", [pytest.param((), id="one"), pytest.param(range(4), id="some", marks=pytest.mark.slow)]
)
def test_a_step_has_the_gradient_of_all_logits_on_every_mesh(meshes, base, teacher, tmp_path):
    """A dense student and a teacher with experts; in micro-batches, small chunks and other packing; teacher elsewhere."""
    config = config_of(on_policy(tmp_path, base, teacher))
    config = dataclasses.replace(config, rl=dataclasses.replace(
        config.rl, rollouts=dataclasses.replace(config.rl.rollouts, temperature=0.8)
    ))  # fmt: skip
    samples, whole = some_samples(), trainer_of(config, micro_batches=1)
    params = flatten(load_model(base, scan_layers=False))
    rows = batch_of(samples, whole, 16, 96)[0]
    assert rows["banned"].any()
    loss, expected = jax.jit(jax.value_and_grad(divergence_of_all_logits(whole, teacher, rows, 0.8)))(params)

    def check(trainer, batch, where):
        held = jax.device_put(params, trainer.shardings.params)
        gradients, got = trainer.gradients(held, trainer.place(batch))
        np.testing.assert_allclose(got.divergence, loss, rtol=2e-5, err_msg=str(where))
        for name, value in gradients.items():
            wanted = np.asarray(expected[name])
            assert np.abs(np.asarray(value) - wanted).max() <= 2e-5 * np.abs(wanted).max() + 1e-9, (where, name)

    if not meshes:
        check(whole, rows, "one batch")
        small = dataclasses.replace(config.loss, chunk_tokens=13)
        check(
            trainer_of(config, micro_batches=8, loss=small), batch_of(samples[::-1], whole, 8, 120)[0], "micro-batches"
        )
        apart = dataclasses.replace(config.distillation, mesh=dataclasses.replace(config.mesh, data=1, tensor=2))
        elsewhere = trainer_of(config, micro_batches=2, distillation=apart)
        check(elsewhere, batch_of(samples, elsewhere, 16, 96)[0], "a teacher on other devices")
    for sizes in (MESHES[i] for i in meshes):
        trainer = trainer_of(config, micro_batches=1, mesh=dataclasses.replace(config.mesh, **sizes))
        check(trainer, batch_of(samples, trainer, 16, 96)[0], sizes)


@pytest.mark.slow
def test_the_best_tokens_of_a_teacher_on_other_devices_give_the_gradient_of_one_on_the_same(base, teacher, tmp_path):
    config = config_of(on_policy(tmp_path, base, teacher, distillation={"top_k": 5}))
    apart = dataclasses.replace(config.distillation, mesh=dataclasses.replace(config.mesh, data=1, tensor=2))
    params = flatten(load_model(base, scan_layers=False))
    found = []
    for distillation in (config.distillation, apart, dataclasses.replace(config.distillation, top_k=None)):
        trainer = trainer_of(config, micro_batches=2, distillation=distillation)
        batch = trainer.place(batch_of(some_samples(), trainer, 16, 96)[0])
        gradients, parts = trainer.gradients(jax.device_put(params, trainer.shardings.params), batch)
        found.append((float(parts.divergence), {name: np.asarray(value) for name, value in gradients.items()}))
    (loss, expected), (got, gradients), (all_tokens, _) = found
    np.testing.assert_allclose(got, loss, rtol=2e-5)
    assert abs(all_tokens - loss) > 1e-3 * loss, "five tokens and a tail are not the whole distribution"
    for name, value in gradients.items():
        assert np.abs(value - expected[name]).max() <= 2e-5 * np.abs(expected[name]).max() + 1e-9, name


@pytest.mark.slow
def test_a_student_learns_from_its_own_answers_and_resumes_to_the_same_bits(base, teacher, tmp_path):
    """Under budgets; the divergence falls, and rewards are measured."""
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0}
    file = on_policy(tmp_path, base, teacher, optimizer=optimizer)
    whole = train(config_of(file)).parent
    rows = [row for row in metrics(whole) if "train.divergence" in row]
    assert rows[-1]["train.divergence"] < 0.8 * rows[0]["train.divergence"]
    assert all(0 <= row["rl.reward"] <= 1 for row in rows[::2])
    for row in rows:
        assert row["train.total"] == row["train.divergence"]
        assert (row["train.mismatch_max"] < 1e-4) == (row["step"] % 2 == 1)  # the first update of a round is on-policy
    check_interruptions(file, whole)


@pytest.mark.slow
def test_the_policy_gradient_form_has_the_reverse_kl_s_gradient_of_the_sampled_tokens(base, teacher, tmp_path):
    """At the first update it is -mean of (log nu - log pi)(y_t) grad log pi(y_t); nothing needs rewards."""
    rl = {"rewards": [], "policy": {"algorithm": "dapo"}}
    file = on_policy(tmp_path, base, teacher, form="policy_gradient", rl=rl, steps=2)
    config = config_of(file)
    whole = train(config).parent
    assert not any(name.startswith("rl.reward") or name == "rl.lost" for row in metrics(whole) for name in row)
    samples, *_ = storage.load(whole / "rollouts", 0)
    (stage,) = config.resolved()
    trainer = stage_trainer(stage, [stage], load_model(base).config, tiny_models.tokenizer())
    half = samples[: len(samples) // 2]
    batch, _ = batch_of(half, trainer, 8, 160)
    params = flatten(load_model(base, scan_layers=False))
    gradients, _ = trainer.gradients(params, trainer.place(batch))
    think, learned = tiny_models.tokenizer().think_start_id, batch["loss_mask"] > 0
    fields = {name: jnp.asarray(value) for name, value in batch.items()}

    def log_prob(of):
        weight, tied = of.output_matrix()
        logits = hidden_of(of, {n: fields[n] for n in ("tokens", "positions", "segment_ids")}).states
        logits = logits @ (weight.T if tied else weight)
        gone = (fields["banned"] > 0)[..., None] & (jnp.arange(logits.shape[-1]) == think)
        log_p = jax.nn.log_softmax(jnp.where(gone, -1e30, logits))
        return jnp.take_along_axis(log_p, fields["targets"][..., None], axis=-1)[..., 0]

    nu = log_prob(load_model(teacher))

    def surrogate(params):
        log_pi = log_prob(trainer.merge(params, None))
        return -jnp.where(learned, jax.lax.stop_gradient(nu - log_pi) * log_pi, 0).sum() / learned.sum()

    expected = jax.jit(jax.grad(surrogate))(params)
    for name, value in gradients.items():
        wanted = np.asarray(expected[name])
        assert np.abs(np.asarray(value) - wanted).max() <= 1e-4 * np.abs(wanted).max() + 1e-9, name


@pytest.mark.slow
def test_a_student_learns_from_answers_of_others_and_resumes_to_the_same_bits(base, teacher, tmp_path, capsys):
    """Held-out rows are measured by the divergence."""
    file = off_policy(tmp_path, base, teacher, distillation={"divergence": "jsd", "beta": 0.3, "temperature": 2.0})
    whole = train(config_of(file)).parent
    rows = metrics(whole)
    trained = [row["train.divergence"] for row in rows if "train.divergence" in row]
    assert trained[-1] < trained[0]
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "held-out loss answers" in printed
    assert "entropy" not in printed.partition("held-out loss answers")[2].splitlines()[0]
    check_interruptions(file, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": None}, "method: distillation needs distillation.teacher; add that"),
        ({"method": "sft"}, "distillation is read by method: distillation, and this run has method: sft"),
        ({"rl": {"policy": {"algorithm": "dapo"}}}, "rl.policy is not read by method: distillation with form: exact"),
        ({"rl": {"entropy": {"low": 1, "high": 2, "step": 0.1, "maximum": 1}}}, "rl.entropy is not read by"),
        ({"rl": {"rollouts": {"prompts": 1, "max_new_tokens": 64, "refill": 1}}}, "rl.rollouts.refill is not read by"),
        ({"distillation": {"beta": 0.5}}, "distillation.beta is read by divergence: jsd"),
        ({"distillation": {"divergence": "jsd", "beta": 1.0}}, "beta is 1; jsd has values between 0 and 1"),
        ({"distillation": {"temperature": 2.0}}, "distillation.temperature is rl.rollouts.temperature"),
        ({"distillation": {"form": "policy_gradient", "divergence": "jsd"}}, "divergence is read by form: exact"),
        ({"distillation": {"teacher": "http://127.0.0.1:1/v1"}}, "set distillation.top_k to the number"),
        ({"distillation": {"server": {"tries": 2}}}, "distillation.server is for a teacher behind an address"),
        ({"distillation": {"mesh": {"data": -1}}}, "distillation.mesh has an axis of -1; give each axis"),
        ({"distillation": {"form": "policy_gradient", "beta": 0.5}}, "beta is read by form: exact, and the form is"),
        ({"distillation": {"teacher": "/nowhere"}}, "distillation.teacher"),
        ({"distillation": {"teacher": ""}}, "distillation.teacher: the name of the model is empty; give a folder"),
    ],
)  # fmt: skip
def test_what_distillation_does_not_read_is_refused(changes, message, base, teacher, tmp_path, capsys):
    over = {name: changes[name] for name in changes if name == "method" or changes[name] is None}  # of the whole key
    file = on_policy(tmp_path, base, teacher, **{name: changes[name] for name in changes if name not in over})
    file.write_text(
        yaml.safe_dump(yaml.safe_load(file.read_text()) | over | ({"rl": None} if "method" in over else {}))
    )
    assert cli.main([f"--config={file}"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_teacher_with_another_vocabulary_is_refused_by_name(base, tmp_path, capsys):
    from qwen3_jax.text import train_tokenizer

    other = train_tokenizer(["other words make other tokens " * 9], 290)
    folder = qwen3_jax.save(tiny_models.model(), other, tmp_path / "other")
    assert cli.main([f"--config={on_policy(tmp_path, base, folder)}"]) == 2
    assert f"{folder} has another tokenizer than the student ({base})" in capsys.readouterr().err.splitlines()[-1]
    bare = qwen3_jax.save(tiny_models.model(), None, tmp_path / "bare")
    assert cli.main([f"--config={off_policy(tmp_path, base, bare)}"]) == 2
    assert f"{bare} has no tokenizer" in capsys.readouterr().err.splitlines()[-1]
