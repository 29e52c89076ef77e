"""The order in which a page is read: words with places in, blocks of lines out.

    words -> pieces (words side by side) -> strips (pieces side by side) -> columns, tables, single columns -> lines

A page is cut into strips from top to bottom. Strips in a row that leave the same stretch of x free, with text to both sides,
are columns, read one after the other, or a table, read row by row: columns of text are wide and fill their lines.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.data.extraction.words import HYPHEN, Word, mirrored_lines

# In heights of a line (about 1.2 times the size of the font):
_PIECE_GAP = 0.8  # words further apart are not neighbours
_STRETCHED_GAP = 4.0  # the same in a line whose gaps are all of one size
_EVEN = 0.3  # most that gaps of one size differ by
_TAB = 2.5  # words of one line further apart are separated by a tab
_GUTTER = 0.6  # least width of what separates columns
_TEXT_COLUMN = 7.0  # least width of a column of text
_LABEL_GAP = 3.5  # a bullet or number may stand as far to the left of its text
_CELL_LINE = 1.6  # most distance of lines of one cell
_ROW_GAP = 1.35  # times the usual distance of strips: rows of a table, when cells have several lines
_LABEL = re.compile(r"[•‣◦▪●○■□–—*·\-]|\(?[0-9]{1,3}[.)]|\(?[a-zA-Z][.)]|\(?[ivxIVX]{1,4}[.)]|\[[0-9]{1,3}\]")
_ALIGNED = 0.7  # of the lines of two sides stand on one height: a table
_TABLE_ROWS = 0.3  # of the lines of a table, at least, have several cells
_INFINITE = float("inf")
_LOOK_AHEAD = 12  # strips, in which a gutter must have two lines with text on both sides
_DEEPEST = 12  # columns in columns


@dataclass(slots=True)
class Piece:
    """Words side by side, with nothing between them but spaces; `place` is that of the first in the order of the file."""

    words: list[Word]
    place: int = 0
    left: float = 0.0
    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0

    def __post_init__(self) -> None:
        self.left = min(word.left for word in self.words)
        self.right = max(word.right for word in self.words)
        tallest = max(self.words, key=lambda word: word.bottom - word.top)
        self.top, self.bottom = tallest.top, tallest.bottom

    @property
    def height(self) -> float:
        """Of the line, in points."""
        return self.bottom - self.top


@dataclass(slots=True, eq=False)
class Line:
    """A line of text, in a single column, or a row of a table, whose cells are separated by tabs.

    Attributes:
        text: in logical order.
        left, top, right, bottom: where it is printed, along its own direction, y downwards; points.
        first_width: of its first word.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    first_width: float = 0.0


@dataclass(slots=True)
class Block:
    """Lines that are read one after the other.

    Attributes:
        kind: "text", whose lines may be joined to paragraphs; or "table", whose lines are rows.
        lines: from top to bottom.
    """

    kind: Literal["text", "table"]
    lines: list[Line] = field(default_factory=list)


def to_json(block: Block) -> list[Any]:
    """A block as JSON values; places to a tenth of a point."""
    return [
        block.kind,
        [
            [
                line.text,
                *(round(value, 1) for value in (line.left, line.top, line.right, line.bottom, line.first_width)),
            ]
            for line in block.lines
        ],
    ]


def from_json(value: list[Any]) -> Block:
    """The inverse."""
    return Block(value[0], [Line(*line) for line in value[1]])


Strip = list[Piece]
Gap = tuple[float, float]
"""A stretch of x that no text covers."""


def read_blocks(words: dict[int, list[Word]]) -> list[Block]:
    """The blocks of a page in reading order: the direction that most text has first, what is oblique last.

    Args:
        words: by direction, of `words.read_words`.
    """
    out: list[Block] = []
    for turn in sorted(words, key=lambda turn: (turn == -1, -sum(len(word.text) for word in words[turn]))):
        if turn == -1:
            out += [Block("text", [_line([Piece(line)])]) for line in mirrored_lines(words[turn])]
        else:
            out += _arranged(_strips(_labelled(_pieces(words[turn]))), 0)
    return _merged(out)


def _pieces(words: list[Word]) -> list[Piece]:
    """Words side by side in the order of the file. Lines set to a width have wide gaps, of one size."""
    out = []
    for line in mirrored_lines(words):
        gaps = [word.left - before.right for before, word in itertools.pairwise(line)]
        height = line[0].bottom - line[0].top
        even = len(gaps) > 2 and max(gaps) - min(gaps) <= _EVEN * height
        limit = _STRETCHED_GAP if even else _PIECE_GAP
        begin = 0
        for place, gap in enumerate(gaps, 1):
            before, word = line[place - 1], line[place]
            height = max(before.bottom - before.top, word.bottom - word.top)
            if not -height <= gap <= limit * height:
                out.append(Piece(line[begin:place], len(out)))
                begin = place
        out.append(Piece(line[begin:], len(out)))
    return out


def _labelled(pieces: list[Piece]) -> list[Piece]:
    """Bullets and numbers joined with the text to their right: they are no column."""
    out: list[Piece] = []
    labels = [piece for piece in pieces if len(piece.words) == 1 and _LABEL.fullmatch(piece.words[0].text)]
    if not labels:
        return pieces
    taken: set[int] = set()
    for label in labels:
        found = [
            piece
            for piece in pieces
            if piece is not label
            and id(piece) not in taken
            and 0 <= piece.left - label.right <= _LABEL_GAP * label.height
            and abs(piece.bottom - label.bottom) < 0.3 * label.height
        ]
        if found:
            text = min(found, key=lambda piece: piece.left)
            taken |= {id(text), id(label)}
            out.append(Piece([*label.words, *text.words], label.place))
    return out + [piece for piece in pieces if id(piece) not in taken]


def _strips(pieces: Iterable[Piece]) -> list[Strip]:
    """Pieces from top to bottom, those side by side together, from left to right. Heights are taken by half: lines are set
    closer than their boxes are high."""
    out: list[Strip] = []
    end = -_INFINITE
    for piece in sorted(pieces, key=lambda piece: piece.top + piece.bottom):
        middle, half = (piece.top + piece.bottom) / 2, 0.25 * piece.height
        if middle - half < end:
            out[-1].append(piece)
            end = max(end, middle + half)
        else:
            out.append([piece])
            end = middle + half
    for strip in out:
        strip.sort(key=lambda piece: piece.left)
    return out


def _arranged(strips: list[Strip], depth: int) -> list[Block]:
    """The blocks of a stretch of the page."""
    out: list[Block] = []
    for region, gutters in _regions(strips):
        edge = next((gutter for gutter in _widest(gutters) if _parts_columns(region, gutter)), None)
        if edge is not None and depth < _DEEPEST:
            for side in _sides(region, edge):
                out += _arranged(_strips(side), depth + 1)
            continue
        rows = _rows(region, gutters) if gutters else []
        if rows and sum("\t" in row.text for row in rows) >= _TABLE_ROWS * len(rows):
            out.append(Block("table", rows))
        else:
            out.append(Block("text", [_line(strip) for strip in region]))
    return out


def _widest(gutters: list[Gap]) -> list[Gap]:
    return sorted(gutters, key=lambda gutter: gutter[0] - gutter[1])


def _regions(strips: list[Strip]) -> list[tuple[list[Strip], list[Gap]]]:
    """Strips in a row that leave the same gutters free, with those; strips without one together with their neighbours."""
    found: list[tuple[list[Strip], list[Gap]]] = []
    least = _GUTTER * statistics.median(piece.height for strip in strips for piece in strip)
    place = 0
    while place < len(strips):
        region, free = [strips[place]], _free(strips[place])
        gutters = _inner(free, strips[place : place + _LOOK_AHEAD], [], least)
        ends_text = len(region[0]) == 1 and place > 0 and _goes_on(strips[place - 1], region[0])
        place += 1
        while place < len(strips) and not ends_text:
            strip = _split(strips[place], gutters)
            both = _common(free, _free(strip))
            region.append(strip)
            inner = _inner(both, [*region, *strips[place + 1 : place + _LOOK_AHEAD]], gutters, least)
            if not inner:
                region.pop()
                break
            free, gutters = both, inner
            place += 1
        kept = _without_tail(region, gutters)
        place -= len(region) - len(kept)
        found += _without_head(kept, [gutter for gutter in gutters if _narrowed(gutter, kept, least) == gutter], least)
    out: list[tuple[list[Strip], list[Gap]]] = []
    for number, (region, gutters) in enumerate(found):
        if gutters and _is_in_text(region, gutters, found[number - 1 : number] + found[number + 1 : number + 2]):
            gutters = []
        if not gutters and out and not out[-1][1]:
            out[-1][0].extend(region)
        else:
            out.append((region, gutters))
    return out


def _without_head(region: list[Strip], gutters: list[Gap], least: float) -> list[tuple[list[Strip], list[Gap]]]:
    """A region, its first lines apart if they are a heading, which crosses gutters that the lines below have."""
    start = next((place for place, strip in enumerate(region) if len(strip) > 1), 0)
    if not gutters or not start:
        return [(region, gutters)]
    free = _free(region[start])
    for strip in region[start + 1 :]:
        free = _common(free, _free(strip))
    more = [gap for gap in free if gap[1] - gap[0] >= least and _narrowed(gap, region[start:], least) == gap]
    if len(more) <= len(gutters):
        return [(region, gutters)]
    heads = [piece for strip in region[:start] for piece in strip]
    crossed = any(piece.left < end and piece.right > begin for piece in heads for begin, end in more)
    return [(region[:start], []), (region[start:], more)] if crossed else [(region, more)]


def _goes_on(above: Strip, below: Strip) -> bool:
    """Whether a line is the next one of running text."""
    height = above[0].height
    begins = abs(below[0].left - above[0].left) < 2 * height
    return len(above) == 1 and begins and _middle(below) - _middle(above) < 1.7 * height


def _split(strip: Strip, gutters: list[Gap]) -> Strip:
    """The strip with pieces cut that cross a gutter where a word ends: the gutter is no wider than the gaps of that line."""
    if not any(piece.left < begin and piece.right > end for piece in strip for begin, end in gutters):
        return strip
    out = []
    for piece in strip:
        start = 0
        for place, (before, word) in enumerate(itertools.pairwise(piece.words), 1):
            if any(before.right <= end and word.left >= begin and word.left - before.right >= 0.7 * (end - begin)
                   for begin, end in gutters):  # fmt: skip
                out.append(Piece(piece.words[start:place], piece.place))
                start = place
        out.append(Piece(piece.words[start:], piece.place))
    return out


def _is_in_text(region: list[Strip], gutters: list[Gap], beside: list[tuple[list[Strip], list[Gap]]]) -> bool:
    """Whether gutters are chance gaps in two or three lines of running text: the line before or after has none."""
    height = region[0][0].height
    if len(region) > 3 or max(end - begin for begin, end in gutters) > _TAB * height:
        return False
    for strips, others in beside:
        strip = min(strips, key=lambda strip: abs(_middle(strip) - _middle(region[0])))
        near = min(abs(_middle(strip) - _middle(one)) for one in region) < 1.7 * height
        if (
            not others
            and near
            and len(strip) == 1
            and all(strip[0].left < begin and strip[0].right > end for begin, end in gutters)
        ):
            return True
    return False


def _free(strip: Strip) -> list[Gap]:
    """Stretches of x, in order, that no piece covers."""
    out, end = [], -_INFINITE
    for piece in strip:
        if piece.left > end:
            out.append((end, piece.left))
        end = max(end, piece.right)
    return [*out, (end, _INFINITE)]


def _common(one: Sequence[Gap], other: Sequence[Gap]) -> list[Gap]:
    """What lies in both."""
    out = []
    i = j = 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            out.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return out


def _inner(free: list[Gap], strips: Sequence[Strip], known: list[Gap], least: float) -> list[Gap]:
    """The free stretches that go on as gutters; those within known ones do."""
    out = []
    for begin, end in free:
        finite = end - begin < _INFINITE
        if end - begin >= least and (
            (finite and any(wide <= begin and end <= far for wide, far in known))
            or _narrowed((begin, end), strips, least)
        ):
            out.append((begin, end))
    return out


def _narrowed(gap: Gap, strips: Sequence[Strip], least: float) -> Gap | None:
    """What text on both sides leaves of a gap when there are two lines with text on both; None if it is less than the least."""
    begin, end = gap
    lines = 0
    for strip in strips:
        left, right = set(), set()
        for piece in strip:
            if piece.right <= end - least:
                begin = max(begin, piece.right)
                left.add(round(piece.bottom / piece.height * 2))
            else:
                end = min(end, piece.left)
                right.add(round(piece.bottom / piece.height * 2))
            if end - begin < least:
                return None
        lines += min(len(left), len(right))
        if lines > 1:
            return begin, end
    return None


def _without_tail(region: list[Strip], gutters: list[Gap]) -> list[Strip]:
    """Less the strips at the end that are text below the columns: on one side, set off by a gap, none filling the column."""
    if not gutters:
        return region
    first = gutters[0]
    two_sided = [strip[0].right <= first[0] and strip[-1].left >= gutters[-1][1] for strip in region]
    last = max((place for place, both in enumerate(two_sided) if both), default=-1)
    tail = region[last + 1 :]
    if last < 0 or not tail:
        return region
    distances = [_middle(below) - _middle(above) for above, below in itertools.pairwise(region[: last + 1])]
    usual = statistics.median(distances) if distances else 1.2 * region[0][0].height
    width = max(first[0] - min(strip[0].left for strip in region), 1.0)
    fills = any(piece.right - piece.left >= 0.9 * width for strip in tail for piece in strip)
    set_off = _middle(tail[0]) - _middle(region[last]) > 1.5 * usual
    return region[: last + 1] if set_off and not fills else region


def _middle(strip: Strip) -> float:
    return (strip[0].top + strip[0].bottom) / 2


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
    fewer, more = sorted((_strips(side) for side in sides), key=len)
    texts = sum(_is_text(strips) for strips in (fewer, more))
    if changes > max(1, 0.1 * len(fewer)):
        by_lines = changes > 1.5 * len(fewer)  # and not cell by cell
        return texts == 2 and by_lines and not _row_groups_of(region, sides)
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
    lines = [_line(strip) for strip in strips]
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    height = statistics.median(line.bottom - line.top for line in lines)
    broken = sum(right - above.right < below.first_width + 0.3 * height for above, below in itertools.pairwise(lines))
    return right - left >= _TEXT_COLUMN * height and broken >= 0.5 * (len(lines) - 1)


def _row_groups_of(region: list[Strip], sides: Sequence[list[Piece]]) -> bool:
    """Whether both sides begin anew where rows are set apart: a table whose cells have several lines."""
    groups = _row_groups(region)
    ids = [{id(piece) for piece in side} for side in sides]
    whole = sum(all(any(id(piece) in side for strip in group for piece in strip) for side in ids) for group in groups)
    return bool(groups) and whole >= 0.7 * len(groups)


def _row_groups(region: list[Strip]) -> list[list[Strip]]:
    """Strips of a table row by row, where rows of several lines are set apart; else nothing."""
    distances = [_middle(below) - _middle(above) for above, below in itertools.pairwise(region)]
    usual = sorted(distances)[len(distances) // 4]
    groups = [[region[0]]]
    for distance, strip in zip(distances, region[1:], strict=True):
        if distance > _ROW_GAP * usual:
            groups.append([])
        groups[-1].append(strip)
    return groups if len(groups) > 2 and len(region) <= 6 * len(groups) else []


def _rows(region: list[Strip], gutters: list[Gap]) -> list[Line]:
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
    line = _line([piece for cell in cells.values() for piece in cell])
    texts = [_cell(cell) for cell in cells.values()]
    if any(word.is_rtl for _, piece in row[:1] for word in piece.words):
        texts.reverse()
    line.text = "\t".join(texts)
    return line


def _cell(pieces: list[Piece]) -> str:
    """The lines of a cell as one."""
    texts = [_text(piece.words) for piece in pieces]
    return "".join(text if text.endswith(HYPHEN) else text + " " for text in texts).strip()


def _line(pieces: list[Piece]) -> Line:
    """Pieces side by side as one line; a wide gap becomes a tab."""
    rtl = sum(word.is_rtl for piece in pieces for word in piece.words) * 2 > sum(len(piece.words) for piece in pieces)
    texts = [_text(piece.words) for piece in pieces]
    joined = texts[0]
    for before, piece, text in zip(pieces, pieces[1:], texts[1:], strict=False):
        space = "\t" if piece.left - before.right > _TAB * piece.height else " "
        joined = f"{text}{space}{joined}" if rtl else f"{joined}{space}{text}"
    first = pieces[-1].words[-1] if rtl else pieces[0].words[0]
    return Line(
        joined, min(piece.left for piece in pieces), min(piece.top for piece in pieces),
        max(piece.right for piece in pieces), max(piece.bottom for piece in pieces), first.right - first.left,
    )  # fmt: skip


def _text(words: list[Word]) -> str:
    """Words in logical order: they are given from left to right where one is written from right to left."""
    if not any(word.is_rtl for word in words):
        return " ".join(word.text for word in words)
    base_rtl = sum(len(word.text) for word in words if word.is_rtl) * 2 >= sum(len(word.text) for word in words)
    ordered = words[::-1] if base_rtl else words
    out: list[Word] = []
    for is_other, grouped in itertools.groupby(ordered, lambda word: word.is_rtl != base_rtl):
        run = list(grouped)
        out += reversed(run) if is_other else run
    return " ".join(word.text for word in out)


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
