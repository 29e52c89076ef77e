"""Losses on held-out text: by source, by domain, and by how far into its document a token stands. All in nats per token."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from qwen3_jax.data import Batch, Prepared, corpus_unigram_entropy, make_eval_batches
from qwen3_jax.errors import UserError
from qwen3_jax.training.config import Stage
from qwen3_jax.training.step import Params, Trainer


class HeldOut:
    """The held-out batches of a stage, by source, and by "source/domain" where a source has several.

    Args:
        stage: whose rows, and whose sources.
        corpora: one for each source.
        most: batches of each.
    """

    def __init__(self, stage: Stage, corpora: Sequence[Prepared], most: int):
        self.batches: dict[str, list[Batch]] = {}
        data = stage.run.data
        self._trained = stage.weights or [source.name for source in data.sources]
        for source, corpus in zip(data.sources, corpora, strict=True):
            if not source.eval_fraction or not corpus.held_out(source.eval_fraction).any():
                continue
            used = source.where.domain or corpus.names("domain")
            for domain in used:
                name, only = (source.name, None) if len(used) == 1 else (f"{source.name}/{domain}", domain)
                with contextlib.suppress(UserError):  # a domain of which nothing happens to be held out
                    self.batches[name] = make_eval_batches(data, corpora, source.name, most, only)
        self.entropy = {name: corpus_unigram_entropy(rows) for name, rows in self.batches.items()}

    def losses(self, trainer: Trainer, params: Params) -> dict[str, float]:
        """Return the cross-entropy of each."""
        return {name: _mean(trainer, params, rows) for name, rows in self.batches.items()}

    def by_position(self, trainer: Trainer, params: Params, edges: Sequence[int]) -> dict[str, float]:
        """Return {"0-4096": cross-entropy of the tokens at these positions of their document, ...}.

        Of all sources that the stage trains on: others would add their short texts to the first positions.
        """
        out = {}
        rows = [
            batch for name, some in self.batches.items() if name.partition("/")[0] in self._trained for batch in some
        ]
        for low, high in itertools.pairwise(edges):
            some = [_only(batch, low, high) for batch in rows]
            some = [batch for batch in some if batch["loss_mask"].any()]
            if some:
                out[f"{low}-{high}"] = _mean(trainer, params, some)
        return out


def position_edges(lengths: Iterable[int]) -> list[int]:
    """Return where to divide positions for stages of these lengths: 0, the lengths, and doublings between them."""
    ordered = sorted(set(lengths))
    edges = {0, *ordered}
    for low, high in itertools.pairwise(ordered):
        while (low := 2 * low) < high:
            edges.add(low)
    return sorted(edges)


def _only(batch: Batch, low: int, high: int) -> Batch:
    inside = (batch["positions"] >= low) & (batch["positions"] < high)
    return {**batch, "loss_mask": np.where(inside, batch["loss_mask"], np.float32(0))}


def _mean(trainer: Trainer, params: Params, batches: Iterable[Batch]) -> float:
    """Token-weighted mean of the cross-entropy."""
    parts = [trainer.evaluate(params, trainer.place(batch)) for batch in batches]
    return sum(float(p.cross_entropy) * float(p.tokens) for p in parts) / sum(float(p.tokens) for p in parts)
