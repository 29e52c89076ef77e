"""Rows of pieces, read from prepared corpora into arrays.

Of documents a row holds (input, target) pairs. Of preferences it holds both documents whole, the chosen one and the rejected
one as segments of their own: pair p of a row is segments 2p + 1 and 2p + 2, so that two segments never see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NotRequired, TypedDict

import numpy as np

from qwen3_jax.data.mixture import Row
from qwen3_jax.data.prepared import Prepared
from qwen3_jax.data.records import DataError, Encoded
from qwen3_jax.data.streams import Piece
from qwen3_jax.data.token_targets import StoredTargets


class Batch(TypedDict):
    """tokens, targets int32 [rows, T]: inputs, and the token that follows each.
    loss_mask float32 [rows, T]: 1 where the target is learned.
    segment_ids int32 [rows, T]: pieces count from 1 in each row, 0 is padding.
    positions int32 [rows, T]: from 0 in each piece.

    Of preferences also:
    last float32 [rows, T]: 1 at the last token of each document, whose target is 0 and not learned.
    reference float32 [rows, T]: at the first token of each document the log-probability of its learned tokens under the
    reference model, where that is known.

    Of documents with a teacher's most probable tokens also:
    teacher_ids int32 [rows, T, K]: the tokens, where the target is learned; -1 elsewhere and where there are fewer.
    teacher_log_probs float32 [rows, T, K]: their log-probabilities, in nats; 0 where there is no token.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    last: NotRequired[np.ndarray]
    reference: NotRequired[np.ndarray]
    teacher_ids: NotRequired[np.ndarray]
    teacher_log_probs: NotRequired[np.ndarray]


def empty_batch(rows: int, length: int, k: int | None = None) -> Batch:
    """Return a batch of padding [rows, length], with the fields of documents; with `k`, of k tokens of a teacher too."""
    shape = (rows, length)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        loss_mask=np.zeros(shape, np.float32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
    )
    if k is not None:
        batch["teacher_ids"] = np.full((*shape, k), -1, np.int32)
        batch["teacher_log_probs"] = np.zeros((*shape, k), np.float32)
    return batch


def read_rows(
    rows: Sequence[Row],
    corpora: Sequence[Prepared],
    length: int,
    reference: Sequence[np.ndarray] | None = None,
    targets: Sequence[StoredTargets] | None = None,
) -> Batch:
    """Fetch the tokens of some rows.

    Args:
        rows: the pieces of each.
        corpora: which the pieces are of; all of documents, or all of preferences.
        length: T.
        reference: of preferences, for each corpus the log-probabilities float32 [documents, 2] of chosen and rejected.
        targets: of documents, for each corpus the teacher's most probable tokens.

    Raises:
        DataError: a document is not as long as its corpus says.
        UserError: a file of `targets` is damaged.
    """
    shape = (len(rows), length)
    batch = empty_batch(*shape, None if targets is None else targets[0].k)
    if corpora and corpora[0].pairs:
        batch["last"] = np.zeros(shape, np.float32)
        if reference is not None:
            batch["reference"] = np.zeros(shape, np.float32)
    placed = []  # (piece, row, from, number of the piece in the row)
    for number, row in enumerate(rows):
        start = 0
        for place, piece in enumerate(row):
            placed.append((piece, number, start, place))
            start += piece.pairs
    placed.sort(key=lambda one: one[0])
    for source, group in groupby(placed, key=lambda one: one[0].source):
        members = list(group)
        numbers = sorted({piece.document for piece, *_ in members})
        documents = dict(zip(numbers, corpora[source].read(numbers), strict=True))
        for piece, row_number, start, place in members:
            document = documents[piece.document]
            if not corpora[source].pairs:
                if piece.start + piece.pairs >= len(document.tokens):
                    raise DataError(
                        f"{corpora[source].folder}: document {piece.document} is shorter than lengths.npy says."
                    )
                put_pairs(batch, document, piece.start, piece.pairs, row_number, start, place + 1)
                if targets is not None:
                    _put_targets(batch, targets[source], piece, document, row_number, start)
                continue
            if piece.pairs != len(document.tokens) or not document.rejected:
                raise DataError(
                    f"{corpora[source].folder}: preference {piece.document} is not as long as lengths.npy says."
                )
            stop = start + document.rejected
            chosen, rejected = document.sides()
            _put_document(batch, chosen, row_number, start, 2 * place + 1)
            _put_document(batch, rejected, row_number, stop, 2 * place + 2)
            if reference is not None:
                batch["reference"][row_number, [start, stop]] = reference[source][piece.document]
    return batch


def put_pairs(batch: Batch, document: Encoded, first: int, pairs: int, row: int, start: int, segment: int) -> None:
    """Put (input, target) pairs of a document, from token `first` on, into a row, from place `start` on."""
    here, stop = slice(start, start + pairs), first + pairs
    batch["tokens"][row, here] = document.tokens[first:stop]
    batch["targets"][row, here] = document.tokens[first + 1 : stop + 1]
    batch["loss_mask"][row, here] = document.loss[first + 1 : stop + 1]
    batch["segment_ids"][row, here] = segment
    batch["positions"][row, here] = np.arange(pairs)


def _put_targets(batch: Batch, of: StoredTargets, piece: Piece, document: Encoded, row: int, start: int) -> None:
    """Put the teacher's tokens at the learned targets of a piece; those of the document's first token are of no place."""
    learned = document.loss[piece.start + 1 : piece.start + piece.pairs + 1]
    before = int(document.loss[1 : piece.start + 1].sum())
    ids, log_probs = of.read(piece.document, before, int(learned.sum()))
    places = start + np.flatnonzero(learned)
    batch["teacher_ids"][row, places], batch["teacher_log_probs"][row, places] = ids, log_probs


def _put_document(batch: Batch, document: Encoded, row: int, start: int, segment: int) -> None:
    """Put a whole document; its last token has no target."""
    tokens, loss = document.tokens, document.loss
    end = start + len(tokens)
    batch["tokens"][row, start:end] = tokens
    batch["targets"][row, start : end - 1] = tokens[1:]
    batch["loss_mask"][row, start : end - 1] = loss[1:]
    batch["segment_ids"][row, start:end] = segment
    batch["positions"][row, start:end] = np.arange(len(tokens))
    batch["last"][row, end - 1] = 1
