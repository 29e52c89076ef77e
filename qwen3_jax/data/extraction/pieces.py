"""Pieces of lines, and what pages are made of: words side by side, lines, blocks of lines.

words -> pieces (words side by side) -> strips (pieces side by side)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.data.extraction.words import Word, mirrored_lines

# In heights of a line (about 1.2 times the size of the font):
_PIECE_GAP = 0.8  # words further apart are not neighbours
_STRETCHED_GAP = 4.0  # the same in a line whose gaps are all of one size
_EVEN = 0.3  # most that gaps of one size differ by
TAB = 2.5
"""Words of one line further apart are separated by a tab."""
_LABEL_GAP = 3.5  # a bullet or number may stand as far to the left of its text
_LABEL = re.compile(r"[•‣◦▪●○■□–—*·\-]|\(?[0-9]{1,3}[.)]|\(?[a-zA-Z][.)]|\(?[ivxIVX]{1,4}[.)]|\[[0-9]{1,3}\]")


@dataclass(slots=True)
class Piece:
    """Words side by side, with nothing between them but spaces; `place` is that of the first in the order of the file."""

    words: list[Word]
    place: int = 0
    left: float = 0.0
    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0
    height: float = 0.0
    has_rtl: bool = False

    def __post_init__(self) -> None:
        first = self.words[0]
        left, right, top, bottom, has_rtl = first.left, first.right, first.top, first.bottom, False
        for word in self.words:
            if word.left < left:
                left = word.left
            if word.right > right:
                right = word.right
            if word.bottom - word.top > bottom - top:  # the tallest word says where the line is
                top, bottom = word.top, word.bottom
            has_rtl = has_rtl or word.is_rtl
        self.left, self.right, self.top, self.bottom, self.has_rtl = left, right, top, bottom, has_rtl
        self.height = bottom - top


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


Strip = list[Piece]
Gap = tuple[float, float]
"""A stretch of x that no text covers."""


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


def find_pieces(words: list[Word]) -> list[Piece]:
    """Words side by side in the order of the file. Lines set to a width have wide gaps, of one size."""
    out: list[Piece] = []
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
    return _labelled(out)


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


def find_strips(pieces: Iterable[Piece]) -> list[Strip]:
    """Pieces from top to bottom, those side by side together, from left to right. Heights are taken by half: lines are set
    closer than their boxes are high."""
    out: list[Strip] = []
    end = float("-inf")
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


def middle_of(strip: Strip) -> float:
    return (strip[0].top + strip[0].bottom) / 2


def line_of(pieces: list[Piece]) -> Line:
    """Pieces side by side as one line; a wide gap becomes a tab."""
    words = [word for piece in pieces for word in piece.words]
    rtl = any(piece.has_rtl for piece in pieces) and 2 * sum(word.is_rtl for word in words) > len(words)
    texts = [text_of(piece) for piece in pieces]
    joined = texts[0]
    for before, piece, text in zip(pieces, pieces[1:], texts[1:], strict=False):
        space = "\t" if piece.left - before.right > TAB * piece.height else " "
        joined = f"{text}{space}{joined}" if rtl else f"{joined}{space}{text}"
    first = words[-1] if rtl else words[0]
    return Line(
        joined, min(piece.left for piece in pieces), min(piece.top for piece in pieces),
        max(piece.right for piece in pieces), max(piece.bottom for piece in pieces), first.right - first.left,
    )  # fmt: skip


def text_of(piece: Piece) -> str:
    """Words in logical order: they are given from left to right where one is written from right to left."""
    words = piece.words
    if not piece.has_rtl:
        return " ".join([word.text for word in words])
    base_rtl = sum(len(word.text) for word in words if word.is_rtl) * 2 >= sum(len(word.text) for word in words)
    ordered = words[::-1] if base_rtl else words
    out: list[Word] = []
    for is_other, grouped in itertools.groupby(ordered, lambda word: word.is_rtl != base_rtl):
        run = list(grouped)
        out += reversed(run) if is_other else run
    return " ".join(word.text for word in out)
