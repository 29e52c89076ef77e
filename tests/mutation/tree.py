"""A private copy of a checkout, in which one file at a time is changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Tree:
    """The files of a checkout that git does not ignore, in a folder of their own, which goes with the process."""

    def __init__(self, root: Path):
        self._temporary = tempfile.TemporaryDirectory(prefix="mutants-")
        self.folder = Path(self._temporary.name) / "tree"
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.folder / name)
        # Python compares compiled files by size and whole seconds: no two versions of a file may have the same time.
        self._time = 1_000_000_000

    @contextlib.contextmanager
    def changed(self, path: str, source: str) -> Iterator[None]:
        """`path` holds `source` inside."""
        file = self.folder / path
        original, times = file.read_bytes(), file.stat()
        self._time += 1
        try:
            file.write_text(source)
            os.utime(file, (self._time, self._time))
            yield
        finally:
            file.write_bytes(original)
            os.utime(file, (times.st_atime, times.st_mtime))

    def close(self) -> None:
        self._temporary.cleanup()
