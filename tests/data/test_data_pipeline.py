"""The whole pipeline: hosts, exact resume, mixture, epochs, held-out batches."""

import functools
import itertools
import json
import math
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import (
    DataConfig,
    DataError,
    Labels,
    LengthShare,
    RunningSum,
    Source,
    Where,
    corpus_unigram_entropy,
    make_eval_batches,
    make_train_loader,
    open_sources,
    streams,
)
from qwen3_jax.data.pipeline import at_boundary
from tests.helpers.byte_tokenizer import ByteTokenizer, segments_of

TOK = ByteTokenizer()


@pytest.fixture(scope="module", autouse=True)
def _shuffles_are_kept():
    """Grain's shuffle takes a millisecond per index where a source has few; these tests draw the same ones again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "index_shuffle", functools.cache(streams.index_shuffle))
        yield


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
    defaults = {"sequence_length": 96, "batch_size": 4, "packing_rows": 10, "seed": 3, "cache": str(folder / "cache")}
    return DataConfig(**{"sources": sources, **defaults, **options})


def loader(folder, rows=None, weights=None, **options):
    data_config = config(folder, **options)
    same = options.keys() <= {"prefetch_batches"}
    corpora = opened(folder) if same else open_sources(data_config, TOK, folder / "unused")
    return make_train_loader(data_config, corpora, rows=rows, weights=weights)


@functools.cache
def opened(folder):
    """The sources of the default configuration, which many loaders read."""
    return open_sources(config(folder), TOK, folder / "unused")


def held_out(folder, name, *more, **options):
    data_config = config(folder, **options)
    return make_eval_batches(data_config, open_sources(data_config, TOK, folder / "unused"), name, *more)


def take(loader, count):
    with closing(iter(loader)) as iterator:
        return [next(iterator) for _ in range(count)]


def assert_equal(batches, expected):
    for a, b in zip(batches, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


@pytest.fixture(scope="module")
def unbroken(folder):
    """60 batches: several epochs of the small sources."""
    return take(loader(folder), 60)


@settings(max_examples=8)
@given(
    lives=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1, 2, 4])), min_size=1, max_size=4),
    prefetch=st.sampled_from([0, 1, 3]),
)
def test_batches_are_the_same_for_any_hosts_and_after_any_resume(folder, unbroken, lives, prefetch):
    """A run that is killed again and again and goes on with 1, 2 or 4 hosts, from a position that any of them saved."""
    state, step = None, 0
    for stop, hosts in [*lives, (3, 2)]:
        shares, states = [], []
        for host in range(hosts):
            rows = range(host * 4 // hosts, (host + 1) * 4 // hosts)
            with closing(iter(loader(folder, rows, prefetch_batches=prefetch))) as iterator:
                if state is not None:
                    iterator.set_state(json.loads(state))
                shares.append([next(iterator) for _ in range(stop)])
                states.append(json.dumps(iterator.get_state()))
        together = [
            {name: np.concatenate([b[name] for b in parts]) for name in parts[0]} for parts in zip(*shares, strict=True)
        ]
        assert_equal(together, unbroken[step : step + stop])
        step += stop
        assert len(set(states)) == 1, "every host saves the same position"
        state = states[0]
        assert len(state) < 2000


def test_going_back_with_the_same_iterator(folder, unbroken):
    with closing(iter(loader(folder))) as iterator:
        for _ in range(11):
            next(iterator)
        state = json.dumps(iterator.get_state())
        for _ in range(2):
            assert_equal([next(iterator) for _ in range(15)], unbroken[11:26])
            iterator.set_state(json.loads(state))


def test_a_host_may_ask_for_any_rows(folder, unbroken):
    (batch,) = take(loader(folder, rows=[3, 1]), 1)
    assert_equal([batch], [{name: value[[3, 1]] for name, value in unbroken[0].items()}])
    with pytest.raises(ValueError, match=r"rows \[4\] are not all in a batch of 4"):
        loader(folder, rows=[4])


def test_tokens_follow_the_weights_and_seeds_change_the_order(folder, unbroken):
    def shares(batches):
        pairs = Counter()
        for batch in batches:
            for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
                for segment in range(1, segments.max() + 1):
                    text = bytes(x for x in tokens[segments == segment] if x < 256)
                    name = "sums" if b"Add these" in text else "chat" if b"say " in text else "text"
                    pairs[name] += int((segments == segment).sum())
        return {name: count / sum(pairs.values()) for name, count in pairs.items()}

    whole = {"sequence_length": 1000}  # no document is cut, so that every segment shows where it is from
    for weights in (None, {"text": 0.9, "chat": 0.1}):
        measured = shares(take(loader(folder, weights=weights, **whole), 15))
        assert measured == pytest.approx(weights or {"text": 0.5, "chat": 0.2, "sums": 0.3}, abs=0.02)
    with pytest.raises(ValueError, match="no data source named 'books'"):
        loader(folder, weights={"books": 1.0})
    (other,) = take(loader(folder, seed=4, cache=str(folder / "other")), 1)
    assert not np.array_equal(other["tokens"], unbroken[0]["tokens"])


def test_every_prediction_of_every_document_is_made_once_in_an_epoch(folder):
    """Documents are cut where they are longer than a row; the pieces overlap by the token that is input and target."""
    source = Source("text", f"{folder}/*.txt", eval_fraction=0)
    one = {"sources": [source], "batch_size": 1, "sequence_length": 50, "packing_rows": 4}
    data_config = config(folder, **one)
    (corpus,) = open_sources(data_config, TOK, folder / "unused")
    documents = [document.tokens.tolist() for document in corpus.read(range(len(corpus)))]
    epoch = Counter(pair for tokens in documents for pair in itertools.pairwise(tokens))
    seen = Counter()
    for batch in take(loader(folder, **one), 3 * sum(epoch.values()) // 50):
        for segment in segments_of({name: value[0] for name, value in batch.items()}):
            assert [position for *_, position in segment] == list(range(len(segment)))
            assert all(a[1] == b[0] for a, b in itertools.pairwise(segment))
            seen.update((token, target) for token, target, learned, _ in segment if learned)
    assert set(seen) == set(epoch)
    for pair, count in epoch.items():
        assert seen[pair] == pytest.approx(3 * count, rel=0.2, abs=6)


def test_labels_and_length_classes_choose_what_is_drawn(folder, tmp_path):
    lines = [
        {"text": f"{domain} {i} " + "x" * (i * 7 % 90), "domain": domain, "lang": "de" if i % 3 else "en"}
        for i in range(60)
        for domain in ("news", "code")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = Labels(domain_key="domain", language_key="lang")
    path = str(tmp_path / "a.jsonl")
    sources = [
        Source("code", path, labels=labels, where=Where(domain=["code"], language=["de"]), weight=1, eval_fraction=0.2),
        Source("all", path, labels=labels, weight=3, eval_fraction=0.2),
    ]
    lengths = [LengthShare(60, 100, 0.75), LengthShare(20, 60, 0.25)]
    options = {"sources": sources, "sequence_length": 100, "lengths": lengths, "cache": str(tmp_path / "cache")}
    pairs = Counter()
    for batch in take(loader(folder, **options), 120):
        for i in range(4):
            for segment in segments_of({name: value[i] for name, value in batch.items()}):
                assert len(segment) > 20
                pairs[len(segment) > 60] += len(segment)
    assert pairs[True] / pairs.total() == pytest.approx(0.75, abs=0.01)
    for domain in ("news", "code"):
        text = b"".join(
            bytes(x for x in b["tokens"].ravel() if x < 256) for b in held_out(folder, "all", None, domain, **options)
        )
        other = {"news": b"code", "code": b"news"}[domain]
        assert domain.encode() in text
        assert other not in text
    with pytest.raises(
        DataError, match=r"source 'code' has no text of more than 97 and up to 100 tokens \(120 documents"
    ):
        loader(folder, **options | {"lengths": [LengthShare(97, 100, 1)]})


@pytest.mark.parametrize("length", [300, 450])
def test_a_new_stage_gives_what_the_one_before_has_not_given(folder, length):
    """Rows of the same or of another length: every prediction of the epoch once, also of rows that were packed."""
    source = Source("text", f"{folder}/*.txt", eval_fraction=0)
    first = {"sources": [source], "batch_size": 1, "sequence_length": 300, "packing_rows": 4, "prefetch_batches": 0}
    before, now = config(folder, **first), config(folder, **first | {"sequence_length": length})
    corpora = open_sources(before, TOK, folder / "unused")

    def pairs(batch):
        segments = segments_of({name: value[0] for name, value in batch.items()})
        return [pair[:2] for segment in segments for pair in segment]

    documents = [document.tokens.tolist() for document in corpora[0].read(range(len(corpora[0])))]
    whole = Counter(pair for tokens in documents for pair in itertools.pairwise(tokens))
    seen: Counter = Counter()
    with closing(iter(make_train_loader(before, corpora))) as iterator:
        for _ in range(2):
            seen.update(pairs(next(iterator)))
        state = json.loads(json.dumps(iterator.get_state()))
    assert state["row"] == 2, "rows that were packed and not given"
    with closing(iter(make_train_loader(now, corpora))) as iterator:
        iterator.set_state(json.loads(json.dumps(at_boundary(state, before, None, now, corpora))))
        for _ in range(30):
            seen.update(pairs(next(iterator)))
            # Close to the end, rows of the next epoch come between.
            assert sum(seen.values()) > sum(whole.values()) - 5 * length or not seen - whole, "nothing twice"
    assert not whole - seen, "nothing left out"
    # The folder was prepared anew, from other text.
    changed = state | {"text": {"text": [29, 1234]}}
    words = "source 'text' had 29 documents of 1,234 tokens when the run was saved, and .* has 30 of"
    with pytest.raises(DataError, match=words):
        at_boundary(changed, before, None, now, corpora)
    with closing(iter(make_train_loader(before, corpora))) as iterator, pytest.raises(DataError, match=words):
        iterator.set_state(changed)


def test_eval_batches_are_held_out_fixed_and_complete(folder, unbroken):
    batches = {name: held_out(folder, name) for name in ("text", "chat", "sums")}
    assert_equal(held_out(folder, "text", packing_rows=50), batches["text"])
    assert all(batch["tokens"].shape == (4, 96) for of_source in batches.values() for batch in of_source)
    assert len(held_out(folder, "text", 1)) == 1

    def raw(batches):
        return b"".join(bytes(x for x in batch["tokens"].ravel() if x < 256) for batch in batches)

    trained, evaluated = raw(unbroken), raw(batches["text"])
    mentioned = [f"document {i}: ".encode() for i in range(30)]
    assert all((name in evaluated) != (name in trained) for name in mentioned)

    # Complete: the learned targets are those of the held-out documents, each once.
    paths = [file for i, file in enumerate(sorted(folder.glob("*.txt"))) if mentioned[i] in evaluated]
    expected = sum(len(file.read_bytes()) for file in paths)  # n bytes and the end token: n predictions
    assert sum(batch["loss_mask"].sum() for batch in batches["text"]) == expected

    with pytest.raises(ValueError, match=r"no data source named 'books'; there are \['text', 'chat', 'sums'\]"):
        held_out(folder, "books")
    with pytest.raises(ValueError, match="max_batches must be at least 1"):
        held_out(folder, "text", 0)
    with pytest.raises(ValueError, match="no document of 'none' is held out"):
        held_out(folder, "none", sources=[Source("none", f"{folder}/*.txt", eval_fraction=0)])


def test_unigram_entropy_honours_the_mask(folder):
    batches = held_out(folder, "sums")
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


def test_damage_reaches_the_trainer_and_nothing_hangs(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x" * 50}) + "\n" for _ in range(200)))
    data_config = DataConfig(
        [Source("s", str(tmp_path / "a.jsonl"))], sequence_length=64, batch_size=2, cache=str(tmp_path / "c")
    )
    corpora = open_sources(data_config, TOK, tmp_path)
    file = tmp_path / "c/s/00000.arrayrecord"
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 400] = bytes(400)
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"c/s: its ArrayRecord files are damaged"):
        take(make_train_loader(data_config, corpora), 200)
