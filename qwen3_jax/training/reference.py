"""Log-probabilities of preferences under the reference model of DPO, computed once and kept beside the run.

RUN/reference/SOURCE/key.json       what they were computed from: the prepared corpus and its tokenizer, the reference's files
RUN/reference/SOURCE/00000.npy ...  float32 [documents of this part, 2], chosen and rejected; NaN where a document is not used

A part is written whole or not at all, so an interrupted computation resumes after the last one. The first process writes; it
also says which parts there are, so that all processes compute the same ones together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
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
from qwen3_jax.json_fields import read_json
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.paths import is_url, replace_file
from qwen3_jax.progress import progress_bar
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.cross_entropy import token_log_probs
from qwen3_jax.training.losses import BATCH_FIELDS, LANGUAGE_MODEL, hidden_of
from qwen3_jax.training.methods import DpoConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.preferences import sums_of_segments
from qwen3_jax.training.step import Trainer
from sharding import Placement

_PART = 1024  # documents whose log-probabilities are one file

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
    out = []
    for number, (source, corpus) in enumerate(zip(config.data.sources, corpora, strict=True)):
        target = run_dir / "reference" / source.name
        _claim(target, {"corpus": _digest(corpus), "reference": identity(folder)}, key)
        lengths = np.asarray(corpus.lengths)
        used = np.flatnonzero(corpus.select(source.where) & (lengths <= length))
        starts = range(0, len(corpus), _PART)
        done = _agreed(
            [_is_done(_part(target, start), start, min(_PART, len(corpus) - start), used) for start in starts]
        )
        parts: list[np.ndarray] = []
        missing = done.count(False)
        with progress_bar("reference log-probabilities", missing, visible=None if missing > 1 else False) as bar:
            for start, is_done in zip(starts, done, strict=True):
                file, size = _part(target, start), min(_PART, len(corpus) - start)
                if is_done:
                    parts.append(_read(file, size))
                    continue
                log_probs = log_probs or _log_probs(folder, config, length, placement, corpora)
                part = np.full((size, 2), np.nan, np.float32)
                here = used[(used >= start) & (used < start + _PART)].tolist()
                rows = pack([Piece(number, document, 0, int(lengths[document])) for document in here], length)
                for row, values in zip(rows, log_probs(rows), strict=True):
                    part[[piece.document - start for piece in row]] = values
                _write(file, part)
                parts.append(part)
                bar.advance()
        out.append(np.concatenate(parts))
    return out


def _agreed(done: list[bool]) -> list[bool]:
    """What the first process says, on all of them."""
    if jax.process_count() == 1:
        return done
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(done))).tolist()


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
        placement=model.execution.placement,
    )  # fmt: skip
    return sums_of_segments(logp_bt * batch["loss_mask"], batch["segment_ids"])


def _fetch(values: jax.Array) -> np.ndarray:
    if values.is_fully_addressable:
        return np.asarray(values)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(values, tiled=True))


def _digest(corpus: Prepared) -> str:
    """A digest of all tokens of a corpus, and of what is learned of them: of its shards, wherever they lie."""
    whole = hashlib.blake2b(str(corpus.manifest["tokenizer"]).encode(), digest_size=16)
    for shard in corpus.manifest["shards"]:
        with open(corpus.folder / shard["file"], "rb") as file:
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()


def _claim(target: Path, key: dict[str, str], name: str) -> None:
    """Write what the log-probabilities of a folder are computed from, or compare it.

    Raises:
        UserError: they are of other weights or other data.
    """
    file = target / "key.json"
    if file.exists():
        saved = read_json(file)
        for what, of in (("reference", f"the weights of {name}"), ("corpus", "the prepared preferences")):
            if saved.get(what) != key[what]:
                raise UserError(
                    f"{target} holds log-probabilities for other files than {of} are now; restore those, or start a new run."
                )
    elif jax.process_index() == 0:
        if not is_url(target):
            target.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(key) + "\n")


def _read(file: Path, size: int) -> np.ndarray:
    """Read a part of `size` documents.

    Raises:
        UserError: it is damaged.
    """
    try:
        with file.open("rb") as stream:
            part = np.load(stream)
        if part.shape != (size, 2) or part.dtype != np.float32:
            raise ValueError(f"it holds {part.dtype} {part.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and the same command computes it again.") from None
    return part


def _is_done(file: Path, start: int, size: int, used: np.ndarray) -> bool:
    """Whether a part is there and has every document that is used; longer rows use more."""
    if not file.exists():
        return False
    here = used[(used >= start) & (used < start + size)] - start
    return bool(np.isfinite(_read(file, size)[here]).all())


def _part(target: Path, start: int) -> Path:
    return target / f"{start // _PART:05d}.npy"


def _write(file: Path, part: np.ndarray) -> None:
    """Write a part whole; in a bucket every write is."""
    if jax.process_index() != 0:
        return
    raw = io.BytesIO()
    np.save(raw, part)
    work = file if is_url(file) else file.with_name(file.name + ".tmp")
    work.write_bytes(raw.getvalue())
    if work is not file:
        work.replace(file)
