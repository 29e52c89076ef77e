"""Runs the phases of a recipe, each in a process of its own, and records what is done.

FOLDER/recipe.json    what the recipe is: its phases, and which of them are evidence for which claim
FOLDER/phases.json    of each phase that has begun: the key of what it was run from, whether it is done, seconds of its attempts
FOLDER/NAME/          what the phase made; of a training phase a run's folder
FOLDER/NAME.yaml      the configuration of a training phase that the recipe holds itself

A phase that is done is skipped. One that was interrupted runs again. Training runs and the commands of `_RESUMING` resume by
themselves; what other commands have made by then is deleted first. A phase ends with this process, however that ends.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwen3_jax.errors import Interrupted, UserError
from qwen3_jax.file_writes import locked
from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import replace_file
from qwen3_jax.recipes.config import Phase, Recipe

RECORD = "phases.json"
DESCRIPTION = "recipe.json"
Say = Callable[[str], None]
# Commands that resume what their folder holds.
_RESUMING = ("qwen3 eval", *(f"qwen3 data {name}" for name in ("generate", "synthesize", "refine", "annotate")))


@dataclass
class State:
    """What is recorded of a phase.

    Attributes:
        key: `Recipe.key` at its start.
        done: it ended by itself, without an error.
        seconds: of all attempts that were not killed with this process.
    """

    key: str
    done: bool = False
    seconds: float = 0.0


class Record:
    """The states of a recipe's phases, on disk."""

    def __init__(self, folder: Path):
        self._file = folder / RECORD
        self.states: dict[str, State] = {}
        if self._file.exists():
            try:
                self.states = {name: State(**values) for name, values in read_json(self._file).items()}
            except TypeError:
                raise UserError(
                    f"{self._file} is damaged: a phase has {', '.join(vars(State('')))} there; restore the file, or delete "
                    f"{folder}, and all phases run again."
                ) from None

    def write(self) -> None:
        """Write all states; the file is replaced whole."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        values = {name: dataclasses.asdict(state) for name, state in self.states.items()}
        replace_file(self._file, json.dumps(values, indent=1) + "\n")

    def is_done(self, recipe: Recipe, phase: Phase) -> bool:
        """Whether a phase is done, from what it would be run from now."""
        state = self.states.get(phase.name)
        return state is not None and state.done and state.key == recipe.key(phase)

    def check(self, recipe: Recipe, phase: Phase) -> None:
        """Refuse a phase whose folder holds results of other settings or other files, or is missing although the phase is done.

        Raises:
            UserError: says how to run it again.
        """
        state, place = self.states.get(phase.name), recipe.place(phase)
        if state is None and _holds_something(place):
            raise UserError(
                f"{place} is there already, and phase {phase.name!r} has not begun; move it, or choose another --folder."
            )
        if state is not None and state.done and not place.exists():
            raise UserError(
                f"phase {phase.name!r} is done, but {place} is gone; put it back, or --redo {phase.name} runs it again, and "
                "what was made from it."
            )
        if state is not None and state.key != recipe.key(phase):
            raise UserError(
                f"phase {phase.name!r} was run from other settings, or from phases that were run again since; --redo "
                f"{phase.name} deletes {recipe.place(phase)} and what was made from it, and runs them again."
            )


def run(recipe: Recipe, only: Sequence[str] = (), say: Say = print) -> None:
    """Run the phases that are not done, in order.

    Args:
        recipe: checked.
        only: names of the phases to run; () is all.
        say: prints a line.

    Raises:
        UserError: the folder is another recipe's, a phase was run from other settings, takes from one that is not done, or
            fails.
        Interrupted: this process was asked to end, or a phase was.
    """
    chosen = recipe.chosen(only)
    with _in_use(recipe), _Signals() as signals:
        _check(recipe, chosen)
        replace_file(recipe.folder / DESCRIPTION, json.dumps(recipe.description(), indent=1) + "\n")
        _run(recipe, chosen, say, signals)


class _Signals:
    """SIGTERM and Ctrl-C are passed on to the program of a phase; where none runs yet they end the recipe by themselves.

    Attributes:
        phase: the name of the phase that has begun.
        program: its program.
    """

    def __init__(self) -> None:
        self.phase = ""
        self.program: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Signals:
        self._previous = {number: signal.signal(number, self._heard) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stopped(self, number: int) -> Interrupted:
        """The exception of a recipe that a signal has ended."""
        where = f"in phase {self.phase!r}" if self.phase else "before the first phase"
        return Interrupted(
            f"stopped {where}; the same command resumes there.", "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        )

    def _heard(self, number: int, _: Any) -> None:
        if self.program is None:
            raise self.stopped(number)
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal sends Ctrl-C to the program too
            self.program.send_signal(number)


def _in_use(recipe: Recipe) -> AbstractContextManager[None]:
    """Keep other processes out of the folder of a recipe.

    Raises:
        UserError: one of them is in it.
    """
    try:
        recipe.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{recipe.folder} cannot be the folder of a recipe ({error.strerror}); choose another."
        ) from None
    return locked(recipe.folder / ".lock", f"{recipe.folder} is in use by another process; wait for it, or stop it.")


def _check(recipe: Recipe, chosen: Sequence[Phase]) -> None:
    """Check, before the first phase runs, all of them against what the folder holds."""
    record = Record(recipe.folder)
    done = [name for name, state in record.states.items() if state.done]
    if done and not any(phase.name in record.states for phase in recipe.phases):
        raise UserError(f"{recipe.folder} holds phases of another recipe ({', '.join(done)}); choose another --folder.")
    for phase in chosen:
        for one in (*(recipe.phase(name) for name in phase.takes), phase):
            record.check(recipe, one)


def _run(recipe: Recipe, chosen: Sequence[Phase], say: Say, signals: _Signals) -> None:
    record = Record(recipe.folder)
    for number, phase in enumerate(chosen, start=1):
        label = f"[{number}/{len(chosen)}] {phase.name}"
        if record.is_done(recipe, phase):
            say(f"{label}: done in {record.states[phase.name].seconds:,.0f} s")
            continue
        record.check(recipe, phase)  # again: its configuration may have been edited since
        for name in phase.takes:
            if not record.is_done(recipe, recipe.phase(name)):
                raise UserError(f"phase {phase.name!r} takes from {name!r}, which is not done; run that first.")
        say(f"{label}: {phase.about or 'begins'}")
        state = record.states.setdefault(phase.name, State(recipe.key(phase)))
        record.write()
        signals.phase, started = phase.name, time.perf_counter()
        try:
            _run_phase(recipe, phase, signals)
            state.done = True
        finally:
            state.seconds += time.perf_counter() - started
            record.write()
        say(f"{label}: done in {state.seconds:,.0f} s")


def redo(recipe: Recipe, name: str, say: Say = print) -> None:
    """Delete what a phase made, and what phases made that take from it, directly or through others."""
    stale = {recipe.phase(name).name}
    for phase in recipe.phases:
        if stale.intersection(phase.takes):
            stale.add(phase.name)
    with _in_use(recipe):
        record = Record(recipe.folder)
        for phase in recipe.phases:
            if phase.name in stale and phase.name in record.states:
                say(f"deleting {recipe.place(phase)}")
                record.states[phase.name] = State("being deleted")  # until it is, it is of other settings
                record.write()
                _delete(recipe.place(phase))
                del record.states[phase.name]
                record.write()


def table(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return of each phase its name, its state in a word, and what it is for."""
    record, rows = Record(recipe.folder), []
    for phase in recipe.phases:
        state = record.states.get(phase.name)
        word = "not begun"
        if state is not None:
            same = state.key == recipe.key(phase)
            word = "changed" if not same else f"{state.seconds:,.0f} s" if state.done else "interrupted"
            word = word if recipe.place(phase).exists() or not state.done else "gone"
        rows.append((phase.name, word, phase.about))
    return rows


def _holds_something(place: Path) -> bool:
    """Whether a path is anything but an empty folder."""
    return place.exists() and not (place.is_dir() and not any(place.iterdir()))


def _delete(place: Path) -> None:
    """Delete a phase's folder; of a link to one, on another disk, what is in it.

    Raises:
        UserError: it cannot be deleted.
    """
    try:
        if place.is_symlink() and place.is_dir():
            for entry in place.iterdir():
                _delete(entry)
        elif place.is_symlink() or place.is_file():
            place.unlink()
        elif place.exists():
            shutil.rmtree(place)
    except OSError as error:
        raise UserError(f"{place} cannot be deleted ({error.strerror}: {error.filename}).") from None


def _run_phase(recipe: Recipe, phase: Phase, signals: _Signals) -> None:
    """Run the commands of a phase, one after the other."""
    _write_config(recipe, phase)
    if phase.train is None:
        if not all(text.startswith(_RESUMING) for text in phase.run):
            _delete(recipe.place(phase))
        recipe.place(phase).mkdir(parents=True, exist_ok=True)
    for words in recipe.commands(phase):
        code = _call(_program(words), signals)
        if code in (130, 143):
            raise signals.stopped(code - 128)
        if code:
            raise UserError(f"phase {phase.name!r} failed (exit code {code}): {' '.join(words)}")


def program(recipe: Recipe, phase: Phase, *, planned: bool = False) -> list[str]:
    """Return the command line of a training phase, whose configuration is written; with `planned`, to be planned."""
    _write_config(recipe, phase)
    (words,) = recipe.commands(phase, planned=planned)
    return _program(words)


def _write_config(recipe: Recipe, phase: Phase) -> None:
    """Write the configuration of a training phase that the recipe holds itself."""
    if isinstance(phase.train, dict):
        recipe.folder.mkdir(parents=True, exist_ok=True)
        config = recipe.filled(phase, phase.train)
        replace_file(Path(f"{recipe.place(phase)}.yaml"), yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _program(words: list[str]) -> list[str]:
    """A command line with this process's interpreter."""
    return [sys.executable, "-m", "qwen3_jax.cli", *words[1:]] if words[0] == "qwen3" else [sys.executable, *words[1:]]


def _call(words: list[str], signals: _Signals) -> int:
    """Run a program on this terminal; return its exit code."""
    environment: dict[str, Any] = dict(os.environ)
    paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    signals.program = subprocess.Popen(words, env=environment, preexec_fn=_ends_with_its_parent)
    try:
        code = signals.program.wait()
    finally:
        signals.program = None
    return 128 - code if code < 0 else code


def _ends_with_its_parent() -> None:
    """In the child: be killed when the parent is, so that no phase is left behind that another start would meet."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
