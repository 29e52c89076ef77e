"""Text files that a user gives, as they occur: with a byte order mark, with any line ends, in UTF-16.

    read_text(path)                     # one file, line ends as "\\n"
    lines(text)                         # cut at \\n, \\r\\n and \\r alone
    as_text(raw, "standard input")      # the same of bytes that were read elsewhere
    decode(raw, "data/a.txt")           # with line ends as they are

Every place of the project that reads such a file reads it here. UTF-8 is the one encoding that is read; a mark before it is
passed over, and UTF-16 and UTF-32 are refused by name. U+2028, U+0085 and other characters that Python's `splitlines` cuts at
are part of a line: JSON Lines may hold them within a string.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from qwen3_jax.errors import UserError

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_LINE_END = re.compile(r"\r\n|\r|\n")
_PROBED = 64  # bytes that show an encoding without a mark


LFS_POINTER = "is a Git LFS pointer and not the file itself: get that with `git lfs pull`, or with `hf download`."


class EncodingError(UserError):
    """Text that is not UTF-8, or a Git LFS pointer; the message names its source, and the encoding where it can be told."""


def read_text(path: str | Path, name: str | None = None) -> str:
    """Return a file's text, without a byte order mark and with every line end as a newline.

    Args:
        path: the file.
        name: stands for the path in messages: an option with its value.

    Raises:
        UserError: it cannot be opened, or is not UTF-8.
    """
    name = str(path) if name is None else name
    return as_text(read_bytes(path, name), name)


def read_bytes(path: str | Path, name: str | None = None) -> bytes:
    """Return a file's bytes.

    Raises:
        UserError: the file cannot be opened.
    """
    name = str(path) if name is None else name
    try:
        return (Path(path) if isinstance(path, str) else path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None


def as_text(raw: bytes, name: str) -> str:
    """Return text from UTF-8, without a byte order mark and with every line end as a newline.

    Raises:
        EncodingError: it is UTF-16, UTF-32, not UTF-8, or a Git LFS pointer; the message starts with `name`.
    """
    return _LINE_END.sub("\n", decode(raw, name))


def decode(raw: bytes, name: str) -> str:
    """Return text from UTF-8, without a byte order mark and with its line ends as they are.

    Raises:
        EncodingError: it is UTF-16, UTF-32, not UTF-8, or a Git LFS pointer; the message starts with `name`.
    """
    check_encoding(raw, name)
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EncodingError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so only says where Git LFS keeps the file itself: what a clone without git-lfs holds."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_encoding(raw: bytes, name: str) -> None:
    """Refuse text that begins as UTF-16 or UTF-32 does, with a byte order mark or without, and Git LFS pointers.

    Raises:
        EncodingError: names the encoding and says what to do.
    """
    if is_lfs_pointer(raw):
        raise EncodingError(f"{name} {LFS_POINTER}")
    encoding = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), None)
    start = raw[:_PROBED]
    start = start[: len(start) - len(start) % 2]
    if encoding is None and len(start) >= 4 and any(start):
        # Without a mark, ASCII has zeros in every other byte, or in three of four: valid UTF-8, and never meant.
        zeros = sorted((start[::2].count(0), start[1::2].count(0)))
        if zeros[0] == 0 and zeros[1] * 8 >= len(start) * 3:
            encoding = "UTF-16"
        elif start.count(0) * 3 >= len(start) * 2:
            encoding = "UTF-32"
    if encoding is not None:
        raise EncodingError(
            f"{name} is {encoding} text, and UTF-8 is read: save it again as UTF-8, or convert it with `iconv -f {encoding} "
            "-t UTF-8`."
        )


def lines(text: str) -> list[str]:
    """Return the lines of a text without their ends: cut at \\n, \\r\\n and \\r, and nowhere else."""
    parts = _LINE_END.split(text)
    return parts[:-1] if parts[-1] == "" else parts
