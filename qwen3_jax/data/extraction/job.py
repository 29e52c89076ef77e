"""Documents to records, on all cores, resumable: the work of `qwen3 data extract`.

    OUTPUT/00000.jsonl ...             records, which `qwen3 data prepare --path OUTPUT` reads as they are
    OUTPUT/.extract/manifest.json      counts and settings
    OUTPUT/.extract/failed.jsonl       {"source": ..., "reason": ...} of every file that gave no record

Files are cut into splits, and each split becomes one shard, as in preparation (`qwen3_jax.data.shards`). Finished shards lie in
OUTPUT.partial until all are; the same command resumes where it was stopped. A file that cannot be read costs no other.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3_jax.data.config import Source
from qwen3_jax.data.extraction.documents import DocumentKind, kind_by_name, kind_by_start, process_pool, read_document
from qwen3_jax.data.extraction.options import Options, Unreadable
from qwen3_jax.data.extraction.recognition import Reader
from qwen3_jax.data.files import CorpusFile, list_files, opened
from qwen3_jax.data.records import DataError
from qwen3_jax.data.sources import SPLIT_BYTES
from qwen3_jax.data.workers import start_workers
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import locked, remove_leftovers, write_json, written_whole
from qwen3_jax.json_fields import read_json
from qwen3_jax.progress import progress_bar

STATE = ".extract"
"""A hidden folder beside the records: preparation leaves it out."""
_SETTINGS, _MANIFEST, _FAILED, _ANSWERS = "settings.json", "manifest.json", "failed.jsonl", "answers"
_LEAST_WEIGHT = 64 * 1024  # bytes that a small file counts as: opening it is work too

Split = tuple[tuple[CorpusFile, DocumentKind], ...]


@dataclass(frozen=True)
class Extracted:
    """What was made.

    Attributes:
        folder: with the records.
        documents: records.
        pages: of all files; 1 for a web page, and chapters of a book.
        by_method: number of pages by how they were read.
        failed: files that gave no record.
        left_out: files of folders that are no documents, by suffix.
        first_failure: "file: reason" of the first of `failed`, or "".
    """

    folder: Path
    documents: int
    pages: int
    by_method: dict[str, int]
    failed: int
    left_out: dict[str, int]
    first_failure: str = ""

    @property
    def failures(self) -> Path:
        """The file that lists `failed` with reasons."""
        return self.folder / STATE / _FAILED


@dataclass(frozen=True)
class _Job:
    """What the work on a split needs."""

    options: Options
    folder: Path

    def part(self, number: int, suffix: str) -> Path:
        return self.folder / STATE / f"{number:05d}{suffix}"


@dataclass
class _Shard:
    """What became of one split."""

    documents: int = 0
    failed: int = 0
    pages: Counter[str] = field(default_factory=Counter)


def extract(
    paths: str | Sequence[str],
    output: str | Path,
    options: Options | None = None,
    *,
    processes: int | None = None,
    split_bytes: int = SPLIT_BYTES,
    retry_failed: bool = False,
    visible: bool | None = None,
) -> Extracted:
    """Read documents and write records; where `output` already holds them, nothing is done.

    Args:
        paths: files, folders, globs or URLs; of folders, the files with the suffix of a document.
        output: the folder; made whole or not at all.
        options: how documents are read.
        processes: at work at the same time; None is one for each core.
        split_bytes: of files that become one shard.
        retry_failed: read again the shards in which a file failed.
        visible: draw the progress bar (see `progress_bar`).

    Raises:
        DataError: nothing to read, or no file gave a record.
        UserError: `output` holds something else, another process is at work on it, a package is missing, or the endpoint cannot
            be used.
    """
    options = options or Options()
    files, left_out = find_documents([paths] if isinstance(paths, str) else list(paths))
    pieces = _splits(files, split_bytes)
    settings = json.loads(json.dumps({"options": options.settings(), "files": _digest(pieces)}))
    target = Path(output).expanduser().absolute()
    with _begun(target, settings, retry_failed) as folder:
        if folder is None:
            return _extracted(target)
        job = _Job(options, folder)
        _forget(job, len(pieces), failed=retry_failed)
        count = min((os.cpu_count() or 1) if processes is None else processes, len(pieces))
        with start_workers(job, count) as run, progress_bar("extracting", len(pieces), visible=visible) as bar:
            shards = []
            for shard in run(extract_split, pieces):
                shards.append(shard)
                bar.advance()
        return _publish(job, shards, settings, left_out, target)


def find_documents(paths: list[str]) -> tuple[list[tuple[CorpusFile, DocumentKind]], dict[str, int]]:
    """The documents, and the number of other files in folders by suffix.

    Raises:
        DataError: a path matches nothing, a named file is not a document, or there are no documents.
    """
    files, left_out = [], Counter[str]()
    named = {os.path.expanduser(path) for path in paths}
    for file in list_files(Source("documents", paths)):
        kind = kind_by_name(file.url)
        if kind is None and file.url in named:  # named, not found in a folder: what is in it counts
            with opened(file) as stream:
                kind = kind_by_start(stream.read(2048))
            if kind is None:
                raise DataError(
                    f"{file.url} is no PDF, HTML or EPUB file; text is read by `qwen3 data prepare` as it is"
                )
        if kind is None:
            left_out[Path(file.url).suffix.lower() or "without a suffix"] += 1
        else:
            files.append((file, kind))
    if not files:
        raise DataError(f"no PDF, HTML or EPUB file at {', '.join(paths)}")
    return files, dict(left_out)


def extract_split(job: _Job, number: int, split: Split) -> _Shard:
    """Write one shard and its list of failures, unless they are there; the counts are written last."""
    done = job.part(number, ".json")
    if done.exists():
        kept = read_json(done)
        return _Shard(kept["documents"], kept["failed"], Counter(kept["pages"]))
    shard = _Shard()
    recognition = job.options.recognition
    read = None if recognition is None else Reader(recognition, job.folder / STATE / _ANSWERS).read
    with (
        process_pool(job.options) as pool,
        written_whole(job.folder / f"{number:05d}.jsonl") as path,
        written_whole(job.part(number, ".failed")) as failures,
        path.open("w", encoding="utf-8") as records,
        failures.open("w", encoding="utf-8") as failed,
    ):
        for file, kind in split:
            try:
                record = read_document(file, kind, job.options, pool, read)
            except (Unreadable, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                reason = " ".join(str(error).split())
                failed.write(json.dumps({"source": file.url, "reason": reason}, ensure_ascii=False) + "\n")
                shard.failed += 1
                continue
            records.write(_line(record))
            shard.documents += 1
            shard.pages.update(page["method"] for page in record["pages"])
    if not shard.documents:
        (job.folder / f"{number:05d}.jsonl").unlink()
    write_json(done, {"documents": shard.documents, "failed": shard.failed, "pages": dict(shard.pages)})
    return shard


def _line(record: dict[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a name of a file that is no UTF-8
        text = json.dumps(record)
    return text + "\n"


def _splits(files: Sequence[tuple[CorpusFile, DocumentKind]], size: int) -> list[Split]:
    out: list[Split] = []
    held: list[tuple[CorpusFile, DocumentKind]] = []
    filled = 0
    for file, kind in files:
        weight = max(file.size, _LEAST_WEIGHT)
        if held and filled + weight > size:
            out.append(tuple(held))
            held, filled = [], 0
        held.append((file, kind))
        filled += weight
    return [*out, tuple(held)]


def _digest(pieces: Sequence[Split]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for split in pieces:
        digest.update(repr([(file.key, file.size, kind) for file, kind in split]).encode("utf-8", "replace"))
    return digest.hexdigest()


@contextmanager
def _begun(target: Path, settings: dict[str, Any], retry_failed: bool) -> Iterator[Path | None]:
    """Yield the folder to work in, locked, or None if `target` is complete.

    Raises:
        UserError: `target` holds something else, or another process is at work on it.
    """
    folder = target.with_name(target.name + ".partial")
    if target.exists():
        manifest = target / STATE / _MANIFEST
        if not manifest.is_file():
            raise UserError(
                f"{target} exists and was not made by `qwen3 data extract`; choose another folder, or delete it."
            )
        known = read_json(manifest)
        _compare(known["settings"], settings, f"{target} was extracted", retry_failed)
        if not retry_failed or not known["failed"]:
            yield None
            return
        if folder.exists():
            raise UserError(f"{target} and {folder} both exist; delete the second.")
        target.rename(folder)
    state = folder / STATE
    state.mkdir(parents=True, exist_ok=True)
    with locked(state / "lock", f"another process is extracting {target}; wait for it, or stop it."):
        before = state / _SETTINGS
        if before.exists():
            known = read_json(before)
            _compare(known, settings, f"{folder} holds an extraction that was interrupted", retry_failed)
        write_json(before, settings)
        remove_leftovers(folder, state)
        yield folder


def _compare(before: dict[str, Any], now: dict[str, Any], what: str, retry_failed: bool) -> None:
    """Refuse other settings than those of a folder. Files that failed may be tried with more time, memory, or a model.

    Raises:
        UserError: names the first that differs.
    """
    if before["files"] != now["files"]:
        raise UserError(f"{what} from other files: they have changed; choose another folder, or delete it.")
    old = before["options"]
    without_model = old["recognition"] is None and old["unreadable_pages"] == "refuse"
    for name, value in now["options"].items():
        may_change = name in ("seconds", "memory") or (name == "recognition" and without_model)
        if old[name] != value and not (retry_failed and may_change):
            hint = " (--retry-failed reads what failed with it)" if may_change else ""
            raise UserError(
                f"{what} with other settings ({name} is {value!r}, was {old[name]!r}){hint}; choose another folder, or "
                "delete it."
            )


def _forget(job: _Job, count: int, *, failed: bool) -> None:
    """Forget the shards in which a file failed, so that they are read again."""
    for number in range(count if failed else 0):
        done = job.part(number, ".json")
        if done.exists() and read_json(done)["failed"]:
            done.unlink()


def _publish(
    job: _Job, shards: Sequence[_Shard], settings: dict[str, Any], left_out: dict[str, int], target: Path
) -> Extracted:
    """Write the list of failures and the manifest, and give the folder its name.

    Raises:
        DataError: no file gave a record.
    """
    state, first = job.folder / STATE, ""
    with written_whole(state / _FAILED) as path, path.open("wb") as together:
        for number in range(len(shards)):
            raw = job.part(number, ".failed").read_bytes()
            if raw and not first:
                of = json.loads(raw.split(b"\n", 1)[0])
                first = f"{of['source']}: {of['reason']}"
            together.write(raw)
    pages = sum((shard.pages for shard in shards), Counter[str]())
    documents, failed = (sum(getattr(shard, name) for shard in shards) for name in ("documents", "failed"))
    if not documents:
        shutil.rmtree(job.folder)
        raise DataError(first if failed == 1 else f"none of {failed:,} files gave text; the first is {first}")
    write_json(state / _MANIFEST, {
        "documents": documents, "pages": pages.total(), "by_method": dict(sorted(pages.items())), "failed": failed,
        "left_out": left_out, "first_failure": first, "settings": settings,
    })  # fmt: skip
    shutil.rmtree(state / _ANSWERS, ignore_errors=True)
    job.folder.replace(target)
    return _extracted(target)


def _extracted(target: Path) -> Extracted:
    known = read_json(target / STATE / _MANIFEST)
    del known["settings"]
    return Extracted(target, **known)
