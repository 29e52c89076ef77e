"""One document: a file in, a record out, or one clause that says why there is none.

A record is {"text": ..., "source": ..., "source_hash": ..., "format": ..., "method": ..., "language": ..., "title": ...,
"pages": [{"page": 1, "start": 0, "end": 1804, "method": "text layer"}, ...]}; spans are characters of the text.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen3_jax.data.extraction.assembly import Page, assemble
from qwen3_jax.data.extraction.options import Options, Unreadable
from qwen3_jax.data.extraction.pieces import from_json
from qwen3_jax.data.files import CorpusFile, compression, opened
from qwen3_jax.data.labels import detect_language
from qwen3_jax.processes import Crashed, Failed, Pool, TimedOut

DocumentKind = Literal["pdf", "html", "epub"]
SUFFIXES: dict[str, DocumentKind] = {
    ".pdf": "pdf", ".html": "html", ".htm": "html", ".xhtml": "html", ".xht": "html", ".epub": "epub",
}  # fmt: skip
_PDF, _MARKUP = "qwen3_jax.data.extraction.pdf", "qwen3_jax.data.extraction.markup"
_INSPECTION = 60.0  # seconds at least to open a file: damaged ones are searched through
_PAGE = re.compile(r"\bpage (\d+)\b")
_NAMED_PAGES = 8  # in a message


@dataclass(slots=True)
class _PageRead:
    """A page on its way into the text.

    Attributes:
        page: what was read.
        method: "text layer", "recognition", "blank", or "left out".
        reason: of what is left out, or was recognised.
        is_partial: it is a picture that was not read, and only its text layer is there.
    """

    page: Page
    method: str
    reason: str = ""
    is_partial: bool = False


def kind_by_name(url: str) -> DocumentKind | None:
    """What a file is by its suffix, that of compression left out; None for what is not read."""
    name = url.lower()
    packed = compression(name)
    return SUFFIXES.get(Path(name.removesuffix(packed or "")).suffix)


def kind_by_start(start: bytes) -> DocumentKind | None:
    """What a file is by its first bytes."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"%PDF-" in start[:1024]:
        return "pdf"
    if start.startswith(b"PK\x03\x04") and b"application/epub+zip" in start[:128]:
        return "epub"
    lowered = head[:512].lower()
    return "html" if lowered.startswith((b"<!doctype html", b"<html")) or b"<html" in lowered else None


def read_document(
    file: CorpusFile, kind: DocumentKind, options: Options, pool: Pool, recognise: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """The record of a file.

    Args:
        file: local, or anywhere that fsspec reads; it may be compressed.
        kind: how it is read.
        options: see there.
        pool: calls of PDFium and the like are made in its processes.
        recognise: the text of a picture (PNG in base 64); None where there is no such model.

    Raises:
        Unreadable: it gives no text; says why.
        UserError: a package is missing, or the endpoint cannot be used.
        OSError: it cannot be opened.
    """
    with _local(file) as (path, digest):
        if kind == "pdf":
            text, fields = _read_pdf(path, options, pool, recognise)
        elif kind == "html":
            text, fields = _read_html(path, options, pool)
        else:
            text, fields = _read_epub(path, options, pool)
    if not text.strip():
        raise Unreadable("it holds no text")
    language = detect_language(text)
    return {
        "text": text, "source": file.url, "source_hash": f"sha256:{digest}", "format": kind, "method": fields["method"],
        "language": language, "title": fields["title"], "pages": fields["pages"],
    }  # fmt: skip


@contextmanager
def _local(file: CorpusFile) -> Iterator[tuple[str, str]]:
    """Yield the path of a local file with the decompressed bytes, and their SHA-256."""
    if "://" not in file.url and not compression(file.url):
        with open(file.url, "rb") as stream:
            yield file.url, hashlib.file_digest(stream, "sha256").hexdigest()
        return
    with tempfile.NamedTemporaryFile() as local:
        with opened(file) as stream:
            shutil.copyfileobj(stream, local)
        local.seek(0)
        digest = hashlib.file_digest(local, "sha256").hexdigest()
        yield local.name, digest


def _call(pool: Pool, function: str, arguments: dict[str, Any], seconds: float) -> Any:
    """A function's value; raises Unreadable where there is none."""
    try:
        return pool.call(function, arguments, seconds)
    except TimedOut as error:
        raise Unreadable(f"it took more than {seconds:g} s{str(error).replace(', on', ' on')}") from None
    except Crashed as error:
        raise Unreadable(f"reading it ended the process ({error})") from None
    except Failed as error:
        kind, _, text = str(error).partition(": ")
        raise Unreadable(text if kind in ("PdfError", "MarkupError") else f"reading it failed ({error})") from None


def _read_html(path: str, options: Options, pool: Pool) -> tuple[str, dict[str, Any]]:
    arguments = {"path": path, "main": options.html == "main"}
    found = _call(pool, f"{_MARKUP}:read_html", arguments, options.limits.seconds)
    span = {"page": 1, "start": 0, "end": len(found["text"]), "method": found["method"]}
    return found["text"], {"method": found["method"], "title": found["title"], "pages": [span]}


def _read_epub(path: str, options: Options, pool: Pool) -> tuple[str, dict[str, Any]]:
    found = _call(pool, f"{_MARKUP}:read_epub", {"path": path}, options.limits.seconds)
    text, spans = assemble([Page(None, chapter["text"]) for chapter in found["chapters"]])
    pages = [
        {"page": number, "file": chapter["file"], "start": start, "end": end, "method": "chapter" if end > start else "blank"}
        for number, (chapter, (start, end)) in enumerate(zip(found["chapters"], spans, strict=True), 1)
    ]  # fmt: skip
    return text, {"method": "chapters", "title": found["title"], "pages": pages}


def _read_pdf(
    path: str, options: Options, pool: Pool, recognise: Callable[[str], str] | None
) -> tuple[str, dict[str, Any]]:
    limits = options.limits
    about = _call(pool, f"{_PDF}:inspect", {"path": path}, max(limits.seconds, _INSPECTION))
    if not about["pages"]:
        raise Unreadable("it has no pages")
    read: list[_PageRead] = []
    for start in range(0, about["pages"], limits.pages):
        read += _read_range(path, start, min(start + limits.pages, about["pages"]), options, pool)
    waiting = [number for number, one in enumerate(read) if one.method == "recognition"]
    _recognise(path, waiting, read, options, pool, recognise)
    lost = [number for number, one in enumerate(read) if one.method == "left out" or one.is_partial]
    if lost and (options.unreadable_pages == "refuse" or all(one.method == "left out" for one in read)):
        raise Unreadable(f"{_pages(lost)}: {read[lost[0]].reason}")
    text, spans = assemble([one.page for one in read])
    pages = []
    for number, (one, (start, end)) in enumerate(zip(read, spans, strict=True), 1):
        span = {"page": number, "start": start, "end": end, "method": one.method}
        pages.append(span | {"reason": one.reason} if one.reason else span)
    methods = {one.method for one in read} & {"text layer", "recognition"}
    return text, {"method": " and ".join(sorted(methods, reverse=True)), "title": about["title"], "pages": pages}


def _read_range(path: str, start: int, stop: int, options: Options, pool: Pool) -> list[_PageRead]:
    """Some pages; where that fails, those before and after the page at fault, so that it costs no other."""
    seconds = options.limits.seconds
    try:
        arguments = {"path": path, "start": start, "stop": stop}
        found = _call(pool, f"{_PDF}:read_pages", arguments, seconds if stop - start == 1 else 2 * seconds)
    except Unreadable as error:
        if stop - start == 1:
            return [_PageRead(Page(), "left out", str(error))]
        told = _PAGE.search(str(error))
        bad = int(told[1]) - 1 if told and start < int(told[1]) <= stop else (start + stop) // 2
        parts = [(start, bad), (bad, bad + 1), (bad + 1, stop)]
        return [page for begin, end in parts if begin < end for page in _read_range(path, begin, end, options, pool)]
    out = []
    for page in found:
        read = Page([from_json(block) for block in page["blocks"]], "", page["top"], page["bottom"])
        needs = page["needs"]
        if needs is None and options.recognise == "all" and not page["blank"]:
            needs = "every page is recognised"
        out.append(_PageRead(read, "recognition" if needs else "blank" if page["blank"] else "text layer", needs or ""))
    return out


def _recognise(
    path: str, waiting: list[int], read: list[_PageRead], options: Options, pool: Pool,
    recognise: Callable[[str], str] | None,
) -> None:  # fmt: skip
    """Put recognised text in the place of pages that need it."""
    if not waiting:
        return
    seen = options.recognition

    def one(number: int) -> _PageRead:
        page = read[number]
        try:
            arguments = {"path": path, "number": number, "dpi": seen.dpi if seen else 36}
            png = _call(pool, f"{_PDF}:render", arguments, options.limits.seconds)
            if not png:
                return _PageRead(Page(), "blank")
            if recognise is None:
                raise Unreadable("no model reads it (--endpoint, --endpoint-model)")
            return _PageRead(Page(None, recognise(png)), "recognition", page.reason)
        except Unreadable as error:
            reason = f"{page.reason}, and {error}"
            if page.page.blocks:  # some text beside the picture
                return _PageRead(page.page, "text layer", reason, is_partial=True)
            return _PageRead(Page(), "left out", reason)

    with ThreadPoolExecutor(seen.concurrency if seen else 1) as threads:
        for number, page in zip(waiting, threads.map(one, waiting), strict=True):
            read[number] = page


def _pages(numbers: list[int]) -> str:
    """Pages by number, counted from 1."""
    named = ", ".join(str(number + 1) for number in numbers[:_NAMED_PAGES])
    more = f" and {len(numbers) - _NAMED_PAGES:,} more" if len(numbers) > _NAMED_PAGES else ""
    return f"page {named}" if len(numbers) == 1 else f"pages {named}{more}"


@contextmanager
def process_pool(options: Options, most: int = 1) -> Iterator[Pool]:
    """Yield the processes for `read_document`, which end with the block."""
    pool = Pool(most, options.limits.memory)
    with contextlib.closing(pool):
        yield pool
