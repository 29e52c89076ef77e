"""A job of the data factory that ends, as by kill -9, just before or in the middle of its n-th change of a file: for every
n, or for each EVERY-th.

    python -m tests.helpers.crash_everywhere FOLDER SCENARIO EVERY

This process has one thread and no JAX, so that every life is a fork. After a crash a second life finishes the job; what it
made must be equal to what was made without a crash, and no request that was recorded may have been asked again. It prints the
number of crashes, or what went wrong.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

from qwen3_jax.data import Source
from qwen3_jax.data.factory import Recipe, RecipeTask, run
from qwen3_jax.data.factory.answers import AnswerLog
from qwen3_jax.data.factory.parsing import Parser
from qwen3_jax.endpoints import Reply, Tokens

RECIPE = Recipe(
    "sum", 1, "a sum", "Say {{text}}", Parser("text"), {"text": "{{answer.text}}", "of": "{{record.id}}"},
    max_new_tokens=8, samples=2, attempts=2,
)  # fmt: skip
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate", "write")


class Backend:
    """Answers at once, and notes every request in a file."""

    fingerprint, slots, is_remote = "fake", 3, True

    def __init__(self, asked: Path):
        self._asked, self._waiting = asked, []

    def submit(self, number, request, key=""):
        with self._asked.open("a") as out:
            out.write(key + "\n")
        text = f"{request.messages[-1]['content']} {request.seed}"
        self._waiting.append((number, Reply("ok", text, tokens=Tokens(3, 4))))

    def collect(self, seconds=None):
        waiting, self._waiting = self._waiting, []
        return waiting

    def close(self):
        pass


def crash_at(place: int) -> None:
    """End this process at its `place`-th change of a file, counted from 0; a write in the middle of what it writes."""
    left = place

    def wrap(name, change):
        def changed(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                if name == "write" and left % 2:
                    change(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            return change(*args, **kwargs)

        return changed

    for name in CHANGES:
        setattr(os, name, wrap(name, getattr(os, name)))


def life(folder: Path, source: Source, task: RecipeTask, place: int | None) -> int:
    """Run the job in a fork; return its exit code."""
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it says what has changed
            if place is not None:
                crash_at(place)
            run(source, task, folder / "out", Backend(folder / "asked"), split_bytes=120, visible=False)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def made(folder: Path) -> dict[str, bytes]:
    """What a job made, and its account."""
    out = folder / "out"
    files = [*sorted((out / "records").glob("*")), out / "rejects.jsonl", out / "manifest.json"]
    return {file.name: file.read_bytes() for file in files}


def recorded(folder: Path) -> set[str]:
    """Keys of recorded answers."""
    keys: set[str] = set()
    for path in (folder / "out").rglob("*.log"):
        log = AnswerLog(path, write=False)
        keys |= set(log)
        log.close()
    return keys


def scenario(name: str, folder: Path) -> tuple[list[tuple[Source, RecipeTask]], tuple[Source, RecipeTask]]:
    """(jobs that run before, the job that crashes)."""
    rows = [json.dumps({"id": i, "text": f"number {i}"}) for i in range(8)]
    first, grown = folder / "first.jsonl", folder / "grown.jsonl"
    first.write_text("\n".join(rows) + "\n")
    grown.write_text("\n".join([json.dumps({"id": 9, "text": "new"}), *rows]) + "\n")
    source, task = Source("in", str(first)), RecipeTask(RECIPE)
    read_otherwise = RecipeTask(dataclasses.replace(RECIPE, parser=Parser("regex", pattern="(?P<text>[0-9]+)")))
    asked_otherwise = RecipeTask(dataclasses.replace(RECIPE, prompt="Tell {{text}}"))
    return {
        "first": ([], (source, task)),
        "read otherwise": ([(source, task)], (source, read_otherwise)),
        "asked otherwise": ([(source, task)], (source, asked_otherwise)),
        "other files": ([(source, task)], (Source("in", str(grown)), task)),
    }[name]


def main() -> None:
    """Crash everywhere."""
    folder, name, every = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    before, job = scenario(name, folder)
    start, here = folder / "start", folder / "here"
    start.mkdir()
    for earlier in before:
        assert life(start, *earlier, None) == 0
    shutil.copytree(start, folder / "whole")
    assert life(folder / "whole", *job, None) == 0
    whole = made(folder / "whole")
    place, crashes = 0, 0
    while True:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(start, here)
        code = life(here, *job, place)
        if code == 0:
            break
        assert code == 9, f"crash {place}: the first life ended with {code}"
        kept, asked = recorded(here), (here / "asked").read_text().split() if (here / "asked").exists() else []
        assert life(here, *job, None) == 0, f"crash {place}: the second life failed"
        assert made(here) == whole, f"crash {place}: another result"
        again = (here / "asked").read_text().split()[len(asked) :]
        assert not kept & set(again), f"crash {place}: a recorded request was asked again"
        assert len(again) == len(set(again)), f"crash {place}: a request was asked twice"
        assert recorded(here) == recorded(folder / "whole"), f"crash {place}: an answer was lost"
        place, crashes = place + every, crashes + 1
    print(crashes)


if __name__ == "__main__":
    main()
