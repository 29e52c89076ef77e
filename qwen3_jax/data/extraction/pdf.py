"""PDF files through PDFium. These functions are called in processes that can be ended (`qwen3_jax.processes`): PDFium is C++
that reads what strangers wrote, and is not safe for threads.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen3_jax.data.extraction.layout import read_blocks
from qwen3_jax.data.extraction.pieces import to_json
from qwen3_jax.data.extraction.words import Word, read_words
from qwen3_jax.errors import UserError
from qwen3_jax.processes.steps import step

_ERRORS = {
    3: "it is no PDF, or is damaged",
    4: "it is encrypted and wants a password",
    5: "its encryption is not known",
}
_FEW = 200  # characters: with fewer, a page may be a picture of text
_COVERED = 0.5  # of the page by pictures: a scan
_DRAWN = 300  # paths on a page without text: letters drawn as curves
_BROKEN = 0.3  # of the characters without text or outside of what text uses: a font that says nothing of its letters
_UNKNOWN = re.compile("[\ufffd\ue000-\uf8ff\x00-\x1f]")
_INK = 0.002  # of the pixels: less is a blank page
_MOST_PIXELS = 40_000_000


class PdfError(ValueError):
    """A document or page that PDFium cannot read; one clause."""


def preload() -> None:
    """Import PDFium, which takes the time of some pages.

    Raises:
        UserError: it is not installed.
    """
    _pdfium()


@functools.cache
def _pdfium() -> tuple[Any, Any]:
    try:
        import pypdfium2
        import pypdfium2.raw
    except ImportError:
        raise UserError('PDF files need the package pypdfium2: pip install "qwen3-jax[extract]"') from None
    return pypdfium2, pypdfium2.raw


def inspect(path: str) -> dict[str, Any]:
    """The number of pages (`pages`), and the title (`title`, perhaps empty).

    Raises:
        PdfError: it cannot be opened.
    """
    with _opened(path) as document:
        return {"pages": len(document), "title": " ".join(document.get_metadata_value("Title").split())}


def read_pages(path: str, start: int, stop: int) -> list[dict[str, Any]]:
    """The pages from `start` (counted from 0) up to `stop`.

    Returns:
        For each: `needs`, why its text must be recognised from a picture, or None; `blank`, whether it holds nothing at all;
        `blocks`, of `pieces.to_json`; `top` and `bottom` of the page along its lines.

    Raises:
        PdfError: the document cannot be opened, or a page not loaded.
    """
    with _opened(path) as document:
        return [_read_page(document, number) for number in range(start, stop)]


def render(path: str, number: int, dpi: int) -> str:
    """A page as a PNG, in base 64; "" if it is blank.

    Raises:
        PdfError: the document cannot be opened, or the page not loaded.
    """
    with _opened(path) as document, _page(document, number) as page:
        width, height = page.get_size()
        scale = min(dpi / 72, math.sqrt(_MOST_PIXELS / max(width * height, 1.0)))
        image = page.render(scale=scale, grayscale=True).to_pil()
        histogram = image.histogram()
        if sum(histogram[:160]) < _INK * sum(histogram):
            return ""
        out = io.BytesIO()
        image.save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()


def _read_page(document: Any, number: int) -> dict[str, Any]:
    step(f"on page {number + 1}")
    raw = _pdfium()[1]
    with _page(document, number) as page:
        textpage = page.get_textpage()
        try:
            words = read_words(textpage.raw, raw)
        finally:
            textpage.close()
        needs = _needs_recognition(page, raw, words)
        blocks = read_blocks(words)
        turn = max(words, key=lambda turn: len(words[turn]), default=0)
        top, bottom = _extent(page, turn)
        blank = not blocks and needs is None
        return {
            "needs": needs, "blank": blank, "blocks": [to_json(block) for block in blocks], "top": top,
            "bottom": bottom,
        }  # fmt: skip


def _needs_recognition(page: Any, raw: Any, words: dict[int, list[Word]]) -> str | None:
    """Why the text layer of a page does not do, or None."""
    text = "".join(word.text for of_turn in words.values() for word in of_turn)
    unknown = 0 if text.isascii() else len(_UNKNOWN.findall(text))
    if unknown > _BROKEN * len(text):
        return "its fonts do not say which letters they draw"
    if len(text) >= _FEW:
        return None
    covered, paths = _drawn(page, raw)
    if covered >= _COVERED:
        return "it is a picture"
    if not text and covered > 0.02:
        return "it holds a picture and no text"
    if not text and paths >= _DRAWN:
        return "its letters are drawn as curves"
    return None


def _drawn(page: Any, raw: Any) -> tuple[float, int]:
    """(the share of the page that pictures cover, the number of paths), forms looked into."""
    width, height = page.get_size()
    area, paths = 0.0, 0
    for item in page.get_objects(filter=(raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH), max_depth=5):
        if item.type == raw.FPDF_PAGEOBJ_PATH:
            paths += 1
            continue
        left, bottom, right, top = item.get_bounds() if hasattr(item, "get_bounds") else item.get_pos()
        area += max(min(right, max(width, height)) - max(left, 0.0), 0.0) * max(top - bottom, 0.0)
    return area / max(width * height, 1.0), paths


def _extent(page: Any, turn: int) -> tuple[float, float]:
    """Top and bottom of a page for lines of a direction, as `words.Word` counts: y downwards."""
    left, bottom, right, top = page.get_mediabox()
    match turn:
        case 90:
            return left, right
        case 180:
            return bottom, top
        case 270:
            return -right, -left
        case _:
            return -top, -bottom


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    pdfium, raw = _pdfium()
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        code = getattr(error, "err_code", None) or raw.FPDF_GetLastError()
        raise PdfError(_ERRORS.get(code, str(error))) from None
    try:
        yield document
    finally:
        document.close()


@contextmanager
def _page(document: Any, number: int) -> Iterator[Any]:
    pdfium, _ = _pdfium()
    try:
        page = document[number]
    except pdfium.PdfiumError:
        raise PdfError(f"page {number + 1} is damaged") from None
    try:
        yield page
    finally:
        page.close()
