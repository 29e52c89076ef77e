"""One split of a corpus becomes one shard: the work of `qwen3 data prepare`, wherever it runs.

    sign_split(job, 7, split)              # signatures, where duplicates are looked for
    prepare_split(job, 7, split, drop)     # 00007.arrayrecord, and its columns and counts below parts/

A shard depends on its split and the job's settings alone. Every file gets its name when it is whole, and the counts are written
last: a shard without them is made again. Memory is that of one batch of records.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import uuid
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data import cleaning
from qwen3_jax.data.config import Source
from qwen3_jax.data.labels import Labelled, label
from qwen3_jax.data.prepared import COLUMNS, encode_record
from qwen3_jax.data.records import (
    DataError,
    Document,
    Encoded,
    Malformed,
    Record,
    TextTokenizer,
    documents,
    encode,
    form_of,
    texts,
)
from qwen3_jax.data.sources import Split, read
from qwen3_jax.errors import UserError

PARTS, FILES, KEYS = "parts", "files.json", "keys"
NAMED = ("domain", "language")
_MOST_NAMES = 2**15
# Records encoded in one call: at most this many records, or about this many characters.
_BATCH, _BATCH_CHARACTERS = 64, 2**20


@dataclass(frozen=True)
class PreparationJob:
    """Everything that the work on one split needs, besides the split.

    Attributes:
        source: paths, format, labels, cleaning.
        tokenizer: encodes.
        folder: where shards are written (OUTPUT.partial).
        seed: of generated problems.
    """

    source: Source
    tokenizer: TextTokenizer
    folder: Path
    seed: int

    def part(self, number: int, suffix: str) -> Path:
        """A file about one split."""
        return self.folder / PARTS / f"{number:05d}{suffix}"

    def shard(self, number: int) -> Path:
        """The documents of one split."""
        return self.folder / f"{number:05d}.arrayrecord"

    @property
    def held_out_file(self) -> Path:
        """The n-grams of the held-out sets."""
        return self.folder / PARTS / "held_out.npy"

    @cached_property
    def held_out(self) -> cleaning.HeldOut | None:
        """What must not be trained on."""
        if not self.source.cleaning.held_out:
            return None
        return cleaning.HeldOut(np.load(self.held_out_file, mmap_mode="r"), self.source.cleaning.ngram)


@dataclass(frozen=True)
class Shard:
    """What became of one split: counts, the keys of its records, and those of them that were read; the rest lies on disk."""

    number: int
    documents: int
    tokens: int
    bytes: int
    text_bytes: int
    duplicates: int
    held_out: int
    malformed: int
    keys: list[str] = dataclasses.field(default_factory=list)
    keys_read: list[str] = dataclasses.field(default_factory=list)


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Lock a file against other processes until the block ends, however this process ends.

    Raises:
        UserError: another process has it; says `refusal`.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(refusal) from None
        yield


def remove_leftovers(*folders: Path) -> None:
    """Remove the files that a killed process was writing; the folders are locked."""
    for folder in folders:
        for file in folder.glob("*.tmp"):
            if file.is_file():
                file.unlink()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to, which becomes `path` when all went well."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def assign_number(value: str, numbers: dict[str, int], label: str) -> int:
    """The number that stands for a domain or language; a value that has none yet gets the next one in `numbers`.

    Raises:
        DataError: there are more values than a column can hold.
    """
    number = numbers.setdefault(value, len(numbers))
    if number >= _MOST_NAMES:
        raise DataError(f"the label {label!r} has more than {_MOST_NAMES:,} values, the last of them {value!r}")
    return number


def prepare_split(job: PreparationJob, number: int, split: Split, drop: np.ndarray | None) -> Shard:
    """Write one shard with its columns, unless they are there; `drop` [records] marks the duplicates.

    Raises:
        DataError: more malformed records than allowed.
    """
    done = job.part(number, ".json")
    if done.exists():
        return Shard(**json.loads(done.read_text(encoding="utf-8")))
    work = _Work(job)
    with written_whole(job.shard(number)) as path:
        work.run(path, read(split, job.source, job.seed), drop)
        size = path.stat().st_size
    with written_whole(job.part(number, ".npz")) as path, path.open("wb") as stream:
        names = {f"{name}_names": np.array(list(numbers), dtype=str) for name, numbers in work.names.items()}
        arrays = {name: np.asarray(values, COLUMNS[name]) for name, values in work.columns.items()}
        np.savez(stream, allow_pickle=False, **arrays, **names)
    if work.malformed:
        with written_whole(job.part(number, ".log")) as path:
            path.write_text("".join(line + "\n" for line in work.malformed), encoding="utf-8")
    lengths = work.columns["lengths"]
    shard = Shard(
        number, len(lengths), sum(lengths), size, work.text_bytes, work.duplicates, work.held_out, len(work.malformed),
        sorted(work.keys), sorted(work.keys_read),
    )  # fmt: skip
    write_json(done, dataclasses.asdict(shard))
    return shard


def load_columns(job: PreparationJob, number: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The columns of one shard, and the names that its domain and language columns stand for."""
    with np.load(job.part(number, ".npz")) as arrays:
        return {name: arrays[name] for name in COLUMNS}, {name: arrays[f"{name}_names"].tolist() for name in NAMED}


def load_log(job: PreparationJob, number: int) -> list[str]:
    """What was malformed in one split."""
    path = job.part(number, ".log")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def sign_split(job: PreparationJob, number: int, split: Split) -> Path:
    """Write the signatures of a split's records (dtype `cleaning.SIGNATURE`, one for each, malformed ones too) one after the
    other; return the file."""
    path = job.part(number, ".signatures")
    if path.exists():
        return path
    near = job.source.cleaning.duplicates == "near"
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        for place, record in enumerate(read(split, job.source, job.seed)):
            try:
                signed = cleaning.signature(_text(record, job), near)
            except DataError:
                # Counted by prepare_split; here it must only resemble nothing else.
                own = hashlib.blake2b(f"{number}/{place}".encode(), digest_size=8).digest()
                signed = np.zeros((), cleaning.SIGNATURE)
                signed["exact"] = int.from_bytes(own, "little")
                signed["minhash"] = np.random.default_rng(list(own)).integers(0, 2**32, cleaning.BANDS * cleaning.ROWS)
            stream.write(signed.tobytes())
    return path


class _Work:
    """The records of one split on their way into a shard."""

    def __init__(self, job: PreparationJob):
        self._job = job
        self.columns: dict[str, array] = {name: array(np.dtype(kind).char) for name, kind in COLUMNS.items()}
        self.names: dict[str, dict[str, int]] = {name: {} for name in NAMED}
        self.malformed: list[str] = []
        self.duplicates = self.held_out = self.text_bytes = 0
        self.keys: set[str] = set()
        self.keys_read: set[str] = set()
        self._shapes: set[frozenset[str]] = set()

    def run(self, path: Path, records: Iterator[Record | Malformed], drop: np.ndarray | None) -> None:
        """Write the shard."""
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")  # any record can be read by itself
        try:
            waiting: list[tuple[Record, Labelled, list[Document]]] = []
            characters = 0
            for place, record in enumerate(records):
                try:
                    text = _text(record, self._job)
                    self.text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                    assert isinstance(record, Record)
                    self._note_keys(record)
                    if self._left_out(text, drop is not None and bool(drop[place])):
                        continue
                    source = self._job.source
                    record_documents = documents(
                        record, self._job.tokenizer, loss_on=source.loss_on, text_key=source.text_key
                    )  # fmt: skip
                    waiting.append((record, label(record, text, source.labels, source.name), record_documents))
                    characters += len(text)
                except DataError as error:
                    self._log(str(error))
                if len(waiting) == _BATCH or characters > _BATCH_CHARACTERS:
                    self._write(writer, waiting)
                    waiting, characters = [], 0
            self._write(writer, waiting)
        finally:
            writer.close()

    def _note_keys(self, record: Record) -> None:
        """Collect which keys records have, and which of them are read: looked at once for each set of keys."""
        shape = frozenset(key for key, value in record.body.items() if value is not None)
        if shape not in self._shapes and len(self.keys) < _MOST_NAMES:
            self._shapes.add(shape)
            self.keys |= shape
            self.keys_read |= form_of(record, self._job.source.text_key)[1] & shape

    def _left_out(self, text: str, duplicate: bool) -> bool:
        if duplicate:
            self.duplicates += 1
            return True
        held_out = self._job.held_out
        if held_out is not None and held_out.overlaps(text):
            self.held_out += 1
            return True
        return False

    def _write(self, writer: Any, waiting: list[tuple[Record, Labelled, list[Document]]]) -> None:
        for (record, labels, _), encoded in zip(waiting, self._encode(waiting), strict=True):
            for document in encoded:
                if len(document.tokens) < 2:
                    continue  # nothing to predict
                writer.write(encode_record(document))
                self.columns["lengths"].append(len(document.tokens))
                self.columns["quality"].append(labels.quality)
                self.columns["key"].append(record.key)
                for name in NAMED:
                    self.columns[name].append(assign_number(getattr(labels, name), self.names[name], name))

    def _encode(self, waiting: list[tuple[Record, Labelled, list[Document]]]) -> list[list[Encoded]]:
        """The encoded documents of each record: all in one call, and record by record where the tokenizer refuses that."""
        tokenizer = self._job.tokenizer
        try:
            encoded = iter(
                encode([document for *_, record_documents in waiting for document in record_documents], tokenizer)
            )
            return [[next(encoded) for _ in record_documents] for *_, record_documents in waiting]
        except DataError:
            raise
        except ValueError:
            out = []
            for record, _, record_documents in waiting:
                try:
                    out.append(encode(record_documents, tokenizer))
                except ValueError as error:  # half a surrogate pair, say, which JSON can spell and UTF-8 cannot
                    self._log(f"{record.location}: the tokenizer refuses the text: {error}")
                    out.append([])
            return out

    def _log(self, reason: str) -> None:
        limit = self._job.source.cleaning.max_malformed
        if len(self.malformed) == limit:
            more = f" (more malformed records than cleaning.max_malformed, {limit}, allows)" if limit else ""
            raise DataError(reason + more)
        self.malformed.append(" ".join(reason.split()))


def _text(record: Record | Malformed, job: PreparationJob) -> str:
    if isinstance(record, Malformed):
        raise DataError(record.reason)
    return "\n".join(texts(record, job.source.text_key))
