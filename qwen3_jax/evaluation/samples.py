"""The folder of a run: its settings, one JSON line for each sample, and what is computed from them.

| file            | what                                                                                             |
|-----------------|--------------------------------------------------------------------------------------------------|
| settings.json   | all that determines the samples, with digests of the data and of the checkpoint                   |
| samples.jsonl   | one line for each sample, appended as answers finish; sorted when the last one is there           |
| problems.jsonl  | what was asked: prompt, reference, group                                                          |
| timings.jsonl   | seconds of each sample's verifier, which differ from run to run                                   |
| results.json    | the metrics                                                                                      |

A run that is killed loses no line but the one that it was writing, and the same command continues it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.plan import Key, Plan
from qwen3_jax.file_writes import cut_unfinished_line, locked
from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import replace_file
from qwen3_jax.text_files import is_unicode

SETTINGS, SAMPLES, PROBLEMS, TIMINGS, RESULTS = (
    "settings.json", "samples.jsonl", "problems.jsonl", "timings.jsonl", "results.json",
)  # fmt: skip
_KEY_FIELDS = Key._fields
_LONGEST_TEXT = 20_000  # characters of a prompt in problems.jsonl


def key_of(sample: Mapping[str, Any]) -> Key:
    """The key of a sample's line."""
    return Key(*(sample[name] for name in _KEY_FIELDS))


class SampleFile:
    """The samples of one run in a folder. Lines may be added from several threads.

    Args:
        folder: created where it does not exist; its parent must exist.
        plan: of the run.
        settings: all that determines the samples: JSON values.

    Attributes:
        folder: as given.
        done: keys of the samples that are there.

    Raises:
        UserError: the folder holds another run (names what differs), or is in use by another process.
    """

    def __init__(self, folder: Path, plan: Plan, settings: Mapping[str, Any]):
        self.folder, self._plan = folder, plan
        if not folder.parent.is_dir():
            raise UserError(f"--output {folder}: the folder {folder.parent} does not exist.")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is a file; give a folder.")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {folder} cannot be created ({error.strerror or error}).") from None
        self._write_lock = threading.Lock()
        self._lock = contextlib.ExitStack()
        try:
            self._lock.enter_context(locked(folder / ".lock", f"--output {folder} is in use by another evaluation."))
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written ({error.strerror or error}).") from None
        self._file: BinaryIO | None = None
        try:
            self._claim(settings)
            self.done = set(self._recover(folder / SAMPLES))
            cut_unfinished_line(folder / TIMINGS)
            self._file = open(folder / SAMPLES, "ab")  # noqa: SIM115 - closed in `close`
            self._timings = open(folder / TIMINGS, "ab")  # noqa: SIM115
        except OSError as error:
            self._lock.close()
            raise UserError(f"--output {folder} cannot be written ({error.strerror or error}).") from None
        except BaseException:
            self._lock.close()
            raise

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Write the settings into a new folder, or compare them with those of an earlier run."""
        settings = json.loads(json.dumps(settings))
        file = self.folder / SETTINGS
        if file.exists():
            difference = next(differences(read_json(file), settings), None)
            if difference is not None:
                raise UserError(f"--output {self.folder} holds another run: {difference}; give another folder.")
        else:
            others = [
                each.name for each in self.folder.iterdir() if not each.name.startswith(".") and each.suffix != ".tmp"
            ]
            if others:
                raise UserError(f"--output {self.folder} holds {others[0]} and no evaluation; give another folder.")
            replace_file(file, json_text(settings, indent=2) + "\n")
        if not (self.folder / PROBLEMS).exists():
            write_problems(self.folder / PROBLEMS, self._plan)

    def _recover(self, file: Path) -> Iterator[Key]:
        """Cut off a last line that a killed process did not finish; yield the keys of the others."""
        cut_unfinished_line(file)
        valid = set(self._plan.keys())
        for number, line in enumerate(_lines(file), start=1):
            try:
                key = key_of(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{file}, line {number} is no sample; remove it, and the same command repeats it."
                ) from None
            if key not in valid:
                raise UserError(
                    f"{file}, line {number} is of a sample that this run does not have; give another folder."
                )
            yield key

    def add(self, sample: Mapping[str, Any], seconds: float) -> None:
        """Append a sample, and the seconds of its verifier."""
        key = key_of(sample)
        line = json_text(sample).encode() + b"\n"
        timing = json_text(key._asdict() | {"verifier_seconds": round(seconds, 4)})
        with self._write_lock:
            if self._file is None or key in self.done:  # closed: the run was stopped, and asks it again
                return
            self._file.write(line)
            self._file.flush()
            self._timings.write(timing.encode() + b"\n")
            self._timings.flush()
            self.done.add(key)

    def samples(self) -> Iterator[dict[str, Any]]:
        """All samples so far."""
        return read_samples(self.folder)

    def sort(self) -> None:
        """Put the lines into the plan's order, in one step: the file of a run does not depend on how it was computed."""
        file = self.folder / SAMPLES
        order = {key: place for place, key in enumerate(self._plan.keys())}
        with open(file, "rb") as lines:
            places, start = [], 0
            for line in lines:
                places.append((order[key_of(json.loads(line))], start, len(line)))
                start += len(line)
            if places == sorted(places):
                return
            part = file.with_name(f"{SAMPLES}.part")
            with open(part, "wb") as out:
                for _, start, length in sorted(places):
                    lines.seek(start)
                    out.write(lines.read(length))
        with self._write_lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            part.replace(file)

    def close(self) -> None:
        """Close the files, and let other processes have the folder; what is added later is dropped."""
        with self._write_lock:
            for file in (self._file, self._timings):
                if file is not None:
                    file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SampleList:
    """The same in memory, for callers that want the metrics alone."""

    def __init__(self) -> None:
        self.done: set[Key] = set()
        self._samples: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(self, sample: Mapping[str, Any], seconds: float) -> None:
        """Keep a sample."""
        del seconds
        with self._lock:
            self.done.add(key_of(sample))
            self._samples.append(dict(sample))

    def samples(self) -> Iterator[dict[str, Any]]:
        """All samples so far."""
        return iter(self._samples)


def read_samples(folder: Path) -> Iterator[dict[str, Any]]:
    """The samples of a run's folder; an unfinished last line is left out.

    Raises:
        UserError: a line that is no sample, or no such file.
    """
    file = folder / SAMPLES
    if not file.exists():
        raise UserError(f"{folder} holds no {SAMPLES}: it is no folder of `qwen3 eval --output`.")
    for number, line in enumerate(_lines(file), start=1):
        try:
            sample = json.loads(line)
            key_of(sample)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}, line {number} is no sample.") from None
        yield sample


def _lines(file: Path) -> Iterator[bytes]:
    if file.exists():
        with open(file, "rb") as opened:
            yield from (line for line in opened if line.endswith(b"\n"))


def write_problems(file: Path, plan: Plan) -> None:
    """Write what is asked, for readers of the folder; very long prompts are cut, and say so."""
    lines = []
    for name, questions in plan.questions.items():
        for question in questions:
            problem = question.problem
            prompt: Any = problem.prompt
            shown = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
            text = json_text(shown)
            row = {
                "task": name, "problem": problem.id, "group": problem.group, "digest": question.digest,
                "prompt": shown if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + f" ... ({len(text)} characters)",
                "reference": problem.reference, "verifier": question.verifier,
            }  # fmt: skip
            lines.append(json_text(row))
    replace_file(file, "".join(f"{line}\n" for line in lines))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that any reader takes: halves of surrogate pairs, which UTF-8 does not have, are spelled out."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    return text if is_unicode(text) else json.dumps(value, indent=indent, default=str)


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two settings differ, by the setting's name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from differences(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
    elif old != new:
        yield f"its {path} is {_shown(old)}, and {_shown(new)} was asked for"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + " ..."
