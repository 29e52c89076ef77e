"""The words of a PDF page with their places, from PDFium.

PDFium gives characters in the order in which the file draws them, with spaces and line ends that it adds by itself. The text is
taken in one call, and only the first and last character of a word are asked for their boxes: asking for each would take five
times as long.
"""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HYPHEN = "\u00ad"
"""Stands for a hyphen at the end of a line, until it is decided whether it belongs to the word."""
_WORD = re.compile("[^\\s\x02]+\x02?")
_LINE = re.compile("[^\r\n\x02]+\x02?|\x02")
# PDFium joins words broken at the end of a line, and knows of their hyphens: \x02 where characters are asked for one by one.
_HYPHENS = re.compile("[-\u2010\u00ad\ufffe]")
_END_HYPHEN = re.compile("(?<=\\w)[-\u2010\u00ad\ufffe\x02]$")
_HYPHEN_MARKS = re.compile("[\ufffe\x02]")
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\u200b\u2060\ufeff\ufffe\uffff]")
# Ligatures, Arabic letters by their form in the word, radicals in the place of Chinese characters.
_FORMS = re.compile("[\ufb00-\ufb06\u2f00-\u2fdf\ufb1d-\ufdff\ufe70-\ufefc]+")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_STRAIGHT = math.radians(5)  # text is taken for upright up to this angle


@dataclass(slots=True)
class Word:
    """A word where it is printed: x to the right, y downwards, both along the direction of its line; in points.

    Attributes:
        text: in logical order.
        left, top, right, bottom: the box, of the font's full height.
        is_rtl: written from right to left.
        line: number of PDFium's line.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    is_rtl: bool
    line: int


def read_words(textpage: Any, raw: Any) -> dict[int, list[Word]]:
    """The words of a page, in the order of the file, by the direction of their lines.

    Args:
        textpage: PDFium's handle.
        raw: the module `pypdfium2.raw`.

    Returns:
        Words by degrees counter-clockwise from upright: 0, 90, 180, 270; what is oblique is under -1, as if it were upright.
    """
    text = _text(textpage, raw)
    box = raw.FS_RECTF()
    get_box, reference = raw.FPDFText_GetLooseCharBox, ctypes.byref(box)
    out: dict[int, list[Word]] = {}
    for number, line in enumerate(_LINE.finditer(text)):
        turn = -2
        for match in _WORD.finditer(text, line.start(), line.end()):
            start, stop = match.span()
            if turn == -2:
                turn = _turn(raw.FPDFText_GetCharAngle(textpage, start))
            get_box(textpage, start, reference)  # where it fails, the box of the word before is as near as can be told
            left, top, right, bottom = box.left, box.top, box.right, box.bottom
            begins = left
            if stop - start > 1 and get_box(textpage, stop - 1, reference):
                backwards = box.left < begins
                left, right = min(left, box.left), max(right, box.right)
                bottom, top = min(bottom, box.bottom), max(top, box.top)
            else:
                backwards = True
            written = match[0]
            is_rtl = not written.isascii() and _RIGHT_TO_LEFT.search(written) is not None
            if is_rtl and not backwards:
                written = written[::-1]
            written = clean(written)
            if written:
                word = Word(written, *_upright(left, top, right, bottom, turn), is_rtl, number)
                out.setdefault(turn, []).append(word)
    return out


def clean(text: str) -> str:
    """The text with ligatures taken apart and without what is not seen; a hyphen that ends it becomes `HYPHEN`."""
    if text.isascii() and text[-1:] != "-" and text.isprintable():
        return text
    text = _END_HYPHEN.sub(HYPHEN, text)
    text = _HYPHEN_MARKS.sub("-", text)
    text = _INVISIBLE.sub("", text)
    if _FORMS.search(text):
        text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return text


def _text(textpage: Any, raw: Any) -> str:
    """The characters of a page, one for each index of PDFium."""
    count = raw.FPDFText_CountChars(textpage)
    if count <= 0:
        return ""
    buffer = (ctypes.c_ushort * (count + 1))()
    written = raw.FPDFText_GetText(textpage, 0, count, buffer)
    text = bytes(buffer)[: 2 * max(written - 1, 0)].decode("utf-16-le", "replace")
    if len(text) != count:  # characters without text, or beyond the first 65,536
        get = raw.FPDFText_GetUnicode
        return "".join(map(_character, (get(textpage, place) for place in range(count))))
    return _HYPHENS.sub(lambda match: "\x02" if raw.FPDFText_IsHyphen(textpage, match.start()) == 1 else match[0], text)


def _character(code: int) -> str:
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"


def _turn(angle: float) -> int:
    """Degrees of a line's direction from PDFium's angle, which is clockwise: a multiple of 90, or -1."""
    quarters = round(angle / (math.pi / 2))
    return -quarters % 4 * 90 if abs(angle - quarters * math.pi / 2) <= _STRAIGHT else -1


def _upright(left: float, top: float, right: float, bottom: float, turn: int) -> tuple[float, float, float, float]:
    """A box of the page (y upwards) as (left, top, right, bottom) along its line's direction, y downwards."""
    match turn:
        case 90:
            return bottom, left, top, right
        case 180:
            return -right, bottom, -left, top
        case 270:
            return -top, -right, -bottom, -left
        case _:
            return left, -top, right, -bottom


def mirrored_lines(words: list[Word]) -> Iterator[list[Word]]:
    """The words line by line, those of a line with right-to-left words from left to right as they are seen."""
    start = 0
    for place in range(1, len(words) + 1):
        if place < len(words) and words[place].line == words[start].line:
            continue
        line = words[start:place]
        yield sorted(line, key=lambda word: word.left) if any(word.is_rtl for word in line) else line
        start = place
