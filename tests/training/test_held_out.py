"""Held-out losses are means over tokens, of the right sources, domains and positions. Nothing compiles."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_jax.data import DataConfig, Source, prepare
from qwen3_jax.data.config import Labels, Where
from qwen3_jax.text import train_tokenizer
from qwen3_jax.training.config import Stage
from qwen3_jax.training.held_out import HeldOut, position_edges


class Evaluated:
    """A trainer whose loss of a token is its id / 10."""

    def place(self, batch):
        return batch

    def evaluate(self, params, batch):
        mask = np.asarray(batch["loss_mask"], np.float64)
        return SimpleNamespace(
            measure=(batch["tokens"] / 10 * mask).sum() / max(mask.sum(), 1),
            tokens=np.float32(mask.sum()),
            router_load=None,
        )


def batch(tokens, mask=None, positions=None):
    tokens = np.asarray(tokens)
    return {
        "tokens": tokens,
        "loss_mask": np.ones(tokens.shape, np.float32) if mask is None else np.asarray(mask, np.float32),
        "positions": np.asarray(positions)
        if positions is not None
        else np.tile(np.arange(tokens.shape[1]), (len(tokens), 1)),
    }


def held_out(batches, trained=("a",)) -> HeldOut:
    out = object.__new__(HeldOut)
    out.batches, out._trained, out.accuracy, out.router_load = batches, trained, {}, {}
    return out


def test_the_loss_of_a_source_is_the_mean_over_its_tokens_and_not_over_its_batches():
    full, nearly_empty = batch([[10, 20, 30, 40]]), batch([[70, 90, 90, 90]], mask=[[1, 0, 0, 0]])
    assert held_out({"a": [full, nearly_empty], "b": [full]}).losses(Evaluated(), None) == {
        "a": pytest.approx((1 + 2 + 3 + 4 + 7) / 5), "b": pytest.approx(2.5),
    }  # fmt: skip


def test_the_loss_by_position_takes_each_token_once_of_trained_sources_alone():
    """Ranges hold their lower end and not their upper one; positions are those in the document, not in the row."""
    two_documents = batch([[10, 20, 30, 40, 50, 60]], positions=[[0, 1, 2, 3, 0, 1]])
    masked = batch([[90, 90, 90, 70]], mask=[[0, 0, 0, 1]])
    measured = held_out({"a": [two_documents], "a/x": [masked], "b": [masked]}, trained=("a",))
    found = measured.by_position(Evaluated(), None, [0, 2, 3, 4, 8])
    assert {name: one.mean for name, one in found.items()} == {
        "0-2": pytest.approx((1 + 2 + 5 + 6) / 4), "2-3": pytest.approx(3), "3-4": pytest.approx((4 + 7) / 2),
    }  # fmt: skip
    # Of each batch, also those without a token there.
    by_batch = {name: (one.losses.tolist(), one.tokens.tolist()) for name, one in found.items()}
    assert by_batch == {
        "0-2": ([pytest.approx(3.5), 0], [4, 0]), "2-3": ([pytest.approx(3), 0], [1, 0]),
        "3-4": ([pytest.approx(4), pytest.approx(7)], [1, 1]),
    }  # fmt: skip


def test_positions_are_divided_at_the_lengths_of_stages_and_their_doublings():
    assert position_edges([4096, 4096, 32768]) == [0, 4096, 8192, 16384, 32768]
    assert position_edges([32, 100]) == [0, 32, 64, 100]
    assert position_edges([32, 64]) == [0, 32, 64]
    assert position_edges([32]) == [0, 32]


def test_a_source_of_several_domains_is_measured_by_domain_and_none_without_held_out_text(tmp_path):
    def source(name, domains, **changes):
        lines = [
            json.dumps({"text": f"{name} words {i} and more", "domain": domains[i % len(domains)]}) for i in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        values = {"labels": Labels(domain_key="domain"), "eval_fraction": 0.3} | changes
        return Source(name, str(tmp_path / f"{name}.jsonl"), **values)

    sources = [
        source("one", ["x"]), source("two", ["x", "y"]), source("none", ["x"], eval_fraction=0.0),
        source("part", ["x", "y"], where=Where(domain=["y"])),
    ]  # fmt: skip
    tokenizer = train_tokenizer(["words and more"] * 9, 290, show_progress=False)
    corpora = [prepare(one, tokenizer, tmp_path / "prepared" / one.name, processes=1) for one in sources]
    data = DataConfig(sources, sequence_length=16, batch_size=2)
    stage = Stage("train", 0, 1, SimpleNamespace(data=data), None, None)
    measured = HeldOut(stage, corpora, 2)
    assert list(measured.batches) == ["one", "two/x", "two/y", "part"]
    assert measured._trained == ["one", "two", "none", "part"]
    assert set(measured.baseline) == set(measured.batches)
    assert all(len(batches) <= 2 for batches in measured.batches.values())
    assert HeldOut(Stage("s", 0, 1, stage.run, {"two": 1.0}, None), corpora, 2)._trained == {"two": 1.0}
