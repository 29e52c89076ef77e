"""The cache of compiled programs: a command that was run before, on this machine and with this version, compiles nothing anew.

It is on by default for every command that compiles for long, in the user's cache folder (~/.cache/qwen3-jax/compiled on Linux).
`--compile-cache DIR` or QWEN3_COMPILE_CACHE=DIR puts it elsewhere, `off` turns it off. JAX's own JAX_COMPILATION_CACHE_DIR, if
set, is used as it is. A run of several processes has no cache unless a folder is named: only the first process writes to it.

Commands that run at the same time may share it: JAX reads and writes it under a lock. It names a program by a hash of the
program, JAX's version, XLA's flags and the processor, so machines of different kinds may share it too.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError, warn
from qwen3_jax.paths import local_path

VARIABLE = "QWEN3_COMPILE_CACHE"
_LARGEST_BYTES = 8 << 30  # the least recently used programs go
_LEAST_SECONDS = 0.2  # programs that compile faster are not kept
_LOCK_SECONDS = 2.0  # after which another process is left to repair the folder
# JAX's own names: a program, and behind it the time of its last use.
_LOCK, _PROGRAM, _LAST_USE = ".lockfile", "-cache", "-atime"


def add_option(add: Callable[..., Any]) -> None:
    """Add --compile-cache; `add` is `add_argument` of a parser or a group."""
    add(
        "--compile-cache", metavar="DIR|off",
        help=f"folder that keeps compiled programs for the next start, or off (default: {VARIABLE}, else the user's "
        "cache folder; to clear it, delete the folder)",
    )  # fmt: skip


def enable(choice: str | None = None) -> Path | None:
    """Turn the cache on, before anything is compiled and after the processes of a run have met; return its folder.

    Args:
        choice: of --compile-cache: a folder or "off"; None is what the environment says, else the default.

    Returns:
        None if there is no cache.

    Raises:
        UserError: a folder was named and cannot be used.
    """
    import jax

    source = VARIABLE if choice is None else "--compile-cache"
    named = os.environ.get(VARIABLE) if choice is None else choice
    if named == "":
        raise UserError(f"{source} is empty; give a folder, or off.")
    if named == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    current = jax.config.values["jax_compilation_cache_dir"]
    if named is None and current is not None:
        return Path(current)
    if named is None and jax.process_count() > 1:
        return None
    try:
        folder = _default_folder() if named is None else local_path(named, source).absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _repair(folder)
    except (OSError, NotImplementedError, RuntimeError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
        if named is not None:
            raise UserError(
                f"{source} is {named!r}, which cannot be used ({reason}); choose another, or off."
            ) from None
        warn(f"compiled programs are not kept for the next start: {reason} (--compile-cache names another folder).")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_BYTES)
    return folder


def _repair(folder: Path) -> None:
    """Remove programs that a process was ended in writing.

    JAX would neither read nor replace them, and could not make room for others.

    Raises:
        OSError, NotImplementedError: the folder cannot be written to, or its file system has no locks.
    """
    import filelock

    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except filelock.Timeout:
        return
    try:
        for program in folder.glob(f"*{_PROGRAM}"):
            if not program.with_name(program.name.removesuffix(_PROGRAM) + _LAST_USE).exists():
                with contextlib.suppress(FileNotFoundError):
                    program.unlink()
    finally:
        lock.release()


def _default_folder() -> Path:
    """Return the folder in the user's cache folder, as the platform has it.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qwen3-jax" / "compiled"
