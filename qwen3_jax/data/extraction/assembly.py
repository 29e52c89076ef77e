"""From the lines of pages to one text: running heads left out, lines joined to paragraphs, hyphens joined, pages joined.

text, spans = assemble(pages)            # spans: (start, end) of each page in the text
"""

from __future__ import annotations

import itertools
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3_jax.data.extraction.pieces import Block, Line
from qwen3_jax.data.extraction.words import HYPHEN

_MARGIN = 0.15  # of the page's height, at its top and bottom, is where running heads are looked for
_MOST_HEADS = 3  # lines at the top, and at the bottom
_FAR = float("inf")
_SET_OFF = 1.8  # heights of a line between a head and the text, where the head is not the outermost line
_NEIGHBOURS = 8  # pages before and after, among which a head must repeat
_FIRST_NUMBER, _LAST_NUMBER = re.compile(r"\W{0,3}(\d{1,5})\b"), re.compile(r"\b(\d{1,5})\W{0,3}$")
_DIGITS = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlc]{1,7}")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；…][\"'”’»)\]]*$")
_BULLET = re.compile(r"(?:[•‣◦▪●○■□–—*·\-]|\(?[0-9]{1,3}[.)]|\(?[a-zA-Z][.)]|\[[0-9]{1,3}\])\s")
_FIRST_WORD = re.compile(r"\S+\s*")
_WORD = re.compile(r"\w+(?:-\w+)*")
_BROKEN = re.compile(rf"(?<!\w)(\w+){HYPHEN}(\w*)")
# Han, kana and their punctuation and full-width forms: written without spaces.
_NO_SPACES = re.compile("[\u2e80-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")


@dataclass(slots=True)
class Page:
    """A page as it was read.

    Attributes:
        blocks: in reading order; of a page that was recognised, None.
        text: of a page that was recognised.
        top, bottom: of the page in the direction of its lines, points, y downwards.
    """

    blocks: list[Block] | None = field(default_factory=list)
    text: str = ""
    top: float = 0.0
    bottom: float = 0.0


def assemble(pages: Sequence[Page]) -> tuple[str, list[tuple[int, int]]]:
    """Join pages to a text; the span of a page without text is empty.

    Paragraphs are separated by an empty line, except where a page ends within one.
    """
    heads = _running_heads(pages)
    texts = []
    for number, page in enumerate(pages):
        if page.blocks is None:
            texts.append(_tidy(page.text))
        else:
            blocks = [
                Block(block.kind, [line for line in block.lines if id(line) not in heads[number]])
                for block in page.blocks
            ]
            texts.append(_tidy(_joined_blocks([block for block in blocks if block.lines])))
    return _joined_pages(_unbroken(_whole_words(texts)))


def _running_heads(pages: Sequence[Page]) -> list[set[int]]:
    """For each page, the ids of its lines that are running heads, running feet and page numbers.

    Those are lines at the edge that repeat, except for their digits, at the same height of pages nearby.
    """
    edges = [_edges(page) for page in pages]
    seen: dict[Any, set[int]] = {}
    for number, edge in enumerate(edges):
        for side, lines in edge.items():
            for line, shift in itertools.product(lines, (-1, 0, 1)):
                for sign in _signs(side, line, number, shift):
                    seen.setdefault(sign, set()).add(number)
    least = min(3, max(len(pages), 2))  # pages that must have it
    out: list[set[int]] = []
    for number, edge in enumerate(edges):
        found: set[int] = set()
        for side, lines in edge.items():
            last = None
            for line, inwards in lines.items():
                signs = _signs(side, line, number)
                near = max(sum(abs(other - number) <= _NEIGHBOURS for other in seen[sign]) for sign in signs)
                height = line.bottom - line.top
                beside = last is None or abs(line.top - last.top) <= 2 * height
                if near < least or not (beside or inwards >= _SET_OFF * height):
                    break
                found.add(id(line))
                last = line
        out.append(found)
    return out


def _signs(side: str, line: Line, number: int, shift: int = 0) -> Iterator[tuple[Any, ...]]:
    """What makes a line a running head where pages nearby have it too, at about the same height: its text but for digits, or a
    number at its beginning or end that counts pages."""
    place = round(line.top / 6) + shift
    anonymous = _anonymous(line.text)
    yield side, place, anonymous
    for found in (_FIRST_NUMBER.match(line.text), _LAST_NUMBER.search(line.text)):
        if found:
            yield side, place, int(found[1]) - number


def _edges(page: Page) -> dict[str, dict[Line, float]]:
    """Lines near the top and the bottom, from the edge inwards, each with its distance to the next."""
    every = sorted((line for block in page.blocks or [] for line in block.lines), key=lambda line: line.top)
    margin = _MARGIN * (page.bottom - page.top)
    out: dict[str, dict[Line, float]] = {"top": {}, "bottom": {}}
    for side, lines in (("top", every), ("bottom", every[::-1])):
        for place, line in enumerate(lines[:_MOST_HEADS]):
            if line.bottom >= page.top + margin if side == "top" else line.top <= page.bottom - margin:
                break
            others = (abs(other.top - line.top) for other in lines[place + 1 :])
            half = (line.bottom - line.top) / 2
            out[side][line] = next((distance for distance in others if distance > half), _FAR)
    return out


def _anonymous(text: str) -> str:
    """A line without what differs from page to page: digits, and Roman numerals that stand alone."""
    plain = " ".join(text.casefold().split())
    return "#" if _ROMAN.fullmatch(plain) else _DIGITS.sub("#", plain)


def _joined_blocks(blocks: Sequence[Block]) -> str:
    """The text of a page; a paragraph that continues in the next column is not cut."""
    out: list[str] = []
    for place, block in enumerate(blocks):
        text = _paragraphs(block)
        if place:
            both_text = block.kind == blocks[place - 1].kind == "text"
            out.append(_between_paragraphs(out[-1], text) if both_text else "\n\n")
        out.append(text)
    return "".join(out)


def _paragraphs(block: Block) -> str:
    """The text of a block: lines that were broken because the next word did not fit are joined."""
    lines = block.lines
    if block.kind == "table":
        return "\n".join(line.text for line in lines)
    right = _edge_of([line.right for line in lines], largest=True)
    left = _edge_of([line.left for line in lines], largest=False)
    distances = [below.top - above.top for above, below in itertools.pairwise(lines)]
    usual = statistics.median(distances) if distances else 0.0
    out = [lines[0].text]
    for above, below, distance in zip(lines, lines[1:], distances, strict=False):
        height = above.bottom - above.top
        size_changes = not 0.85 < (below.bottom - below.top) / max(height, 0.1) < 1.18
        indented = below.left - left > 0.8 * height and above.left - left <= 0.4 * height
        if above.text.endswith(HYPHEN) and not size_changes and distance > 0:
            out.append("")
        elif size_changes or distance > 1.35 * usual or distance < 0:
            out.append("\n\n")
        elif _BULLET.match(below.text) or "\t" in above.text or "\t" in below.text:
            out.append("\n")
        elif right - above.right > below.first_width + 0.3 * height:  # the next word would have fitted
            out.append("\n\n" if indented else "\n")
        elif indented and _SENTENCE_END.search(above.text):
            out.append("\n\n")
        else:
            out.append(_between(above.text, below.text))
        out.append(below.text)
    return "".join(out)


def _edge_of(values: list[float], *, largest: bool) -> float:
    """The edge of a column, but for a line or two in a hundred that stick out."""
    ordered = sorted(values, reverse=largest)
    return ordered[len(ordered) // 50]


def _between(above: str, below: str) -> str:
    """What stands between two lines of a paragraph. A line may end after the dashes of an option."""
    if above.endswith((" --", "\t--")) and below[:1].isalpha():
        return ""
    return "" if _NO_SPACES.match(above[-1:]) and _NO_SPACES.match(below[:1]) else " "


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _unbroken(texts: Sequence[str]) -> list[str]:
    """Words that were broken at the ends of lines as the document spells them elsewhere: with a hyphen or without. Between
    words that the document has it stays."""
    if not any(HYPHEN in text for text in texts):
        return list(texts)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(match[0].casefold() for match in _WORD.finditer(_BROKEN.sub(" ", text)))

    def whole(match: re.Match[str]) -> str:
        first, second = match.groups()
        compound = f"{first}-{second}"
        if not second or not second[0].islower() or not first[-1].isalpha():
            return compound
        one, two = words[(first + second).casefold()], words[compound.casefold()]
        halves = not one and words[first.casefold()] and words[second.casefold()]
        return compound if two > one or halves else first + second

    return [_BROKEN.sub(whole, text).replace(HYPHEN, "-") for text in texts]


def _whole_words(texts: list[str]) -> list[str]:
    """The second half of a word that is broken at the end of a page moves to that page."""
    out = list(texts)
    above = -1
    for number, text in enumerate(out):
        if above >= 0 and out[above].endswith(HYPHEN) and (match := _FIRST_WORD.match(text)):
            out[above] += match[0].strip()
            out[number] = text[match.end() :]
        if out[number]:
            above = number
    return out


def _joined_pages(texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Pages one after the other; a paragraph that continues is not cut."""
    out: list[str] = []
    spans = []
    length = 0
    for text in texts:
        if text and out:
            between = _between_paragraphs(out[-1], text)
            out.append(between)
            length += len(between)
        spans.append((length, length + len(text)))
        if text:
            out.append(text)
            length += len(text)
    return "".join(out), spans


def _between_paragraphs(above: str, below: str) -> str:
    """What stands between the end of a column or page and the beginning of the next."""
    if above.endswith(HYPHEN):
        return ""
    if _SENTENCE_END.search(above) or not (below[:1].islower() or _NO_SPACES.match(below[:1])):
        return "\n\n"
    return _between(above, below)
