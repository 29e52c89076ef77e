"""Write a folder so that it appears whole or not at all.

    with publishing(target, overwrite=False) as work:     # a folder beside the target
        (work / "config.json").write_text(...)            # on leaving: flushed to disk and renamed

Invariant: the target either does not exist (or is what it was) or is complete. A bucket cannot rename: there a folder is
incomplete from the moment its config.json (or `last`) is removed until the new one, which is written last.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.paths import is_url, upload


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that is a file, or a folder with something in it that may not be replaced."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise UserError(
            f"{target} exists; choose another folder, or replace it with --overwrite (in Python overwrite=True)."
        )


@contextmanager
def publishing(target: Path, overwrite: bool, last: str = "config.json") -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place at the end of the block.

    In a run of several processes all enter and get the same folder; the first one makes, renames and cleans up. For a target
    in a bucket it is a local folder, each process its own, of which that of the first one is copied.

    Args:
        last: the file without which a folder is incomplete; written last where folders cannot be renamed.

    Raises:
        UserError: the target exists, or cannot be written.
    """
    check_target(target, overwrite)
    first = jax.process_index() == 0
    if is_url(target):
        with tempfile.TemporaryDirectory(prefix="qwen3-jax-") as local:
            yield Path(local)
            if first:
                upload(Path(local), target, last=last)
            _barrier("published")
        return
    work = target.parent / f".{target.name}.writing-{_shared_tag()}"
    try:
        if first:
            target.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir()
        _barrier("made")
        yield work
        _barrier("written")
        if first:
            _publish(work, target)
        _barrier("published")
    except OSError as error:
        raise UserError(f"{target} could not be written ({error}); nothing was left there.") from error
    finally:
        if first and work.exists():
            shutil.rmtree(work)


def _publish(work: Path, target: Path) -> None:
    """Flush everything to disk, then put the folder in its place in one rename."""
    for file in [*work.rglob("*"), work]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if target.is_dir():
        old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
        os.replace(target, old)
        os.replace(work, target)
        shutil.rmtree(old)
    else:
        os.replace(work, target)


def _shared_tag() -> str:
    """A random name part, the same in every process."""
    tag = np.uint32(secrets.randbits(32))
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        tag = broadcast_one_to_all(tag)
    return f"{int(tag):08x}"


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(f"publishing:{name}")
