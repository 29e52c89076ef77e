"""A job of the data factory: a folder with recorded answers, and what is made of them.

    OUTPUT/records/00000.jsonl ...     what was made, in the order of the records; training reads this folder
    OUTPUT/keys/00000.npy ...          uint64, of each of these lines the key of the record that it was made of
    OUTPUT/files.json                  the files that were read, and their sizes
    OUTPUT/rejects.jsonl               what was not made, with outcome and reason
    OUTPUT/cost.json                   tokens and what they cost
    OUTPUT/manifest.json               settings and counts; written last
    OUTPUT/answers/00000.log ...       recorded answers, kept

Records are read and split as `qwen3 data prepare` does it, the folder is locked in the same way, and the same worker processes
make the part of each split. The same command resumes where it was interrupted. Where only what is made of answers has changed,
the recorded ones are used; another prompt, model or sampling asks again, and says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.answers import AnswerLog, Spending
from qwen3_jax.data.factory.asking import Asker, Asking, AskOptions, Usage
from qwen3_jax.data.factory.budget import Budget, Limits
from qwen3_jax.data.factory.task import Task
from qwen3_jax.data.factory.work import (
    ANSWERS,
    EARLIER,
    EarlierAnswers,
    FactoryJob,
    PartCounts,
    make_split,
    sample_of,
    total,
)
from qwen3_jax.data.records import DataError
from qwen3_jax.data.shards import FILES, KEYS, PARTS
from qwen3_jax.data.sources import SPLIT_BYTES, Split, file_sizes, splits
from qwen3_jax.data.workers import start_workers
from qwen3_jax.endpoints import Backend, Tokens
from qwen3_jax.errors import UserError, warn
from qwen3_jax.file_writes import locked, remove_leftovers, write_json, written_whole
from qwen3_jax.json_fields import digest, read_json
from qwen3_jax.progress import progress_bar, with_progress

MANIFEST, SETTINGS, RECORDS, COST = "manifest.json", "settings.json", "records", "cost.json"
LOCK = "lock"
FORMAT = 2


@dataclass(frozen=True)
class Finished:
    """A finished job.

    Attributes:
        folder: OUTPUT.
        counts: of all splits.
        cost: cost.json; empty where nothing was asked.
        asking: what this run did; None where everything was there.
    """

    folder: Path
    counts: PartCounts
    cost: dict[str, Any]
    asking: Asking | None = None

    @property
    def records(self) -> Path:
        """The folder of what was made."""
        return self.folder / RECORDS


@dataclass(frozen=True)
class OpenJob:
    """A job whose folder is locked for this process.

    Attributes:
        job: for the work on a split.
        splits: of the corpus.
        settings: what the result depends on.
        is_done: the folder holds the result already.
    """

    job: FactoryJob
    splits: list[Split]
    settings: dict[str, Any]
    is_done: bool


def run(
    source: Source,
    task: Task,
    output: str | Path,
    backend: Backend | None,
    *,
    limits: Limits | None = None,
    options: AskOptions | None = None,
    sample: int | None = None,
    processes: int | None = 1,
    split_bytes: int = SPLIT_BYTES,
    visible: bool | None = None,
) -> Finished:
    """Ask what is not recorded, make the records, and return what there is; where the result is there, nothing is done.

    Args:
        source: the records; its weight, `where` and eval_fraction play no part.
        task: what is asked and made.
        output: the folder.
        backend: answers; None for a task that asks nothing, or to use recorded answers alone.
        limits: what may be spent; None is no limit. Beyond it records are left out, and a run with a larger budget adds them.
        options: tries and failures.
        sample: number of different records to take, those with the smallest hashes; a larger number asks only for what is
            new. Of a task over queries it is their number, each with all its answers.
        processes: that make records of answers; None is one for each core.
        split_bytes: size of a split.
        visible: draw progress bars (see `progress_bar`).

    Raises:
        UserError: another process is at work on the folder, it holds something else, or too many requests fail.
        DataError: a file cannot be read, more records are malformed than allowed, or nothing was made.
    """
    limits, options = limits or Limits(), options or AskOptions()
    fingerprint = recorded_model(output) if backend is None else backend.fingerprint
    with open_job(source, task, output, fingerprint, split_bytes, sample) as opened:
        if opened.is_done:
            return finished(opened.job.folder)
        asking = None
        if backend is not None:
            asking = ask(opened, backend, limits, options, visible=visible)
        count = min((os.cpu_count() or 1) if processes is None else processes, len(opened.splits))
        with start_workers(opened.job, count) as work:
            made = work(make_split, opened.splits)
            parts = list(with_progress(made, "making records", len(opened.splits), visible=visible))
        return publish(opened, parts, limits, asking)


def ask(
    opened: OpenJob,
    backend: Backend,
    limits: Limits,
    options: AskOptions,
    *,
    usage: dict[int, Usage] | None = None,
    visible: bool | None = None,
) -> Asking:
    """Ask what is not recorded yet; see `Asker`."""
    folder = opened.job.folder
    budget = Budget(limits, spending(folder))
    earlier = folder / EARLIER
    with progress_bar("asking", len(opened.splits), visible=visible) as bar:
        asker = Asker(
            opened.job, backend, budget, options, advance=bar.advance,
            earlier=EarlierAnswers(earlier) if earlier.is_dir() else None, usage=usage,
        )  # fmt: skip
        return asker.run(enumerate(opened.splits))


@contextmanager
def open_job(
    source: Source,
    task: Task,
    output: str | Path,
    fingerprint: str,
    split_bytes: int = SPLIT_BYTES,
    sample: int | None = None,
) -> Iterator[OpenJob]:
    """Lock a folder, new or begun, and say what has changed since it was last used.

    Raises:
        UserError: another process is at work on the folder, or it holds something else.
    """
    folder = Path(output).expanduser().absolute()
    if folder.exists() and not any((folder / name).exists() for name in (SETTINGS, PARTS)) and any(folder.iterdir()):
        raise UserError(f"{folder} exists and holds nothing of the data factory; choose another folder.")
    pieces = splits(source, 0, split_bytes)
    settings = _settings(source, task, fingerprint, pieces) | {"sample": sample}
    most_unit = None if sample is None else sample_of(source, task, pieces, sample).most_unit
    parts = folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts / LOCK, f"another process is at work on {folder}; wait for it, or stop it."):
        remove_leftovers(folder, parts)
        is_done = _compare(folder, settings)
        job = FactoryJob(source, task, folder, fingerprint, digest(settings), most_unit)
        yield OpenJob(job, pieces, settings, is_done)


def recorded_model(output: str | Path) -> str:
    """The fingerprint of the model that a folder was last used with, "" where there is none."""
    file = Path(output).expanduser() / SETTINGS
    return str(read_json(file)["model"]) if file.exists() else ""


def publish(
    opened: OpenJob, parts: Sequence[PartCounts], limits: Limits | None = None, asking: Asking | None = None
) -> Finished:
    """Put the parts together: records, rejections, cost and manifest.

    Raises:
        DataError: nothing was made, or more records are malformed than allowed.
    """
    job, folder = opened.job, opened.job.folder
    counts = total(parts)
    limit = job.source.cleaning.max_malformed
    if counts.malformed > limit:
        raise DataError(
            f"{counts.malformed} records are malformed, --max-malformed allows {limit}: {_first_malformed(job, parts)}"
        )
    cost = _cost(folder, counts, limits or Limits())
    if (folder / ANSWERS).is_dir():
        write_json(folder / COST, cost)
    with written_whole(folder / "rejects.jsonl") as path, path.open("wb") as together:
        for part in parts:
            with job.part(part.number, ".rejects.jsonl").open("rb") as stream:
                shutil.copyfileobj(stream, together)
    if not counts.made:
        reasons = ", ".join(f"{count:,} {name}" for name, count in counts.rejected.items())
        raise DataError(
            f"no record was made ({reasons or 'there are none'}); {folder / 'rejects.jsonl'} has the reasons"
        )
    for name, suffix, made in ((RECORDS, ".jsonl", ".jsonl"), (KEYS, ".keys.npy", ".npy")):
        _replace_folder(
            folder / name, {f"{part.number:05d}{made}": job.part(part.number, suffix) for part in parts if part.made}
        )
    write_json(folder / FILES, file_sizes(opened.splits))
    is_complete = not counts.unasked and "unreachable" not in counts.rejected
    write_json(folder / MANIFEST, {
        "format": FORMAT, "complete": is_complete, "counts": dataclasses.asdict(counts), "settings": opened.settings,
    })  # fmt: skip
    for file in (folder / PARTS).iterdir():
        if file.name != LOCK:
            file.unlink()
    return Finished(folder, counts, cost, asking)


def _replace_folder(folder: Path, files: dict[str, Path]) -> None:
    """Put a folder with copies of some files in the place of another; `files` has their names in it."""
    new, old = folder.with_name(f"{folder.name}.tmp"), folder.with_name(f"{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    for name, file in files.items():
        shutil.copyfile(file, new / name)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def spending(folder: Path) -> Spending:
    """What all runs in a folder have spent, for any recipe and model."""
    spent = Spending()
    for path in sorted([*(folder / ANSWERS).glob("*.log"), *(folder / EARLIER).rglob("*.log")]):
        log = AnswerLog(path, write=False)
        spent += log.spending
        log.close()
    return spent


def _compare(folder: Path, settings: dict[str, Any]) -> bool:
    """Note the settings of this run, and say how they differ from those before; return whether the result is there.

    Raises:
        UserError: the folder holds the answers of another task.
    """
    file, manifest = folder / SETTINGS, folder / MANIFEST
    before = read_json(file) if file.exists() else settings
    if before["task"] != settings["task"]:
        raise UserError(
            f"{folder} belongs to the task {before['task']}, not {settings['task']}; choose another folder."
        )
    if before == settings and manifest.exists():
        done = read_json(manifest)
        if done["complete"] and done["format"] == FORMAT:
            return True
    changed = _changes(before, settings)
    recorded = sum(1 for _ in (folder / ANSWERS).glob("*.log"))
    if recorded and changed["asking"]:
        warn(
            f"{changed['asking']}: requests that this changes are asked again; what was recorded before is kept in "
            f"{folder / ANSWERS}"
        )
    elif recorded and changed["reading"]:
        warn(f"{changed['reading']}: records are made again from the recorded answers")
    if recorded and before["files"] != settings["files"]:
        warn("the files have changed: the answers to records that are still there are used")
        place = folder / EARLIER / hashlib.blake2b(before["files"].encode(), digest_size=4).hexdigest()
        place.mkdir(parents=True, exist_ok=True)
        for log in (folder / ANSWERS).glob("*.log"):
            log.rename(place / f"{len(list(place.iterdir())):05d}.log")
    manifest.unlink(missing_ok=True)
    write_json(file, settings)
    return False


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """The differences of each kind in words, or ""."""
    out: dict[str, list[str]] = {"asking": [], "reading": []}
    if before["model"] != now["model"]:
        out["asking"].append(f"the model is {now['model']!r}, was {before['model']!r}")
    for kind, said in out.items():
        for name, value in now[kind].items():
            if before[kind].get(name) != value:
                was, is_now = (json.dumps(each, ensure_ascii=False)[:80] for each in (before[kind].get(name), value))
                said.append(f"{name} is {is_now}, was {was}")
    return {kind: "; ".join(said) for kind, said in out.items()}


def _settings(source: Source, task: Task, fingerprint: str, pieces: Sequence[Split]) -> dict[str, Any]:
    """What the result depends on, as JSON values."""
    files = hashlib.blake2b(digest_size=8)
    for split in pieces:
        files.update(repr([(part.file.key, part.file.size, part.start, part.stop) for part in split]).encode())
    values = {
        "task": task.name, "model": fingerprint, "asking": {"recipe": task.recipe, **task.asking},
        "reading": dict(task.reading), "files": files.hexdigest(), "format": source.format, "text_key": source.text_key,
    }  # fmt: skip
    return json.loads(json.dumps(values))


def _cost(folder: Path, counts: PartCounts, limits: Limits) -> dict[str, Any]:
    """cost.json; of answers for any recipe and model that this folder has asked."""
    spent = spending(folder)
    sure = Tokens(spent.prompt, spent.completion)
    dollars, at_most = limits.dollars(sure), limits.dollars(spent.at_most)
    return {
        "requests": spent.requests,
        "prompt_tokens": spent.prompt,
        "cached_prompt_tokens": spent.cached,
        "completion_tokens": spent.completion,
        "thinking_tokens": spent.thinking,
        "kept_completion_tokens": counts.kept_tokens,
        "discarded_completion_tokens": spent.completion - counts.kept_tokens,
        "tokens_per_kept_token": round(sure.total / counts.kept_tokens, 3) if counts.kept_tokens else None,
        "without_counts": {
            "requests": spent.doubtful_requests,
            "prompt_tokens_at_most": spent.doubtful_prompt,
            "completion_tokens_at_most": spent.doubtful_completion,
        },
        "usd": None if dollars is None else str(dollars),
        "usd_at_most": None if at_most is None else str(at_most),
    }


def finished(folder: Path) -> Finished:
    """The job of a folder that holds its result."""
    manifest = read_json(folder / MANIFEST)
    cost = read_json(folder / COST) if (folder / COST).exists() else {}
    return Finished(folder, PartCounts(**manifest["counts"]), cost)


def _first_malformed(job: FactoryJob, parts: Sequence[PartCounts]) -> str:
    for part in parts:
        if part.malformed:
            with job.part(part.number, ".rejects.jsonl").open(encoding="utf-8") as rejects:
                reasons = (value["reason"] for value in map(json.loads, rejects) if value["outcome"] == "malformed")
                return str(next(reasons))
    return ""
