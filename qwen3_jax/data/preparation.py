"""Preparing a corpus: records in, tokens with labels out, once and on all cores.

    qwen3 data prepare --path 'crawl/*.jsonl.gz' --tokenizer Qwen/Qwen3-0.6B --output prepared/web

    files -> splits -> records -> documents -> (left out: duplicates, held-out text, malformed) -> tokens, labels -> shards

Each split of the corpus becomes one shard (`qwen3_jax.data.shards`), so the result depends on the corpus and the settings
alone: not on the number of processes, nor on whether they ran here or under Apache Beam (`qwen3_jax.data.beam`). Finished
shards lie in OUTPUT.partial until all are; a preparation that was interrupted, at any moment, resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data import cleaning
from qwen3_jax.data.config import Source
from qwen3_jax.data.encoding import record_text
from qwen3_jax.data.labels import check_label_keys, named_keys
from qwen3_jax.data.prepared import COLUMNS, FORMAT, MANIFEST, Prepared, fingerprint, is_prepared
from qwen3_jax.data.records import PROVENANCE, DataError, Record, TextTokenizer
from qwen3_jax.data.shards import (
    FILES,
    NAMED,
    PARTS,
    PreparationJob,
    Shard,
    assign_number,
    load_columns,
    load_log,
    prepare_split,
    sign_split,
)
from qwen3_jax.data.sources import SPLIT_BYTES, Split, file_sizes, read, splits
from qwen3_jax.data.workers import start_workers
from qwen3_jax.errors import UserError, warn
from qwen3_jax.file_writes import locked, remove_leftovers, write_json, written_whole
from qwen3_jax.progress import with_progress


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
        processes: at work at the same time; None is one for each core. A corpus of one split is prepared in this process.
        split_bytes: size of a split; shards become a part of that.
        visible: draw the progress bar (see `progress_bar`).

    Raises:
        DataError: a file cannot be read, more records are malformed than allowed, or no document is left.
        UserError: `output` holds something else, or another process is at work on it.
    """
    with begin_preparation(source, tokenizer, output, seed, split_bytes) as begun:
        if begun is None:
            return Prepared(Path(output).expanduser())
        job, pieces = begun.job, begun.splits
        count = min((os.cpu_count() or 1) if processes is None else processes, len(pieces))
        with start_workers(job, count) as run:
            drop: Iterable[np.ndarray | None] = [None] * len(pieces)
            if source.cleaning.duplicates != "keep":
                signed = run(sign_split, pieces)
                drop = find_duplicates(
                    job, list(with_progress(signed, f"comparing {source.name}", len(pieces), visible=visible))
                )
            prepared = run(prepare_split, pieces, drop)
            shards = list(with_progress(prepared, f"preparing {source.name}", len(pieces), visible=visible))
        return begun.publish(shards)


@contextmanager
def begin_preparation(
    source: Source, tokenizer: TextTokenizer, output: str | Path, seed: int, split_bytes: int
) -> Iterator[Preparation | None]:
    """Yield a new or resumed preparation, or None if `output` is already complete. The folder is locked against other
    processes until the block ends.

    Raises:
        UserError: `output` holds something else, or another process is at work on it.
    """
    target = Path(output).expanduser().absolute()
    job = PreparationJob(source, tokenizer, target.with_name(target.name + ".partial"), seed)
    pieces = splits(source, seed, split_bytes)
    settings = json.loads(json.dumps(_settings(job, pieces)))
    if target.exists():
        _check_done(target, settings)
        yield None
        return
    parts = job.folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts / "lock", f"another process is preparing {target}; wait for it, or stop it."):
        _check_resumable(parts / "settings.json", settings)
        remove_leftovers(job.folder, parts)
        _warn_of_label_keys(job, pieces)
        _collect_held_out(job)
        yield Preparation(job, pieces, settings, target)


def find_duplicates(job: PreparationJob, signatures: Sequence[Path]) -> list[np.ndarray]:
    """Return bool [records] for each split, which to leave out, given the files of `sign_split` in order."""
    size = cleaning.SIGNATURE.itemsize
    counts = [path.stat().st_size // size for path in signatures]
    if not sum(counts):
        return [np.zeros(0, bool)] * len(counts)
    together = job.folder / PARTS / "signatures"
    with together.open("wb") as out:
        for path in signatures:
            with path.open("rb") as stream:
                shutil.copyfileobj(stream, out)
    joined = np.memmap(together, cleaning.SIGNATURE, "r")
    settings = job.source.cleaning
    dropped = cleaning.duplicates(joined, settings.duplicates == "near", settings.similarity)
    return np.split(dropped, np.cumsum(counts)[:-1])


@dataclass(frozen=True)
class Preparation:
    """A preparation at work.

    Attributes:
        job: for `prepare_split` and `sign_split`.
        splits: one for each shard.
        settings: what the result depends on.
        target: the folder to make.
    """

    job: PreparationJob
    splits: list[Split]
    settings: dict[str, Any]
    target: Path

    def publish(self, shards: Sequence[Shard]) -> Prepared:
        """Join the shards' columns, write the manifest, and give the folder its name.

        Raises:
            DataError: no document is left, or more records are malformed than allowed.
        """
        source, folder = self.job.source, self.job.folder
        counts = ("documents", "tokens", "text_bytes", "duplicates", "held_out", "malformed", "whole")
        total = {name: sum(getattr(shard, name) for shard in shards) for name in counts}
        malformed = [line for shard in shards if shard.malformed for line in load_log(self.job, shard.number)]
        if len(malformed) > source.cleaning.max_malformed:
            raise DataError(
                f"{malformed[0]} ({len(malformed)} malformed records in source {source.name!r}; cleaning.max_malformed "
                f"allows {source.cleaning.max_malformed}, which is --max-malformed of qwen3 data prepare)"
            )
        if not total["documents"]:
            raise DataError(
                f"source {source.name!r}: no document at {source.path!r} has the two tokens that a prediction needs"
            )
        self._check_keys(shards)
        names = self._join_columns(shards, total["documents"])
        if malformed:
            with written_whole(folder / "malformed.txt") as path:
                path.write_text("\n".join(malformed) + "\n", encoding="utf-8")
        used = [shard for shard in shards if shard.documents]
        for shard in shards:
            if not shard.documents:
                self.job.shard(shard.number).unlink(missing_ok=True)
        files = [
            {"file": self.job.shard(s.number).name, "documents": s.documents, "tokens": s.tokens, "bytes": s.bytes}
            for s in used
        ]
        write_json(folder / FILES, file_sizes(self.splits))
        write_json(folder / MANIFEST, {
            "format": FORMAT,
            "documents": total["documents"],
            "tokens": total["tokens"],
            "text_bytes": total["text_bytes"],
            "whole": total["whole"],
            "left_out": {name: total[name] for name in ("duplicates", "held_out", "malformed")},
            "names": names,
            "tokenizer": self.settings["tokenizer"],
            "settings": self.settings,
            "shards": files,
        })  # fmt: skip
        folder.replace(self.target)
        shutil.rmtree(self.target / PARTS)
        return Prepared(self.target)

    def _check_keys(self, shards: Sequence[Shard]) -> None:
        """Refuse a label's key that no record has, and name the keys of records that nothing has read."""
        source = self.job.source
        keys, used = ({key for shard in shards for key in getattr(shard, name)} for name in ("keys", "keys_read"))
        try:
            check_label_keys(source.labels, keys, source.name)
        except DataError:
            shutil.rmtree(self.job.folder)  # every document in it has the wrong label
            raise
        unused = sorted(keys - used - {PROVENANCE, *named_keys(source.labels).values()})
        if unused:
            more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
            warn(f"source {source.name!r}: keys of its records that are not used: {', '.join(unused[:12])}{more}")

    def _join_columns(self, shards: Sequence[Shard], count: int) -> dict[str, list[str]]:
        names: dict[str, dict[str, int]] = {name: {} for name in NAMED}
        joined = {
            name: np.lib.format.open_memmap(self.job.folder / f"{name}.npy", mode="w+", dtype=kind, shape=(count,))
            for name, kind in COLUMNS.items()
        }
        start = 0
        for shard in shards:
            stop = start + shard.documents
            columns, local = load_columns(self.job, shard.number)
            for name, column in joined.items():
                values = columns[name]
                if name in NAMED and len(values):
                    places = [assign_number(value, names[name], name) for value in local[name]]
                    values = np.array(places, COLUMNS[name])[values]
                column[start:stop] = values
            start = stop
        for column in joined.values():
            column.flush()
        return {name: list(numbers) for name, numbers in names.items()}


def _warn_of_label_keys(job: PreparationJob, pieces: Sequence[Split], count: int = 100) -> None:
    """Say at the start of a long preparation that the first records lack a label's key; `publish` refuses it if all do."""
    if not named_keys(job.source.labels) or len(pieces) < 2:
        return
    first = list(itertools.islice(read(pieces[0], job.source, job.seed), count))
    keys = {
        key for record in first if isinstance(record, Record) for key, value in record.body.items() if value is not None
    }
    try:
        check_label_keys(job.source.labels, keys, job.source.name)
    except DataError as error:
        warn(f"so far (the first {len(first)} records): {error}")


def _collect_held_out(job: PreparationJob) -> None:
    """Write the n-grams that must not be trained on, once for all splits."""
    settings, path = job.source.cleaning, job.held_out_file
    if not settings.held_out or path.exists():
        return
    source = dataclasses.replace(
        job.source, path=settings.held_out, format="auto", running_sum=None, pairs=False, cleaning=type(settings)()
    )

    def plain() -> Iterator[str]:
        for split in splits(source):
            for record in read(split, source):
                yield record_text(record, source)

    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, cleaning.HeldOut.of(plain(), settings.ngram).grams)


def _settings(job: PreparationJob, pieces: Sequence[Split]) -> dict[str, Any]:
    """What the result depends on."""
    source = dataclasses.asdict(job.source)
    for name in ("weight", "where", *([] if job.source.is_synthetic else ["eval_fraction"])):
        del source[name]
    files = hashlib.blake2b(digest_size=8)
    for split in pieces:
        files.update(repr([(part.file.key, part.file.size, part.start, part.stop) for part in split]).encode())
    return {"source": source, "tokenizer": fingerprint(job.tokenizer), "files": files.hexdigest(), "seed": job.seed}


def _check_done(target: Path, settings: dict[str, Any]) -> None:
    if not is_prepared(target):
        raise UserError(f"{target} exists and is not a prepared corpus; choose another folder, or delete it.")
    differs = _difference(Prepared(target).manifest["settings"], settings)
    if differs:
        raise UserError(f"{target} was prepared with other settings ({differs}); choose another folder, or delete it.")
    shutil.rmtree(target / PARTS, ignore_errors=True)  # left by a process killed after the rename


def _check_resumable(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a preparation that was started with other settings."""
    if not path.exists():
        write_json(path, settings)
        return
    differs = _difference(json.loads(path.read_text(encoding="utf-8")), settings)
    if differs:
        raise UserError(
            f"{path.parent.parent} holds an interrupted preparation with other settings ({differs}); resume it with those, "
            "or delete it."
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first difference as text, or "" where the two are equal."""
    for name, value in now.items():
        if before.get(name) == value:
            continue
        if name == "source":
            old = before.get(name, {})
            key = next(key for key in value if old.get(key) != value[key])
            return f"{key} is {value[key]!r}, was {old.get(key)!r}"
        return {"files": "the files have changed", "tokenizer": "the tokenizer is another"}.get(name, f"{name} differs")
    return ""
