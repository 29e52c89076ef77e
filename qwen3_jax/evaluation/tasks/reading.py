"""Rows of a task's data: a file, a folder of files, a snapshot of a data set, or the hub itself.

    for row in read_rows("gsm8k", source, Path("gsm8k")): ...

JSONL, JSON (a list, or lines under that suffix), CSV and TSV, each also .gz, .bz2, .xz and .zst, Parquet, and the Arrow files
that `datasets` saves. In a folder the files of the source's patterns are read; where there are none, every such file.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3_jax.data import json_values
from qwen3_jax.data.config import Source as Corpus
from qwen3_jax.data.files import CorpusFile, check_start, compression, kind_of, opened
from qwen3_jax.data.parquet import rows as arrow_rows
from qwen3_jax.data.records import DataError, Malformed
from qwen3_jax.data.sources import Part, read
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Source
from qwen3_jax.text_files import decode

_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".parquet", ".arrow", ".csv", ".tsv")
_FORMATS = "JSONL, JSON, CSV and TSV (also .gz, .bz2, .xz, .zst), Parquet and Arrow files are read"
_SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


def read_rows(name: str, source: Source | None, data: Path | None) -> Iterator[Row]:
    """Yield the rows of a task's data, in the order of files and lines.

    Args:
        name: of the task, for messages.
        source: where its data lies.
        data: a file or folder that the user gives instead.

    Raises:
        UserError: the data is not there; names the command that gets it. A file cannot be read; names the place.
    """
    if source is None:
        raise UserError(f"the task {name} is generated and reads no data; remove --data {name}=...")
    path = data if data is not None else source.path
    if path is None and not source.dataset:
        raise UserError(
            f"the task {name} has no data; give it with --data {name}=PATH, or with the key data of its file."
        )
    path = download(name, source) if path is None else path
    for file in _files(name, source, path.expanduser()):
        yield from _rows(file)


def command(name: str, source: Source) -> str:
    """The shell command that gets a task's data into a folder; of many files, all of their folders."""
    files = source.files
    if len(files) > 4:
        files = tuple(dict.fromkeys(re.sub(r"[^/]*(\.\w+)$", r"*\1", file) for file in files))
    patterns = " ".join(f"--include {shlex.quote(file)}" for file in files)
    return f"`hf download --repo-type dataset {source.dataset} {patterns} --local-dir {name}`"


def download(name: str, source: Source) -> Path:
    """The folder of a data set on the hub: the user's cache, or downloaded into it.

    Raises:
        UserError: it is not in the cache and cannot be downloaded; names the command that gets it.
    """
    from huggingface_hub import snapshot_download

    try:  # where there is no network, this is what the cache has
        folder = Path(snapshot_download(source.dataset, repo_type="dataset", allow_patterns=list(source.files)))
    except Exception as error:
        http = any(kind.__name__ == "HTTPError" for kind in type(error).__mro__)
        if not isinstance(error, OSError | ValueError) and not http:
            raise
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
        raise _missing(name, source, reason) from None
    if not _matching(folder, source):
        raise _missing(name, source, f"there is no file {_some(source.files)}")
    return folder


def _some(files: tuple[str, ...]) -> str:
    """Patterns of files, the first three of many."""
    return " or ".join(files[:3]) + (" or others" if len(files) > 3 else "")


def _missing(name: str, source: Source, reason: str) -> UserError:
    terms = (
        f"; it is gated: accept its terms at https://huggingface.co/datasets/{source.dataset} and run `hf auth login` first"
        if source.gated
        else ""
    )
    return UserError(
        f"the data of {name} ({source.dataset}) is not in the cache and could not be downloaded ({reason}); run "
        f"{command(name, source)} where there is a network, and give the folder: --data {name}=PATH{terms}."
    )


def _matching(folder: Path, source: Source) -> list[Path]:
    """Files of a folder that the source's patterns name, which end as their repository has them."""
    return [
        file
        for file in _visible(folder)
        if any(fnmatch.fnmatchcase(file.relative_to(folder).as_posix(), pattern) for pattern in source.files)
    ]


def _visible(folder: Path) -> list[Path]:
    """Files below a folder, hidden ones left out, links followed, in the order of their paths."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, file) for file in files if not file.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _files(name: str, source: Source, path: Path) -> list[CorpusFile]:
    if path.is_file():
        if not _is_data(path):
            raise UserError(f"the data of {name}, {path}, is a {path.suffix or 'file without a suffix'}; {_FORMATS}.")
        return [CorpusFile(str(path), path.name, path.stat().st_size)]
    if not path.is_dir():
        get = f"; {command(name, source)} gets it" if source.dataset else ""
        raise UserError(f"the data of {name}, {path}, does not exist{get}.")
    path = _snapshot(path)
    files = _matching(path, source)
    if not files:
        files = [file for file in _visible(path) if _is_data(file)]
        _refuse_splits(name, path, files)
    if not files:
        expected = f"expected {_some(source.files)}, or other " if source.files else "expected "
        raise UserError(f"the folder {path} holds no data of {name}: {expected}files of data; {_FORMATS}.")
    unread = next((file for file in files if not _is_data(file)), None)
    if unread is not None:
        raise UserError(f"the data of {name}, {unread}, is a {unread.suffix or 'file without a suffix'}; {_FORMATS}.")
    return [CorpusFile(str(file), file.relative_to(path).as_posix(), file.stat().st_size) for file in files]


def _snapshot(folder: Path) -> Path:
    """Of a folder of the hub's cache (`datasets--owner--name`), the snapshot that its main branch was at."""
    ref = folder / "refs" / "main"
    if ref.is_file() and (folder / "snapshots").is_dir():
        return folder / "snapshots" / ref.read_text().strip()
    return folder


def _is_data(file: Path) -> bool:
    name = file.name.lower()
    if compression(name) is not None:
        name = os.path.splitext(name)[0]
        return name.endswith(tuple(suffix for suffix in _SUFFIXES if suffix not in (".parquet", ".arrow")))
    return name.endswith(_SUFFIXES) and name not in ("dataset_info.json", "dataset_dict.json", "state.json")


def _refuse_splits(name: str, folder: Path, files: list[Path]) -> None:
    """Refuse a folder with several splits: which of them is meant cannot be told."""
    splits: dict[str, Path] = {}
    for file in files:
        for word in re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower()):
            if word in _SPLITS:
                splits.setdefault(_SPLITS[word], file)
    if len(splits) > 1:
        some = " and ".join(str(file.relative_to(folder)) for file in list(splits.values())[:2])
        raise UserError(f"the folder {folder} holds several splits ({some}); give the file: --data {name}=FILE.")


def _rows(file: CorpusFile) -> Iterator[Row]:
    if file.url.lower().endswith(".arrow"):
        yield from _arrow(file)
        return
    corpus = Corpus("data", file.url)
    kind = kind_of(file, corpus)
    if kind == "json":
        values = _json_list(file)
        if values is not None:
            yield from values
            return
        kind = "jsonl"
    if kind == "parquet":
        part = Part(file, kind, 0, _row_groups(file))
    else:
        part = Part(file, kind)
    for record in read((part,), corpus):
        if isinstance(record, Malformed):
            raise UserError(f"{record.reason}.")
        yield Row({key: value for key, value in record.body.items() if value is not None}, record.location, file.key)


def _row_groups(file: CorpusFile) -> int:
    from qwen3_jax.data.files import open_parquet

    with open_parquet(file) as reader:
        return reader.num_row_groups


def _json_list(file: CorpusFile) -> list[Row] | None:
    """The rows of a JSON file that is a list of objects; None where it is JSON Lines.

    Raises:
        UserError: it is neither.
    """
    with opened(file) as stream:
        try:
            raw = stream.read()
        except (OSError, EOFError) as error:
            raise DataError(f"{file.url}: cannot be read: {error}") from error
    check_start(raw, file.url)
    text = decode(raw, file.url)
    try:
        value: Any = json_values.load(text)
    except json.JSONDecodeError:
        return None
    except ValueError as error:
        raise UserError(f"{file.url}: not valid JSON: {error}.") from None
    if isinstance(value, dict) and "\n" not in text.strip():
        return None
    if isinstance(value, dict):
        lists = [key for key, held in value.items() if isinstance(held, list) and held and isinstance(held[0], dict)]
        hint = f"; write the list {lists[0]!r} alone (`jq '.{lists[0]}'`)" if lists else ""
        raise UserError(f"{file.url} holds one object, and rows are a list of objects, or one object a line{hint}.")
    if not isinstance(value, list):
        raise UserError(f"{file.url} holds a {type(value).__name__}, and rows are a list of objects.")
    rows = []
    for number, body in enumerate(value, 1):
        if not isinstance(body, dict):
            raise UserError(f"{file.url} record {number}: an object is wanted, got {body!r:.100}.")
        kept = {key: held for key, held in body.items() if held is not None}
        rows.append(Row(kept, f"{file.url} record {number}", file.key))
    return rows


def _arrow(file: CorpusFile) -> Iterator[Row]:
    """Rows of an Arrow file as `datasets` saves them: a stream, or a file of record batches."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(f'{file.url} needs the package pyarrow: pip install "qwen3-jax[data]".') from None
    number = 0
    try:
        with pyarrow.memory_map(file.url) as source:
            try:
                reader: Any = pyarrow.ipc.open_stream(source)
                batches = iter(reader)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in batches:
                for body in arrow_rows(batch):
                    number += 1
                    yield Row(body, f"{file.url} row {number}", file.key)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.url}: not a whole Arrow file: {' '.join(str(error).split())}.") from error
