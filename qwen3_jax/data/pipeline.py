"""Packed batches for training and evaluation, from prepared corpora, through Grain.

    corpora = open_sources(config, tokenizer, run_dir / "data")     # prepares what is not prepared yet
    loader = iter(make_train_loader(config, corpora))
    batch = next(loader)                                  # dict of numpy arrays [rows, T], see Batch
    position = json.dumps(loader.get_state())             # small: some integers per source
    loader.set_state(json.loads(position))                # the batches that follow are bit-identical

Invariants:
- The global batch of step s is a function of (config, corpora, s) only (`qwen3_jax.data.mixture`). A host plans all of it,
  which takes lengths and no tokens, and reads only its own rows.
- Rows hold pieces of any source; pieces of one row do not see each other (segment_ids, positions from 0 in each).
- Nothing depends on token values: segment_ids say what is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from qwen3_jax.data.batches import Batch, read_rows
from qwen3_jax.data.config import DataConfig, Source
from qwen3_jax.data.mixture import RowPlanner, pack
from qwen3_jax.data.preparation import prepare
from qwen3_jax.data.prepared import Prepared, is_prepared
from qwen3_jax.data.records import DataError, TextTokenizer
from qwen3_jax.data.streams import Piece, pieces_of, streams
from qwen3_jax.data.token_targets import StoredTargets
from qwen3_jax.errors import UserError, warn


def open_sources(
    config: DataConfig, tokenizer: TextTokenizer, folder: Path, *, visible: bool | None = None
) -> list[Prepared]:
    """Return the corpus of every source; raw ones are prepared into `config.cache`, or else `folder`, unless they lie there.

    Raises:
        DataError: data cannot be read, or was prepared with another tokenizer.
        UserError: what lies there was prepared from other files or with other settings.
    """
    out = []
    for source in config.sources:
        if len(source.paths) == 1 and is_prepared(source.paths[0]):
            corpus = Prepared(source.paths[0])
        else:
            parent = Path(config.cache).expanduser() if config.cache else folder
            corpus = prepare(source, tokenizer, parent / source.name, seed=config.seed, visible=visible)
        corpus.check_tokenizer(tokenizer)
        if corpus.pairs != source.pairs:
            one, other = ("preferences", "documents") if corpus.pairs else ("documents", "preferences")
            raise DataError(
                f"{corpus.folder} was prepared as {one}, and the run's method reads {other}; prepare its records "
                f"{'without' if corpus.pairs else 'with'} --pairs."
            )
        _warn_of_unlabelled(source, corpus)
        out.append(corpus)
    return out


def _warn_of_unlabelled(source: Source, corpus: Prepared) -> None:
    """Say how many documents an attached label passes over because they have none."""
    for name in source.where:
        label = corpus.attached.get(name)
        if label is not None and label.without:
            warn(
                f"source {source.name!r}: {label.without:,} of {len(corpus):,} documents have no label {name!r}, and "
                f"where.{name} leaves them out"
            )


def make_train_loader(
    config: DataConfig,
    corpora: Sequence[Prepared],
    *,
    weights: Mapping[str, float] | None = None,
    rows: Sequence[int] | None = None,
    reference: Sequence[np.ndarray] | None = None,
    targets: Sequence[StoredTargets] | None = None,
) -> grain.IterDataset[Batch]:
    """An endless dataset of batches; `iter()` of it has `get_state` and `set_state`.

    The state is a dict of integers that survives JSON; it is the same on all hosts, so any of them may store it, and any
    number of hosts may resume from it. Restoring costs planning one window of rows. Close the iterator when done
    (`contextlib.closing`): its thread reads ahead.

    Args:
        config: the mixture.
        corpora: of `open_sources`.
        weights: weights by source name, which replace the sources' own; a source without one is left out.
        rows: rows of the global batch to read on this host; all by default.
        reference: of preferences, for each corpus the log-probabilities float32 [documents, 2] under the reference model.
        targets: of documents, for each corpus the most probable tokens of a teacher.

    Raises:
        UserError: a weight of a source that there is not, or a row outside the batch.
        DataError: a source has nothing to train on.
    """
    chosen = range(config.batch_size) if rows is None else rows
    if not all(0 <= row < config.batch_size for row in chosen):
        raise UserError(f"rows {list(chosen)} are not all in a batch of {config.batch_size}")
    for name in weights or ():
        config.source(name)
    planned = _Planned(config, corpora, _shares(config, weights), chosen, reference, targets)
    return grain.experimental.ThreadPrefetchIterDataset(planned, prefetch_buffer_size=config.prefetch_batches)


def make_eval_batches(
    config: DataConfig,
    corpora: Sequence[Prepared],
    source_name: str,
    max_batches: int | None = None,
    domain: str | None = None,
    reference: Sequence[np.ndarray] | None = None,
    targets: Sequence[StoredTargets] | None = None,
) -> list[Batch]:
    """Batches of held-out documents, the same list each time; the last one is filled up with padding rows.

    Documents come in the order of their keys, which is random but fixed: the first `max_batches` are a sample of all. Length
    classes play no part, the source's `where` does.

    Args:
        source_name: the source.
        max_batches: the most; None is all.
        domain: only documents of this domain.
        reference, targets: as for `make_train_loader`.

    Raises:
        UserError: an unknown source, or nothing is held out.
    """
    if max_batches is not None and max_batches < 1:
        raise UserError(f"max_batches must be at least 1, got {max_batches}")
    source = config.source(source_name)
    number = config.sources.index(source)
    corpus = corpora[number]
    selected = source.where if domain is None else {**source.where, "domain": [domain]}
    used = np.flatnonzero(corpus.held_out(source.eval_fraction) & corpus.select(selected))
    used = used[np.argsort(np.asarray(corpus.key)[used], kind="stable")]
    pieces = list(_pieces(number, used, corpus, config.sequence_length))
    if max_batches is not None:
        room = max_batches * config.batch_size * config.sequence_length
        fits = np.cumsum([piece.pairs for piece in pieces]) <= room
        pieces = pieces[: max(int(fits.sum()), 1)]
    if not pieces:
        raise UserError(
            f"no document of {source_name!r} is held out: raise eval_fraction, or give more than one document"
        )
    limit = None if max_batches is None else max_batches * config.batch_size
    rows = pack(pieces, config.sequence_length)[:limit]
    batches = []
    for start in range(0, len(rows), config.batch_size):
        part = rows[start : start + config.batch_size]
        part += [()] * (config.batch_size - len(part))
        batches.append(read_rows(part, corpora, config.sequence_length, reference, targets))
    return batches


def corpus_unigram_entropy(batches: Sequence[Batch]) -> float:
    """Entropy in nats of the learned targets' own unigram counts: the loss of the best model that ignores context.

    Raises:
        UserError: no target in `batches` is learned.
    """
    targets = [batch["targets"][batch["loss_mask"] > 0] for batch in batches]
    counts = np.unique(np.concatenate(targets), return_counts=True)[1] if targets else np.zeros(0)
    if not counts.sum():
        raise UserError("the batches hold no target with a loss_mask above 0")
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def at_boundary(
    position: Mapping[str, Any],
    before: DataConfig,
    weights: Mapping[str, float] | None,
    now: DataConfig,
    corpora: Sequence[Prepared],
) -> dict[str, Any]:
    """Return the state with which the loader of the next stage continues; no text of the epoch is repeated or skipped.

    Args:
        position: the last state of the stage before.
        before, weights: what its loader was made with.
        now: the data of the next stage.
        corpora: of `open_sources`.
    """
    _check_same_text(position, before, _sizes(before, corpora))
    earlier = position.get("earlier", [])
    planner = RowPlanner(before, streams(before, corpora, _shares(before, weights), earlier), earlier)
    planner.restore(position)
    return planner.at_boundary(now)


def _shares(config: DataConfig, weights: Mapping[str, float] | None) -> Mapping[str, float]:
    return {source.name: source.weight for source in config.sources} if weights is None else weights


def _sizes(config: DataConfig, corpora: Sequence[Prepared]) -> dict[str, list[int]]:
    """Documents, tokens and the digests of attached labels that it is selected by, for each source: what tells that a prepared
    folder is no longer the one that a position counts in."""
    return {
        source.name: [
            len(corpus), int(np.asarray(corpus.lengths).sum(dtype=np.int64)),
            *(int(corpus.attached[name].digest, 16) for name in sorted(source.where) if name in corpus.attached),
        ]
        for source, corpus in zip(config.sources, corpora, strict=True)
    }  # fmt: skip


def _check_same_text(position: Mapping[str, Any], config: DataConfig, sizes: Mapping[str, list[int]]) -> None:
    """Refuse a position in other text: some of it would be repeated and some left out.

    Raises:
        DataError: names the source.
    """
    saved = position.get("text", {})
    for source in config.sources:
        name, (now, now_tokens, *labels) = source.name, sizes[source.name]
        documents, tokens, *saved_labels = saved.get(name, sizes[source.name])
        if (documents, tokens) == (now, now_tokens) and len(saved_labels) == len(labels) and saved_labels != labels:
            raise DataError(
                f"source {name!r}: the labels that where selects by have changed in {source.path!r} since the run was saved, "
                "so other documents would be read; restore them, or start a new run from the weights (model.init_from)."
            )
        if (documents, tokens) != (now, now_tokens):
            raise DataError(
                f"source {name!r} had {documents:,} documents of {tokens:,} tokens when the run was saved, and {source.path!r} "
                f"has {now:,} of {now_tokens:,}; restore that folder, or start a new run from the weights (model.init_from)."
            )


class _Planned(grain.IterDataset[Batch]):
    """The batches, planned and read one by one."""

    def __init__(
        self,
        config: DataConfig,
        corpora: Sequence[Prepared],
        weights: Mapping[str, float],
        rows: Sequence[int],
        reference: Sequence[np.ndarray] | None,
        targets: Sequence[StoredTargets] | None,
    ):
        super().__init__()
        self.config, self.corpora, self.weights, self.rows = config, corpora, weights, rows
        self.reference, self.targets = reference, targets
        self.streams, self.sizes = streams(config, corpora, weights), _sizes(config, corpora)

    def __iter__(self) -> _PlannedIterator:
        return _PlannedIterator(self)


class _PlannedIterator(grain.DatasetIterator[Batch]):
    def __init__(self, planned: _Planned):
        super().__init__()
        self._planned, self._planner = planned, RowPlanner(planned.config, planned.streams)

    def __next__(self) -> Batch:
        planned, config = self._planned, self._planned.config
        plan = [next(self._planner) for _ in range(config.batch_size)]
        rows = [plan[row] for row in planned.rows]
        return read_rows(rows, planned.corpora, config.sequence_length, planned.reference, planned.targets)

    def get_state(self) -> dict[str, Any]:
        return self._planner.state() | {"text": self._planned.sizes}

    def set_state(self, state: dict[str, Any]) -> None:
        config, earlier = self._planned.config, state.get("earlier", [])
        _check_same_text(state, config, self._planned.sizes)
        if earlier != self._planner.earlier:  # stages before this one cut text differently
            of = streams(config, self._planned.corpora, self._planned.weights, earlier)
            self._planner = RowPlanner(config, of, earlier)
        self._planner.restore(state)


def _pieces(source: int, documents: np.ndarray, corpus: Prepared, length: int) -> Iterator[Piece]:
    document, start, pairs = pieces_of(documents, corpus, length)
    for values in zip(document.tolist(), start.tolist(), pairs.tolist(), strict=True):
        yield Piece(source, *values)
