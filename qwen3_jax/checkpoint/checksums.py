"""`checksums.sha256`: one line per file of a checkpoint folder, in the format of `sha256sum -c`.

Tensors have no checksum of their own in safetensors, nor in Orbax's arrays: a flipped bit would load as another number.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from qwen3_jax.errors import UserError
from qwen3_jax.text_files import lines, read_text

CHECKSUMS = "checksums.sha256"


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write the listing of `files`, which lie in `folder` or below."""
    rows = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in sorted(files)]
    (folder / CHECKSUMS).write_text("".join(rows), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Compare every file that the listing names; folders without a listing (the hub's) pass.

    Raises:
        UserError: a listed file is missing or differs, or the listing is damaged.
    """
    listing = folder / CHECKSUMS
    if not listing.exists():
        return
    try:
        rows = [line.split(maxsplit=1) for line in lines(read_text(listing)) if line]
        wanted = {name.lstrip("*"): digest for digest, name in rows}
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{listing} is damaged: expected lines of '<sha256>  <file>'.") from None
    for name, digest in wanted.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
            raise UserError(f"{file} is missing; {CHECKSUMS} lists it.")
        if sha256(file) != digest:
            raise UserError(
                f"{file} does not have the checksum that {CHECKSUMS} gives: it was damaged or changed; copy it "
                f"again, or delete {CHECKSUMS} if the change is meant."
            )


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's contents."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
