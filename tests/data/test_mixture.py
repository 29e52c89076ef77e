"""The plan of rows: every prediction once, shares of tokens, resume from any row, and little padding."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import DataConfig, LengthShare, Source
from qwen3_jax.data.mixture import Piece, RowPlanner, cut, pack, streams
from qwen3_jax.data.records import DataError


class Lengths:
    """What planning asks of a prepared corpus: no tokens."""

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
