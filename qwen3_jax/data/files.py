"""The files of a source: paths, folders, globs and URLs expanded, and files opened, decompressed where they are compressed.

Files are sorted by their path below the folder or glob they were found by, so they are in the same order on every machine.
Local paths and every URL that fsspec knows (gs://, s3://, https://, ...) are read.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.core import url_to_fs

from qwen3_jax.data.config import RUNNING_SUM, STDLIB, Source
from qwen3_jax.data.records import DataError
from qwen3_jax.errors import UserError
from qwen3_jax.text_files import LFS_POINTER, EncodingError, check_encoding, is_lfs_pointer

Kind = Literal["text", "json", "jsonl", "csv", "parquet", "arrayrecord", "synthetic"]

_KINDS: dict[str, Kind] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrayrecord": "arrayrecord", ".array_record": "arrayrecord",
}  # fmt: skip
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_UNREADABLE = {
    ".lz4", ".7z", ".rar", ".zip", ".tar", ".tgz", ".tfrecord", ".bin", ".npy", ".npz", ".arrow", ".feather", ".orc", ".avro",
    ".pkl", ".pickle", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".msgpack", ".pdf", ".epub", ".docx", ".xls", ".xlsx",
    ".sqlite",
}  # fmt: skip
_UNPACK = "unpack it, and give the folder"
_CONVERSIONS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _UNPACK),
    ".lz4": "`lz4 -d` unpacks it",
    ".arrow": "`datasets.load_from_disk(FOLDER).to_parquet(FILE)` writes one that is read",
    ".feather": "`pandas.read_feather(FILE).to_parquet(FILE)` writes one that is read",
    **dict.fromkeys((".pdf", ".epub"), "`qwen3 data extract` makes records of it"),
    **dict.fromkeys((".xls", ".xlsx"), "save it as CSV in UTF-8"),
}
# How files begin whose suffix should say so.
_MARKS = (
    (b"\x1f\x8b", "compressed with gzip: name it .gz"), (b"BZh", "compressed with bzip2: name it .bz2"),
    (b"\xfd7zXZ\x00", "compressed with xz: name it .xz"), (b"\x28\xb5\x2f\xfd", "compressed with zstd: name it .zst"),
    (b"PK\x03\x04", "a zip archive: unpack it"), (b"PAR1", "a Parquet file: name it .parquet"),
)  # fmt: skip
_TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file or URL, its path below the folder or glob it was found by (the same on any machine), and its size in bytes."""

    url: str
    key: str
    size: int


def list_files(source: Source) -> list[CorpusFile]:
    """The source's files, of whatever format, sorted by path, each once.

    Raises:
        DataError: an entry of `path` matches no file.
    """
    by_url: dict[str, CorpusFile] = {}
    for entry in source.paths:
        files = list(_expand(entry, source))
        if not files:
            relative = "://" not in entry and not os.path.isabs(os.path.expanduser(entry))
            here = f" below {os.getcwd()}" if relative else ""
            raise DataError(f"source {source.name!r}: no file matches {entry!r}{here}")
        by_url.update((file.url, file) for file in files)
    return [by_url[url] for url in sorted(by_url)]


def find_files(source: Source) -> list[CorpusFile]:
    """The source's files, sorted by path, each once.

    Raises:
        DataError: an entry of `path` matches no file, or names a format that is not read here.
    """
    files = list_files(source)
    for url in (file.url for file in files):
        suffix = os.path.splitext(url)[1].lower()
        if suffix in _UNREADABLE:
            convert = f"; {_CONVERSIONS[suffix]}" if suffix in _CONVERSIONS else ""
            raise DataError(
                f"source {source.name!r}: {url} is a {suffix} file; text, JSON, JSONL, CSV (also .gz, .bz2, .xz, .zst), "
                f"Parquet and ArrayRecord are read{convert}"
            )
    return files


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
        folder, named = system.isdir(path), False
        if folder:
            listing, base = system.find(path, detail=True), path
        elif any(letter in path for letter in "*?["):
            listing, base = system.glob(path, detail=True), path[: min(path.find(c) for c in "*?[" if c in path)]
            base = base.rpartition("/")[0]
        elif system.exists(path):
            listing, base, named = {path: system.info(path)}, path.rpartition("/")[0], True
        else:
            return
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is not installed
        raise DataError(f"source {source.name!r}: {entry!r} cannot be read: {error}") from None
    for name, size in _files(listing, base, folder):
        below = name[len(base) :].lstrip("/")
        if any(part.startswith(".") for part in below.split("/")) and not named:
            continue
        if folder and source.format not in ("auto", "text", _by_suffix(name)):
            continue  # of a folder, the files of that format
        yield CorpusFile(system.unstrip_protocol(name) if "://" in entry else name, below, size)


def _files(listing: Mapping[str, Any], base: str, folder: bool) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files in a listing, with what symbolic links lead to (a snapshot of the hub is made of links). A
    file that is listed itself is not read again through a link.

    Raises:
        DataError: a link leads nowhere.
    """
    for name, info in listing.items():
        if info["type"] == "file":
            yield name, int(info["size"] or 0)
    seen = {os.path.realpath(name) for name, info in listing.items() if info["type"] == "file"} | {
        os.path.realpath(base)
    }
    for link in (name for name, info in listing.items() if info.get("islink")):
        if (
            os.path.realpath(link) in seen or "/." in link[len(base) :]
        ):  # editors lock files with links that lead nowhere
            continue
        if os.path.isfile(link):
            yield link, os.path.getsize(link)
        elif not os.path.exists(link):
            raise DataError(f"{link} is a link to {os.readlink(link)!r}, which is not there")
        elif folder:
            for parent, folders, files in os.walk(link, followlinks=True):
                if os.path.realpath(parent) in seen:
                    folders.clear()
                    continue
                seen.add(os.path.realpath(parent))
                paths = [os.path.join(parent, file) for file in files]
                yield from ((path, os.path.getsize(path)) for path in paths if os.path.realpath(path) not in seen)


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
            case ".bz2":
                yield cast(IO[bytes], bz2.BZ2File(stream))
            case ".xz":
                yield cast(IO[bytes], lzma.LZMAFile(stream))  # noqa: SIM115 - closed with the stream
            case ".zst":
                yield io.BufferedReader(_Zstandard(stream, file.url), 2**17)
            case _:
                yield stream


def check_start(start: bytes, url: str) -> None:
    """Refuse a file of text that begins as something else does: another encoding, a compressed file, a Git LFS pointer.

    Raises:
        DataError: names the file, and says what it is.
    """
    try:
        check_encoding(start, url)
    except EncodingError as error:
        raise DataError(str(error)) from None
    what = next((what for mark, what in _MARKS if start.startswith(mark)), None)
    if what is not None:
        raise DataError(f"{url} is {what}")


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
        _refuse_pointer(file)
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
        _refuse_pointer(file)
        raise DataError(f"{file.url}: not a whole ArrayRecord file: {error}") from error


def _refuse_pointer(file: CorpusFile) -> None:
    """Say of a file that cannot be read that it is only a pointer, where it is one."""
    with fsspec.open(file.url, "rb") as stream:
        start = stream.read(64)
    if is_lfs_pointer(start):
        raise DataError(f"{file.url} {LFS_POINTER}")
