"""Tables: which lines are one row, and which one cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from qwen3_jax.data.extraction.pieces import Gap, Line, Piece, Strip, line_of, middle_of, text_of
from qwen3_jax.data.extraction.words import HYPHEN

_CELL_LINE = 1.6  # heights of a line: most distance of lines of one cell
_ROW_GAP = 1.35  # times the usual distance of strips: rows, when cells have several lines


def table_rows(region: list[Strip], gutters: list[Gap]) -> list[Line]:
    """The rows of a table. Files that draw it cell by cell say which lines are one cell; else rows that are set apart do."""
    edges = [(begin + end) / 2 for begin, end in gutters]
    placed = [(sum(piece.left > edge for edge in edges), piece) for strip in region for piece in strip]
    rows = _drawn_rows(sorted(placed, key=lambda one: one[1].place))
    if rows is None:
        groups = _row_groups(region) if len(region) > 2 else []
        one_sided = any(len(strip) < len(gutters) + 1 for strip in region)
        columns = {id(piece): column for column, piece in placed}
        rows = [
            [(columns[id(piece)], piece) for strip in group for piece in strip]
            for group in (groups if groups and one_sided else [[strip] for strip in region])
        ]
    return [_row(row) for row in rows]


def _drawn_rows(placed: list[tuple[int, Piece]]) -> list[list[tuple[int, Piece]]] | None:
    """Rows as the file draws them, from pieces in its order with their columns; None if it does not draw row by row."""
    rows: list[list[tuple[int, Piece]]] = []
    last, above = -1, placed[0][1]
    for column, piece in placed:
        apart = column == last and not 0 < piece.top - above.top < _CELL_LINE * piece.height
        if not rows or column < last or apart:
            rows.append([])
        rows[-1].append((column, piece))
        last, above = column, piece
    tops = [min(piece.top for _, piece in row) for row in rows]
    bottoms = [max(piece.bottom for _, piece in row) for row in rows]
    ordered = all(
        top > before - 0.5 * row[0][1].height and top >= start
        for before, start, top, row in zip(bottoms, tops, tops[1:], rows[1:], strict=False)
    )
    several = sum(len({column for column, _ in row}) > 1 for row in rows)
    return rows if ordered and several >= 0.5 * len(rows) else None


def _row(row: list[tuple[int, Piece]]) -> Line:
    """One row of a table: its cells from left to right, or from right to left where that is its script."""
    cells: dict[int, list[Piece]] = {}
    for column, piece in sorted(row, key=lambda one: one[0]):
        cells.setdefault(column, []).append(piece)
    line = line_of([piece for cell in cells.values() for piece in cell])
    texts = [_cell(cell) for cell in cells.values()]
    if row[0][1].has_rtl:
        texts.reverse()
    line.text = "\t".join(texts)
    return line


def _cell(pieces: list[Piece]) -> str:
    """The lines of a cell as one."""
    texts = [text_of(piece) for piece in pieces]
    return "".join(text if text.endswith(HYPHEN) else text + " " for text in texts).strip()


def _row_groups(region: list[Strip]) -> list[list[Strip]]:
    """Strips of a table row by row, where rows of several lines are set apart; else nothing."""
    distances = [middle_of(below) - middle_of(above) for above, below in itertools.pairwise(region)]
    usual = sorted(distances)[len(distances) // 4]
    groups = [[region[0]]]
    for distance, strip in zip(distances, region[1:], strict=True):
        if distance > _ROW_GAP * usual:
            groups.append([])
        groups[-1].append(strip)
    return groups if len(groups) > 2 and len(region) <= 6 * len(groups) else []


def begins_rows(region: list[Strip], sides: Sequence[list[Piece]]) -> bool:
    """Whether both sides begin anew where rows are set apart: a table whose cells have several lines."""
    groups = _row_groups(region)
    ids = [{id(piece) for piece in side} for side in sides]
    whole = sum(all(any(id(piece) in side for strip in group for piece in strip) for side in ids) for group in groups)
    return bool(groups) and whole >= 0.7 * len(groups)
