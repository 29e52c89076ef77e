"""Labels beside a prepared corpus: columns by the key of a record; `where` selects by them, and nothing is tokenised again.

    attach("prepared/web", "annotated", {"education": "education", "genre": "domain"})

    FOLDER/labels/education-... .npy    float32 [documents], NaN for none; or int16, a place in the names, -1 for none
    FOLDER/labels/labels.json           kind, names, counts and origin of every label; written last

The labels are fields of what a job of the data factory made (`qwen3 data annotate`, `qwen3 data distil`). It keeps the key of
the record that each of its records was made of: a hash of its file's path and its place in that file. So the job must have read
the files that the corpus was prepared from, or some of them. An interrupted run resumes with the files of records that
it has not read yet.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.config import NAMED_LABELS, RANGED_LABELS
from qwen3_jax.data.prepared import LABELS, LABELS_FILE, Attached, Prepared, read_attached
from qwen3_jax.data.records import DataError
from qwen3_jax.data.shards import FILES, KEYS, PARTS, assign_number
from qwen3_jax.data.workers import start_workers
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.file_writes import locked, remove_leftovers, write_json, written_whole
from qwen3_jax.json_fields import read_json
from qwen3_jax.progress import progress_bar

_CHUNK = 2**20  # documents whose labels are looked up at a time
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class AttachedCounts:
    """What `attach` did.

    Attributes:
        labels: by name, the columns that the corpus has now, of those asked for.
    """

    labels: dict[str, Attached]

    @property
    def unknown(self) -> int:
        """Labelled records that no document of the corpus was made of."""
        return max(label.unknown for label in self.labels.values())


@dataclass(frozen=True)
class LabelJob:
    """Everything that the work on one file of labelled records needs.

    Attributes:
        folder: for what is read of the files.
        fields: label -> field of the records.
    """

    folder: Path
    fields: Mapping[str, str]

    def part(self, number: int) -> Path:
        """What was read of one file."""
        return self.folder / f"{number:05d}.npz"


def attach(
    corpus: str | Path,
    labelled: str | Path,
    fields: Mapping[str, str],
    *,
    replace: bool = False,
    processes: int = 1,
    visible: bool | None = None,
) -> AttachedCounts:
    """Put labels beside a prepared corpus; where they are there already, from the same job, nothing is done.

    Args:
        corpus: a prepared folder.
        labelled: the folder of a finished job of the data factory.
        fields: label -> field of the job's records. Numbers are selected by range, texts and truth values by name.
        replace: take the place of labels of the same name from elsewhere.
        processes: that read records.
        visible: draw the progress bar (see `progress_bar`).

    Raises:
        UserError: a name that is taken or no name, or another process is at work on the labels.
        DataError: a folder is not what it should be, the two are of different files, no record has the field, or a value is
            none that can be selected by.
    """
    prepared, job = Prepared(corpus), _job_folder(Path(labelled).expanduser())
    place = prepared.folder / LABELS
    origin = _digest(job)
    _check_names(fields, prepared, origin, replace)
    _check_files(prepared.folder, job)
    before = {name: prepared.attached.get(name) for name in fields}
    if all(
        label is not None and (label.origin, label.field) == (origin, fields[name]) for name, label in before.items()
    ):
        return AttachedCounts({name: prepared.attached[name] for name in fields})
    parts = place / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with locked(place / "lock", f"another process is labelling {prepared.folder}; wait for it, or stop it."):
        remove_leftovers(place, parts)
        settings = {"origin": origin, "fields": dict(fields)}
        if _read_json(parts / "settings.json") != settings:
            shutil.rmtree(parts)
            parts.mkdir()
            write_json(parts / "settings.json", settings)
        files = sorted((job / "records").glob("*.jsonl"))
        read = LabelJob(parts, fields)
        with (
            start_workers(read, min(processes, len(files))) as run,
            progress_bar("reading labels", len(files), visible=visible) as bar,
        ):
            for _ in run(read_labels, files):
                bar.advance()
        _write_columns(prepared, read, files, origin, str(job.absolute()))
        shutil.rmtree(parts)
    found = read_attached(prepared.folder, len(prepared))
    return AttachedCounts({name: found[name] for name in fields})


def read_labels(job: LabelJob, number: int, file: Path) -> int:
    """Read the labels of one file of records, unless that is done; return the number of records.

    Raises:
        DataError: a line is not a record, or its label is not a name or a number.
    """
    done = job.part(number)
    if done.exists():
        with np.load(done) as arrays:
            return len(arrays["key"])
    keys = np.load(file.parent.parent / KEYS / f"{file.stem}.npy")
    values: dict[str, list[float]] = {name: [] for name in job.fields}
    names: dict[str, dict[str, int]] = {name: {} for name in job.fields}
    kinds: dict[str, str] = {}
    with file.open(encoding="utf-8") as stream:
        for line, text in enumerate(stream, 1):
            body = json.loads(text)
            for name, field in job.fields.items():
                value = body.get(field)
                kind = _kind(value, f"{file}:{line}", field)
                if kind and kinds.setdefault(name, kind) != kind:
                    raise DataError(
                        f"{file}:{line}: {field!r} is {value!r}, a {kind}; records before have a {kinds[name]}"
                    )
                if kind == "name":
                    value = assign_number(json.dumps(value, ensure_ascii=False), names[name], name)
                values[name].append(np.nan if value is None else float(value))
    if len(keys) != line:
        raise DataError(f"{file} has {line} records and {len(keys)} keys; run the command that made it again.")
    with written_whole(done) as path, path.open("wb") as out:
        arrays = {f"value_{name}": np.array(values[name], np.float32) for name in job.fields}
        arrays |= {f"names_{name}": np.array(list(names[name]), dtype=str) for name in job.fields}
        arrays |= {f"kind_{name}": np.array(kinds.get(name, "")) for name in job.fields}
        np.savez(out, allow_pickle=False, key=keys, **arrays)
    return len(keys)


def _kind(value: Any, location: str, field: str) -> str:
    """What a value is: "name", "number", or "" for anything else.

    Raises:
        DataError: something else, or a number that is not finite.
    """
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return "name"
    if isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max):
        return "number"
    shown = json.dumps(value, ensure_ascii=False)[:80]
    raise DataError(f"{location}: {field!r} is {shown}; a label must be a finite number, text, true or false")


def _write_columns(prepared: Prepared, job: LabelJob, files: Sequence[Path], origin: str, source: str) -> None:
    """Look up every document's labels and write them.

    Raises:
        DataError: no record has the field, two records of one key differ, or no key is in the corpus.
    """
    with_parts = [np.load(job.part(number)) for number in range(len(files))]
    keys = np.concatenate([part["key"] for part in with_parts])
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    known = np.isin(keys, np.asarray(prepared.key))
    if not known.any():
        raise DataError(
            f"none of the {len(keys):,} labelled records of {source} belongs to a document of {prepared.folder}: label the "
            "files that it was prepared from."
        )
    entries, place = dict(_read_json(prepared.folder / LABELS / LABELS_FILE) or {}), prepared.folder / LABELS
    for name, field in job.fields.items():
        values, names = _joined(name, field, with_parts, files)
        _check_same(ordered, values[order], order, field, files, [len(part["key"]) for part in with_parts])
        column: np.ndarray = np.full(len(prepared), -1 if names else np.nan, np.int16 if names else np.float32)
        for start in range(0, len(prepared), _CHUNK):
            wanted = np.asarray(prepared.key[start : start + _CHUNK])
            found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
            given = values[order[found]]
            given[ordered[found] != wanted] = np.nan
            column[start : start + _CHUNK] = np.where(np.isnan(given), -1, given) if names else given
        checksum = hashlib.blake2b(column.tobytes(), digest_size=6).hexdigest()
        # A name of its own: what labels.json says holds until it is written anew.
        with written_whole(place / f"{name}-{checksum}.npy") as path, path.open("wb") as out:
            np.save(out, column)
        missing = (column < 0).sum() if names else np.isnan(column).sum()
        entries[name] = {
            "names": [json.loads(value) for value in names] if names else None, "documents": len(prepared),
            "without": int(missing), "unknown": int((~known).sum()), "field": field, "from": source, "origin": origin,
            "digest": checksum, "file": f"{name}-{checksum}.npy",
        }  # fmt: skip
    write_json(place / LABELS_FILE, entries)
    for file in place.glob("*.npy"):
        if file.name not in {entry["file"] for entry in entries.values()}:
            file.unlink()


def _joined(name: str, field: str, parts: Sequence[Any], files: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """The values of all records, and the names that they are places in; none for numbers."""
    numbers: dict[str, int] = {}
    out, kind, first = [], "", files[0]
    for part, file in zip(parts, files, strict=True):
        values, here = part[f"value_{name}"], str(part[f"kind_{name}"])
        if kind and here and here != kind:
            raise DataError(f"{field!r} is a {here} in {file} and a {kind} in {first}; a label must be one of these")
        if here and not kind:
            kind, first = here, file
        if here == "name":
            places = np.array([assign_number(str(value), numbers, name) for value in part[f"names_{name}"]], np.float32)
            values = np.where(np.isnan(values), np.nan, places[np.nan_to_num(values).astype(int)])
        out.append(values)
    if not kind:
        found = sorted(_first_record(files[0]))
        raise DataError(f"no record of {files[0].parent} has {field!r}; there are {found[:20]}.{nearest(field, found)}")
    return np.concatenate(out).astype(np.float32), list(numbers)


def _first_record(file: Path) -> dict[str, Any]:
    with file.open(encoding="utf-8") as stream:
        value = json.loads(stream.readline())
    return value if isinstance(value, dict) else {}


def _check_same(
    keys: np.ndarray, values: np.ndarray, order: np.ndarray, field: str, files: Sequence[Path], counts: Sequence[int]
) -> None:
    """Refuse two records of one key with different values; `keys` and `values` are in `order`."""
    differ = (keys[1:] == keys[:-1]) & (values[1:] != values[:-1]) & ~(np.isnan(values[1:]) & np.isnan(values[:-1]))
    if not differ.any():
        return
    ends = np.cumsum(counts)
    first = int(differ.argmax())
    places = []
    for record in sorted(order[first : first + 2].tolist()):
        file = int(np.searchsorted(ends, record, side="right"))
        places.append(f"{files[file]}:{record - (ends[file] - counts[file]) + 1}")
    raise DataError(
        f"{places[0]} and {places[1]} were made of one record and differ in {field!r}; a document has one value of a label: "
        "annotate with one sample."
    )


def _job_folder(folder: Path) -> Path:
    """The folder of a finished job; its `records` are taken for it.

    Raises:
        DataError: it is not a job's output, or its records have no keys.
    """
    if folder.name == "records" and (folder.parent / "manifest.json").exists():
        folder = folder.parent
    manifest = _read_json(folder / "manifest.json")
    if not manifest or "settings" not in manifest or not (folder / "records").is_dir():
        raise DataError(
            f"{folder} is no finished job of the data factory, such as the --output of `qwen3 data annotate` or `distil`."
        )
    if not (folder / KEYS).is_dir():
        raise DataError(f"{folder} does not say which records it was made of; run its command again.")
    return folder


def _digest(job: Path) -> str:
    """Of what a job made: its settings and its records' sizes."""
    whole = hashlib.blake2b((job / "manifest.json").read_bytes(), digest_size=8)
    for file in _records_of(job):
        whole.update(f"{file.name} {file.stat().st_size}\n".encode())
    return whole.hexdigest()


def _records_of(job: Path) -> Iterator[Path]:
    yield from sorted((job / "records").glob("*.jsonl"))


def _check_names(fields: Mapping[str, str], prepared: Prepared, origin: str, replace: bool) -> None:
    if not fields:
        raise UserError("name a label.")
    for name, field in fields.items():
        if name in (*NAMED_LABELS, *RANGED_LABELS):
            raise UserError(
                f"{name!r} is a label that every prepared corpus has; give the field {field!r} another name, as in "
                f"topic={field}."
            )
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} is no name of a label: letters, digits, '_', '-' and '.' make one; as in topic={field}."
            )
        known = prepared.attached.get(name)
        if known is not None and (known.origin, known.field) != (origin, field) and not replace:
            raise UserError(
                f"{prepared.folder} has the label {name!r} already, from {known.field!r} of {known.source}; give --replace, or "
                f"another name, as in {name}2={field}."
            )


def _check_files(corpus: Path, job: Path) -> None:
    """Refuse labels of other files: their keys would be those of other records.

    Raises:
        DataError: names a file.
    """
    ours, theirs = _read_json(corpus / FILES), _read_json(job / FILES)
    if ours is None or theirs is None:
        raise DataError(f"{corpus if ours is None else job} does not say which files it was made of; make it again.")
    common = [name for name in theirs if name in ours]
    if not common:
        names = [" and ".join(sorted(of)[:2]) + (" ..." if len(of) > 2 else "") for of in (ours, theirs)]
        raise DataError(
            f"{corpus} was prepared from {names[0]}, and {job} was made of {names[1]}: label the files that {corpus.name} was "
            "prepared from."
        )
    for name in common:
        if ours[name] != theirs[name] or len(ours[name]) > 1:
            what = "several files"
            if ours[name] != theirs[name]:
                sizes = [" and ".join(map(str, of[name])) for of in (ours, theirs)]
                what = f"one of {sizes[0]} bytes for {corpus}, and of {sizes[1]} for {job}"
            raise DataError(
                f"{name} is {what}: their records cannot be matched; label the files that it was prepared from."
            )


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
