"""Files that a killed process leaves whole: written beside their name and put in place, appended to line by line, locked.

with locked(folder / "lock", "another process is at work on it; wait for it, or stop it."):
    with written_whole(folder / "a.json") as path:
        path.write_text("{}")
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError

_BLOCK = 65536


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Lock a file against other processes until the block ends, however this process ends.

    Raises:
        UserError: another process has it; says `refusal`.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(refusal) from None
        yield


def remove_leftovers(*folders: Path) -> None:
    """Remove the files that a killed process was writing; the folders are locked."""
    for folder in folders:
        for file in folder.glob("*.tmp"):
            if file.is_file():
                file.unlink()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to, which becomes `path` when all went well."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def cut_unfinished_line(path: Path) -> None:
    """Cut off what stands behind the last line end: a line that a killed process did not finish. No file is no line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:  # backwards to the last line end
            start = max(end - _BLOCK, 0)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                file.truncate(start + place + 1)
                return
            end = start
        file.truncate(0)
