"""From files to records: a source is cut into splits, and each split is read as a stream.

    for split in splits(source):              # a few dozen megabytes each, in order; one worker reads one
        for record in read(split, source):    # Record, or Malformed where a record cannot be used

Splits are the same on every machine. JSONL that is not compressed is cut by bytes, Parquet by row groups, ArrayRecord by
records; compressed files are read whole. Only the current record is in memory.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen3_jax.data import csv_rows, json_values
from qwen3_jax.data.config import RUNNING_SUM, DataConfig, RunningSum, Source
from qwen3_jax.data.files import (
    CorpusFile,
    Kind,
    check_start,
    compression,
    find_files,
    kind_of,
    open_array_record,
    open_parquet,
    opened,
)
from qwen3_jax.data.forms import is_form, is_record
from qwen3_jax.data.parquet import rows
from qwen3_jax.data.reasoning import RunningSumRecords
from qwen3_jax.data.records import DataError, Malformed, Record, check_columns, texts
from qwen3_jax.progress import with_progress
from qwen3_jax.text_files import EncodingError, decode, is_unicode

SPLIT_BYTES = 32 * 2**20
_WHOLE_FILES = 2**62  # bytes of a split: no file is cut
_PROBLEM_BYTES = 4096  # a generated problem is as much work as so much text
LAST_KEY = 2**64 - 1


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


def file_sizes(pieces: Iterable[Split]) -> dict[str, list[int]]:
    """The files of some splits: bytes by key; several where files of different folders have one key."""
    files = {part.file.url: part.file for split in pieces for part in split}
    out: dict[str, list[int]] = {}
    for file in files.values():
        out.setdefault(file.key, []).append(file.size)
    return {key: sorted(sizes) for key, sizes in sorted(out.items())}


def read(split: Split, source: Source, seed: int = 0) -> Iterator[Record | Malformed]:
    """The records of one split, in order.

    Raises:
        DataError: a file cannot be opened or read at all.
    """
    for part in split:
        try:
            yield from _READERS[part.kind](part, source, seed)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{part.file.url}: cannot be read: {error}") from error


def records_of(source: Source, bar: str | None = None, *, skip_files: bool = False) -> Iterator[Record | Malformed]:
    """The records of all files in order, their lines counted from the beginning of each.

    Args:
        bar: what a bar over the files says; None draws none.
        skip_files: a file that cannot be read to its end is one malformed record there, instead of an error.

    Raises:
        DataError: a file cannot be opened or read to its end.
    """
    parts = [part for split in splits(source, size=_WHOLE_FILES) for part in split]
    for part in with_progress(parts, bar or "", len(parts), visible=None if bar else False):
        try:
            yield from read((part,), source)
        except DataError as error:
            if not skip_files:
                raise
            yield Malformed(str(error))


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
                try:
                    found = list(texts(record, source.text_key, source.pairs))
                except DataError:  # preparing counts it
                    continue
                yield from (text for text in found if is_unicode(text))
                given += 1
                if given == share:
                    break


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
        kind = kind_of(file, source)
        if kind == "jsonl" and not compression(file.url):
            for start in range(0, max(file.size, 1), size):
                yield Part(file, kind, start, min(start + size, file.size)), min(size, file.size - start)
        elif kind == "parquet":
            with open_parquet(file) as reader:
                groups = [reader.metadata.row_group(i).total_byte_size for i in range(reader.num_row_groups)]
            for i, weight in enumerate(groups):
                yield Part(file, kind, i, i + 1), weight
        elif kind == "arrayrecord":
            records = len(open_array_record(file))
            step = max(records * size // max(file.size, 1), 1)
            for start in range(0, records, step):
                stop = min(start + step, records)
                yield Part(file, kind, start, stop), (stop - start) * file.size // records
        else:
            yield Part(file, kind), file.size


def _read_text(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    with opened(part.file) as stream:
        raw = stream.read()
    if raw:
        url, key = part.file.url, key_of(part.file.key, 0)
        try:
            check_start(raw, url)
        except DataError as error:
            yield Malformed(str(error))
            return
        text = _decoded(raw, url)
        yield text if isinstance(text, Malformed) else Record(url, {source.text_key: text}, key)


def _read_jsonl(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    """Lines that begin in this stretch; blank lines are passed over and count in line numbers."""
    with opened(part.file) as stream:
        offset = part.start
        if offset:
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1
        number = 0
        while part.stop is None or offset < part.stop:
            line = stream.readline()
            if not line:
                return
            if offset == 0:
                check_start(line, part.file.url)
            for piece in _cut(line):
                number += 1
                place, offset = offset, offset + len(piece)
                if not piece.isspace():
                    # Within a large file lines cannot be counted without reading what comes before.
                    location = f"{part.file.url}:{number}" if part.start == 0 else f"{part.file.url} at byte {place}"
                    yield _json_record(piece, location, key_of(part.file.key, place))


def _cut(line: bytes) -> list[bytes]:
    """A line ended by a newline, cut where carriage returns alone end lines: JSON holds none, but may stand between them."""
    if b"\r" in line.rstrip(b"\r\n") and isinstance(_json_record(line, "", 0), Malformed):
        return line.splitlines(keepends=True)
    return [line]


def _read_json(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    """A list of records, or JSON Lines under this suffix (as `datasets` writes); any other JSON is a document of text."""
    url, text_key = part.file.url, source.text_key
    with opened(part.file) as stream:
        raw = stream.read()
    check_start(raw, url)
    text = _decoded(raw, url)
    if isinstance(text, Malformed):
        yield text
        return
    value, error, key_twice = _json_value(text)
    if value == []:
        return
    if isinstance(value, list) and any(isinstance(one, dict) and is_record(one, text_key) for one in value):
        if key_twice is not None:
            yield Malformed(f"{url}: {key_twice}")
            return
        for number, body in enumerate(value):
            location, key = f"{url} record {number + 1}", key_of(part.file.key, number)
            yield Record(location, body, key) if isinstance(body, dict) else _no_object(body, location)
    elif isinstance(value, dict) and (reason := _unread_object(value, text_key)):
        yield Malformed(f"{url}: {reason}")
    elif _is_lines(text, text_key, broken=error is not None):
        yield from _read_jsonl(part, source, seed)
    elif isinstance(value, dict) and _is_one_record(value):
        yield Record(url, value, key_of(part.file.key, 0))
    elif error is not None and _begins_with_record(text, text_key):
        hint = "records are one list, or one in each line (`jq -c . FILE`)"
        yield Malformed(f"{url}: not valid JSON ({error}); {hint}")
    elif text:
        yield Record(url, {text_key: text}, key_of(part.file.key, 0))


def _json_value(text: str) -> tuple[Any, Exception | None, ValueError | None]:
    """(the value of a JSON text, why it has none, why it is refused as records: a key that occurs twice)."""
    try:
        return json_values.load(text), None, None
    except json.JSONDecodeError as error:
        return None, error, None
    except ValueError as key_twice:
        try:
            return json.loads(text), None, key_twice
        except (ValueError, RecursionError) as error:
            return None, error, None


def _is_lines(text: str, text_key: str, broken: bool) -> bool:
    """Whether a text is JSON Lines: one of its first lines is a record by itself, and the whole is no JSON, or that line."""
    every = (match.group() for match in re.finditer(r"[^\r\n]+", text))
    first = list(itertools.islice((line for line in every if line.strip()), 10))
    if not broken and len(first) > 1:
        return False
    found = [_json_record(line.encode(), "", 0) for line in first]
    is_one = is_record if broken else is_form
    return any(isinstance(record, Record) and is_one(record.body, text_key) for record in found)


def _is_one_record(value: dict[str, Any]) -> bool:
    """Whether an object that fills a file is a record: a chat, or a question with its answer."""
    turns = value.get("messages", value.get("conversations"))
    chat = isinstance(turns, list) and not (turns and isinstance(turns[0], list))
    return chat or (is_form(value, "messages") and all(isinstance(one, str | None) for one in value.values()))


def _unread_object(value: dict[str, Any], text_key: str) -> str | None:
    """What is wrong with an object that fills a file and holds records in a form that is not read, or None."""
    for key in ("data", "train", "rows", "records", "examples", "instances"):
        held = value.get(key)
        if isinstance(held, list) and held and isinstance(held[0], dict) and is_record(held[0], text_key):
            return f"the records are under {key!r}; write that list alone (`jq '.{key}'`), or JSON Lines"
    rows = list(value.values())
    numbered = [*value] == [str(number) for number in range(len(value))]
    if numbered and rows and isinstance(rows[0], dict) and is_form(rows[0], text_key):
        return "the records are under their numbers; write them as one list (pandas: orient='records')"
    names = value["columns"] if value.keys() == {"columns", "index", "data"} else None
    if isinstance(names, list) and is_form(dict.fromkeys(map(str, names)), text_key):
        return "the records are lists without their keys; write them as objects (pandas: orient='records')"
    sizes = {len(column) if isinstance(column, list | dict) else -1 for column in value.values()}
    if len(sizes) == 1 and -1 not in sizes and is_form(value, text_key) and not _is_one_record(value):
        return "the records are written column by column; write them one by one (pandas: orient='records')"
    return None


def _begins_with_record(text: str, text_key: str) -> bool:
    """Whether a text that is no JSON begins with a record: a list that was cut off, records over several lines."""
    try:
        first = json.JSONDecoder().raw_decode(text.lstrip().removeprefix("[").lstrip())[0]
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and is_form(first, text_key)


def _read_csv(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    url = part.file.url
    with opened(part.file) as stream:
        check_start(stream.read(64), url)
    with opened(part.file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            for number, (line, row) in enumerate(csv_rows.rows(text, url)):
                location = f"{url}:{line}"
                if isinstance(row, str):
                    yield Malformed(f"{location}: {row}")
                else:
                    yield Record(location, dict(row), key_of(part.file.key, number))
        except UnicodeDecodeError as error:
            raise DataError(f"{url} is not UTF-8 text ({error.reason})") from None


def _read_parquet(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    with open_parquet(part.file) as reader:
        check_columns(reader.schema_arrow.names, part.file.url)
        before = sum(reader.metadata.row_group(i).num_rows for i in range(part.start))
        for batch in reader.iter_batches(batch_size=256, row_groups=list(range(part.start, part.stop or 0))):
            for body in rows(batch):
                yield Record(f"{part.file.url} row {before + 1}", body, key_of(part.file.key, before))
                before += 1


def _read_arrayrecord(part: Part, source: Source, seed: int) -> Iterator[Record | Malformed]:
    records = open_array_record(part.file)
    for number in range(part.start, part.stop or 0):
        location, key, raw = f"{part.file.url} record {number}", key_of(part.file.key, number), records[number]
        if raw.removeprefix(codecs.BOM_UTF8)[:1] == b"{":
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
    "text": _read_text, "json": _read_json, "jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet,
    "arrayrecord": _read_arrayrecord, "synthetic": _read_synthetic,
}  # fmt: skip


def _json_record(raw: bytes, location: str, key: int) -> Record | Malformed:
    text = _decoded(raw, location)
    if isinstance(text, Malformed):
        return text
    try:
        body = json_values.load(text)
    except json.JSONDecodeError as error:
        begun = text.strip() in ("{", "[")
        lines = "; a record is one line, as `jq -c . FILE` writes them" if begun else ""
        return Malformed(f"{location}: not valid JSON: {error.msg} at column {error.colno}{lines}")
    except ValueError as error:  # a key twice, a number of thousands of digits, or very deep nesting
        return Malformed(f"{location}: not valid JSON: {error}")
    return Record(location, body, key) if isinstance(body, dict) else _no_object(body, location)


def _no_object(value: Any, location: str) -> Malformed:
    array = "; a file that is one list of records is named .json" if isinstance(value, list) else ""
    return Malformed(f"{location}: a JSON object is wanted, got {type(value).__name__}{array}")


def _decoded(raw: bytes, location: str) -> str | Malformed:
    try:
        return decode(raw, location)
    except EncodingError as error:
        return Malformed(str(error).replace(" is not UTF-8", ": not valid UTF-8", 1))
