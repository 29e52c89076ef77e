"""Losses on held-out text by source, by domain and by position in the document, in nats per token."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.data import Batch, Prepared, corpus_unigram_entropy, make_eval_batches
from qwen3_jax.data.token_targets import StoredTargets
from qwen3_jax.errors import UserError
from qwen3_jax.training.config import Stage
from qwen3_jax.training.preferences import PairLoss
from qwen3_jax.training.step import Params, Trainer


class PositionLoss(NamedTuple):
    """The cross-entropy of the tokens of each held-out batch in a range of positions.

    Attributes:
        losses: float64 [batches], means in nats, 0 where there is no token; always of the same batches, so that two
            measurements of a run can be compared batch by batch.
        tokens: float64 [batches].
    """

    losses: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over all tokens."""
        return float(np.average(self.losses, weights=self.tokens))


class HeldOut:
    """The held-out batches of a stage, by source, and by "source/domain" where a source has several.

    Args:
        stage: row length, batch size and sources.
        corpora: the prepared corpus of each source.
        max_batches: most batches of each source or domain.
        reference, targets: of preferences, and of documents with a teacher; see `make_eval_batches`.

    Attributes:
        baseline: what to compare losses with: by source or domain the unigram entropy of its targets; of preferences log 2, the
            loss of a model that cannot tell them apart.
        named: the name of the baseline.
        accuracy: of preferences, the share of pairs whose chosen answer had the higher reward when `losses` was last called.
        router_load: of a model with experts, by source or domain [L, E]: the load of each expert, 1 is an even share, when
            `losses` was last called.
    """

    def __init__(
        self,
        stage: Stage,
        corpora: Sequence[Prepared],
        max_batches: int,
        reference: Sequence[np.ndarray] | None = None,
        targets: Sequence[StoredTargets] | None = None,
    ):
        self.batches: dict[str, list[Batch]] = {}
        data = stage.run.data
        self._trained = stage.weights or [source.name for source in data.sources]
        for source, corpus in zip(data.sources, corpora, strict=True):
            if not source.eval_fraction or not corpus.held_out(source.eval_fraction).any():
                continue
            domains = source.where.get("domain") or corpus.names("domain")
            for domain in domains:
                name, only = (source.name, None) if len(domains) == 1 else (f"{source.name}/{domain}", domain)
                with contextlib.suppress(UserError):  # no document of this domain is held out
                    self.batches[name] = make_eval_batches(
                        data, corpora, source.name, max_batches, only, reference, targets
                    )
        self.accuracy: dict[str, float] = {}
        self.router_load: dict[str, np.ndarray] = {}
        if any(corpus.pairs for corpus in corpora):
            self.named, self.baseline = "log 2, by chance,", dict.fromkeys(self.batches, math.log(2))
        else:
            self.named = "unigram entropy"
            self.baseline = {name: corpus_unigram_entropy(rows) for name, rows in self.batches.items()}

    def losses(self, trainer: Trainer, params: Params) -> dict[str, float]:
        """Return the mean loss of each source or domain, over its tokens or preferences."""
        out = {}
        for name, rows in self.batches.items():
            parts = _parts(trainer, params, rows)
            out[name] = _mean(parts)
            if parts[0].router_load is not None:
                counts = [float(part.tokens) for part in parts]
                self.router_load[name] = np.average([np.asarray(p.router_load) for p in parts], axis=0, weights=counts)
            if isinstance(parts[0], PairLoss):
                counts = [float(part.tokens) for part in parts]
                self.accuracy[name] = float(np.average([float(part.accuracies) for part in parts], weights=counts))
        return out

    def by_position(self, trainer: Trainer, params: Params, edges: Sequence[int]) -> dict[str, PositionLoss]:
        """Return {"0-4096": losses of the tokens at these positions of their document, ...}, ranges without a token left out.

        Over all sources that the stage trains on; the short texts of others would change the first positions.
        """
        out = {}
        rows = [
            batch for name, some in self.batches.items() if name.partition("/")[0] in self._trained for batch in some
        ]
        for low, high in itertools.pairwise(edges):
            some = [_within(batch, low, high) for batch in rows]
            has_tokens = np.asarray([batch["loss_mask"].any() for batch in some], bool)
            if has_tokens.any():
                parts = _parts(trainer, params, itertools.compress(some, has_tokens))
                of = PositionLoss(np.zeros(len(some)), np.zeros(len(some)))
                of.losses[has_tokens], of.tokens[has_tokens] = zip(
                    *((float(part.measure), float(part.tokens)) for part in parts), strict=True
                )
                out[f"{low}-{high}"] = of
        return out


def position_edges(lengths: Iterable[int]) -> list[int]:
    """Return the edges of position ranges for stages of these lengths: 0, the lengths, and powers of two between them."""
    ordered = sorted(set(lengths))
    edges = {0, *ordered}
    for low, high in itertools.pairwise(ordered):
        while (low := 2 * low) < high:
            edges.add(low)
    return sorted(edges)


def _within(batch: Batch, low: int, high: int) -> Batch:
    inside = (batch["positions"] >= low) & (batch["positions"] < high)
    return {**batch, "loss_mask": np.where(inside, batch["loss_mask"], np.float32(0))}


def _parts(trainer: Trainer, params: Params, batches: Iterable[Batch]) -> list[Any]:
    return [trainer.evaluate(params, trainer.place(batch)) for batch in batches]


def _mean(parts: Sequence[Any]) -> float:
    """Return the mean over tokens or preferences (not over batches, which differ in their number)."""
    return sum(float(p.measure) * float(p.tokens) for p in parts) / sum(float(p.tokens) for p in parts)
