"""Packed and planned batches against hand-written arrays and a plain restatement, with corpora that lie in memory."""

import dataclasses
import itertools
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from qwen3_jax.data import DataConfig, DataError, Encoded, LengthShare, Source, Where
from qwen3_jax.data.mixture import RowPlanner
from qwen3_jax.data.pipeline import make_eval_batches, make_train_loader
from qwen3_jax.data.prepared import Prepared
from qwen3_jax.data.streams import Piece, Stream, cut, streams


class InMemory(Prepared):
    """A prepared corpus without files: `tokens` and `learned` by document, labels as `Prepared` has them."""

    all_held_out = False
    pairs = False

    def __init__(self, documents, keys=None, domains=None):
        self.folder = "memory"
        self._documents = [
            Encoded(np.asarray(tokens, np.int32), np.asarray(learned, bool)) for tokens, learned in documents
        ]
        count = len(documents)
        names = sorted(set(domains or ["d"]))
        self.manifest = {"documents": count, "names": {"domain": names, "language": ["und"]}}
        self.lengths = np.array([len(tokens) for tokens, _ in documents], np.int32)
        self.domain = np.array([names.index(name) for name in domains or ["d"] * count], np.int16)
        self.language = np.zeros(count, np.int16)
        self.quality = np.arange(count, dtype=np.float32)
        self.key = np.array([0] * count if keys is None else keys, np.uint64)

    def read(self, documents):
        return [self._documents[i] for i in documents]

    def held_out(self, fraction):
        return np.ones(len(self), bool) if self.all_held_out else super().held_out(fraction)


def numbered(lengths):
    """Documents whose tokens tell where they are from: 100 * document + place; every third token is not learned."""
    return [([100 * i + k for k in range(n)], [k % 3 != 2 for k in range(n)]) for i, n in enumerate(lengths)]


def held_out(corpus, *more, length=6, rows=2, where=None):
    """The batches of all documents."""
    corpus.all_held_out = True
    source = Source("s", "x", where=where or Where())
    config = DataConfig([source], sequence_length=length, batch_size=rows)
    return make_eval_batches(config, [corpus], "s", *more)


def test_a_packed_batch_to_the_number():
    """A mask, a target or a position that is one off is another number here."""
    corpus = InMemory([([11, 12, 13, 14, 15], [0, 0, 1, 0, 1]), ([21, 22, 23], [1, 0, 1])], keys=[1, 2])
    (batch,) = held_out(corpus, length=8)
    expected = {
        "tokens": [[11, 12, 13, 14, 21, 22, 0, 0], [0] * 8],
        "targets": [[12, 13, 14, 15, 22, 23, 0, 0], [0] * 8],
        "loss_mask": [[0, 1, 0, 1, 0, 1, 0, 0], [0] * 8],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 0, 0], [0] * 8],
        "positions": [[0, 1, 2, 3, 0, 1, 0, 0], [0] * 8],
    }
    for name, values in expected.items():
        dtype = np.float32 if name == "loss_mask" else np.int32
        np.testing.assert_array_equal(batch[name], np.array(values, dtype), strict=True, err_msg=name)


def test_a_document_longer_than_a_row_is_cut_with_its_mask():
    """Positions restart, the token at the seam is target of one piece and input of the next, and keeps its own mask."""
    corpus = InMemory([([1, 2, 3, 4, 5, 6, 7], [1, 0, 1, 1, 0, 0, 1])])
    (batch,) = held_out(corpus, length=4)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["targets"].tolist() == [[2, 3, 4, 5], [6, 7, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def predictions(batch):
    """(input, target, learned, position) of every place that is not padding, row by row."""
    names = ("tokens", "targets", "loss_mask", "positions")
    for row in range(len(batch["tokens"])):
        used = batch["segment_ids"][row] > 0
        yield from zip(*(batch[name][row][used].tolist() for name in names), strict=True)


def test_every_trained_pair_has_its_own_target_and_mask():
    """Against the documents themselves, many rows, several pieces in each, all sources in one batch."""
    sizes = np.random.default_rng(0).integers(2, 30, 40)
    corpora = [InMemory(numbered(sizes), keys=[2**63] * 40), InMemory(numbered(sizes[::-1]), keys=[2**63] * 40)]
    config = DataConfig(
        [Source("a", "x", eval_fraction=0), Source("b", "x", eval_fraction=0)],
        sequence_length=16, batch_size=4, packing_rows=4, prefetch_batches=0,
    )  # fmt: skip
    with closing(iter(make_train_loader(config, corpora))) as loader:
        for batch in itertools.islice(loader, 40):
            for token, target, learned, position in predictions(batch):
                assert target == token + 1
                assert learned == (target % 100 % 3 != 2)
                assert position == token % 100 % 16, "pieces begin at multiples of the row's length"
            padding = batch["segment_ids"] == 0
            assert not any(batch[name][padding].any() for name in ("tokens", "targets", "loss_mask", "positions"))


def test_rows_hold_their_pieces_in_the_plan_s_order_and_segments_count_from_one():
    sizes = [3, 4, 5, 6, 7, 8]
    config = DataConfig(
        [Source("s", "x", eval_fraction=0)], sequence_length=12, batch_size=2, packing_rows=3, prefetch_batches=0
    )
    corpus = InMemory(numbered(sizes), keys=[2**63] * 6)
    planner = RowPlanner(config, streams(config, [corpus], {"s": 1.0}))
    with closing(iter(make_train_loader(config, [corpus]))) as loader:
        for batch in itertools.islice(loader, 6):
            for number in range(2):
                row = next(planner)
                tokens = [100 * piece.document + piece.start + k for piece in row for k in range(piece.pairs)]
                segments = [segment for segment, piece in enumerate(row, 1) for _ in range(piece.pairs)]
                assert batch["tokens"][number, : len(tokens)].tolist() == tokens
                assert batch["segment_ids"][number].tolist() == segments + [0] * (12 - len(segments))


def test_held_out_documents_come_in_the_order_of_their_keys():
    """The first batches are a sample of all, not of the first files."""
    keys = [50, 10, 40, 30, 20, 60]
    corpus = InMemory(numbered([7] * 6), keys=keys)
    order = [int(batch["tokens"][row, 0]) // 100 for batch in held_out(corpus) for row in range(2)]
    assert order == [1, 4, 3, 2, 0, 5]
    (first,) = held_out(corpus, 1)
    assert (first["tokens"][:, 0] // 100).tolist() == [1, 4]
    assert len(held_out(corpus, 2)) == 2
    assert len(held_out(corpus, None)) == len(held_out(corpus, 99)) == 3


def test_the_last_batch_is_filled_with_empty_rows_and_the_largest_number_is_kept():
    corpus = InMemory(numbered([7] * 5), keys=[1, 2, 3, 4, 5])
    batches = held_out(corpus)
    assert [(batch["segment_ids"].max(axis=1) > 0).tolist() for batch in batches] == [
        [True] * 2,
        [True] * 2,
        [True, False],
    ]
    assert [batch["tokens"].shape for batch in batches] == [(2, 6)] * 3


def test_a_limit_on_batches_takes_the_pieces_that_fit_it():
    (only,) = held_out(InMemory(numbered([40])), 1)  # two rows of six pairs of the forty
    assert only["tokens"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    (only,) = held_out(
        InMemory(numbered([5, 7, 9]), keys=[1, 2, 3]), 1
    )  # 4 + 6 pairs fit 12; the first of the third do not
    assert only["tokens"].tolist() == [[100, 101, 102, 103, 104, 105], [0, 1, 2, 3, 0, 0]]
    (only,) = held_out(
        InMemory(numbered([5, 5, 5]), keys=[1, 2, 3]), 1
    )  # 12 pairs, but no row holds two documents of four
    assert only["tokens"].tolist() == [[0, 1, 2, 3, 0, 0], [100, 101, 102, 103, 0, 0]]


def test_held_out_documents_are_those_of_where_and_of_the_domain():
    domains = ["web", "code", "web", "code", "web"]
    corpus = InMemory(numbered([7] * 5), keys=[5, 4, 3, 2, 1], domains=domains)

    def documents(where=None, domain=None):
        return [int(b["tokens"][row, 0]) // 100 for b in held_out(corpus, None, domain, where=where) for row in range(2)
                if b["segment_ids"][row].any()]  # fmt: skip

    assert documents() == [4, 3, 2, 1, 0]
    assert documents(Where(domain=["web"])) == [4, 2, 0]
    assert documents(Where(quality=[1, 3])) == [3, 2, 1], "both ends belong to the range"
    assert documents(Where(quality=[1, 3]), "code") == [3, 1]
    assert documents(Where(quality=[None, 1])) == [1, 0]
    assert documents(Where(length=[7, 7])) == [4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="no document of 's' is held out"):
        documents(Where(length=[8, None]))


def test_training_leaves_out_what_is_held_out_and_what_where_excludes():
    keys = [0, 2**62, 2**63, 2**64 - 1, 2**62 - 1]  # of eval_fraction 1/4: documents 0 and 4 are held out
    corpus = InMemory(numbered([5] * 5), keys=keys, domains=["a", "b", "a", "a", "b"])
    assert corpus.held_out(0.25).tolist() == [True, False, False, False, True], "the threshold itself is trained on"
    for where, expected in ((Where(), [1, 2, 3]), (Where(domain=["a"]), [2, 3]), (Where(quality=[1, 2]), [1, 2])):
        config = DataConfig([Source("s", "x", eval_fraction=0.25, where=where)], sequence_length=8)
        (stream,) = streams(config, [corpus], {"s": 1.0})
        assert stream.document.tolist() == expected


def test_one_side_is_never_empty():
    corpus = InMemory(numbered([5] * 3), keys=[30, 10, 20])
    assert corpus.held_out(0.9).tolist() == [False, True, True], "the one nearest to the threshold is trained on"
    far = InMemory(numbered([5] * 3), keys=[2**63 + 3, 2**63 + 1, 2**63 + 2])
    assert far.held_out(0.1).tolist() == [False, True, False], "the one nearest to the threshold is held out"
    assert far.held_out(0.0).tolist() == [False] * 3
    assert InMemory(numbered([5]), keys=[0]).held_out(0.9).tolist() == [False]


def test_a_document_shorter_than_its_column_says_is_refused():
    corpus = InMemory(numbered([5, 5]))
    corpus.lengths = np.array([5, 6], np.int32)
    with pytest.raises(DataError, match=r"document 1 is shorter than lengths\.npy says"):
        held_out(corpus)


def test_pieces_by_hand():
    document, start, pairs = cut(np.array([7, 9, 4, 2]), np.array([10, 1, 5, 0]), 4)
    assert document.tolist() == [7, 7, 7, 4]
    assert start.tolist() == [0, 4, 8, 0]
    assert pairs.tolist() == [4, 4, 1, 4]


def test_shares_of_sources_and_length_classes_multiply():
    """Weights are relative: to the sources in use, and to the other classes; a class takes above < n <= up_to."""
    classes = [LengthShare(2, 4, 3.0), LengthShare(4, 8, 1.0)]
    config = DataConfig(
        [Source("a", "x", eval_fraction=0), Source("b", "x", eval_fraction=0)], sequence_length=8, lengths=classes
    )
    corpora = [InMemory(numbered([3, 4, 5, 6, 9])), InMemory(numbered([4, 6, 30]))]
    planned = streams(config, corpora, {"a": 2.0, "b": 6.0})
    assert [stream.key for stream in planned] == ["a/2-4", "a/4-8", "b/2-4", "b/4-8"]
    assert [stream.source for stream in planned] == [0, 0, 1, 1]
    assert [stream.share for stream in planned] == [0.25 * 0.75, 0.25 * 0.25, 0.75 * 0.75, 0.75 * 0.25]
    assert [stream.pairs.tolist() for stream in planned] == [[3, 4], [5, 8], [3], [5, 8, 8, 8, 5]]
    (alone,) = streams(dataclasses.replace(config, lengths=[]), corpora, {"b": 6.0})
    assert (alone.key, alone.source, alone.share) == ("b", 1, 1.0)
    seeds = [stream.seed for stream in planned]
    assert len(set(seeds)) == 4
    assert seeds != [
        stream.seed for stream in streams(dataclasses.replace(config, seed=1), corpora, {"a": 2.0, "b": 6.0})
    ]


def simple_planner(shares, pairs, **options):
    """Streams of equal pieces; `shares` and `pairs` by key."""
    config = DataConfig([Source("s", "x")], **options)
    parts = []
    for number, (key, share) in enumerate(shares.items()):
        one = np.full(7, pairs[key], np.int32)
        parts.append(Stream(key, number, np.arange(7), np.zeros(7, np.int32), one, share, seed=number))
    return RowPlanner(config, parts)


def drawn_tokens(state):
    return state["tokens"]


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.8}, {"a": 0.1, "b": 0.3, "c": 0.6}])
def test_no_stream_is_ever_far_from_its_share(shares):
    pairs = {"a": 3, "b": 5, "c": 2}
    plan = simple_planner(shares, pairs, sequence_length=8, packing_rows=1)
    for _ in range(40):
        next(plan)
        tokens = drawn_tokens(plan.state())
        total = sum(tokens.values())
        for key, share in shares.items():
            assert abs(tokens[key] - share * total) <= 8 + 5, (key, tokens)


def test_the_next_piece_is_of_the_stream_that_would_be_furthest_behind_after_a_row():
    """share * (tokens so far + row length) - own tokens: by hand for shares of 1/4 and 3/4, pieces of 4, rows of 8."""
    plan = simple_planner({"a": 0.25, "b": 0.75}, {"a": 4, "b": 4}, sequence_length=8, packing_rows=1)
    assert [plan._draw().source for _ in range(12)] == [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1]


def test_a_boundary_keeps_places_and_counts_shares_anew():
    """After a stage of nine parts a, the next stage's half and half is measured from its own beginning."""
    before = simple_planner({"a": 0.9, "b": 0.1}, {"a": 4, "b": 4}, sequence_length=8, packing_rows=2)
    given = [piece for _ in range(31) for piece in next(before)]
    state = before.state()
    assert state["row"] == 1
    config = DataConfig([Source("s", "x")], sequence_length=8, packing_rows=2)
    moved = before.at_boundary(config)
    assert before.state() == state, "the planner is not changed"
    assert (moved["tokens"], moved["carried"], moved["row"]) == ({}, [], 0)
    assert moved["window"] == state["window"] + 1
    # What was drawn and not given comes first, and counts as the next stage's.
    waiting = {key: len(pieces) for key, pieces in moved["returned"].items()}
    assert sum(moved["drawn"].values()) - sum(waiting.values()) == len(given)
    after = simple_planner({"a": 0.5, "b": 0.5}, {"a": 4, "b": 4}, sequence_length=8, packing_rows=2)
    after.restore(moved)
    for _ in range(20):
        given += next(after)
    end = after.state()
    tokens = drawn_tokens(end)
    assert abs(tokens["a"] - tokens["b"]) <= 8
    for number, key in enumerate("ab"):
        assert end["drawn"][key] == moved["drawn"][key] - waiting.get(key, 0) + tokens[key] // 4
        order = Counter(before._streams[number].piece(i) for i in range(end["drawn"][key]))
        left = Counter(Piece(*piece) for piece in end["carried"]) + Counter(
            p for row in after._rows[after._next :] for p in row
        )
        assert order == Counter(p for p in given if p.source == number) + Counter(
            p for p in left.elements() if p.source == number
        )
    assert "returned" not in end, "all of it has been given"


def test_a_state_in_the_middle_of_a_window_names_the_window_s_beginning():
    plan = simple_planner({"a": 1.0}, {"a": 3}, sequence_length=8, packing_rows=4)
    fresh = plan.state()
    assert fresh == {"window": 0, "drawn": {"a": 0}, "tokens": {"a": 0}, "carried": [], "row": 0}
    next(plan)
    assert plan.state() == fresh | {"row": 1}
    next(plan)
    assert plan.state() == fresh | {"row": 2}
    rows = len(plan._rows)
    for _ in range(rows - 2):
        next(plan)
    end = plan.state()
    assert (end["row"], end["window"]) == (0, 1)
    carried = sum(piece[3] for piece in end["carried"])
    assert end["tokens"]["a"] == 3 * end["drawn"]["a"] == sum(p.pairs for row in plan._rows for p in row) + carried
    next(plan)
    assert plan.state() == end | {"row": 1}
    for state in (fresh, end, plan.state()):
        restored = simple_planner({"a": 1.0}, {"a": 3}, sequence_length=8, packing_rows=4)
        restored.restore(state)
        assert restored.state() == state


def test_rows_are_shuffled_anew_in_each_window():
    """Pieces of 1 to 8 pairs fill a row of 8 each by themselves or with another, so an order of rows is seen by their sizes."""

    def order(seed):
        config = DataConfig([Source("s", "x")], sequence_length=8, packing_rows=8, seed=seed)
        pairs = np.full(64, 8, np.int32)
        stream = Stream("s", 0, np.arange(64), np.zeros(64, np.int32), pairs, 1.0, seed=0)
        plan = RowPlanner(config, [stream])
        rows = [next(plan)[0].document for _ in range(64)]
        drawn = [stream.piece(i).document for i in range(64)]
        windows = [drawn[i : i + 8] for i in range(0, 64, 8)]
        return [[window.index(document) for document in rows[8 * i : 8 * i + 8]] for i, window in enumerate(windows)]

    windows = order(0)
    assert all(sorted(window) == list(range(8)) for window in windows)
    assert len({tuple(window) for window in windows}) == 8
    assert order(1) != windows == order(0)


def test_a_window_draws_just_what_its_rows_hold_and_carries_the_emptiest():
    """Of 16 rows at most 2 wait, and never a full one."""
    plan = simple_planner({"a": 1.0}, {"a": 5}, sequence_length=12, packing_rows=16)
    next(plan)
    drawn = plan._drawn["a"]
    assert 5 * (drawn - 1) < 16 * 12 <= 5 * drawn
    # 39 pieces of 5 in rows of 12: 19 rows of two and one of one; two rows wait, the single piece among them.
    assert (drawn, len(plan._rows), sorted(piece.pairs for piece in plan._carried)) == (39, 18, [5, 5, 5])
    assert all(len(row) == 2 for row in plan._rows)
    full = simple_planner({"a": 1.0}, {"a": 6}, sequence_length=12, packing_rows=16)
    next(full)
    assert (len(full._rows), full._carried) == (16, [])


def test_each_epoch_has_an_order_of_its_own_and_the_seed_decides_it():
    stream = Stream("a", 3, np.arange(50), np.arange(50, dtype=np.int32), np.arange(1, 51, dtype=np.int32), 1.0, seed=5)
    orders = [[stream.piece(50 * epoch + i) for i in range(50)] for epoch in range(2)]
    for order in orders:
        assert sorted(piece.document for piece in order) == list(range(50))
        assert all(
            (piece.source, piece.start, piece.pairs) == (3, piece.document, piece.document + 1) for piece in order
        )
    assert orders[0] != orders[1]
    other = dataclasses.replace(stream, seed=6)
    assert [other.piece(i) for i in range(50)] != orders[0]
    one = dataclasses.replace(stream, document=np.array([4]), start=np.array([2]), pairs=np.array([9]))
    assert {one.piece(i) for i in range(5)} == {(3, 4, 2, 9)}
