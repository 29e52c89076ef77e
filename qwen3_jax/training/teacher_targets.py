"""What a student learns of a teacher's k most probable tokens: computed before the steps that learn it.

RUN/teacher/SOURCE/key.json        what the targets of a source were computed from: its documents, the teacher, k, temperature
RUN/teacher/SOURCE/server.json     of a teacher behind an address, the model that it is there
RUN/teacher/SOURCE/00000.top ...   the targets: `qwen3_jax.data.token_targets`

How parts are written and resumed: `qwen3_jax.training.document_parts`. Of a teacher behind an address the first process asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from qwen3_jax.checkpoint.identity import identity
from qwen3_jax.data import Encoded, Prepared
from qwen3_jax.data.batches import empty_batch, put_pairs
from qwen3_jax.data.mixture import pack
from qwen3_jax.data.streams import Piece
from qwen3_jax.data.token_targets import SUFFIX, StoredTargets, TopTokens, packed, read_counts
from qwen3_jax.errors import UserError
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.paths import fetch, is_url
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.document_parts import Parts, digest_of
from qwen3_jax.training.hosts import from_first
from qwen3_jax.training.losses import hidden_of
from qwen3_jax.training.method_checks import teacher_temperature
from qwen3_jax.training.step import DeviceBatch, Trainer
from qwen3_jax.training.teacher import KEY, load_teacher, teacher_folder, teacher_placement, teacher_trainer
from qwen3_jax.training.teacher_server import TeacherAtAddress
from qwen3_jax.training.token_values import TokenValues
from qwen3_jax.training.top_log_probs import top_log_probs

_WHAT = "log-probabilities"


class TopTeacher(Protocol):
    """A teacher, wherever it runs."""

    def top(self, documents: Sequence[Encoded], bar: Bar | None = None) -> list[TopTokens]:
        """Return the most probable tokens at the learned targets of each document; `bar` counts documents."""


class TeacherInProcess:
    """The most probable tokens of a teacher on the devices of this run.

    Args:
        config: the run.
        stage: whose rows hold the documents.
        trainer: of the student, in that stage.
        tokenizer: of the student.

    Raises:
        UserError: the teacher cannot be loaded or has another vocabulary.
        ShardingError: it does not divide over its mesh.
    """

    def __init__(self, config: TrainConfig, stage: Stage, trainer: Trainer, tokenizer: Tokenizer):
        settings, placement = config.distillation, teacher_placement(config, trainer.placement)
        assert settings is not None
        assert settings.top_k is not None
        self._vocabulary = trainer.config.vocab_size
        model = load_teacher(config, placement, tokenizer, self._vocabulary)
        self._params, self._length = flatten(model), stage.run.data.sequence_length
        # One micro-batch of the student is what fits.
        self._trainer, parts = teacher_trainer(config, model.config, placement, 1), placement.parts("batch")
        self._rows = parts * -(-stage.run.data.batch_size // (parts * trainer.micro_batches))
        k, temperature, chunk = settings.top_k, teacher_temperature(config), config.loss.chunk_tokens

        def of(model: Qwen3, rows: DeviceBatch) -> tuple[jax.Array, ...]:
            weight, tied = model.output_matrix()
            return tuple(top_log_probs(
                hidden_of(model, rows).states.astype(model.dtype), weight, k, tied=tied, chunk=chunk, placement=placement,
                temperature=temperature, needed_bt=rows["loss_mask"] > 0,
            ))  # fmt: skip

        self._values = TokenValues(self._trainer, of)

    def top(self, documents: Sequence[Encoded], bar: Bar | None = None) -> list[TopTokens]:
        """Return the most probable tokens at the learned targets of each document, which fits into a row."""
        rows = pack([Piece(0, number, 0, len(one.tokens) - 1) for number, one in enumerate(documents)], self._length)
        out: dict[int, TopTokens] = {}
        for first in range(0, len(rows), self._rows):
            some = rows[first : first + self._rows]
            batch, places = empty_batch(self._rows, self._length), []
            for row, pieces in enumerate(some):
                start = 0
                for segment, piece in enumerate(pieces, start=1):
                    put_pairs(batch, documents[piece.document], 0, piece.pairs, row, start, segment)
                    places.append((piece.document, row, slice(start, start + piece.pairs)))
                    start += piece.pairs
            ids, log_probs = self._values(self._params, self._trainer.place(batch))
            for number, row, here in places:
                learned = documents[number].loss[1:]
                out[number] = TopTokens.of(ids[row, here][learned], log_probs[row, here][learned], self._vocabulary)
            if bar is not None:
                bar.advance(len(places))
        return [out[number] for number in range(len(documents))]


def check_top_k(config: TrainConfig, vocabulary: int) -> None:
    """Refuse more tokens than there are.

    Raises:
        UserError: names distillation.top_k.
    """
    assert config.distillation is not None
    k = config.distillation.top_k
    if k is not None and k >= vocabulary:
        raise UserError(
            f"distillation.top_k is {k}, and the vocabulary has {vocabulary} rows; leave it out, and the whole distributions "
            "are compared."
        )


def stored_targets(
    run_dir: Path, config: TrainConfig, stages: Sequence[Stage], corpora: Sequence[Prepared],
    trainers: Sequence[Trainer], tokenizer: Tokenizer,
) -> list[StoredTargets] | None:  # fmt: skip
    """Return the targets of every corpus; what is not on disk yet is computed, and then the teacher leaves memory again. None
    where the run learns no top tokens of records.

    Args:
        run_dir: the run's folder.
        config: the run.
        stages, trainers: of the run.
        corpora: of documents, which fit into the rows of every stage.
        tokenizer: of the student.

    Raises:
        UserError: the teacher cannot be loaded or asked, or is not the one that the folder's targets are of.
    """
    settings = config.distillation
    if settings is None or settings.top_k is None or config.rl is not None:
        return None
    k, vocabulary = settings.top_k, trainers[0].config.vocab_size
    check_top_k(config, vocabulary)
    longest = max(range(len(stages)), key=lambda number: stages[number].run.data.sequence_length)
    names = {
        "corpus": "the prepared documents",
        "teacher": f"the weights of {KEY}, with distillation.top_k and temperature,",
    }
    of = settings.teacher if settings.is_server else identity(teacher_folder(config, tokenizer))
    key = {"teacher": f"{of}, top_k {k} of {vocabulary}, temperature {teacher_temperature(config):g}"}
    teacher: list[TopTeacher] = []

    def asked() -> str:
        """The name of the server's model; makes the teacher on the first process, once."""
        assert settings is not None
        if not teacher:
            server = TeacherAtAddress(settings, vocabulary)
            teacher.append(server)
            models.append(server.model)
        return models[0]

    models: list[str] = []
    out = []
    for source, corpus in zip(config.data.sources, corpora, strict=True):
        parts = Parts(run_dir / "teacher" / source.name, len(corpus), SUFFIX)
        parts.claim(key | {"corpus": digest_of(corpus)}, names, _WHAT)
        used = np.flatnonzero(corpus.select(source.where) & (np.asarray(corpus.lengths) > 1))
        missing = parts.missing(functools.partial(_is_done, parts, used, k, vocabulary))
        run: Callable[[Callable[[], None]], None] = from_first
        if missing and settings.is_server:
            parts.claim({"model": from_first(asked)}, {"model": f"the model of {KEY}"}, _WHAT, "server.json")
        elif missing:
            run = _call
            teacher = teacher or [TeacherInProcess(config, stages[longest], trainers[longest], tokenizer)]
        count = sum(len(parts.within(number, used)) for number in missing)
        with progress_bar(f"teacher, {source.name}", count) as bar:
            for number in missing:
                run(functools.partial(_compute, parts, number, corpus, used, teacher, k, vocabulary, bar))
        out.append(StoredTargets(_on_disk(parts.folder), len(corpus), k, vocabulary, parts.size))
    return out


def _compute(
    parts: Parts, number: int, corpus: Prepared, used: np.ndarray, teacher: Sequence[TopTeacher], k: int, vocabulary: int,
    bar: Bar,
) -> None:  # fmt: skip
    """Compute and write one part."""
    here = parts.within(number, used).tolist()
    top = dict(zip(here, teacher[0].top(corpus.read(here), bar), strict=True))
    parts.write(number, packed([top.get(document) for document in parts.range(number)], k, vocabulary))


def _call(function: Callable[[], None]) -> None:
    function()


def _is_done(parts: Parts, used: np.ndarray, k: int, vocabulary: int, number: int) -> bool:
    """Whether a part has every document that is used."""
    here = parts.range(number)
    counts = read_counts(parts.file(number), len(here), k, vocabulary)
    return bool((counts[parts.within(number, used) - here.start] >= 0).all())


def _on_disk(folder: Path) -> Path:
    """The folder, or a copy of it on this machine where it is in a bucket; after all processes have written."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("targets are written")
    return fetch(folder) if is_url(folder) else folder
