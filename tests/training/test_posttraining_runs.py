"""Runs of the methods sft, dpo and reward_model: what they refuse, keep, resume and export."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import qwen3_jax
from qwen3_jax.cli import train as cli
from qwen3_jax.cli.main import main
from qwen3_jax.data import Record, documents, encode
from qwen3_jax.errors import UserError
from qwen3_jax.model import RewardModel, flatten
from qwen3_jax.training import reference
from qwen3_jax.training.document_parts import Parts
from qwen3_jax.verifiers import verify
from tests.helpers import tiny_models


def pairs(count: int) -> list[dict]:
    """Sums of which one answer is right."""
    out = []
    for i in range(count):
        question = {"role": "user", "content": f"What is {i} + 3?"}
        right, wrong = ({"role": "assistant", "content": str(i + 3 + by)} for by in (0, 1 + i % 4))
        out.append({"prompt": [question], "chosen": [right], "rejected": [wrong]})
    return out


def chats(count: int) -> list[dict]:
    return [{"messages": [*pair["prompt"], *pair["chosen"]]} for pair in pairs(count)]


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model's folder."""
    return qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), tmp_path_factory.mktemp("base") / "hf")


def write_config(folder: Path, base: Path, method: str, records: list[dict], **changes) -> Path:
    config = {
        "method": method,
        "run_dir": str(folder / "run"),
        "steps": 6,
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 3,
        "model": {"init_from": str(base), "scan_layers": False},
        "data": {
            "sequence_length": 128, "batch_size": 4, "packing_rows": 8,
            "sources": [
                {"name": "sums", "path": str(write_lines(folder / "sums.jsonl", records)), "eval_fraction": 0.1}
            ],
        },
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.0},
        "mesh": {"data": 1},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def metrics(run_dir: Path) -> list[dict]:
    """Without what depends on the clock."""
    kept = ("step", "train.", "eval.", "accuracy.")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name.startswith(kept)} for row in rows]


def said(capsys, code: int) -> str:
    assert code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


def test_dpo_keeps_its_reference_resumes_and_refuses_a_stale_one(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "Parts", functools.partial(Parts, size=16))
    config = write_config(tmp_path, base, "dpo", pairs(40), dpo={"beta": 0.3})
    whole, broken = tmp_path / "run", tmp_path / "broken"
    assert cli.main([f"--config={config}"]) == 0
    rows = [row for row in metrics(whole) if "train.preference" in row]
    assert [row["step"] for row in rows] == list(range(1, 7))
    first = rows[0]
    np.testing.assert_allclose(first["train.preference"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose([first["train.rewards_chosen"], first["train.margins"]], 0, atol=1e-4)
    assert min(row["train.preference"] for row in rows) < 0.65
    assert [row["step"] for row in metrics(whole) if {"eval.sums", "accuracy.sums"} <= set(row)] == [3, 6]
    files = sorted((whole / "reference" / "sums").glob("*.npy"))
    assert [len(np.load(file)) for file in files] == [16, 16, 8]
    assert np.isfinite(np.concatenate([np.load(file) for file in files])).all()

    # Killed while it computed the reference: what is there is not computed again.
    computed, original = [], Parts.write

    def write(parts, number, raw):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(number)
        original(parts, number, raw)

    monkeypatch.setattr(Parts, "write", write)
    command = [f"--config={config}", f"--run_dir={broken}"]
    assert cli.main(command) == 130
    monkeypatch.setattr(Parts, "write", lambda *part: (computed.append(part[1]), original(*part)))
    assert cli.main(command) == 0
    assert computed == [0, 1, 2]
    for file in files:
        assert (broken / "reference" / "sums" / file.name).read_bytes() == file.read_bytes()
    assert metrics(broken) == metrics(whole)
    assert (broken / "hf/model.safetensors").read_bytes() == (whole / "hf/model.safetensors").read_bytes()
    capsys.readouterr()

    # A part that is damaged, other weights and other data are named.
    (broken / "reference/sums/00001.npy").write_bytes(files[1].read_bytes()[:-7])
    assert "00001.npy is damaged" in said(capsys, cli.main([*command, "--steps=7"]))
    other = shutil.copytree(base, tmp_path / "other")
    qwen3_jax.save(tiny_models.model(1), tiny_models.tokenizer(), other, overwrite=True)
    message = said(capsys, cli.main([f"--config={config}", f"--dpo.reference={other}"]))
    assert "holds a run with other settings: dpo.reference" in message
    shutil.copytree(whole / "reference", tmp_path / "moved/reference")
    message = said(
        capsys, cli.main([f"--config={config}", f"--run_dir={tmp_path / 'moved'}", f"--model.init_from={other}"])
    )
    assert "other files than the weights of model.init_from are now" in message
    shutil.copytree(whole / "reference", tmp_path / "named/reference")
    named = [f"--config={config}", f"--run_dir={tmp_path / 'named'}", f"--dpo.reference={other}"]
    assert "other files than the weights of dpo.reference are now" in said(capsys, cli.main(named))


def test_dpo_refuses_a_reference_of_other_data(base, tmp_path, monkeypatch, capsys):
    """As many pairs of equal lengths, in another order, and with one answer changed; the same pairs are taken, also moved."""
    config = write_config(tmp_path, base, "dpo", pairs(40), steps=1, eval_every=1, checkpoint_every=1)
    assert cli.main([f"--config={config}"]) == 0
    kept = tmp_path / "run/reference"
    written, original = [], Parts.write
    monkeypatch.setattr(Parts, "write", lambda *part: (written.append(part[1]), original(*part)))
    same, changed = pairs(40), pairs(40)
    changed[7] = pairs(40)[7] | {"rejected": [{"role": "assistant", "content": "12"}]}
    for name, records in (("same", same), ("swapped", [same[1], same[0], *same[2:]]), ("changed", changed)):
        file = write_lines(tmp_path / ("moved.jsonl" if name == "same" else "sums.jsonl"), records)
        settings = yaml.safe_load(config.read_text())
        settings["data"]["sources"][0]["path"] = str(file)
        config.write_text(yaml.safe_dump(settings))
        shutil.copytree(kept, tmp_path / name / "reference")
        code = cli.main([f"--config={config}", f"--run_dir={tmp_path / name}"])
        if name == "same":
            assert (code, written) == (0, [])
            capsys.readouterr()
            # A document that was not used, because rows were shorter, is computed now.
            short = np.load(kept / "sums/00000.npy")
            np.save(tmp_path / "same/reference/sums/00000.npy", np.where(np.arange(40)[:, None] == 3, np.nan, short))
            (tmp_path / "same").rename(tmp_path / "short")
            shutil.rmtree(tmp_path / "short/checkpoints")
            (tmp_path / "short/config.json").unlink()
            assert cli.main([f"--config={config}", f"--run_dir={tmp_path / 'short'}"]) == 0
            assert written == [0]
            np.testing.assert_array_equal(np.load(tmp_path / "short/reference/sums/00000.npy"), short)
            capsys.readouterr()
        else:
            message = said(capsys, code)
            assert (
                "reference/sums holds log-probabilities for other files than the prepared preferences are now"
                in message
            )
            assert "start a new run" in message


@pytest.fixture(scope="module")
def rewards(base, tmp_path_factory) -> Path:
    """The finished run of a reward model."""
    folder = tmp_path_factory.mktemp("rewards")
    config = write_config(folder, base, "reward_model", pairs(40))
    assert cli.main([f"--config={config}"]) == 0
    return folder / "run"


def test_a_reward_model_is_exported_and_read_and_its_flops_are_counted(rewards):
    rows = [row for row in metrics(rewards) if "train.preference" in row]
    assert len(rows) == 6
    assert "train.logps_chosen" not in rows[0]
    lines = [json.loads(line) for line in (rewards / "metrics.jsonl").read_text().splitlines()]
    folder = rewards / "hf"
    model, tokenizer = qwen3_jax.load(folder)
    assert isinstance(model, RewardModel)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (
        saved["pad_token_id"] == tokenizer.endoftext_id
    )  # which no chat ends with: transformers reads the token before it
    # The head is read, not the vocabulary: FLOPs are those of the layers and a product with one column.
    sizes, length = model.config, 128
    matrices = sum(
        value.size for name, value in flatten(model).items() if value.ndim > 1 and name not in ("embed", "score")
    )
    attention = 4 * sizes.num_hidden_layers * sizes.num_attention_heads * sizes.head_dim * length / 2
    flops = 3 * (2 * (matrices + sizes.hidden_size) + attention)
    measured = [
        row["tflops_per_device"] * 8e12 / row["tokens_per_second"] for row in lines if "tokens_per_second" in row
    ]
    np.testing.assert_allclose(measured, flops, rtol=0.02)  # norms count too

    # Training and `reward` read the same tokens.
    for body in (
        *pairs(2),
        pairs(1)[0] | {"chosen": [{"role": "assistant", "content": "3", "reasoning_content": "hm"}]},
    ):
        (encoded,) = encode(documents(Record("f", body), tokenizer, pairs=True), tokenizer)
        chosen, _ = encoded.sides()
        chat = [*body["prompt"], *body["chosen"]]
        by_tokens, by_chat = qwen3_jax.reward(model, tokenizer, [chosen.tokens.tolist(), chat])
        assert by_tokens == by_chat


def test_a_reward_model_judges_and_answers_nothing(rewards, base, tmp_path, capsys):
    folder = rewards / "hf"
    model, tokenizer = qwen3_jax.load(folder)
    chat = [*pairs(1)[0]["prompt"], {"role": "assistant", "content": "3", "reasoning_content": "hm"}]
    (value,) = qwen3_jax.reward(model, tokenizer, [chat])
    settings = {"model": str(folder), "threshold": value}
    verdict = verify("reward", "<think>\nhm\n</think>\n\n3", chat[:-1], settings)
    assert "the reward is" in verdict.reason
    task = tmp_path / "judged.yaml"
    write_lines(tmp_path / "rows.jsonl", [{"question": f"What is {i} + 3?"} for i in range(3)])
    declared = {"data": "rows.jsonl", "prompt": "{question}", "reference": "question", "verifier": "reward",
                "settings": {"model": str(folder)}, "metric": "score"}  # fmt: skip
    task.write_text(yaml.safe_dump(declared))
    options = ["--task", str(task), "--max-new-tokens", "6", "--output", str(tmp_path / "results")]
    assert main(["eval", "--model", str(base), *options]) == 0
    (file,) = (tmp_path / "results").rglob("samples*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(samples) == 3
    assert any("the reward is" in json.dumps(sample) for sample in samples)
    capsys.readouterr()
    # The answer without thinking is right under this threshold, and a query that needs no thinking is left out.
    answers = [[*chat[:1], *pairs(1)[0]["chosen"]], chat]
    path = write_lines(tmp_path / "answers.jsonl", [{"messages": one, "answer": "What is 0 + 3?"} for one in answers])
    filtering = ["data", "filter", "--path", str(path), "--output", str(tmp_path / "out"), "--verifier", "reward"]
    filtering += ["--verifier-settings", json.dumps(settings | {"threshold": -1e6})]
    assert "2 solved without thinking" in said(capsys, main(filtering))
    assert "--verifier reward judges with one model" in said(capsys, main([*filtering, "--processes", "2"]))
    assert "reward model" in said(capsys, main(["eval", "--model", str(folder), *options[:-1], str(tmp_path / "none")]))
    with pytest.raises(UserError, match="reward model"):
        qwen3_jax.generate(model, tokenizer, ["a"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_adapters_are_trained_and_the_reference_is_the_base_without_them(method, base, tmp_path, monkeypatch):
    """Over a base that is rounded to int8: the first step of dpo sees no margin, so the reference is rounded alike."""
    records = chats(40) if method == "sft" else pairs(40)
    config = write_config(
        tmp_path, base, method, records, lora={"rank": 4, "targets": "all-linear", "quantize": "int8"}
    )
    loaded = []
    original = reference.load_model
    monkeypatch.setattr(
        reference, "load_model", lambda *args, **options: loaded.append(options) or original(*args, **options)
    )
    assert cli.main([f"--config={config}", "--steps=3"]) == 0
    rows = [row for row in metrics(tmp_path / "run") if "train.total" in row]
    assert len(rows) == 3
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    assert not (tmp_path / "run/hf").exists()
    if method == "dpo":
        np.testing.assert_allclose(rows[0]["train.preference"], np.log(2), rtol=1e-5)
        np.testing.assert_allclose(rows[0]["train.margins"], 0, atol=1e-4)
        assert len(loaded) == 1
    shapes = {path.name for path in (tmp_path / "run").iterdir()}
    assert ("reference" in shapes) == (method == "dpo")


# changes of a configuration -> the message
REFUSED = [
    ("sft", [{"text": "plain text"}] * 3, {}, "every token of its 3 documents is learned"),
    ("sft", [{"messages": [{"role": "user", "content": "word " * 400}, *pairs(1)[0]["chosen"]]}] * 2, {}, "2 of 2 samples"),
    ("sft", chats(4), {"dpo": {"beta": 0.1}}, "dpo is read by method: dpo"),
    ("sft", pairs(4), {}, "sums.jsonl:1: 'chosen' is not read: it is a preference"),
    ("dpo", chats(4), {}, "sums.jsonl:1: the record is no preference"),
    ("dpo", pairs(4), {"loss": {"z_loss": 1e-4}}, "loss.z_loss is not part of method: dpo"),
    ("dpo", pairs(4), {"model": {"preset": "Qwen3-0.6B"}}, "method: dpo trains a model that can already answer"),
    ("reward_model", pairs(4), {"dpo": {"beta": 0.1}}, "dpo is read by method: dpo"),
    ("reward_model", pairs(4), {"lora": {"rank": 4}}, "lora: and method: reward_model do not go together"),
    ("grpo", chats(4), {}, "method"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "records", "changes", "complaint"), REFUSED, ids=lambda one: str(one)[:40])
def test_what_a_method_cannot_use_is_refused_by_name(method, records, changes, complaint, base, tmp_path, capsys):
    config = write_config(tmp_path, base, method, records, **changes)
    assert complaint in said(capsys, cli.main([f"--config={config}"]))
    assert not (tmp_path / "run/checkpoints").exists()


def test_pairs_and_documents_are_not_mixed_up(base, tmp_path, capsys):
    sums = write_lines(tmp_path / "pairs.jsonl", pairs(4))
    tokenizer = str(tmp_path / "tokenizer")
    tiny_models.tokenizer().save_pretrained(tokenizer)
    command = ["data", "prepare", "--path", str(sums), "--tokenizer", tokenizer]
    assert main([*command, "--pairs", "--output", str(tmp_path / "pairs")]) == 0
    chat = write_lines(tmp_path / "chats.jsonl", chats(4))
    command[3] = str(chat)
    assert main([*command, "--output", str(tmp_path / "chats")]) == 0
    capsys.readouterr()
    for method, folder, there in (("sft", "pairs", "preferences"), ("dpo", "chats", "documents")):
        config = write_config(tmp_path, base, method, [])
        loaded = yaml.safe_load(config.read_text())
        loaded["data"]["sources"][0]["path"] = str(tmp_path / folder)
        loaded["run_dir"] = str(tmp_path / f"run of {method}")
        config.write_text(yaml.safe_dump(loaded))
        assert f"was prepared as {there}" in said(capsys, cli.main([f"--config={config}"]))
