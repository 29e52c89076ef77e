"""Packing keeps every (input, target) pair of every document exactly once, in order, and never mixes documents."""

from collections import Counter

import grain
import numpy as np
from data.helpers import segments_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data.pipeline import cut, pack
from qwen3_jax.data.records import Encoded

# Few token values, 0 among them: nothing may be told from the values.
DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=0, max_size=40), min_size=1, max_size=30
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(1, 17), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 9)))
def test_every_prediction_of_every_document_is_packed_exactly_once(raw, length, bins, shuffle_seed):
    documents = [
        Encoded(np.array([token for token, _ in doc], np.int32), np.array([loss for _, loss in doc], bool))
        for doc in raw
    ]
    chunks = [chunk for document in documents for chunk in cut(document, length)]
    expected = Counter(
        (*(tuple(map(float, chunk[name])) for name in ("tokens", "targets", "loss_mask")),) for chunk in chunks
    )
    # The chunks themselves hold doc[:-1], doc[1:] and the target's loss, in order.
    pairs = [
        pair for chunk in chunks for pair in zip(chunk["tokens"], chunk["targets"], chunk["loss_mask"], strict=True)
    ]
    assert pairs == [(doc[i][0], doc[i + 1][0], float(doc[i + 1][1])) for doc in raw for i in range(len(doc) - 1)]
    assert all(0 < len(chunk["tokens"]) <= length for chunk in chunks)
    assert sum(len(chunk["tokens"]) < length for chunk in chunks) <= len(raw), "only the last chunk is short"

    if not chunks:
        return
    rows = list(pack(grain.MapDataset.source(chunks).to_iter_dataset(), length, bins, shuffle_seed=shuffle_seed))
    found = Counter()
    for row in rows:
        assert {name: value.shape for name, value in row.items()} == dict.fromkeys(row, (length,))
        assert {name: value.dtype.name for name, value in row.items()} == {
            "tokens": "int32",
            "targets": "int32",
            "loss_mask": "float32",
            "segment_ids": "int32",
            "positions": "int32",
        }
        padding = row["segment_ids"] == 0
        assert not row["loss_mask"][padding].any()
        assert (np.diff(padding.astype(int)) >= 0).all(), "padding only at the end"
        for segment in segments_of(row):
            tokens, targets, loss, positions = zip(*segment, strict=True)
            assert positions == tuple(range(len(segment)))
            found[(tuple(map(float, tokens)), tuple(map(float, targets)), loss)] += 1
    assert found == expected
