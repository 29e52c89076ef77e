"""From paths to records: files and URLs found, cut into splits, and read as a stream.

    for split in splits(source):              # a few dozen megabytes each, in order; one worker reads one
        for record in read(split, source):    # Record, or Malformed where a record cannot be used

Files are sorted by their path below the folder or glob they were found by, so splits are the same on every machine. JSONL
that is not compressed is cut by bytes, Parquet by row groups, ArrayRecord by records; compressed files are read whole.
Only the current record is in memory. Local paths and every URL that fsspec knows (gs://, s3://, https://, ...) are read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.core import url_to_fs

from qwen3_jax.data.config import RUNNING_SUM, STDLIB, DataConfig, RunningSum, Source
from qwen3_jax.data.reasoning import RunningSumRecords
from qwen3_jax.data.records import DataError, Malformed, Record, texts
from qwen3_jax.errors import UserError

Kind = Literal["text", "jsonl", "parquet", "arrayrecord", "synthetic"]

SPLIT_BYTES = 32 * 2**20
_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrayrecord": "arrayrecord",
    ".array_record": "arrayrecord",
}  # fmt: skip
_COMPRESSED = {".gz", ".zst"}
_UNREADABLE = {".bz2", ".xz", ".zip", ".tar", ".tgz", ".tfrecord", ".bin", ".npy"}
_TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_PROBLEM_BYTES = 4096  # a generated problem is as much work as so much text
LAST_KEY = 2**64 - 1


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file or URL, its path below the folder or glob it was found by (the same on any machine), and its size in bytes."""

    url: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one file: bytes of JSONL, row groups of Parquet, records of ArrayRecord, numbers of generated problems; of
    text and of compressed files, everything."""

    file: CorpusFile
    kind: Kind
    start: int = 0
    stop: int | None = None


Split = tuple[Part, ...]


def splits(source: Source, seed: int = 0, size: int = SPLIT_BYTES) -> list[Split]:
    """Cut a source into pieces of work of about `size` bytes, in order.

    Args:
        source: its paths and format.
        seed: of generated problems.
        size: bytes as they lie in the files.

    Raises:
        DataError: a path matches nothing, or a file is of a format that is not read.
    """
    out: list[Split] = []
    held: list[Part] = []
    filled = 0
    for part, weight in _parts(source, seed, size):
        if held and filled + weight > size:
            out.append(tuple(held))
            held, filled = [], 0
        held.append(part)
        filled += weight
    return [*out, tuple(held)] if held else out


def read(split: Split, source: Source, seed: int = 0) -> Iterator[Record | Malformed]:
    """The records of one split, in order.

    Raises:
        DataError: a file cannot be opened or read at all.
    """
    for part in split:
        try:
            yield from _READERS[part.kind](part, source, seed)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{part.file.url}: cannot be read: {error}") from error


def training_texts(config: DataConfig, max_records: int = 2000) -> Iterator[str]:
    """Plain texts to train a tokenizer on: up to `max_records` training records of each source, from all over it.

    Held-out documents are left out, so that held-out loss stays honest.
    """
    for source in config.sources:
        pieces = splits(source, config.seed, size=2**20)
        wanted = pieces[:: max(len(pieces) // 64, 1)]
        share = -(-max_records // len(wanted))
        for split in wanted:
            given = 0
            for record in read(split, source, config.seed):
                if isinstance(record, Malformed) or record.key < source.eval_fraction * 2**64:
                    continue
                yield from texts(record, source.text_key)
                given += 1
                if given == share:
                    break


def find_files(source: Source) -> list[CorpusFile]:
    """The source's files, sorted by path, each once.

    Raises:
        DataError: an entry of `path` matches no file, or names a format that is not read here.
    """
    by_url: dict[str, CorpusFile] = {}
    for entry in source.paths:
        files = list(_expand(entry, source))
        if not files:
            raise DataError(f"source {source.name!r}: no file matches {entry!r}")
        by_url.update((file.url, file) for file in files)
    for url in by_url:
        suffix = os.path.splitext(url)[1].lower()
        if suffix in _UNREADABLE:
            raise DataError(
                f"source {source.name!r}: {url} is a {suffix} file; text, JSONL (also .gz, .zst), "
                "Parquet and ArrayRecord are read"
            )
    return [by_url[url] for url in sorted(by_url)]


def key_of(file: str, place: int) -> int:
    """64 bits from the file's path and the record's place in it: what decides whether a document is held out."""
    return int.from_bytes(hashlib.blake2b(f"{file}\0{place}".encode(), digest_size=8).digest(), "big")


def _parts(source: Source, seed: int, size: int) -> Iterator[tuple[Part, int]]:
    """Every stretch with about its number of bytes."""
    if source.is_synthetic:
        settings = source.running_sum or RunningSum()
        for split, count in (("train", settings.problems), ("eval", settings.eval_problems)):
            file = CorpusFile(RUNNING_SUM, split, 0)
            step = max(size // _PROBLEM_BYTES, 1)
            for start in range(0, count, step):
                stop = min(start + step, count)
                yield Part(file, "synthetic", start, stop), (stop - start) * _PROBLEM_BYTES
        return
    for file in find_files(source):
        kind = _kind(file, source)
        if kind == "jsonl" and not _compression(file.url):
            for start in range(0, max(file.size, 1), size):
                yield Part(file, kind, start, min(start + size, file.size)), min(size, file.size - start)
        elif kind == "parquet":
            with _parquet(file) as reader:
                groups = [reader.metadata.row_group(i).total_byte_size for i in range(reader.num_row_groups)]
            for i, weight in enumerate(groups):
                yield Part(file, kind, i, i + 1), weight
        elif kind == "arrayrecord":
            records = len(_array_record(file))
            step = max(records * size // max(file.size, 1), 1)
            for start in range(0, records, step):
                stop = min(start + step, records)
                yield Part(file, kind, start, stop), (stop - start) * file.size // records
        else:
            yield Part(file, kind), file.size


def _expand(entry: str, source: Source) -> Iterator[CorpusFile]:
    if entry == STDLIB:
        yield from _stdlib()
        return
    if entry.startswith((STDLIB, "synthetic:")):
        raise DataError(
            f"source {source.name!r}: unknown path {entry!r}; it may be a path, a URL, {STDLIB!r} or {RUNNING_SUM!r}"
        )
    try:
        system, path = url_to_fs(os.path.expanduser(entry))
        if system.isdir(path):
            listing, base = system.find(path, detail=True), path
        elif any(letter in path for letter in "*?["):
            listing, base = system.glob(path, detail=True), path[: min(path.find(c) for c in "*?[" if c in path)]
            base = base.rpartition("/")[0]
        elif system.exists(path):
            listing, base = {path: system.info(path)}, path.rpartition("/")[0]
        else:
            return
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is not installed
        raise DataError(f"source {source.name!r}: {entry!r} cannot be read: {error}") from None
    for name, info in listing.items():
        below = name[len(base) :].lstrip("/")
        if info["type"] != "file" or any(part.startswith(".") for part in below.split("/")):
            continue
        if system.isdir(path) and source.format not in ("auto", "text") and _by_suffix(name) != source.format:
            continue  # of a folder, the files of that format
        yield CorpusFile(system.unstrip_protocol(name) if "://" in entry else name, below, int(info["size"] or 0))


def _stdlib() -> Iterator[CorpusFile]:
    """This interpreter's standard library, without tests: some 10 MB of source text on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in root.rglob("*.py"):
        relative = file.relative_to(root)
        # A venv or a distribution may put its packages below the standard library.
        if not _TEST_FOLDERS.intersection(relative.parts[:-1]):
            yield CorpusFile(str(file), relative.as_posix(), file.stat().st_size)


def _compression(url: str) -> str | None:
    suffix = os.path.splitext(url)[1].lower()
    return suffix if suffix in _COMPRESSED else None


def _by_suffix(url: str) -> Kind:
    stem, suffix = os.path.splitext(url.lower())
    return _KINDS.get(os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix, "text")


def _kind(file: CorpusFile, source: Source) -> Kind:
    return _by_suffix(file.url) if source.format == "auto" else source.format


@contextmanager
def _opened(file: CorpusFile) -> Iterator[IO[bytes]]:
    with fsspec.open(file.url, "rb") as stream:
        match _compression(file.url):
            case ".gz":
                yield cast(IO[bytes], gzip.GzipFile(fileobj=stream))
            case ".zst":
                yield io.BufferedReader(_Zstandard(stream, file.url), 2**17)
            case _:
                yield stream


class _Zstandard(io.RawIOBase):
    """Decompresses every frame of a stream; a frame that ends early is an `EOFError`, which zstandard's reader misses."""

    def __init__(self, stream: IO[bytes], url: str):
        try:
            import zstandard
        except ImportError:
            raise UserError(f'{url} needs the package zstandard: pip install "qwen3-jax[data]"') from None
        self._stream, self._error = stream, zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._raw, self._plain = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        while not self._plain:
            self._raw = self._raw or self._stream.read(2**17)
            if not self._raw:
                if self._frame:
                    raise EOFError("the compressed data ends early")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._plain = memoryview(self._frame.decompress(self._raw))
            except self._error as error:
                raise OSError(str(error)) from error
            self._raw = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(out), len(self._plain))
        out[:size], self._plain = self._plain[:size], self._plain[size:]
        return size


def _read_text(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    with _opened(part.file) as stream:
        raw = stream.read()
    if raw:
        text = _decoded(raw, part.file.url)
        key = key_of(part.file.key, 0)
        yield text if isinstance(text, Malformed) else Record(part.file.url, {source.text_key: text}, key)


def _read_jsonl(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    """Lines that begin in this stretch; blank lines are passed over and count in line numbers."""
    with _opened(part.file) as stream:
        offset = part.start
        if offset:
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1
        number = 0
        while part.stop is None or offset < part.stop:
            line = stream.readline()
            if not line:
                return
            number += 1
            place, offset = offset, offset + len(line)
            if not line.isspace():
                # Within a large file lines cannot be counted without reading what comes before.
                location = f"{part.file.url}:{number}" if part.start == 0 else f"{part.file.url} at byte {place}"
                yield _json_record(line, location, key_of(part.file.key, place))


def _read_parquet(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    with _parquet(part.file) as reader:
        before = sum(reader.metadata.row_group(i).num_rows for i in range(part.start))
        for batch in reader.iter_batches(batch_size=256, row_groups=list(range(part.start, part.stop or 0))):
            for row in batch.to_pylist():
                body = {name: value for name, value in row.items() if value is not None}
                yield Record(f"{part.file.url} row {before + 1}", body, key_of(part.file.key, before))
                before += 1


def _read_arrayrecord(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    records = _array_record(part.file)
    for number in range(part.start, part.stop or 0):
        location, key, raw = f"{part.file.url} record {number}", key_of(part.file.key, number), records[number]
        if raw[:1] == b"{":
            yield _json_record(raw, location, key)
        else:
            text = _decoded(raw, location)
            yield text if isinstance(text, Malformed) else Record(location, {source.text_key: text}, key)


def _read_synthetic(part: Part, source: Source, seed: int) -> Iterator[Record]:
    split: Any = part.file.key
    records = RunningSumRecords(source.running_sum or RunningSum(), split, seed, source.eval_fraction)
    for number in range(part.start, part.stop or 0):
        problem = records[number]
        yield Record(problem.location, problem.body, 0 if split == "eval" else LAST_KEY)


_READERS = {
    "text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet, "arrayrecord": _read_arrayrecord,
    "synthetic": _read_synthetic,
}  # fmt: skip


@contextmanager
def _parquet(file: CorpusFile) -> Iterator[Any]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f'{file.url} needs the package pyarrow: pip install "qwen3-jax[data]"') from None
    try:
        with fsspec.open(file.url, "rb") as stream:
            yield arrow.parquet.ParquetFile(stream)
    except arrow.ArrowException as error:
        raise DataError(f"{file.url}: not a whole Parquet file: {error}") from error


def _array_record(file: CorpusFile) -> Any:
    from grain.sources import ArrayRecordDataSource

    if "://" in file.url:
        raise DataError(
            f"{file.url}: ArrayRecord is read from local paths alone; mount the bucket (gcsfuse) or copy the file"
        )
    try:
        return ArrayRecordDataSource([file.url])
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{file.url}: not a whole ArrayRecord file: {error}") from error


def _json_record(raw: bytes, location: str, key: int) -> Record | Malformed:
    text = _decoded(raw, location)
    if isinstance(text, Malformed):
        return text
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        return Malformed(f"{location}: not valid JSON: {error.msg} at column {error.colno}")
    if not isinstance(body, dict):
        return Malformed(f"{location}: a JSON object is wanted, got {type(body).__name__}")
    return Record(location, body, key)


def _decoded(raw: bytes, location: str) -> str | Malformed:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Malformed(f"{location}: not valid UTF-8 at byte {error.start}")
