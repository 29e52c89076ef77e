"""The plan of rows: every prediction once, shares of tokens, resume from any row, and little padding."""

import dataclasses
import functools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import DataConfig, LengthShare, Source
from qwen3_jax.data import streams as streams_module
from qwen3_jax.data.mixture import RowPlanner, pack
from qwen3_jax.data.pipeline import at_boundary
from qwen3_jax.data.records import DataError
from qwen3_jax.data.streams import Piece, Stream, cut, streams


class Lengths:
    """What planning asks of a prepared corpus: no tokens."""

    pairs = False

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, np.int32)

    def __len__(self):
        return len(self.lengths)

    def select(self, where):
        return np.ones(len(self), bool)

    def held_out(self, fraction):
        return np.zeros(len(self), bool)


def planner(lengths_by_name, weights=None, **options):
    names = list(lengths_by_name)
    config = DataConfig([Source(name, "x") for name in names], **options)
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    return RowPlanner(config, streams(config, [Lengths(lengths_by_name[name]) for name in names], weights))


@settings(max_examples=100)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 17))
def test_documents_are_cut_so_that_every_prediction_is_in_one_piece(lengths, row):
    pieces = list(zip(*(part.tolist() for part in cut(np.arange(len(lengths)), np.asarray(lengths), row)), strict=True))
    predictions = Counter((document, start + i) for document, start, pairs in pieces for i in range(pairs))
    assert predictions == Counter((document, i) for document, n in enumerate(lengths) for i in range(n - 1))
    assert all(0 < pairs <= row for _, _, pairs in pieces)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 17), min_size=1, max_size=60), st.integers(17, 40))
def test_packing_loses_nothing_and_is_best_fit_decreasing(sizes, length):
    pieces = [Piece(0, i, 0, size) for i, size in enumerate(sizes)]
    rows = pack(pieces, length)
    assert Counter(piece for row in rows for piece in row) == Counter(pieces)
    filled = [sum(piece.pairs for piece in row) for row in rows]
    assert max(filled) <= length
    # Johnson 1973: at most 11/9 of the optimum and a bit, and the optimum is no less than the tokens' own rows.
    assert len(rows) <= 11 / 9 * -(-sum(sizes) // length) * 1.5 + 1
    # The plain statement of the rule.
    expected: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        free = [length - sum(row) for row in expected]
        fitting = [i for i, room in enumerate(free) if room >= size]
        if fitting:
            expected[min(fitting, key=lambda i: (free[i], i))].append(size)
        else:
            expected.append([size])
    assert [[piece.pairs for piece in row] for row in rows] == expected


def test_every_epoch_has_every_piece_once_in_an_order_of_its_own():
    lengths = np.random.default_rng(0).integers(2, 300, 50)
    plan = planner({"text": lengths}, sequence_length=64, packing_rows=4)
    whole = Counter(zip(*(p.tolist() for p in cut(np.arange(50), lengths, 64)), strict=True))
    drawn = [(piece.document, piece.start, piece.pairs) for _ in range(2000) for piece in next(plan)]
    epochs = len(drawn) // sum(whole.values())
    assert epochs >= 5
    # What is packed is what was drawn, but for a few pieces that wait: every piece was seen about as often.
    seen = Counter(drawn)
    assert set(seen) == set(whole)
    assert max(seen.values()) - min(seen.values()) <= 2
    (stream,) = plan._streams
    n = sum(whole.values())
    orders = [[stream.piece(epoch * n + i) for i in range(n)] for epoch in range(3)]
    for order in orders:
        assert Counter((p.document, p.start, p.pairs) for p in order) == whole
    assert len({tuple(order) for order in orders}) == 3


@settings(max_examples=15)
@given(st.integers(0, 200), st.integers(0, 90), st.integers(1, 6))
def test_a_plan_goes_on_from_any_row(first, second, window):
    def fresh():
        lengths = np.random.default_rng(1).integers(2, 90, 40)
        return planner({"a": lengths, "b": lengths + 30}, {"a": 1, "b": 3}, sequence_length=64, packing_rows=window)

    unbroken = fresh()
    rows = [next(unbroken) for _ in range(first + second + 20)]
    broken = fresh()
    for start, count in ((0, first), (first, second)):
        assert [next(broken) for _ in range(count)] == rows[start : start + count]
        state = json.dumps(broken.state())
        broken = fresh()
        broken.restore(json.loads(state))
    assert [next(broken) for _ in range(20)] == rows[first + second :]
    broken.restore(json.loads(state))  # back again with the same planner
    assert [next(broken) for _ in range(20)] == rows[first + second :]


def test_tokens_follow_the_weights_whatever_the_lengths_of_documents():
    rng = np.random.default_rng(2)
    lengths = {
        "books": rng.integers(20_000, 90_000, 20),
        "chats": rng.integers(20, 200, 500),
        "web": rng.integers(2, 3000, 300),
    }
    weights = {"books": 0.5, "chats": 0.2, "web": 0.3}
    plan = planner(lengths, weights, sequence_length=512, packing_rows=32)
    tokens = Counter()
    for _ in range(3000):
        for piece in next(plan):
            tokens[list(lengths)[piece.source]] += piece.pairs
    total = sum(tokens.values())
    for name, weight in weights.items():
        assert tokens[name] / total == pytest.approx(weight, abs=0.002)
    assert 1 - total / (3000 * 512) < 0.01, "padding"


def test_length_classes_have_their_shares_and_nothing_else_is_drawn():
    """The report's third stage: 75% of text 16,384 to 32,768 tokens long, 25% 4,096 to 16,384."""
    rng = np.random.default_rng(3)
    lengths = np.exp(rng.uniform(np.log(500), np.log(200_000), 3000)).astype(int)
    classes = [LengthShare(16384, 32768, 0.75), LengthShare(4096, 16384, 0.25)]
    plan = planner({"text": lengths}, sequence_length=32768, lengths=classes, packing_rows=128)
    pairs = [piece.pairs for _ in range(1000) for piece in next(plan)]
    assert min(pairs) > 4096
    long = sum(n for n in pairs if n > 16384)
    assert long / sum(pairs) == pytest.approx(0.75, abs=0.01)
    assert set(plan.state()["drawn"]) == {"text/16384-32768", "text/4096-16384"}


def test_sources_without_text_are_named():
    with pytest.raises(DataError, match="source 'short' has no text of more than 4096 and up to 8192 tokens"):
        planner({"short": [10, 20]}, sequence_length=8192, lengths=[LengthShare(4096, 8192, 1.0)])
    with pytest.raises(DataError, match="source 'empty' has no text to train on"):
        planner({"empty": [1, 0]})


def test_a_new_source_leaves_the_others_where_they_are():
    lengths = np.random.default_rng(4).integers(2, 90, 40)
    before = planner({"a": lengths}, sequence_length=64, packing_rows=4)
    for _ in range(50):
        next(before)
    state = before.state()
    after = planner({"a": lengths, "b": lengths}, sequence_length=64, packing_rows=4)
    after.restore(state | {"row": 0, "tokens": {}, "carried": []})
    assert after.state()["drawn"] == {"a": state["drawn"]["a"], "b": 0}


@functools.cache
def order(size, seed):
    return np.random.default_rng(seed).permutation(size)


@pytest.fixture(scope="module")
def quick_shuffle():
    """Grain's takes a millisecond per index where there are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            streams_module, "index_shuffle", lambda index, last, seed, rounds: int(order(last + 1, seed)[index])
        )
        yield


class Run:
    """Stages over two sources; what each prediction (source, document, place) was given is counted."""

    def __init__(self, lengths, **options):
        self.corpora = [Lengths(lengths) for lengths in lengths]
        self.base = DataConfig([Source(name, "x") for name in "ab"], packing_rows=4, **options)
        self.given, self.state = Counter(), None
        self.config = self.weights = None
        self.whole = Counter(
            (number, document, place)
            for number, corpus in enumerate(self.corpora)
            for document, length in enumerate(corpus.lengths.tolist())
            for place in range(length - 1)
        )

    def stage(self, weights, rows, **cut):
        config = dataclasses.replace(self.base, **cut)
        state = None if self.state is None else self.boundary(config)
        earlier = [] if state is None else state.get("earlier", [])
        plan = RowPlanner(config, streams(config, self.corpora, weights, earlier), earlier)
        if state is not None:
            plan.restore(state)
        for _ in range(rows):
            row = next(plan)
            assert sum(piece.pairs for piece in row) <= config.sequence_length
            self.given.update(predictions(row))
        self.config, self.weights, self.state = config, weights, json.loads(json.dumps(plan.state()))
        return plan

    def boundary(self, config):
        return json.loads(json.dumps(at_boundary(self.state, self.config, self.weights, config, self.corpora)))

    def left(self):
        """What the epochs in progress still have to give, from the state alone."""
        state = self.boundary(self.config)
        out = Counter(
            p for pieces in state.get("returned", {}).values() for p in predictions(Piece(*one) for one in pieces)
        )
        for stream in streams(self.config, self.corpora, {"a": 1.0, "b": 1.0}, state.get("earlier", [])):
            columns = (column.tolist() for column in stream.left(state["drawn"].get(stream.key, 0)))
            out.update(predictions(Piece(stream.source, *one) for one in zip(*columns, strict=True)))
        return out


def predictions(pieces):
    return [(piece.source, piece.document, piece.start + i) for piece in pieces for i in range(piece.pairs)]


STAGES = st.lists(
    st.tuples(
        st.sampled_from([{"a": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 9.0, "b": 1.0}]),
        st.integers(0, 12),
        st.sampled_from([24, 64, 100]),
    ),
    min_size=2,
    max_size=5,
)


@pytest.mark.usefixtures("quick_shuffle")
@settings(max_examples=25, deadline=None)
@given(STAGES)
def test_stages_repeat_and_skip_no_prediction_of_an_epoch(stages):
    """Other weights, sources left out and back again, other row lengths, boundaries in the middle of a packed window: what
    was given and what is left are the text, each prediction once."""
    rng = np.random.default_rng(5)
    run = Run([rng.integers(2, 250, 80), rng.integers(2, 60, 250)])
    for weights, rows, length in stages:
        run.stage(weights, rows, sequence_length=length)
    assert run.given + run.left() == run.whole


@pytest.mark.usefixtures("quick_shuffle")
def test_stages_of_many_epochs_and_of_length_classes_lose_nothing():
    """An epoch begins when the one before has been given, also where that was begun with another row length."""
    rng = np.random.default_rng(6)
    run = Run([rng.integers(2, 250, 40), rng.integers(2, 60, 30)])
    both = {"a": 1.0, "b": 1.0}
    for rows, length in ((90, 64), (50, 100), (120, 24), (40, 64)):
        run.stage(both, rows, sequence_length=length)
        for source in (0, 1):
            counts = [run.given[one] for one in run.whole if one[0] == source]
            assert max(counts) - min(counts) <= 2
            assert max(counts) >= 1
    # A stage of classes takes what is left of them; the text that it does not use comes later.
    run = Run([rng.integers(2, 250, 200), rng.integers(2, 60, 200)])
    run.stage(both, 10, sequence_length=64)
    classes = [LengthShare(30, 60, 0.5), LengthShare(80, 100, 0.5)]
    run.stage(both | {"b": 0.001}, 5, sequence_length=100, lengths=classes[:1])
    plan = run.stage({"a": 1.0}, 5, sequence_length=100, lengths=classes)
    assert {stream.key for stream in plan._streams} == {"a/30-60", "a/80-100"}
    assert max(run.given.values()) == 1
    run.stage(both, 20, sequence_length=64)
    assert max(run.given.values()) == 1
    assert run.given + run.left() == run.whole


def test_what_is_left_of_an_epoch():
    stream = Stream("a", 0, np.arange(5), np.zeros(5, np.int32), np.full(5, 3, np.int32), 1.0, seed=1)
    later = [stream.piece(i).document for i in (3, 4)]
    assert sorted(stream.left(3).document.tolist()) == sorted(later)
    assert sorted(stream.left(8).document.tolist()) == sorted(stream.piece(i).document for i in (8, 9))
    assert [len(stream.left(count).pairs) for count in (0, 1, 5, 6, 10)] == [5, 4, 0, 4, 0]
    rested = dataclasses.replace(stream, rest=streams_module.Pieces(*(np.array([7, 8]) for _ in range(3))))
    assert sorted(rested.piece(i).document for i in (0, 1)) == [7, 8]
    assert [len(rested.left(count).pairs) for count in (0, 1, 2, 3, 7)] == [2, 1, 0, 4, 0]
    assert sorted(rested.piece(i).document for i in range(2, 7)) == [0, 1, 2, 3, 4]
    nothing = dataclasses.replace(stream, rest=streams_module.Pieces(*(np.array([], int) for _ in range(3))))
    assert [len(nothing.left(count).pairs) for count in (0, 1, 5)] == [0, 4, 0]
