"""The files of a source: paths, folders, globs and URLs expanded, and files opened, decompressed where they are compressed.

Files are sorted by their path below the folder or glob they were found by, so they are in the same order on every machine.
Local paths and every URL that fsspec knows (gs://, s3://, https://, ...) are read.
"""

from __future__ import annotations

import gzip
import io
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.core import url_to_fs

from qwen3_jax.data.config import RUNNING_SUM, STDLIB, Source
from qwen3_jax.data.records import DataError
from qwen3_jax.errors import UserError

Kind = Literal["text", "json", "jsonl", "parquet", "arrayrecord", "synthetic"]

_KINDS: dict[str, Kind] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrayrecord": "arrayrecord",
    ".array_record": "arrayrecord",
}  # fmt: skip
_COMPRESSED = {".gz", ".zst"}
_UNREADABLE = {
    ".bz2", ".xz", ".lz4", ".7z", ".rar", ".zip", ".tar", ".tgz", ".tfrecord", ".bin", ".npy", ".npz", ".arrow", ".feather",
    ".orc", ".avro", ".pkl", ".pickle", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".msgpack", ".pdf", ".docx", ".xlsx",
}  # fmt: skip
_TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file or URL, its path below the folder or glob it was found by (the same on any machine), and its size in bytes."""

    url: str
    key: str
    size: int


def find_files(source: Source) -> list[CorpusFile]:
    """The source's files, sorted by path, each once.

    Raises:
        DataError: an entry of `path` matches no file, or names a format that is not read here.
    """
    by_url: dict[str, CorpusFile] = {}
    for entry in source.paths:
        files = list(_expand(entry, source))
        if not files:
            relative = "://" not in entry and not os.path.isabs(os.path.expanduser(entry))
            here = f" below {os.getcwd()}" if relative else ""
            raise DataError(f"source {source.name!r}: no file matches {entry!r}{here}")
        by_url.update((file.url, file) for file in files)
    for url in by_url:
        suffix = os.path.splitext(url)[1].lower()
        if suffix in _UNREADABLE:
            raise DataError(
                f"source {source.name!r}: {url} is a {suffix} file; text, JSON, JSONL (also .gz, .zst), "
                "Parquet and ArrayRecord are read"
            )
    return [by_url[url] for url in sorted(by_url)]


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


def compression(url: str) -> str | None:
    """The suffix of a compressed file, or None."""
    suffix = os.path.splitext(url)[1].lower()
    return suffix if suffix in _COMPRESSED else None


def _by_suffix(url: str) -> Kind:
    stem, suffix = os.path.splitext(url.lower())
    return _KINDS.get(os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix, "text")


def kind_of(file: CorpusFile, source: Source) -> Kind:
    """How a file of a source is read: as the source says, or by its suffix."""
    return _by_suffix(file.url) if source.format == "auto" else source.format


@contextmanager
def opened(file: CorpusFile) -> Iterator[IO[bytes]]:
    """Yield the bytes of a file, decompressed."""
    with fsspec.open(file.url, "rb") as stream:
        match compression(file.url):
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


@contextmanager
def open_parquet(file: CorpusFile) -> Iterator[Any]:
    """Yield a `pyarrow.parquet.ParquetFile`.

    Raises:
        UserError: pyarrow is not installed.
        DataError: the file is damaged.
    """
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


def open_array_record(file: CorpusFile) -> Any:
    from grain.sources import ArrayRecordDataSource

    if "://" in file.url:
        raise DataError(
            f"{file.url}: ArrayRecord is read from local paths alone; mount the bucket (gcsfuse) or copy the file"
        )
    try:
        return ArrayRecordDataSource([file.url])
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{file.url}: not a whole ArrayRecord file: {error}") from error
