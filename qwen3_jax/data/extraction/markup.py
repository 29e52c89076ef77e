"""HTML and EPUB files through Resiliparse, an HTML5 parser that knows main content from menus. These functions are called in
processes that can be ended (`qwen3_jax.processes`).
"""

from __future__ import annotations

import functools
import posixpath
import re
import urllib.parse
import zipfile
from typing import Any
from xml.etree import ElementTree

from qwen3_jax.errors import UserError
from qwen3_jax.processes.steps import step

_CONTAINER = "META-INF/container.xml"
_MARKUP = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_LEAST_MAIN = 40  # characters: with less, the main content was missed
# XHTML may close any element at once; HTML has only these that are empty.
_EMPTY = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
_CLOSED_AT_ONCE = re.compile(rf"<(?!(?:{_EMPTY})\b)([a-zA-Z][\w:.-]*)((?:\s[^<>]*?)?)/>", re.IGNORECASE)
_MOST_BYTES = 512 * 2**20  # of one file of an EPUB


class MarkupError(ValueError):
    """A document that cannot be read; one clause."""


def preload() -> None:
    """Import Resiliparse.

    Raises:
        UserError: it is not installed.
    """
    _resiliparse()


@functools.cache
def _resiliparse() -> tuple[Any, Any, Any]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise UserError('HTML and EPUB files need the package resiliparse: pip install "qwen3-jax[extract]"') from None
    return extract_plain_text, HTMLTree, detect_encoding


def read_html(path: str, main: bool) -> dict[str, Any]:
    """`text` of a web page, its `title`, and `method`: "main content", or "whole page" where that was wanted or nothing else.

    Raises:
        MarkupError: it has no text.
    """
    with open(path, "rb") as stream:
        raw = stream.read()
    tree = _parsed(_html_text(raw))
    text, method = "", "whole page"
    if main:
        text, method = _plain(tree, main=True), "main content"
    if len(text) < _LEAST_MAIN:
        whole = _plain(tree, main=False)
        if len(whole) > len(text):
            text, method = whole, "whole page"
    return {"text": text, "title": " ".join((tree.title or "").split()), "method": method}


def read_epub(path: str) -> dict[str, Any]:
    """`chapters` of a book in reading order (`file` and `text` of each), its `title` and `language` ("" if it does not say).

    Raises:
        MarkupError: it is no EPUB, is encrypted, or names files that are not there.
    """
    try:
        with zipfile.ZipFile(path) as book:
            names = set(book.namelist())
            if _CONTAINER not in names:
                raise MarkupError(f"it is no EPUB: it has no {_CONTAINER}")
            package = _package(book)
            root = _xml(book, package)
            title, language = (_metadata(root, name) for name in ("title", "language"))
            chapters = []
            for number, file in enumerate(_spine(root, posixpath.dirname(package)), 1):
                step(f"in chapter {number}")
                if file not in names:
                    raise MarkupError(f"chapter {number} ({file}) is not in it")
                if not _is_markup(book.read(file)[:64]):
                    raise MarkupError(f"chapter {number} ({file}) is encrypted or no markup")
                chapters.append({"file": file, "text": _plain(_parsed(_opened_up(_member(book, file))), main=False)})
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, KeyError) as error:
        raise MarkupError(f"it is no whole EPUB: {error}") from None
    if not chapters:
        raise MarkupError("it names no chapters")
    return {"chapters": chapters, "title": title, "language": language}


def _html_text(raw: bytes) -> str:
    detect = _resiliparse()[2]
    declared = re.search(rb"<meta[^>]*charset=[\"']?([\w-]+)", raw[:4096], re.IGNORECASE)
    for encoding in (_mark(raw), declared and declared[1].decode(), "utf-8", detect(raw)):
        try:
            if encoding:
                return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    raise MarkupError("its encoding cannot be told")


def _mark(raw: bytes) -> str | None:
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    return next((name for mark, name in marks if raw.startswith(mark)), None)


def _parsed(html: str) -> Any:
    """The document, its content set two levels deeper: Resiliparse takes every list near the top for a menu."""
    tree = _resiliparse()[1].parse(html)
    if tree.body is not None:
        inner, outer = tree.create_element("div"), tree.create_element("div")
        for node in list(tree.body.child_nodes):
            inner.append_child(node)
        outer.append_child(inner)
        tree.body.append_child(outer)
    return tree


def _plain(tree: Any, main: bool) -> str:
    extract = _resiliparse()[0]
    text = extract(
        tree, preserve_formatting=True, main_content=main, list_bullets=True, alt_texts=False, links=False, form_fields=False,
        noscript=False, comments=False,
    )  # fmt: skip
    lines = [re.sub(r"\t+", "\t", line.replace("\u00a0", " ")).rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _opened_up(xhtml: str) -> str:
    """XHTML for an HTML parser, to which `<title/>` or `<a id="x"/>` is an element that is not closed."""
    return _CLOSED_AT_ONCE.sub(r"<\1\2></\1>", xhtml)


def _member(book: zipfile.ZipFile, name: str) -> str:
    if book.getinfo(name).file_size > _MOST_BYTES:
        raise MarkupError(f"{name} in it is larger than {_MOST_BYTES >> 20} MiB")
    return _html_text(book.read(name))


def _is_markup(start: bytes) -> bool:
    return start.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<") or start[1:2] == b"<"


def _xml(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(book.read(name))
    except ElementTree.ParseError as error:
        raise MarkupError(f"{name} in it is no XML: {error}") from None


def _package(book: zipfile.ZipFile) -> str:
    for element in _xml(book, _CONTAINER).iter():
        if _name(element) == "rootfile" and element.get("full-path"):
            return posixpath.normpath(str(element.get("full-path")))
    raise MarkupError(f"{_CONTAINER} in it names no package")


def _spine(root: ElementTree.Element, folder: str) -> list[str]:
    """The files of the chapters in reading order, once each."""
    items = {item.get("id"): item for item in root.iter() if _name(item) == "item"}
    out: dict[str, None] = {}
    for reference in (element for element in root.iter() if _name(element) == "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or not item.get("href") or item.get("media-type", _MARKUP[0]) not in _MARKUP:
            continue
        if reference.get("linear") == "no" or "nav" in item.get("properties", "").split():
            continue  # notes on pages of their own, and the table of contents
        name = urllib.parse.unquote(str(item.get("href"))).partition("#")[0]
        out.setdefault(posixpath.normpath(posixpath.join(folder, name)))
    return list(out)


def _metadata(root: ElementTree.Element, name: str) -> str:
    found = next((element.text for element in root.iter() if _name(element) == name and element.text), "")
    return " ".join(str(found).split())


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
