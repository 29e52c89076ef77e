"""Whole sweeps on tiny models: results written once, resumed after a kill, and read by train.py."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sharding
from qwen3_jax.cli import mixture as mixture_cli
from qwen3_jax.cli import scaling as scaling_cli
from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.data import DataConfig, Prepared, Source, prepare
from qwen3_jax.data.config import Labels
from qwen3_jax.errors import UserError
from qwen3_jax.sweeps import mixture, sweep
from qwen3_jax.sweeps.config import MixtureConfig
from qwen3_jax.text import train_tokenizer
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer
from tests.helpers.tiny_models import TINY, packed_batch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A training configuration on records of two domains."""
    lines = []
    for i in range(240):
        domain = ("words", "sums")[i % 2]
        words = " ".join(f"word{(i * 7 + j * j) % 23} means {j % 5}." for j in range(12 + i % 9))
        sums = " ".join(f"{(i * j) % 10} + {j % 10} = {(i * j + j) % 20};" for j in range(12 + i % 9))
        lines.append(json.dumps({"text": words if domain == "words" else sums, "domain": domain}))
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = {
        "name": "text", "path": str(tmp_path / "text.jsonl"), "labels": {"domain_key": "domain"}, "eval_fraction": 0.2,
    }  # fmt: skip
    config = {
        "steps": 30,
        "model": {
            "scan_layers": False,
            "config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.1,
            },
        },
        "tokenizer": {"vocab_size": 290, "train_records": 40},
        "data": {"batch_size": 8, "sequence_length": 32, "sources": [source]},
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.003},
    }  # fmt: skip
    path = tmp_path / "base.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML too
    return path


def written(path: Path, values: dict) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_sweep_is_resumed_fitted_and_read_by_train(base, tmp_path, capsys):
    output = tmp_path / "sweep"
    config = written(tmp_path / "scaling.yaml", {
        "output": str(output), "train": str(base), "models": [{"name": "tiny"}], "tokens": [10240],
        "learning_rates": [0.0005, 0.005, 0.05, 0.5], "batch_tokens": [256], "widen": 0, "eval_tokens": 2048, "window": 9.0,
        "target": {"parameters": 20000, "tokens": 20480},
    })  # fmt: skip
    assert scaling_cli.main(["fit", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 1 usable cells" in printed
    assert "of N and D the sweep says nothing" in printed
    rows = sweep.read_rows(output / "results.jsonl")
    assert [row["learning_rate"] for row in rows] == [0.0005, 0.005, 0.05, 0.5]
    assert rows[0]["loss"] > rows[1]["loss"] > 0
    assert rows[0]["parameters"] == 32 * (2 * 32 + 2 * 16) + 3 * 32 * 48 + 3 * 32 + 2 * 16
    assert (output / "laws.png").stat().st_size > 20_000
    result = json.loads((output / "result.json").read_text())
    parsed = parse_config(["--config", str(base), "--config", str(output / "config.yaml")])
    assert parsed.optimizer.learning_rate == pytest.approx(result["prediction"]["rate"]["value"], rel=1e-3)
    assert parsed.data.batch_size == 8  # one batch size was run: the sweep does not determine it
    assert parsed.data.sequence_length == 32

    # Killed while it wrote the last line: that run is repeated, the others are not, and the result is the same.
    raw = (output / "results.jsonl").read_bytes()
    (output / "results.jsonl").write_bytes(raw[:-40])
    assert scaling_cli.main(["fit", "--config", str(config)]) == 0
    assert "sweep 1/1: tiny D=10.2k B=256 lr=0.5 seed=0" in capsys.readouterr().err
    again = sweep.read_rows(output / "results.jsonl")
    assert again[:3] == rows[:3]
    assert again[3]["losses"] == rows[3]["losses"]

    # The same runs, read: nothing is trained, and the fit is the same.
    other = ["fit", "--output", str(tmp_path / "read"), "--runs", str(output / "results.jsonl"), "--window", "9"]
    assert scaling_cli.main(other) == 0
    there = json.loads((tmp_path / "read" / "result.json").read_text())
    assert there["cells"] == result["cells"]

    # Other settings under the same name are not taken for these.
    assert scaling_cli.main(["fit", "--config", str(config), "--warmup_share", "0.2"]) == 2
    assert "'tiny D=10.2k B=256 lr=0.0005 seed=0' was run with other settings" in capsys.readouterr().err
    for flags, sentence in (
        (["--batch_tokens", "[100]"], "batch_tokens 100 is no multiple of data.sequence_length (32)"),
        (["--tokens", "[1000]"], "1,000 tokens in batches of 256 are 4 steps; at least 20 are needed"),
        (["--target.parameters", "1e9"], "beyond the sweep"),
        (["--learning_rate", "[1]"], "there is no option --learning_rate. Did you mean 'learning_rates'"),
        (["--train", "nowhere.yaml"], "model 'tiny': the config file 'nowhere.yaml' does not exist"),
    ):
        assert scaling_cli.main(["fit", "--config", str(config), *flags]) == 2
        assert sentence in capsys.readouterr().err


def test_learning_rates_share_one_program():
    texts, courses = [], []
    for rate in (1e-3, 1e-2):
        options = OptimizerConfig(learning_rate=rate, warmup_steps=2)
        course = schedule(options, 10)
        trainer = Trainer(TINY, ModelConfig(), options, course, sharding.Placement())
        texts.append(trainer.lower(trainer.abstract_state(), trainer.place(packed_batch())).as_text())
        courses.append([float(course(step)) for step in range(10)])
    assert texts[0] == texts[1]
    assert courses[0][:3] == pytest.approx([0.0005, 0.001, 0.001])
    assert courses[1] == pytest.approx([10 * value for value in courses[0]])


@pytest.mark.slow
def test_a_search_proposes_verifies_and_is_read_by_train(base, tmp_path, capsys):
    output = tmp_path / "search"
    config = written(tmp_path / "mixture.yaml", {
        "output": str(output), "train": str(base), "split": {"text": "domain"}, "tokens": 6400, "mixtures": 5,
        "eval_tokens": 1024, "verify": {"seeds": [1]}, "set": {"optimizer.learning_rate": 0.01},
    })  # fmt: skip
    assert mixture_cli.main(["search", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((output / "result.json").read_text())
    weights = {name: one["weight"] for name, one in result["weights"].items()}
    assert list(weights) == ["text sums", "text words"]
    assert sum(weights.values()) == pytest.approx(1)
    assert result["verification"]["sentence"] in printed
    rows = sweep.read_rows(output / "results.jsonl")
    assert len(rows) == 5 + 2
    assert set(rows[0]["losses"]) == {"text sums", "text words"}
    assert rows[0]["weights"] == {"text sums": 0.5, "text words": 0.5}
    # More of a domain is better for it.
    for name in weights:
        share = [row["weights"][name] for row in rows[:5]]
        loss = [row["losses"][name] for row in rows[:5]]
        assert np.corrcoef(share, loss)[0, 1] < 0
    assert (output / "mixture.png").stat().st_size > 20_000
    parsed = parse_config(["--config", str(base), "--config", str(output / "config.yaml")])
    assert [source.weight for source in parsed.data.sources] == pytest.approx(list(weights.values()), abs=1e-4)
    assert [source.where["domain"] for source in parsed.data.sources] == [["sums"], ["words"]]
    # Once more: nothing is left to train.
    assert mixture_cli.main(["search", "--config", str(config)]) == 0
    assert "proxies 1/" not in capsys.readouterr().err
    assert sweep.read_rows(output / "results.jsonl") == rows


def test_components_share_out_the_documents_of_a_source(tmp_path):
    lines = [
        json.dumps({"text": f"some words {i} " * (1 + i % 40), "domain": f"d{i % 3}", "quality": (i % 8) / 8})
        for i in range(120)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(lines, 290, show_progress=False)
    plain = Source("a", str(tmp_path / "a.jsonl"))
    labels = dataclasses.replace(plain.labels, domain_key="domain", quality_key="quality")
    source = dataclasses.replace(plain, labels=labels, eval_fraction=0.2)
    corpus: Prepared = prepare(source, tokenizer, tmp_path / "prepared", processes=1)

    def parts(label: str, edges: list[float] | None = None, of: Source = source):
        config = MixtureConfig("out", "train", 1e6, split={"a": label}, edges={"a": edges} if edges else {})
        return mixture._parts(config, of, corpus)

    for label, edges, names in (
        ("domain", None, ["a d0", "a d1", "a d2"]),
        ("quality", [0.25, 0.5], ["a quality below 0.25", "a quality 0.25 to 0.5", "a quality from 0.5"]),
        ("length", [60.0], ["a length below 60", "a length from 60"]),
    ):
        components = parts(label, edges)
        assert [name for name, _ in components] == names
        chosen = np.stack([corpus.select(where) for _, where in components])
        assert (chosen.sum(axis=0) == 1).all()  # every document in one component
        assert chosen.any(axis=1).all()
    with pytest.raises(UserError, match="component 'a length from 100000' has no document"):
        parts("length", [1e5])
    with pytest.raises(UserError, match="every document has the same language"):
        parts("language")
    narrow = dataclasses.replace(source, where={**source.where, "length": [1, 9]})
    with pytest.raises(UserError, match="both cut by length"):
        parts("length", [5.0], narrow)


def test_a_component_counts_the_tokens_left_to_train_on_and_its_runs_have_the_drawn_weights(tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"some words {i} " * (1 + i % 7), "domain": f"d{i % 3}"}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = Source("a", str(tmp_path / "a.jsonl"), labels=Labels(domain_key="domain"), eval_fraction=0.3)
    tokenizer = train_tokenizer(lines, 290, show_progress=False)
    corpus = prepare(source, tokenizer, tmp_path / "prepared", processes=1)
    data = DataConfig([source], sequence_length=32, batch_size=8)
    train = TrainConfig(data=data, steps=30, optimizer=OptimizerConfig(warmup_steps=2))
    prepared = dataclasses.replace(source, path=str(corpus.folder))
    shared = dataclasses.replace(train, data=dataclasses.replace(data, sources=[prepared]))
    monkeypatch.setattr(mixture, "Sweep", lambda _: SimpleNamespace(prepare_shared=lambda _: (shared, tokenizer)))
    search = mixture.Search(MixtureConfig("out", "train", 1e6, split={"a": "domain"}), train, train)
    lengths, held_out = np.asarray(corpus.lengths, np.int64), corpus.held_out(0.3)
    assert search.components == ("a d0", "a d1", "a d2")
    for number, tokens in enumerate(search.tokens):
        of_domain = corpus.select({**source.where, "domain": [f"d{number}"]})
        assert tokens == lengths[of_domain & ~held_out].sum()
    assert sum(search.tokens) < lengths.sum()
    run = search._run(search._train, "proxy 1", np.array([0.5, 0.5, 0.0]), 10_240, 3)
    assert (run.key, run.config.seed, run.config.steps) == ("proxy 1 seed=3", 3, 40)
    assert run.labels == {"weights": {"a d0": 0.5, "a d1": 0.5, "a d2": 0.0}, "seed": 3}
    assert [one.weight for one in run.config.data.sources] == [0.5, 0.5, 1e-6]
    assert [one.where["domain"] for one in run.config.data.sources] == [["d0"], ["d1"], ["d2"]]
