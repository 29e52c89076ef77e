"""Compiled programs that `.ci/run` keeps on a machine, so that the next run reads what has not changed.

    python -m tests.helpers.kept_programs restore FOLDER
    python -m tests.helpers.kept_programs save FOLDER

FOLDER is a compilation cache of JAX. The programs are kept in `$QWEN3_CI_CACHE`, which `.ci/run` sets, for each set of
processor features: machine code for another processor may not run. JAX's key of a program names everything else.
"""

import hashlib
import os
import platform
import shutil
import sys
import zlib
from pathlib import Path

import zstandard

MOST_BYTES = 3 << 30


def store() -> Path:
    """Return the folder of programs for this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return Path(os.environ["QWEN3_CI_CACHE"]) / "programs" / hashlib.sha256(features.encode()).hexdigest()[:16]


def is_whole(entry: bytes) -> bool:
    """Return whether an entry can be read: a process that was killed leaves a part of one, and JAX warns of it ever after."""
    try:
        if entry[:4] == b"\x28\xb5\x2f\xfd":
            zstandard.ZstdDecompressor().decompress(entry)
        else:
            zlib.decompress(entry)
    except (zstandard.ZstdError, zlib.error):
        return False
    return True


def restore(folder: Path) -> int:
    """Copy the kept programs into `folder`; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = sorted(store().glob("*-cache"))
    for file in kept:
        shutil.copy(file, folder)
    return len(kept)


def save(folder: Path) -> int:
    """Keep the programs of `folder` that are not kept yet; return their number. Over `MOST_BYTES`, the old ones are dropped."""
    kept = store()
    kept.mkdir(parents=True, exist_ok=True)
    added = [file for file in folder.glob("*-cache") if not (kept / file.name).exists() and is_whole(file.read_bytes())]
    if sum(file.stat().st_size for file in (*kept.iterdir(), *added)) > MOST_BYTES:
        shutil.rmtree(kept)
        kept.mkdir()
    for file in added:
        part = kept / f"{file.name}.{os.getpid()}.part"
        shutil.copy(file, part)
        part.rename(kept / file.name)
    return len(added)


if __name__ == "__main__":
    action, target = sys.argv[1:]
    count = {"restore": restore, "save": save}[action](Path(target))
    print(f"{count} compiled programs {action}d")
