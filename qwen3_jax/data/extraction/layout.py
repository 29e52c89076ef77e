"""The order in which a page is read: words with places in, blocks of lines out.

    words -> pieces (words side by side) -> strips (pieces side by side) -> columns, tables, single columns -> lines

A page is cut into strips from top to bottom. Strips in a row that leave the same stretch of x free, with text to both sides,
are columns, read one after the other, or a table, read row by row. Which of them, the order says in which the file draws them,
and whether their lines are running text.
"""

from __future__ import annotations

import itertools
import statistics

from qwen3_jax.data.extraction.gutters import find_regions
from qwen3_jax.data.extraction.pieces import Block, Gap, Piece, Strip, find_pieces, find_strips, line_of
from qwen3_jax.data.extraction.tables import begins_rows, table_rows
from qwen3_jax.data.extraction.words import Word, mirrored_lines

_TEXT_COLUMN = 7.0  # heights of a line: least width of a column of text
_ALIGNED = 0.7  # of the lines of two sides stand on one height: a table
_TABLE_ROWS = 0.3  # of the rows of a table, at least, have several cells
_DEEPEST = 12  # columns in columns


def read_blocks(words: dict[int, list[Word]]) -> list[Block]:
    """The blocks of a page in reading order: the direction that most text has first, what is oblique last.

    Args:
        words: by direction, of `words.read_words`.
    """
    out: list[Block] = []
    for turn in sorted(words, key=lambda turn: (turn == -1, -sum(len(word.text) for word in words[turn]))):
        if turn == -1:
            out += [Block("text", [line_of([Piece(line)])]) for line in mirrored_lines(words[turn])]
        else:
            out += _arranged(find_strips(find_pieces(words[turn])), 0)
    return _merged(out)


def _arranged(strips: list[Strip], depth: int) -> list[Block]:
    """The blocks of a stretch of the page."""
    out: list[Block] = []
    for region, gutters in find_regions(strips):
        edge = next((gutter for gutter in _widest(gutters) if _parts_columns(region, gutter)), None)
        if edge is not None and depth < _DEEPEST:
            for side in _sides(region, edge):
                out += _arranged(find_strips(side), depth + 1)
            continue
        rows = table_rows(region, gutters) if gutters else []
        if rows and sum("\t" in row.text for row in rows) >= _TABLE_ROWS * len(rows):
            out.append(Block("table", rows))
        else:
            out.append(Block("text", [line_of(strip) for strip in region]))
    return out


def _widest(gutters: list[Gap]) -> list[Gap]:
    return sorted(gutters, key=lambda gutter: gutter[0] - gutter[1])


def _sides(region: list[Strip], gutter: Gap) -> tuple[list[Piece], list[Piece]]:
    """The pieces to the left of a gutter, and those to the right."""
    left = [piece for strip in region for piece in strip if piece.right <= gutter[0]]
    return left, [piece for strip in region for piece in strip if piece.right > gutter[0]]


def _parts_columns(region: list[Strip], gutter: Gap) -> bool:
    """Whether a gutter is to be read down one side and then the other: not one between cells of a table.

    Files draw columns one after the other, and cells row by row. Where they don't, columns are those of running text.
    """
    sides = _sides(region, gutter)
    left = {id(piece) for piece in sides[0]}
    drawn = [id(piece) in left for piece in sorted((*sides[0], *sides[1]), key=lambda piece: piece.place)]
    changes = sum(one != other for one, other in itertools.pairwise(drawn))
    fewer, more = sorted((find_strips(side) for side in sides), key=len)
    texts = sum(_is_text(strips) for strips in (fewer, more))
    if changes > max(1, 0.1 * len(fewer)):
        by_lines = changes > 1.5 * len(fewer)  # and not cell by cell
        return texts == 2 and by_lines and not begins_rows(region, sides)
    if texts:
        return True
    aligned = sum(
        any(abs(strip[0].bottom - other[0].bottom) < 0.15 * strip[0].height for other in more) for strip in fewer
    )
    return len(fewer) > 3 and aligned < _ALIGNED * len(fewer)


def _is_text(strips: list[Strip]) -> bool:
    """Whether these are lines of a wide column, broken where the next word did not fit."""
    if len(strips) < 3 or sum(len(strip) == 1 for strip in strips) < 0.7 * len(strips):
        return False
    lines = [line_of(strip) for strip in strips]
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    height = statistics.median(line.bottom - line.top for line in lines)
    broken = sum(right - above.right < below.first_width + 0.3 * height for above, below in itertools.pairwise(lines))
    return right - left >= _TEXT_COLUMN * height and broken >= 0.5 * (len(lines) - 1)


def _merged(blocks: list[Block]) -> list[Block]:
    """Single rows beside text are lines of it, so that a paragraph is not cut by a wide gap in one line."""
    out: list[Block] = []
    for block in blocks:
        if block.kind == "table" and len(block.lines) == 1:
            block = Block("text", block.lines)
        if out and out[-1].kind == block.kind == "text" and _continues(out[-1], block):
            out[-1].lines += block.lines
        else:
            out.append(block)
    return out


def _continues(above: Block, below: Block) -> bool:
    """Whether a block is the next lines of the same column."""
    last, first = above.lines[-1], below.lines[0]
    height = last.bottom - last.top
    return 0 < first.top - last.top < 2 * height and first.left < last.right and last.left < first.right
