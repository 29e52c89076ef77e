"""Which checkpoint a folder holds, told without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WHOLE = 16 << 20  # bytes of a file that is read as a whole
_ENDS = 1 << 20  # bytes of a larger one that are read at each end
_OTHER = {".md", ".png", ".jpg", ".html", ".log", ".pdf", ".txt"}  # beside a checkpoint; merges.txt is a part of it


def identity(folder: Path) -> str:
    """Return a digest of a checkpoint's files: configuration, tokenizer, template, weights.

    Of a large file it covers the size and both ends: another architecture, another type, weights after another step of
    training differ there.

    Args:
        folder: in any form that `load` reads, or a GGUF file.
    """
    whole = hashlib.blake2b(digest_size=16)
    files = [folder] if folder.is_file() else sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        name = file.name if folder.is_file() else file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or (
            file.suffix in _OTHER and file.name != "merges.txt"
        ):
            continue
        size = file.stat().st_size
        whole.update(f"{name}\0{size}\0".encode())
        with open(file, "rb") as opened:
            if size <= _WHOLE:
                whole.update(opened.read())
            else:
                whole.update(opened.read(_ENDS))
                opened.seek(size - _ENDS)
                whole.update(opened.read(_ENDS))
    return whole.hexdigest()
