"""One split of a corpus becomes one shard: the work of `qwen3 data prepare`, wherever it runs.

    sign_split(job, 7, split)              # signatures, where duplicates are looked for
    prepare_split(job, 7, split, drop)     # 00007.arrayrecord, and its columns and counts below parts/

A shard depends on its split and the job's settings alone. Every file gets its name when it is whole, and the counts are written
last: a shard without them is made again. Memory is that of one batch of records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data import cleaning
from qwen3_jax.data.config import Source
from qwen3_jax.data.encoding import Read, encode_records, record_text
from qwen3_jax.data.labels import Labelled, label
from qwen3_jax.data.prepared import COLUMNS, encode_record
from qwen3_jax.data.records import DataError, Malformed, Record, TextTokenizer, form_of, pair_of
from qwen3_jax.data.sources import Split, read
from qwen3_jax.file_writes import write_json, written_whole

PARTS, FILES, KEYS = "parts", "files.json", "keys"
NAMED = ("domain", "language")
_MOST_NAMES = 2**15


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
    whole: int = 0
    keys: list[str] = dataclasses.field(default_factory=list)
    keys_read: list[str] = dataclasses.field(default_factory=list)


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
        work.whole, sorted(work.keys), sorted(work.keys_read),
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
                signed = cleaning.signature(record_text(record, job.source), near)
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
        self.duplicates = self.held_out = self.text_bytes = self.whole = 0
        self.keys: set[str] = set()
        self.keys_read: set[str] = set()
        self._shapes: set[frozenset[str]] = set()

    def run(self, path: Path, records: Iterator[Record | Malformed], drop: np.ndarray | None) -> None:
        """Write the shard."""
        from array_record.python.array_record_module import ArrayRecordWriter

        def is_wanted(place: int, record: Record, text: str) -> bool:
            self.text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            self._note_keys(record)
            return not self._left_out(text, drop is not None and bool(drop[place]))

        writer = ArrayRecordWriter(str(path), "group_size:1")  # any record can be read by itself
        try:
            for read in encode_records(records, self._job.source, self._job.tokenizer, is_wanted):
                try:
                    labels = self._labels(read)
                except DataError as error:
                    self._log(str(error))
                    continue
                self._write(writer, read, labels)
        finally:
            writer.close()

    def _note_keys(self, record: Record) -> None:
        """Collect which keys records have, and which of them are read: looked at once for each set of keys."""
        shape = frozenset(key for key, value in record.body.items() if value is not None)
        if shape not in self._shapes and len(self.keys) < _MOST_NAMES:
            self._shapes.add(shape)
            self.keys |= shape
            source = self._job.source
            read = pair_of(record) if source.pairs else form_of(record, source.text_key)
            self.keys_read |= read[1] & shape

    def _left_out(self, text: str, duplicate: bool) -> bool:
        if duplicate:
            self.duplicates += 1
            return True
        held_out = self._job.held_out
        if held_out is not None and held_out.overlaps(text):
            self.held_out += 1
            return True
        return False

    def _labels(self, read: Read) -> Labelled:
        """The labels of a record; raises DataError where it cannot be used."""
        if read.problem is not None:
            raise DataError(read.problem)
        assert isinstance(read.record, Record)
        return label(read.record, read.text, self._job.source.labels, self._job.source.name)

    def _write(self, writer: Any, read: Read, labels: Labelled) -> None:
        assert isinstance(read.record, Record)
        for document in read.documents:
            writer.write(encode_record(document))
            self.whole += bool(document.loss.all())
            self.columns["lengths"].append(len(document.tokens))
            self.columns["quality"].append(labels.quality)
            self.columns["key"].append(read.record.key)
            for name in NAMED:
                self.columns[name].append(assign_number(getattr(labels, name), self.names[name], name))

    def _log(self, reason: str) -> None:
        limit = self._job.source.cleaning.max_malformed
        if len(self.malformed) == limit:
            more = f" (more malformed records than cleaning.max_malformed, {limit}, allows)" if limit else ""
            raise DataError(reason + more)
        self.malformed.append(" ".join(reason.split()))
