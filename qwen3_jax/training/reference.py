"""Log-probabilities of preferences under the reference model of DPO, computed once and kept beside the run.

RUN/reference/SOURCE/key.json       what they were computed from: the prepared corpus and its tokenizer, the reference's files
RUN/reference/SOURCE/00000.npy ...  float32 [documents of this part, 2], chosen and rejected; NaN where a document is not used

How parts are written and resumed: `qwen3_jax.training.document_parts`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_jax.checkpoint import load_model
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.identity import identity
from qwen3_jax.data import Prepared, read_rows
from qwen3_jax.data.mixture import pack
from qwen3_jax.data.streams import Piece
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.progress import progress_bar
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.cross_entropy import token_log_probs
from qwen3_jax.training.document_parts import Parts, digest_of
from qwen3_jax.training.losses import BATCH_FIELDS, LANGUAGE_MODEL, hidden_of
from qwen3_jax.training.methods import DpoConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.preferences import sums_of_segments
from qwen3_jax.training.step import Trainer
from sharding import Placement

# pieces of a row, in order -> log-probabilities [pieces, 2]
LogProbs = Callable[[Sequence[Sequence[Piece]]], list[np.ndarray]]


def reference_log_probs(
    run_dir: Path, config: TrainConfig, stages: Sequence[Stage], corpora: Sequence[Prepared], placement: Placement
) -> list[np.ndarray] | None:
    """Return the log-probabilities of every corpus, float32 [documents, 2]; what is not on disk yet is computed. None where the
    run's method has no reference.

    Args:
        run_dir: the run's folder.
        config: the run.
        stages: whose rows are long enough for the documents that are used.
        corpora: of preferences.
        placement: the mesh on which they are computed.

    Raises:
        UserError: the reference cannot be loaded, or is not the one that the folder's log-probabilities are of.
    """
    if config.method != "dpo":
        return None
    name = (config.dpo or DpoConfig()).reference
    key = "model.init_from" if name is None else "dpo.reference"
    folder = resolve(name or str(config.model.init_from), key=key)
    length = max(stage.run.data.sequence_length for stage in stages)
    log_probs: LogProbs | None = None
    names = {"reference": f"the weights of {key}", "corpus": "the prepared preferences"}
    out = []
    for number, (source, corpus) in enumerate(zip(config.data.sources, corpora, strict=True)):
        parts = Parts(run_dir / "reference" / source.name, len(corpus), ".npy")
        parts.claim({"corpus": digest_of(corpus), "reference": identity(folder)}, names, "log-probabilities")
        lengths = np.asarray(corpus.lengths)
        used = np.flatnonzero(corpus.select(source.where) & (lengths <= length))
        missing = parts.missing(functools.partial(_is_done, parts, used))
        values: dict[int, np.ndarray] = {}
        with progress_bar(
            "reference log-probabilities", len(missing), visible=None if len(missing) > 1 else False
        ) as bar:
            for place in missing:
                log_probs = log_probs or _log_probs(folder, config, length, placement, corpora)
                here, start = parts.within(place, used).tolist(), parts.range(place).start
                part = np.full((len(parts.range(place)), 2), np.nan, np.float32)
                rows = pack([Piece(number, document, 0, int(lengths[document])) for document in here], length)
                for row, pairs in zip(rows, log_probs(rows), strict=True):
                    part[[piece.document - start for piece in row]] = pairs
                raw = io.BytesIO()
                np.save(raw, part)
                parts.write(place, raw.getvalue())
                values[place] = part
                bar.advance()
        out.append(
            np.concatenate([values[place] if place in values else _read(parts, place) for place in range(len(parts))])
        )
    return out


def _log_probs(
    folder: Path, config: TrainConfig, length: int, placement: Placement, corpora: Sequence[Prepared]
) -> LogProbs:
    """Load the reference; return the function that computes log-probabilities with it."""
    execution = Execution(placement, config.model.kernels, None)
    quantize = None
    if config.lora is not None and (config.dpo or DpoConfig()).reference is None:
        quantize = config.lora.quantize  # the base as the adapters are trained over
    model = load_model(
        folder, dtype=config.model.dtype, param_dtype=config.model.param_dtype, execution=execution,
        scan_layers=config.model.scan_layers, quantize=quantize,
    )  # fmt: skip
    params, data, chunk = flatten(model), config.data, config.loss.chunk_tokens
    trainer = Trainer(
        model.config, dataclasses.replace(config.model, quantization=None), config.optimizer, schedule(config.optimizer, 10**6),
        placement, config.loss, objective=dataclasses.replace(LANGUAGE_MODEL, fields=BATCH_FIELDS),
    )  # fmt: skip
    count = placement.parts("batch") * -(-data.batch_size // (placement.parts("batch") * config.micro_batches))

    @jax.jit
    def compute(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        model = trainer.structure.merge(params)
        return pair_log_probs(model, batch, chunk)

    def of_rows(rows: Sequence[Sequence[Piece]]) -> list[np.ndarray]:
        out: list[np.ndarray] = []
        for start in range(0, len(rows), count):
            some = [tuple(row) for row in rows[start : start + count]]
            batch: Any = read_rows([*some, *[()] * (count - len(some))], corpora, length)
            values = _fetch(compute(params, trainer.place(batch)))
            out += [values[i, : len(row)] for i, row in enumerate(some)]
        return out

    return of_rows


def pair_log_probs(model: Qwen3, batch: dict[str, jax.Array], chunk: int = 1024) -> jax.Array:
    """Return the log-probability of the learned tokens of both documents of every pair, float32 [B, T // 2, 2].

    Args:
        model: without gradient.
        batch: of preferences, [B, T].
        chunk: tokens per device whose logits are in memory at a time.
    """
    weight, tied = model.output_matrix()
    logp_bt = token_log_probs(
        hidden_of(model, batch).states.astype(model.dtype), weight, batch["targets"], tied=tied, chunk=chunk,
        placement=model.execution.placement, needed_bt=batch["loss_mask"] > 0,
    )  # fmt: skip
    return sums_of_segments(logp_bt * batch["loss_mask"], batch["segment_ids"])


def _fetch(values: jax.Array) -> np.ndarray:
    if values.is_fully_addressable:
        return np.asarray(values)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(values, tiled=True))


def _read(parts: Parts, number: int) -> np.ndarray:
    """Read a part.

    Raises:
        UserError: it is damaged.
    """
    file, size = parts.file(number), len(parts.range(number))
    try:
        with file.open("rb") as stream:
            part = np.load(stream)
        if part.shape != (size, 2) or part.dtype != np.float32:
            raise ValueError(f"it holds {part.dtype} {part.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and the same command computes it again.") from None
    return part


def _is_done(parts: Parts, used: np.ndarray, number: int) -> bool:
    """Whether a part has every document that is used; longer rows use more."""
    here = parts.within(number, used) - parts.range(number).start
    return bool(np.isfinite(_read(parts, number)[here]).all())
