"""Preparing a corpus: records in, tokens with labels out, once and on all cores.

    qwen3 data prepare --path 'crawl/*.jsonl.gz' --tokenizer Qwen/Qwen3-0.6B --output prepared/web

    files -> splits -> records -> documents -> (left out: duplicates, held-out text, malformed) -> tokens, labels -> shards

Each split of the corpus becomes one shard, written by one process, so the result depends on the corpus and the settings
alone: not on the number of processes, nor on whether they ran here or under Apache Beam (`qwen3_jax.data.beam`). Finished
shards lie in OUTPUT.partial until all are; a preparation that was interrupted goes on where it stopped. Memory is that of one
batch of records per process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data import cleaning
from qwen3_jax.data.config import Source
from qwen3_jax.data.labels import label
from qwen3_jax.data.prepared import COLUMNS, FORMAT, MANIFEST, Prepared, encode_record, fingerprint, is_prepared
from qwen3_jax.data.records import DataError, Document, Malformed, Record, TextTokenizer, documents, encode, texts
from qwen3_jax.data.sources import SPLIT_BYTES, Split, read, splits
from qwen3_jax.errors import UserError
from qwen3_jax.progress import progress_bar

_BATCH = 64  # records encoded together
_NAMES = ("domain", "language")


@dataclass(frozen=True)
class Job:
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


@dataclass(frozen=True)
class Shard:
    """What became of one split: counts, and where the rest lies."""

    number: int
    documents: int
    tokens: int
    bytes: int
    text_bytes: int
    duplicates: int
    held_out: int
    malformed: int


def prepare(
    source: Source,
    tokenizer: TextTokenizer,
    output: str | Path,
    *,
    seed: int = 0,
    processes: int | None = None,
    split_bytes: int = SPLIT_BYTES,
    visible: bool | None = None,
) -> Prepared:
    """Prepare a corpus and return it; where `output` already holds it, nothing is done.

    Args:
        source: what to read and how; its weight, `where` and eval_fraction play no part (but for generated problems).
        tokenizer: encodes; workers get a pickled copy.
        output: the folder; made whole or not at all.
        seed: of generated problems.
        processes: at work at the same time; None is one for each core, and none beside this one for a corpus of one split.
        split_bytes: size of a split; shards become a part of that.
        visible: draw the progress bar (see `progress_bar`).

    Raises:
        DataError: a file cannot be read, more records are malformed than allowed, or no document is left.
        UserError: `output` holds something else.
    """
    begun = begin(source, tokenizer, output, seed, split_bytes)
    if isinstance(begun, Prepared):
        return begun
    job, pieces, settings, target = begun
    collect_held_out(job)
    count = min((os.cpu_count() or 1) if processes is None else processes, len(pieces))
    with _Workers(count) as run:
        drop: Iterable[np.ndarray | None] = [None] * len(pieces)
        if source.cleaning.duplicates != "keep":
            drop = find_duplicates(job, _all(run, sign_split, job, pieces, f"comparing {source.name}", visible))
        shards = _all(run, prepare_split, job, pieces, f"preparing {source.name}", visible, drop)
    return publish(job, shards, settings, target)


def begin(
    source: Source, tokenizer: TextTokenizer, output: str | Path, seed: int, split_bytes: int
) -> Prepared | tuple[Job, list[Split], dict[str, Any], Path]:
    """Return (job, splits, settings for `publish`, folder) of a preparation that is begun or taken up again, or its result
    where it is done; errors are those of `prepare`."""
    target = Path(output).expanduser().absolute()
    work = target.with_name(target.name + ".partial")
    job = Job(source, tokenizer, work, seed)
    pieces = splits(source, seed, split_bytes)
    settings = _settings(job, pieces)
    if target.exists():
        return _same(target, settings)
    _open_work(work, settings)
    return job, pieces, settings, target


def prepare_split(job: Job, number: int, split: Split, drop: np.ndarray | None) -> Shard:
    """Write one shard with its columns; `drop` [records] marks the duplicates.

    Raises:
        DataError: more malformed records than allowed.
    """
    done = _stem(job, number).with_suffix(".json")
    if done.exists():
        return Shard(**json.loads(done.read_text(encoding="utf-8")))
    held_out = _held_out(job)
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    names: dict[str, dict[str, int]] = {name: {} for name in _NAMES}
    counts = {"duplicates": 0, "held_out": 0, "text_bytes": 0}
    path = _stem(job, number).with_suffix(".arrayrecord")
    with _Log(job, number) as log, _Writer(path) as writer:
        found = enumerate(read(split, job.source, job.seed))
        while batch := list(islice(found, _BATCH)):
            kept: list[tuple[Record, Any, list[Document]]] = []
            for place, record in batch:
                try:
                    if isinstance(record, Malformed):
                        raise DataError(record.reason)
                    text = "\n".join(texts(record, job.source.text_key))
                    counts["text_bytes"] += len(text.encode("utf-8", "replace"))
                    if drop is not None and drop[place]:
                        counts["duplicates"] += 1
                    elif held_out is not None and held_out.overlaps(text):
                        counts["held_out"] += 1
                    else:
                        found_documents = documents(
                            record, job.tokenizer, loss_on=job.source.loss_on, text_key=job.source.text_key
                        )
                        kept.append((record, label(record, text, job.source.labels, job.source.name), found_documents))
                except DataError as error:
                    log.malformed(str(error))
            for (record, labels, _), encoded in zip(kept, _encode(kept, job, log), strict=True):
                for document in encoded:
                    if len(document.tokens) < 2:
                        continue  # nothing to predict
                    writer.write(encode_record(document))
                    columns["lengths"].append(len(document.tokens))
                    columns["quality"].append(labels.quality)
                    columns["key"].append(record.key)
                    for name in _NAMES:
                        known = names[name]
                        columns[name].append(known.setdefault(getattr(labels, name), len(known)))
    arrays = {name: np.asarray(values, COLUMNS[name]) for name, values in columns.items()}
    _save(_stem(job, number).with_suffix(".npz"), arrays, {name: list(known) for name, known in names.items()})
    lengths = arrays["lengths"]
    shard = Shard(
        number, len(lengths), int(lengths.sum()), path.stat().st_size, malformed=log.count, **counts
    )  # fmt: skip
    _write(done, dataclasses.asdict(shard))
    return shard


def sign_split(job: Job, number: int, split: Split) -> Path:
    """Write the signatures of a split's records (dtype `cleaning.SIGNATURE`, one for each, malformed ones too); return the
    file."""
    path = _stem(job, number).with_suffix(".signatures.npy")
    if not path.exists():
        near = job.source.cleaning.duplicates == "near"
        found = []
        for place, record in enumerate(read(split, job.source, job.seed)):
            try:
                if isinstance(record, Malformed):
                    raise DataError(record.reason)
                found.append(cleaning.signature("\n".join(texts(record, job.source.text_key)), near))
            except DataError:
                # Counted by prepare_split; here it must only resemble nothing else.
                own = hashlib.blake2b(f"{number}/{place}".encode(), digest_size=8).digest()
                empty = np.zeros((), cleaning.SIGNATURE)
                empty["exact"] = int.from_bytes(own, "little")
                empty["minhash"] = np.random.default_rng(list(own)).integers(0, 2**32, cleaning.BANDS * cleaning.ROWS)
                found.append(empty)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.save(stream, np.array(found, cleaning.SIGNATURE))
        temporary.replace(path)
    return path


def find_duplicates(job: Job, signatures: list[Path]) -> list[np.ndarray]:
    """Return bool [records] for each split: which to leave out."""
    parts = [np.load(path, mmap_mode="r") for path in signatures]
    counts = [len(part) for part in parts]
    joined = np.lib.format.open_memmap(
        job.folder / "signatures.npy", mode="w+", dtype=cleaning.SIGNATURE, shape=(sum(counts),)
    )
    np.concatenate(parts, out=joined)
    settings = job.source.cleaning
    dropped = cleaning.duplicates(joined, settings.duplicates == "near", settings.similarity)
    return np.split(dropped, np.cumsum(counts)[:-1])


def publish(job: Job, shards: list[Shard], settings: dict[str, Any], target: Path) -> Prepared:
    """Join the shards' columns, write the manifest, and give the folder its name.

    Raises:
        DataError: no document is left, or more records are malformed than allowed.
    """
    work, source = job.folder, job.source
    total = {f.name: sum(getattr(shard, f.name) for shard in shards) for f in dataclasses.fields(Shard)}
    if total["malformed"] > source.cleaning.max_malformed:
        first = next(_logged(job, shard.number)[0] for shard in shards if shard.malformed)
        raise DataError(
            f"{first} ({total['malformed']} malformed records in source {source.name!r}; cleaning.max_malformed allows "
            f"{source.cleaning.max_malformed})"
        )
    if not total["documents"]:
        raise DataError(
            f"source {source.name!r}: no document at {source.path!r} has the two tokens that a prediction needs"
        )
    names: dict[str, dict[str, int]] = {name: {} for name in _NAMES}
    joined = {
        name: np.lib.format.open_memmap(work / f"{name}.npy", mode="w+", dtype=kind, shape=(total["documents"],))
        for name, kind in COLUMNS.items()
    }
    start = 0
    for shard in shards:
        stop = start + shard.documents
        columns, local = _load(_stem(job, shard.number).with_suffix(".npz"))
        for name, column in joined.items():
            values = columns[name]
            if name in _NAMES:
                known = names[name]
                places = [known.setdefault(value, len(known)) for value in local[name]]
                values = np.asarray(places, COLUMNS[name])[values] if len(values) else values
            column[start:stop] = values
        start = stop
    for column in joined.values():
        column.flush()
    malformed = [line for shard in shards for line in _logged(job, shard.number)]
    if malformed:
        (work / "malformed.txt").write_text("\n".join(malformed) + "\n", encoding="utf-8")
    used = [shard for shard in shards if shard.documents]
    _write(work / MANIFEST, {
        "format": FORMAT,
        "documents": total["documents"],
        "tokens": total["tokens"],
        "text_bytes": total["text_bytes"],
        "left_out": {name: total[name] for name in ("duplicates", "held_out", "malformed")},
        "names": {name: list(known) for name, known in names.items()},
        "tokenizer": settings["tokenizer"],
        "settings": settings,
        "shards": [
            {"file": f"{s.number:05d}.arrayrecord", "documents": s.documents, "tokens": s.tokens, "bytes": s.bytes}
            for s in used
        ],
    })  # fmt: skip
    for pattern in (
        "*.npz",
        "?????.json",
        "*.signatures.npy",
        "signatures.npy",
        "*.log",
        "settings.json",
        "held_out.npy",
    ):
        for file in work.glob(pattern):
            file.unlink()
    for shard in shards:
        if not shard.documents:
            (work / f"{shard.number:05d}.arrayrecord").unlink(missing_ok=True)
    work.replace(target)
    return Prepared(target)


class _Writer:
    """An ArrayRecord file of which any record can be read by itself; given its name when it is whole."""

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path, self._temporary = path, path.with_suffix(".tmp")
        self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1")
        self.write = self._writer.write

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._writer.close()
        if kind is None:
            self._temporary.replace(self._path)


class _Log:
    """Malformed records of one split: counted and written down; past the limit the first of them is raised."""

    def __init__(self, job: Job, number: int):
        self._limit = job.source.cleaning.max_malformed
        self._path = _stem(job, number).with_suffix(".log")
        self.count = 0

    def __enter__(self) -> _Log:
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def malformed(self, reason: str) -> None:
        self.count += 1
        if self.count > self._limit:
            allowed = (
                f" (more malformed records than cleaning.max_malformed, {self._limit}, allows)" if self._limit else ""
            )
            raise DataError(reason + allowed)
        self._file.write(" ".join(reason.split()) + "\n")


def _encode(kept: list, job: Job, log: _Log) -> list[list]:
    """The encoded documents of each record; all in one call, and record by record where the tokenizer refuses that."""
    try:
        encoded = iter(encode([document for _, _, found in kept for document in found], job.tokenizer))
        return [list(islice(encoded, len(found))) for _, _, found in kept]
    except DataError:
        raise
    except ValueError:
        out = []
        for record, _, found in kept:
            try:
                out.append(encode(found, job.tokenizer))
            except ValueError as error:  # half a surrogate pair, say, which JSON can spell and UTF-8 cannot
                log.malformed(f"{record.where}: the tokenizer refuses the text: {error}")
                out.append([])
        return out


def _held_out(job: Job) -> cleaning.HeldOut | None:
    if not job.source.cleaning.held_out:
        return None
    return cleaning.HeldOut(np.load(job.folder / "held_out.npy", mmap_mode="r"), job.source.cleaning.ngram)


def collect_held_out(job: Job) -> None:
    """Write the n-grams that must not be trained on, once for all splits."""
    settings, path = job.source.cleaning, job.folder / "held_out.npy"
    if not settings.held_out or path.exists():
        return
    source = dataclasses.replace(job.source, path=settings.held_out, running_sum=None, cleaning=type(settings)())

    def plain() -> Iterator[str]:
        for split in splits(source):
            for record in read(split, source):
                if isinstance(record, Malformed):
                    raise DataError(record.reason)
                yield "\n".join(texts(record, source.text_key))

    np.save(path, cleaning.HeldOut.of(plain(), settings.ngram).grams)


def _all(
    run: Callable, work: Callable, job: Job, pieces: list[Split], label: str, visible: bool | None, *extra: Iterable
) -> list:
    """Do the work on every split, in any order; return the results in order."""
    with progress_bar(label, len(pieces), visible=visible) as bar:
        out = []
        for result in run(work, job, pieces, *extra):
            out.append(result)
            bar.advance()
    return out


class _Workers:
    """Yields run(work, job, splits, ...) -> results in order: in this process, or spread over several."""

    def __init__(self, processes: int):
        self._pool: Executor | None = None
        if processes > 1:
            # Spawned, not forked: this process may hold JAX's threads. A tokenizer's own threads would only get in the way.
            self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_one_thread)

    def __enter__(self) -> Callable:
        return self._run

    def __exit__(self, *_: Any) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _run(self, work: Callable, job: Job, pieces: list[Split], *extra: Iterable) -> Iterator:
        arguments = ([job] * len(pieces), range(len(pieces)), pieces, *extra)
        if self._pool is None:
            return map(work, *arguments)
        with _no_main():
            return self._pool.map(work, *arguments)  # starts the processes


@contextmanager
def _no_main() -> Iterator[None]:
    """Keep multiprocessing from running the caller's script again in every worker, which not every script is written for."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _settings(job: Job, pieces: list[Split]) -> dict[str, Any]:
    """What the result depends on."""
    source = dataclasses.asdict(job.source)
    for name in ("weight", "where", *([] if job.source.is_synthetic else ["eval_fraction"])):
        del source[name]
    files = hashlib.blake2b(digest_size=8)
    for split in pieces:
        files.update(repr([(part.file.key, part.file.size, part.start, part.stop) for part in split]).encode())
    return {"source": source, "tokenizer": fingerprint(job.tokenizer), "files": files.hexdigest(), "seed": job.seed}


def _same(target: Path, settings: dict[str, Any]) -> Prepared:
    if not is_prepared(target):
        raise UserError(f"{target} exists and is not a prepared corpus; choose another folder, or delete it.")
    found = Prepared(target)
    before = found.manifest["settings"]
    for name, value in json.loads(json.dumps(settings)).items():
        if before.get(name) != value:
            what = {"files": "the files have changed", "tokenizer": "the tokenizer is another"}.get(
                name, f"{name} differs"
            )
            raise UserError(f"{target} was prepared otherwise ({what}); choose another folder, or delete it.")
    return found


def _open_work(work: Path, settings: dict[str, Any]) -> None:
    """Make the working folder, or take up the one of the same preparation."""
    path = work / "settings.json"
    settings = json.loads(json.dumps(settings))
    if work.exists():
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        _write(path, settings)


def _stem(job: Job, number: int) -> Path:
    return job.folder / f"{number:05d}"


def _logged(job: Job, number: int) -> list[str]:
    return _stem(job, number).with_suffix(".log").read_text(encoding="utf-8").splitlines()


def _save(path: Path, arrays: dict[str, np.ndarray], names: dict[str, list[str]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        found = arrays | {f"{name}_names": np.asarray(values, dtype=str) for name, values in names.items()}
        np.savez(stream, allow_pickle=False, **found)
    temporary.replace(path)


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    with np.load(path) as found:
        return {name: found[name] for name in COLUMNS}, {name: found[f"{name}_names"].tolist() for name in _NAMES}


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
