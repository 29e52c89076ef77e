"""Where folders and files lie: on a local disk, or in a bucket.

    run_path("gs://bucket/run", "run_dir")     # an etils.epath.Path, for everything else a pathlib.Path
    fetch("gs://bucket/run/hf")                # a local copy, for libraries that map files from disk

A path in a bucket has the methods of pathlib.Path and reads and writes whole objects through fsspec (gcsfs, extra `gcs`). An
object is replaced in one step, and cannot be appended to: `WorkingCopy` is for files that grow.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import written_whole

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")  # a scheme has two letters or more: C:/ is a drive
_KNOWN = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "hf", "http", "https", "hdfs", "file", "memory")
_BUCKETS = "gs"  # the only one that Orbax's arrays can be written to


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path has a scheme (gs://, s3://)."""
    match = _URL.match(os.fspath(path))
    return match is not None and bool(match[2])


def as_path(path: str | os.PathLike) -> Path:
    """Return a path object: `etils.epath.Path` for a URL, which has the same methods, else pathlib's with `~` expanded."""
    if not is_url(path):
        return Path(path).expanduser()
    from etils import epath

    # Other processes write to the same bucket, so no listing of it may be remembered.
    from fsspec.config import conf

    for name in ("gs", "gcs"):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return cast(Path, epath.Path(os.fspath(path)))


def local_path(text: str | os.PathLike, name: str) -> Path:
    """Return a path on a local disk.

    Raises:
        UserError: it is a URL; `name` is the option that gave it.
    """
    scheme = _scheme(text, name)
    if scheme is not None:
        raise UserError(
            f"{name} is {os.fspath(text)!r}: it must be a local path; write it there and copy it afterwards."
        )
    return Path(text).expanduser()


def run_path(text: str | os.PathLike, name: str) -> Path:
    """Return the path of a folder that may lie in a bucket of Google Cloud Storage.

    Raises:
        UserError: its scheme is another, its bucket cannot be reached, or gcsfs is not installed; `name` is the option that
            gave it.
    """
    scheme, text = _scheme(text, name), os.fspath(text)
    if scheme is None:
        return Path(text).expanduser()
    if scheme != _BUCKETS:
        raise UserError(
            f"{name} is {text!r}: {scheme}:// is not supported, a local folder or gs:// is. Mount other storage as a folder, "
            "and give its path."
        )
    bucket = text.removeprefix("gs://").partition("/")[0]
    if not bucket or not text.removeprefix(f"gs://{bucket}").strip("/"):
        raise UserError(f"{name} is {text!r}: give bucket and folder, gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{name} is {text!r}: gs:// needs the package gcsfs: pip install "qwen3-jax[gcs]".')
    path = as_path(text.rstrip("/"))
    try:
        found = as_path(f"gs://{bucket}").exists()
    except Exception as error:  # of gcsfs, google.auth, aiohttp
        raise UserError(f"{name} is {text!r}, which cannot be reached ({_line(error)}).") from None
    if not found:
        raise UserError(
            f"{name} is {text!r}: there is no bucket {bucket!r} that you may read. Create it, or check the credentials "
            "(gcloud auth application-default login)."
        )
    return path


def _scheme(text: str | os.PathLike, name: str) -> str | None:
    """The scheme of a URL, None for a local path; refuses gs:/bucket, which a path object makes of gs://bucket."""
    match = _URL.match(os.fspath(text))
    if match is None or (not match[2] and match[1] not in _KNOWN):
        return None
    if not match[2]:
        raise UserError(f"{name} is {os.fspath(text)!r}, which has one slash after the colon; a URL has two.")
    return match[1]


def replace_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8 with its newlines as they are, so that the file appears whole or not at all."""
    raw = content.encode("utf-8") if isinstance(content, str) else content
    if is_url(path):
        path.write_bytes(raw)
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(raw)


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match, sorted; hidden ones (macOS leaves ._NAME beside NAME) are left out."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


def fetch(url: str | os.PathLike) -> Path:
    """Return a local copy of a folder or file at a URL that fsspec knows; copied once for each state of it.

    Raises:
        UserError: nothing can be read there.
    """
    url = os.fspath(url).rstrip("/")
    as_path(url)  # sets fsspec up
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
        files = system.find(path, detail=True)
    except Exception as error:  # an unknown scheme, a missing package, the network
        raise UserError(f"{url} cannot be read ({_line(error)}).") from None
    if not files:
        raise UserError(f"{url}: nothing that you may read lies there.")
    states = [(name, info.get("size"), str(_version(info))) for name, info in sorted(files.items())]
    folder = cache_folder(url + repr(states)) / url.rpartition("/")[2]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            work = Path(temporary) / folder.name
            download(url, work)
            _publish(work, folder)
    return folder


def _version(info: dict[str, Any]) -> Any:
    """What changes with the contents of a file, as its storage says."""
    return next(
        (info[key] for key in ("generation", "etag", "ETag", "md5Hash", "mtime", "LastModified") if key in info), None
    )


def _publish(work: Path, folder: Path) -> None:
    """Rename; another process may have been faster with the same."""
    try:
        work.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def cache_folder(key: str) -> Path:
    """Return the folder on this machine for copies of what `key` names."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qwen3-jax"
    return root / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def download(url: str | os.PathLike, folder: Path) -> None:
    """Copy a folder (or file) at a URL to a local one, which must not exist."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(os.fspath(url))
    names = [name for name in system.find(path) if not name.endswith("/")]
    targets = [folder / name[len(path) :].lstrip("/") if name != path else folder for name in names]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    system.get(names, list(map(str, targets)))


def upload(folder: Path, target: Path, last: str | None = None) -> None:
    """Make `target` (in a bucket) hold the files of a local folder and no others.

    Args:
        last: a file that says that the others are whole: removed first and written last.
    """
    as_path(target)
    from fsspec.core import url_to_fs

    system, root = url_to_fs(os.fspath(target))
    if last is not None and system.exists(f"{root}/{last}"):
        system.rm(f"{root}/{last}")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    stale = {name[len(root) :].lstrip("/") for name in system.find(root)} - set(names)
    for group in ([name for name in names if name != last], [name for name in names if name == last]):
        if group:
            system.put([str(folder / name) for name in group], [f"{root}/{name}" for name in group])
    if stale:
        system.rm([f"{root}/{name}" for name in sorted(stale)])


class WorkingCopy:
    """A local folder whose files are copied to a folder in a bucket whenever `push` is called; for a local folder, itself.

    Args:
        target: the folder.
        grown: names of files that earlier processes wrote and this one appends to.

    Attributes:
        folder: the local one.
    """

    def __init__(self, target: Path, grown: Sequence[str] = ()):
        self._target, self._temporary = target, None
        self.folder = target
        self._sent: dict[Path, tuple[int, int]] = {}
        self._next = 0.0
        if is_url(target):
            self._temporary = tempfile.TemporaryDirectory(prefix="qwen3-jax-")
            self.folder = Path(self._temporary.name)
            for name in grown:
                if (target / name).exists():
                    (self.folder / name).write_bytes((target / name).read_bytes())

    def push(self, seldom: bool = False) -> None:
        """Copy the files that have changed.

        Args:
            seldom: only if the last copy was long ago: 20 times what it took, and 10 s at least.
        """
        if self._temporary is None or (seldom and time.monotonic() < self._next):
            return
        started = time.monotonic()
        for file in sorted(file for file in self.folder.rglob("*") if file.is_file()):
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(file) != state:
                (self._target / file.relative_to(self.folder).as_posix()).write_bytes(file.read_bytes())
                self._sent[file] = state
        now = time.monotonic()
        self._next = now + max(10.0, 20 * (now - started))

    def close(self) -> None:
        """Copy what has changed and remove the local folder, if it is a copy."""
        if self._temporary is not None:
            self.push()
            shutil.rmtree(self.folder, ignore_errors=True)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
