"""The whole pipeline: exact resume, hosts, mixture, epochs, held-out batches."""

import json
import math
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from data.helpers import ByteTokenizer, segments_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import (
    DataConfig,
    DataError,
    RunningSum,
    Source,
    corpus_unigram_entropy,
    make_eval_batches,
    make_train_loader,
)

TOK = ByteTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text of very different lengths, all different, and chats."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(30):
        words = rng.integers(0, 10**6, size=int(rng.choice([0, 1, 5, 60])))
        (folder / f"{i:02}.txt").write_text(f"document {i}: " + " ".join(map(str, words)))
    chats = [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}] for i in range(20)]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return folder


def config(folder, **options):
    sources = [
        Source("text", f"{folder}/*.txt", weight=0.5, eval_fraction=0.2),
        Source("chat", f"{folder}/chat.jsonl", weight=0.2, eval_fraction=0.2),
        Source("sums", "synthetic:running_sum", weight=0.3, running_sum=RunningSum(problems=50, eval_problems=20)),
    ]
    defaults = {"sequence_length": 96, "batch_size": 4, "packing_bins": 5, "shuffle_window": 40, "seed": 3}
    return DataConfig(**{"sources": sources, **defaults, **options})


def take(loader, count):
    with closing(iter(loader)) as iterator:
        return [next(iterator) for _ in range(count)]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


@pytest.fixture(scope="module")
def unbroken(folder):
    """60 batches: several epochs of the small sources."""
    return take(make_train_loader(config(folder), TOK), 60)


@settings(max_examples=12, deadline=None)
@given(stops=st.lists(st.integers(0, 12), min_size=1, max_size=3), prefetch=st.sampled_from([0, 1, 3]))
def test_resume_at_any_step_gives_the_same_batches(folder, unbroken, stops, prefetch):
    """Killed and resumed several times in a row; each life saves its position as JSON."""
    state, step = None, 0
    for stop in [*stops, 4]:
        loader = make_train_loader(config(folder, prefetch_batches=prefetch, read_threads=prefetch), TOK)
        with closing(iter(loader)) as iterator:
            if state is not None:
                iterator.set_state(json.loads(state))
            assert_equal([next(iterator) for _ in range(stop)], unbroken[step : step + stop])
            step += stop
            state = json.dumps(iterator.get_state())
            assert len(state) < 2000


def test_going_back_with_the_same_iterator(folder, unbroken):
    with closing(iter(make_train_loader(config(folder), TOK))) as iterator:
        for _ in range(11):
            next(iterator)
        state = json.dumps(iterator.get_state())
        for _ in range(2):
            assert_equal([next(iterator) for _ in range(15)], unbroken[11:26])
            iterator.set_state(json.loads(state))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(folder, unbroken, hosts):
    shares = [take(make_train_loader(config(folder), TOK, host_index=i, host_count=hosts), 8) for i in range(hosts)]
    together = [
        {name: np.concatenate([share[step][name] for share in shares]) for name in shares[0][step]} for step in range(8)
    ]
    assert_equal(together, unbroken[:8])
    with pytest.raises(ValueError, match=r"batch_size 4 must be a multiple of the 3 hosts"):
        make_train_loader(config(folder), TOK, host_index=0, host_count=3)
    with pytest.raises(ValueError, match=r"host_index must be in 0\.\.1"):
        make_train_loader(config(folder), TOK, host_index=2, host_count=2)


def test_rows_follow_the_weights_and_seeds_change_the_order(folder, unbroken):
    kinds = Counter()
    # Rows long enough that every one shows where it is from.
    for batch in take(make_train_loader(config(folder, sequence_length=500), TOK), 60):
        for row in batch["tokens"]:
            text = TOK.decode(row.tolist())
            kinds["sums" if "Add these" in text else "chat" if "say " in text else "text"] += 1
    total = sum(kinds.values())
    assert total == 240
    for name, weight in {"text": 0.5, "chat": 0.2, "sums": 0.3}.items():
        assert abs(kinds[name] - weight * total) <= 1, kinds
    (other,) = take(make_train_loader(config(folder, seed=4), TOK), 1)
    assert not np.array_equal(other["tokens"], unbroken[0]["tokens"])


def test_every_epoch_reads_every_document_once_in_a_new_order(folder):
    source = Source("text", f"{folder}/*.txt", eval_fraction=0)
    one = config(folder, sources=[source], shuffle_window=1, packing_bins=1, batch_size=1, sequence_length=2000)
    order = []
    with closing(iter(make_train_loader(one, TOK))) as iterator:
        while len(order) < 90:
            batch = {name: value[0] for name, value in next(iterator).items()}
            for segment in segments_of(batch):
                text = TOK.decode([segment[0][0], *(pair[1] for pair in segment)])
                assert text.endswith("<|endoftext|>")
                order.append(int(text.split(":")[0].removeprefix("document ")))
    # One bin: first-fit keeps the order of the documents, so epochs do not overlap.
    epochs = [order[i : i + 30] for i in (0, 30, 60)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(30)]}) == 4


def test_eval_batches_are_held_out_fixed_and_complete(folder, unbroken):
    everything = make_eval_batches(config(folder), TOK)
    assert_equal(make_eval_batches(config(folder, seed=3, shuffle_window=50), TOK), everything)
    assert all(batch["tokens"].shape == (4, 96) for batch in everything)
    assert_equal(make_eval_batches(config(folder), TOK, max_batches=2), everything[:2])

    held_out = b"".join(bytes(x for x in row["tokens"].ravel() if x < 256) for row in everything)
    trained = b"".join(bytes(x for x in row["tokens"].ravel() if x < 256) for row in unbroken)
    mentioned = [f"document {i}: ".encode() for i in range(30)]
    assert all((name in held_out) != (name in trained) for name in mentioned)

    # Complete: the learned targets are those of the held-out documents, each once.
    text = make_eval_batches(config(folder), TOK, "text")
    paths = [file for i, file in enumerate(sorted(folder.glob("*.txt"))) if mentioned[i] in held_out]
    expected = sum(len(file.read_bytes()) for file in paths)  # n bytes and the end token: n predictions
    assert sum(batch["loss_mask"].sum() for batch in text) == expected

    with pytest.raises(ValueError, match=r"no data source named 'books'; there are \['text', 'chat', 'sums'\]"):
        make_eval_batches(config(folder), TOK, "books")
    with pytest.raises(ValueError, match="max_batches must be at least 1"):
        make_eval_batches(config(folder), TOK, max_batches=0)
    with pytest.raises(ValueError, match=r"no document of \['text'\] is held out"):
        make_eval_batches(config(folder, sources=[Source("text", str(folder), eval_fraction=0)]), TOK)


def test_unigram_entropy_honours_the_mask(folder):
    batches = make_eval_batches(config(folder), TOK, "sums")
    everything_learned = [{**batch, "loss_mask": (batch["segment_ids"] > 0).astype(np.float32)} for batch in batches]
    seen = []
    for rows in (batches, everything_learned):
        counts = Counter()
        for batch in rows:
            counts.update(batch["targets"][batch["loss_mask"] > 0].tolist())
        total = sum(counts.values())
        seen.append(-sum(n / total * math.log(n / total) for n in counts.values()))
        assert corpus_unigram_entropy(rows) == pytest.approx(seen[-1])
    assert abs(seen[0] - seen[1]) > 0.1, "the mask makes a difference here"
    uniform = {"targets": np.arange(8), "loss_mask": np.ones(8)}
    assert corpus_unigram_entropy([uniform]) == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match="no target"):
        corpus_unigram_entropy([{**batches[0], "loss_mask": np.zeros_like(batches[0]["loss_mask"])}])


def test_errors_reach_the_trainer_and_nothing_hangs(tmp_path):
    file = tmp_path / "bad.jsonl"
    sources = [Source("bad", str(tmp_path), eval_fraction=0)]
    bad = DataConfig(sources, sequence_length=8, batch_size=2, packing_bins=2, shuffle_window=1)
    file.write_text('{"text": "fine"}\n{"text": 7}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2: 'text' must be a string"):
        take(make_train_loader(bad, TOK), 100)
    file.write_text('{"text": "half a pair: \\ud800"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: the tokenizer refuses the text"):
        take(make_train_loader(bad, TOK), 1)
    file.write_text('{"text": ""}\n' * 5)
    with pytest.raises(DataError, match="source 'bad': no document has the two tokens"):
        take(make_train_loader(bad, TOK), 1)
    file.write_text('{"text": ""}\n' * 5 + '{"text": "one"}\n')
    assert len(take(make_train_loader(bad, TOK), 20)) == 20
