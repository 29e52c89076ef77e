"""The cache of compiled programs: a command that was run before, on this machine and with this version, compiles nothing anew.

It is on by default, in the user's cache folder (~/.cache/qwen3-jax/compiled on Linux). `--compile-cache DIR` or
QWEN3_COMPILE_CACHE=DIR puts it elsewhere, `off` turns it off. JAX's own JAX_COMPILATION_CACHE_DIR, if set, is used as it is.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from qwen3_jax.errors import UserError, warn

VARIABLE = "QWEN3_COMPILE_CACHE"
_LARGEST_BYTES = 8 << 30  # the least recently used programs go
_LEAST_SECONDS = 0.2  # programs that compile faster are not kept


def add_option(group: argparse._ArgumentGroup) -> None:
    """Add --compile-cache."""
    group.add_argument(
        "--compile-cache", metavar="DIR|off",
        help=f"folder that keeps compiled programs for the next start, or off (default: {VARIABLE}, else the user's "
        "cache folder)",
    )  # fmt: skip


def enable(choice: str | None = None) -> Path | None:
    """Turn the cache on, before anything is compiled; return its folder, None if it is off.

    Args:
        choice: a folder or "off"; None is what the environment says, else the default.

    Raises:
        UserError: the folder was named and cannot be made.
    """
    import jax

    named = choice or os.environ.get(VARIABLE)
    if named == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    current = jax.config.values["jax_compilation_cache_dir"]
    if named is None and current is not None:
        return Path(current)
    folder = default_folder() if named is None else Path(named).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        if named is not None:
            raise UserError(
                f"the compile cache {folder} cannot be made ({error.strerror}); choose another, or off."
            ) from None
        warn(f"compiled programs are not kept: {folder} cannot be made ({error.strerror}).")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if importlib.util.find_spec("filelock") is not None:  # which JAX needs to drop old programs
        jax.config.update("jax_compilation_cache_max_size", _LARGEST_BYTES)
    return folder


def default_folder() -> Path:
    """Return the folder in the user's cache folder, as the platform has it."""
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qwen3-jax" / "compiled"
