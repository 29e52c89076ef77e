"""Random-access sources of records: folders of text, JSONL files, this machine's standard library.

`open_source(source, "train", seed)` gives what `grain.MapDataset.source` takes. Files are sorted by path, so an index
means the same record on every host and after every restart. JSONL files are scanned once for the offsets of their
lines (two int64 per line are kept); lines are read and parsed when asked for, so a malformed one is a `DataError`
when its turn comes. Files are opened per read: no handle is shared between threads or processes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Protocol

import numpy as np

from qwen3_jax.data.config import RUNNING_SUM, STDLIB, DataConfig, RunningSum, Source
from qwen3_jax.data.reasoning import RunningSumRecords, Split
from qwen3_jax.data.records import DataError, Record, texts

_UNREADABLE = {".gz", ".zst", ".bz2", ".xz", ".zip", ".parquet", ".arrayrecord", ".array_record", ".tfrecord"}
_TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class RecordSource(Protocol):
    """What grain reads from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def open_source(source: Source, split: Split, seed: int = 0) -> RecordSource:
    """The records of one split of a source; `seed` is that of generated problems.

    Raises:
        DataError: a path matches nothing, a file cannot be read, or nothing is in it.
    """
    if source.is_synthetic:
        return RunningSumRecords(source.running_sum or RunningSum(), split, seed, source.eval_fraction)
    return FileRecords(source, split)


def training_texts(config: DataConfig, max_records: int = 2000) -> Iterator[str]:
    """Plain texts to train a tokenizer on: up to `max_records` training records of each source, spread over it.

    Held-out documents are left out, so that held-out loss stays honest.
    """
    for source in config.sources:
        records = open_source(source, "train", config.seed)
        for i in range(0, len(records), -(-len(records) // max_records)):
            yield from texts(records[i], source.text_key)


class FileRecords:
    """The train or eval records of a source's files, in order of path and line."""

    def __init__(self, source: Source, split: Split):
        self._name, self._split = source.name, split
        self._files = [_open(file, source) for file in find_files(source)]
        self._ends = list(accumulate(len(file) for file in self._files))
        if not self._ends[-1]:
            raise DataError(f"source {source.name!r}: the files at {source.path!r} hold no documents")
        held_out = self._held_out(source.eval_fraction)
        self._indices = np.flatnonzero(held_out if split == "eval" else ~held_out)

    def __repr__(self) -> str:
        # Grain compares and logs sources by this text.
        return f"FileRecords({self._name!r}, {self._split!r}, {len(self)} records)"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        position = int(self._indices[index])
        file = bisect_right(self._ends, position)
        return self._files[file][position - (self._ends[file] - len(self._files[file]))]

    def _held_out(self, fraction: float) -> np.ndarray:
        """bool [documents]. A threshold on a hash, so a growing corpus never moves a document to the other side;
        where it leaves one side empty, the document nearest to the threshold crosses it (a lone one is trained on)."""
        hashes = np.concatenate([_hashes(file.key, len(file)) for file in self._files])
        held_out = hashes < np.uint64(fraction * 2**64)
        if len(hashes) > 1 and fraction > 0 and (held_out.all() or not held_out.any()):
            held_out[hashes.argmax() if held_out.all() else hashes.argmin()] ^= True
        return held_out if len(hashes) > 1 else np.zeros(1, dtype=bool)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file, and its path below the folder or glob it was found by: the same on any machine."""

    path: Path
    key: str


def find_files(source: Source) -> list[CorpusFile]:
    """The source's files, sorted by path, each once.

    Raises:
        DataError: an entry of `path` matches no file, or names a format that is not read here.
    """
    found: dict[Path, CorpusFile] = {}
    for entry in source.paths:
        files = [file for file in _expand(entry, source) if file.path.is_file()]
        if not files:
            raise DataError(f"source {source.name!r}: no file matches {entry!r}")
        found.update((file.path, file) for file in files)
    for path in found:
        if path.suffix.lower() in _UNREADABLE:
            raise DataError(f"source {source.name!r}: {path} is a {path.suffix} file; plain text and JSONL are read")
    return [found[path] for path in sorted(found)]


def _expand(entry: str, source: Source) -> Iterator[CorpusFile]:
    if entry == STDLIB:
        yield from _stdlib()
        return
    if entry.startswith((STDLIB, "synthetic:")) or "://" in entry:
        raise DataError(
            f"source {source.name!r}: unknown path {entry!r}; it may be a local path, {STDLIB!r} or {RUNNING_SUM!r}"
        )
    path = Path(entry).expanduser()
    if path.is_dir():
        for file in path.rglob("*"):
            relative = file.relative_to(path)
            wanted = source.format != "jsonl" or file.suffix == ".jsonl"
            if wanted and not any(part.startswith(".") for part in relative.parts):
                yield CorpusFile(file, relative.as_posix())
    elif path.exists():
        yield CorpusFile(path, path.name)
    else:
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        for match in glob.iglob(str(path), recursive=True):
            yield CorpusFile(Path(match), os.path.relpath(match, fixed))


def _stdlib() -> Iterator[CorpusFile]:
    """This interpreter's standard library, without tests: some 10 MB of source text on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in root.rglob("*.py"):
        relative = file.relative_to(root)
        # A venv or a distribution may put its packages below the standard library.
        if not _TEST_FOLDERS.intersection(relative.parts[:-1]):
            yield CorpusFile(file, relative.as_posix())


def _open(file: CorpusFile, source: Source) -> _TextFile | _JsonlFile:
    jsonl = source.format == "jsonl" or (source.format == "auto" and file.path.suffix == ".jsonl")
    return _JsonlFile(file) if jsonl else _TextFile(file, source.text_key)


class _TextFile:
    """One document, or none where the file is empty."""

    def __init__(self, file: CorpusFile, text_key: str):
        self.path, self.key, self._text_key = file.path, file.key, text_key
        self._length = int(file.path.stat().st_size > 0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        return Record(str(self.path), {self._text_key: _decode(self.path.read_bytes(), str(self.path))})


class _JsonlFile:
    """One JSON object per line; blank lines are passed over and count in line numbers."""

    def __init__(self, file: CorpusFile):
        self.path, self.key = file.path, file.key
        offsets, lines = array("q"), array("q")
        offset = 0
        with file.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.isspace():
                    offsets.append(offset)
                    lines.append(number)
                offset += len(line)
        self._offsets, self._lines = np.array(offsets, dtype=np.int64), np.array(lines, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        where = f"{self.path}:{self._lines[index]}"
        with self.path.open("rb") as stream:
            stream.seek(int(self._offsets[index]))
            text = _decode(stream.readline(), where)
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(body, dict):
            raise DataError(f"{where}: a JSON object is wanted, got {type(body).__name__}")
        return Record(where, body)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8 at byte {error.start}") from error


def _hashes(key: str, count: int) -> np.ndarray:
    """uint64 [count], one per document of the file: splitmix64 of the file's hash plus the document's number."""
    start = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    x = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
