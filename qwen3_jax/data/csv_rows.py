"""Rows of CSV and TSV files as JSON objects: the first row names the keys, and an empty cell is absent, as in `datasets`.

Columns are separated by commas, in .tsv files by tabs; where the first line has no comma, by the semicolon, tab or bar that it
has. A first line `sep=;`, which Excel wants, says it. Quoted cells may hold separators and line ends. Every value is text.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterable, Iterator

from qwen3_jax.data.records import DataError, check_columns

_LONGEST = 2**31 - 1  # characters of a cell; the module's own limit is 131,072


def rows(lines: Iterable[str], url: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (line, row) for every row, or what is wrong with it in the row's place. Blank lines are passed over.

    Args:
        lines: of the file, with their ends.
        url: of the file; compression left out, its suffix says what separates columns.

    Raises:
        DataError: the first row does not name the columns, or quotes are not closed.
    """
    csv.field_size_limit(_LONGEST)
    lines = iter(lines)
    blank, first = next(((number, line) for number, line in enumerate(lines) if line.strip()), (0, ""))
    if not first:
        return
    separator = _separator(first, url)
    if stated := re.fullmatch(r"sep=(.)[\r\n]*", first):
        separator, first, blank = stated[1], next(lines, ""), blank + 1
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    try:
        names = _names(next(reader, []), url)
        start = blank + reader.line_num + 1
        for cells in reader:
            if len(cells) == len(names):
                yield start, {name: cell for name, cell in zip(names, cells, strict=True) if cell}
            elif cells:
                yield start, f"the row has {len(cells)} cells, and the first row names {len(names)} columns"
            start = blank + reader.line_num + 1
    except csv.Error as error:
        where = f"{url}:{blank + reader.line_num}"
        hint = "a cell that begins with a quote ends with one, and quotes within it are doubled"
        raise DataError(f"{where}: not valid CSV ({error}); {hint}") from None


def _separator(first: str, url: str) -> str:
    stem, suffix = os.path.splitext(url.lower())
    if suffix == ".tsv" or stem.endswith(".tsv"):
        return "\t"
    return next((letter for letter in ",;\t|" if letter in first), ",")


def _names(cells: list[str], url: str) -> list[str]:
    # pandas leaves the name of its index empty, and reads it back under this one.
    names = [cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(cells)]
    check_columns(names, url)
    return names
