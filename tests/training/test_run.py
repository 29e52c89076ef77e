"""Whole runs: train.py on text and generated problems, resume, refusals, and training on from a checkpoint."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import qwen3_jax
import sharding
from qwen3_jax.checkpoint.training import TrainCheckpoints
from qwen3_jax.cli import train as cli
from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.errors import UserError
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer


def write_config(folder: Path, **changes) -> Path:
    """A run of a few steps on a little text and problems, of a dense layer and one of experts; `changes` join keys by __."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        lines = [json.dumps({"text": f"Document {i}: " + " ".join(str(i * j) for j in range(30))}) for i in range(200)]
        corpus.write_text("\n".join(lines))
    config = {
        "run_dir": str(folder / "run"),
        "steps": 9,
        "log_every": 2,
        "eval_every": 4,
        "checkpoint_every": 3,
        "model": {
            "config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
                "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0],
            }
        },
        "tokenizer": {"vocab_size": 360, "train_records": 100},
        "data": {
            "sequence_length": 64,
            "batch_size": 8,
            "packing_rows": 16,
            "sources": [
                {"name": "text", "path": str(corpus), "weight": 0.5, "eval_fraction": 0.1},
                {
                    "name": "problems", "path": "synthetic:running_sum", "weight": 0.5, "eval_fraction": 0.1,
                    "running_sum": {"problems": 1000, "eval_problems": 100},
                },
            ],
        },
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "mesh": {"data": 1},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def final(run_dir: Path, config: Path):
    """State and data position of the last checkpoint, as NumPy."""
    parsed = parse_config([f"--config={config}", f"--run_dir={run_dir}"])
    tokenizer = qwen3_jax.Tokenizer.from_pretrained(run_dir / "tokenizer")
    exported = qwen3_jax.Qwen3Config.from_hf(json.loads((run_dir / "hf/config.json").read_text()))
    rate = schedule(parsed.optimizer, parsed.steps)
    architecture = dataclasses.replace(exported, dtype=None)
    trainer = Trainer(architecture, parsed.model, parsed.optimizer, rate, sharding.Placement())
    checkpoints = TrainCheckpoints(run_dir / "checkpoints", 2)
    step = checkpoints.latest_step()
    state, position = checkpoints.restore(step, trainer.abstract_state())
    checkpoints.close()
    assert tokenizer.vocab_size == 360
    return step, jax.device_get(state), position


def rows(run_dir: Path) -> list[dict]:
    """The metrics that do not depend on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k == "step" or k.startswith(("train.", "eval."))} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, str]:
    """The configuration of a run with every output, its finished folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, budget_curve={"source": "problems", "budgets": [0, 3, None], "problems": 6})
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([f"--config={config}"]) == 0
    return config, folder / "run", out.getvalue()


def test_an_interrupted_run_resumes_bit_equal_to_an_unbroken_one(finished, tmp_path, monkeypatch):
    """Parameters, optimizer state, data position, data order and metrics."""
    config, unbroken, _ = finished
    command = [f"--config={config}", f"--run_dir={tmp_path / 'broken'}", "--budget_curve=null"]

    seen = []
    original = Trainer.place

    def place(self, batch, batch_size=None):
        if batch_size is not None:  # and not a held-out batch
            seen.append(batch["tokens"].tobytes())
            if len(seen) == 8 and interrupt:  # in the middle of step 8: after the checkpoint of step 6
                raise KeyboardInterrupt
        return original(self, batch, batch_size)

    monkeypatch.setattr(Trainer, "place", place)
    interrupt = True
    assert cli.main(command) == 130
    interrupt, first = False, list(seen)
    seen.clear()
    assert cli.main(command) == 0
    assert seen[0] == first[6], "the first batch after step 6 is the same one again"
    assert len(seen) == 3

    whole, broken = final(unbroken, config), final(tmp_path / "broken", config)
    assert whole[0] == broken[0] == 9
    assert whole[2] == broken[2], "the data position"
    leaves = zip(jax.tree_util.tree_leaves_with_path(whole[1]), jax.tree.leaves(broken[1]), strict=True)
    for (path, left), right in leaves:
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))
    assert rows(unbroken) == rows(tmp_path / "broken")


def test_a_run_writes_everything_it_promises_and_its_export_works_everywhere(finished, tmp_path, capsys):
    config, run, out = finished
    for name in (
        "metrics.jsonl",
        "loss.png",
        "budget_curve.png",
        "budget_curve.json",
        "config.json",
        "hf",
        "tensorboard",
    ):
        assert (run / name).exists(), name
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"qwen3 infer --model {run / 'hf'} --prompt" in out
    points = json.loads((run / "budget_curve.json").read_text())
    assert [point["budget"] for point in points] == [0, 3, None]
    assert points[1]["thinking_tokens"] <= 3
    lines = rows(run)
    assert [line["step"] for line in lines if "train.cross_entropy" in line] == [2, 4, 6, 8, 9]
    assert [line["step"] for line in lines if "eval.text" in line] == [4, 8, 9]
    held_out = [line["eval.text"] for line in lines if "eval.text" in line]
    assert held_out[2] < held_out[1] < held_out[0]

    model, tokenizer = qwen3_jax.load(run / "hf")
    assert set(model.generation_config.eos_token_id) == {tokenizer.im_end_id, tokenizer.endoftext_id}
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(run / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(run / "hf")
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True)
    assert ids == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(model(np.asarray([ids])), expected, atol=2e-5 * np.abs(expected).max())

    # The same command on the finished run measures again and trains nothing; other settings are refused by name.
    assert cli.main([f"--config={config}"]) == 0
    assert rows(run) == lines
    assert cli.main([f"--config={config}", "--optimizer.learning_rate=0.5"]) == 2
    assert "optimizer.learning_rate was 0.001 and is 0.5" in capsys.readouterr().err

    # Training starts from the exported checkpoint, in bf16 compute over fp32 master weights, on a mesh.
    further = [
        f"--config={config}", f"--run_dir={tmp_path / 'more'}", f"--model.init_from={run / 'hf'}", "--steps=4",
        "--model.config={}", "--model.dtype=bfloat16", "--mesh.data=2", "--mesh.tensor=2", "--budget_curve=null",
    ]  # fmt: skip
    assert cli.main(further) == 0
    first = rows(tmp_path / "more")[0]
    assert first["train.cross_entropy"] < lines[0]["train.cross_entropy"]
    assert qwen3_jax.load(tmp_path / "more/hf")[0].param_dtype == "float32"


REFUSED = {
    "--optimizer.learning_rat=1": "no option --optimizer.learning_rat. Did you mean 'learning_rate'?",
    "--stepz=1": "no option --stepz. Did you mean 'steps'?",
    "--steps=many": "steps",
    "--steps=0": "steps is 0; it must be at least 1.",
    "--optimizer.schedule=step": "schedule",
    "--optimizer.clip_norm=0": "optimizer.clip_norm is 0.0; it must be above 0.",
    "--optimizer.warmup_steps=9": "optimizer.warmup_steps is 9; it must be below the number of steps (9)",
    "--model.preset=Qwen3-0.6": "no preset 'Qwen3-0.6'. Did you mean 'qwen3-0.6b'?",
    "--model.config.hiden_size=8": "model.config.hiden_size is not an architecture field. Did you mean 'hidden_size'?",
    "--model.config.dtype=bfloat16": "model.config.dtype has no effect: set model.param_dtype.",
    "--model.config.hidden_size=big": "'hidden_size' has the value 'big'",
    "--model.config.vocab_size=100": "vocab_size is 100; the tokenizer has 360 tokens",
    "--model.config.max_position_embeddings=32": "data.sequence_length (64) is longer",
    "--model.init_from=/nowhere": "model.init_from: /nowhere is neither a folder nor a hub repository id",
    "--mesh.data=16": "needs 16 devices; there are 8",
    "--data.batch_size=6": (
        "a global batch of 6 rows (data.batch_size) does not divide by 4 x 1, the parts of the mesh times micro_batches; "
        "choose a multiple of 4."
    ),
    "--mesh.tensor=4": "'kv_heads', 2) does not divide by 4",
    "--data.batch_size=0": "data.batch_size is 0; it must be at least 1",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_bad_setting_is_one_sentence_that_names_it(tmp_path, capsys, flag):
    config = write_config(tmp_path)
    mesh = [] if flag.startswith("--mesh") else ["--mesh.data=4"]
    assert cli.main([f"--config={config}", *mesh, flag]) == 2
    error = capsys.readouterr().err.strip()
    assert REFUSED[flag] in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


def test_unknown_keys_in_a_file_are_refused_with_the_nearest_name(tmp_path):
    for change, message in {
        "optimiser": "there is no key optimiser. Did you mean 'optimizer'?",
        "data__sequence_lenght": "no key data.sequence_lenght. Did you mean 'sequence_length'?",
        "mesh__tenser": "no key mesh.tenser. Did you mean 'tensor'?",
    }.items():
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            parse_config([f"--config={write_config(tmp_path, **{change: 1})}"])
    config = write_config(tmp_path)
    parsed = yaml.safe_load(config.read_text())
    parsed["data"]["sources"][0]["wait"] = 1
    config.write_text(yaml.safe_dump(parsed))
    with pytest.raises(UserError, match=r"no key data.sources.wait. Did you mean 'weight'\?"):
        parse_config([f"--config={config}"])
    for text, message in {
        "a: [": "not valid YAML", "[1]": "must hold keys and values",
        "steps: 1\ndata:\n  seed: 1\n  seed: 2\n": "the key 'seed' stands twice in the block of line 3",
    }.items():  # fmt: skip
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            parse_config([f"--config={config}"])
    with pytest.raises(UserError, match="does not exist"):
        parse_config(["--config=/nowhere.yaml"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.batch_size=x", "--data.batch_size is 'x'; it must be a whole number."),
        ("mesh={data: x}", "--mesh.data is 'x'; it must be a whole number."),
        ("mesh=3", "--mesh is 3; it must be keys and values."),
        ("stages=[{name: a, steps: x}]", "--stages[0].steps is 'x'; it must be a whole number."),
        ("stages=[3]", "--stages[0] is 3; it must be keys and values."),
        ("data.sources=[{path: x}]", "--data.sources[0].name is missing; add it."),
        ("data.sources=[{name: x, path: x, nam: 3}]", "there is no key --data.sources[0].nam. Did you mean 'name'?"),
        (
            "rl.rollouts.budget=a",
            "--rl.rollouts.budget is 'a'; it must be a whole number, a list of whole numbers or null.",
        ),
        ("rl={prompts: [], rewards: [{verifier: 3}]}", "--rl.rewards[0].verifier is 3; it must be a text or null."),
        ("distillation.top_k=2.5", "--distillation.top_k is 2.5; it must be a whole number or null."),
        ("distillation.temperature=hot", "--distillation.temperature is 'hot'; it must be a number or null."),
        ("distillation={top_k: 3}", "--distillation.teacher is missing; add it."),
        ("distillation={teacher: x, mesh: {data: a}}", "--distillation.mesh.data is 'a'; it must be a whole number."),
        (
            "distillation={teacher: x, form: kl}",
            "--distillation.form is 'kl'; it must be one of exact, policy_gradient.",
        ),
        ("eval_at_start=maybe", "--eval_at_start is 'maybe'; it must be true or false."),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_sentence_by_its_key(flag, message):
    """Also within what may be null, of which jsonargparse reports every alternative."""
    with pytest.raises(UserError) as error:
        parse_config(["--config=configs/quickstart.yaml", f"--{flag}"])
    assert str(error.value) == message


def test_the_quickstart_configuration_is_valid_and_its_flags_override():
    parsed = parse_config(["--config=configs/quickstart.yaml", "--model.config.hidden_size=192", "--steps=77"])
    assert parsed.model.config["hidden_size"] == 192
    assert parsed.model.config["head_dim"] == 32
    assert parsed.steps == 77
    assert parsed.budget_curve is not None
    assert len(parsed.budget_curve.budgets) >= 5
