"""PDF documents whose text is known, set with reportlab: columns, tables, running heads, hyphens, rotation, scripts, scans.

for name, make in DOCUMENTS.items():
    truth = make(path)         # writes the file; the text of its pages, in reading order, to be joined with nothing between
"""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = A4
MARGIN = 72
FONTS = Path("/usr/share/fonts/truetype")
_SAID = (
    "time person year way day thing man world life hand part child eye woman place work week case point government "
    "company number group problem fact water history information international understanding development communication "
    "responsibility particularly experience organization environment because between important political different "
    "economic available financial community performance international relationship opportunity"
)
_WORDS = _SAID.split()

Make = Callable[[Path], list[str]]


def prose(seed: int, paragraphs: int, sentences: int = 5) -> list[str]:
    """Paragraphs of words in sentences."""
    rng = random.Random(seed)
    out = []
    for _ in range(paragraphs):
        lines = []
        for _ in range(rng.randint(2, sentences)):
            words = rng.choices(_WORDS, k=rng.randint(6, 16))
            lines.append(" ".join(words).capitalize() + ".")
        out.append(" ".join(lines))
    return out


def lines_of(
    text: str, font: str, size: float, width: float, hyphenate: bool = False, first: float = 0
) -> Iterator[tuple[str, bool]]:
    """Lines that fit a width (less `first` for the first), each with whether it ends the paragraph; long words are broken."""
    words, line = text.split(" "), ""
    whole, width = width, width - first
    while words:
        word = words[0]
        longer = f"{line} {word}" if line else word
        if stringWidth(longer, font, size) <= width:
            line = longer
            words.pop(0)
            continue
        if hyphenate and word.isalpha() and len(word) > 7:
            for cut in range(len(word) - 3, 2, -1):
                part = f"{line} {word[:cut]}-" if line else f"{word[:cut]}-"
                if stringWidth(part, font, size) <= width:
                    line, words[0] = part, word[cut:]
                    break
        yield line, False
        line, width = "", whole
    if line:
        yield line, True


class Setter:
    """Sets paragraphs into boxes, page after page."""

    def __init__(self, path: Path, *, font: str = "Times-Roman", size: float = 10.5, pagesize=A4):
        self.canvas = Canvas(str(path), pagesize=pagesize, invariant=1)
        self.font, self.size, self.leading = font, size, size * 1.25

    def line(self, text: str, x: float, y: float, width: float | None = None) -> None:
        """One line, stretched to a width if one is given."""
        gaps = text.count(" ")
        natural = stringWidth(text, self.font, self.size)
        writing = self.canvas.beginText(x, y)
        writing.setFont(self.font, self.size)
        if width is not None and gaps and width > natural:
            writing.setWordSpace((width - natural) / gaps)
        writing.textOut(text)
        self.canvas.drawText(writing)

    def column(
        self, paragraphs: list[str], x: float, top: float, bottom: float, width: float, *, indent: float = 12,
        justify: bool = True, hyphenate: bool = True, space: float = 0,
    ) -> list[str]:  # fmt: skip
        """Set what fits between top and bottom; return what is left."""
        y = top
        left = list(paragraphs)
        while left:
            done = ""
            inset = indent
            for text, last in lines_of(left[0], self.font, self.size, width, hyphenate, first=indent):
                if y < bottom:
                    left[0] = left[0][len(done) :].lstrip()
                    return left
                self.line(text, x + inset, y, None if last or not justify else width - inset)
                inset = 0
                done += text[:-1] if text.endswith("-") and not last else text + " "
                y -= self.leading
            left.pop(0)
            y -= space
        return left

    def page(self) -> None:
        """End the page."""
        self.canvas.showPage()

    def head(self, text: str, x: float, y: float, anchor: str = "start") -> None:
        """A line that begins, ends or is centred at x."""
        self.canvas.setFont(self.font, self.size)
        draw = {"start": "drawString", "end": "drawRightString", "middle": "drawCentredString"}[anchor]
        getattr(self.canvas, draw)(x, y, text)

    def save(self) -> None:
        """Write the file."""
        self.canvas.save()


def one_column(path: Path, pages: int = 3, seed: int = 0) -> list[str]:
    """Justified and hyphenated paragraphs with indented first lines, under a running head, above a page number."""
    out, setter = [], Setter(path)
    left = prose(seed, 9 * pages)
    for number in range(1, pages + 1):
        before = list(left)
        setter.head("The running head of this document", MARGIN, HEIGHT - 40)
        setter.head(str(number), WIDTH / 2, 30, "middle")
        left = setter.column(left, MARGIN, HEIGHT - 90, 80, WIDTH - 2 * MARGIN)
        out.append(_set(before, left))
        setter.page()
    setter.save()
    return out


def two_columns(path: Path, pages: int = 3, seed: int = 1) -> list[str]:
    """Two columns under a title over both, with heads and feet that change with the page."""
    out, setter = [], Setter(path, size=9.5)
    width = (WIDTH - 2 * MARGIN - 18) / 2
    left = prose(seed, 22 * pages)
    for number in range(1, pages + 1):
        before, top, title = list(left), HEIGHT - 90, ""
        setter.head(f"Journal of Words, vol. {number}", WIDTH - MARGIN, HEIGHT - 45, "end")
        setter.head(f"Page {number} of {pages}", MARGIN, 35)
        if number == 1:
            title = "A title that stands over both of the columns of this page"
            setter.canvas.setFont("Times-Bold", 16)
            setter.canvas.drawCentredString(WIDTH / 2, HEIGHT - 90, title)
            top -= 45
        left = setter.column(left, MARGIN, top, 80, width)
        left = setter.column(left, MARGIN + width + 18, top, 80, width)
        out.append((title + " " if title else "") + _set(before, left))
        setter.page()
    setter.save()
    return out


def rowwise_columns(path: Path, pages: int = 2, seed: int = 2) -> list[str]:
    """Two columns whose lines the file draws from left to right over the page, as some word processors do."""
    out, setter = [], Setter(path, size=10)
    width = (WIDTH - 2 * MARGIN - 24) / 2
    for number in range(pages):
        sides = [prose(100 * seed + 2 * number + side, 6) for side in (0, 1)]
        lines = [
            [line for text in side for line, _ in lines_of(text, setter.font, setter.size, width)] for side in sides
        ]
        for row in range(max(map(len, lines))):
            for side, column in enumerate(lines):
                if row < len(column):
                    setter.line(column[row], MARGIN + side * (width + 24), HEIGHT - 90 - row * setter.leading)
        out.append(" ".join(text for side in sides for text in side) + " ")
        setter.page()
    setter.save()
    return out


def table(path: Path, pages: int = 2, seed: int = 3) -> list[str]:
    """A table between paragraphs; rows are read before columns."""
    out, setter, rng = [], Setter(path), random.Random(seed)
    for number in range(pages):
        above, below = prose(10 * seed + number, 1)[0], prose(1000 + number, 1)[0]
        rows = [["Name", "Count", "Price", "Place"]]
        rows += [
            [rng.choice(_WORDS), str(rng.randint(1, 999)), f"{rng.random() * 99:.2f}", rng.choice(_WORDS)]
            for _ in range(14)
        ]
        setter.column([above], MARGIN, HEIGHT - 90, 80, WIDTH - 2 * MARGIN)
        y = HEIGHT - 220
        for row in rows:
            for x, cell in zip((MARGIN, 230, 310, 400), row, strict=True):
                setter.line(cell, x, y)
            y -= 18
        setter.column([below], MARGIN, y - 30, 80, WIDTH - 2 * MARGIN)
        out.append(" ".join([above, *(cell for row in rows for cell in row), below, ""]))
        setter.page()
    setter.save()
    return out


def wrapped_table(path: Path, seed: int = 4) -> list[str]:
    """A table whose cells have several lines."""
    setter, out = Setter(path, size=9), []
    y = HEIGHT - 90
    for number in range(9):
        cells = [f"Entry {number}", prose(seed * 50 + number, 1, 2)[0], prose(seed * 90 + number, 1, 2)[0]]
        depth = 0
        for x, width, cell in zip((MARGIN, 150, 360), (60, 180, 160), cells, strict=True):
            lines = [line for line, _ in lines_of(cell, setter.font, setter.size, width)]
            depth = max(depth, len(lines))
            for row, line in enumerate(lines):
                setter.line(line, x, y - row * setter.leading)
        y -= depth * setter.leading + 12
        out += cells
    setter.page()
    setter.save()
    return [" ".join(out)]


def lists(path: Path, seed: int = 5) -> list[str]:
    """Headings, bullets and numbers, whose text is set in from them."""
    setter, out = Setter(path), []
    y = HEIGHT - 90
    for section in range(3):
        title = f"{section + 1} Section of lists"
        setter.canvas.setFont("Times-Bold", 14)
        setter.canvas.drawString(MARGIN, y, title)
        y -= 26
        out.append(title)
        for item, text in enumerate(prose(seed * 10 + section, 4, 3)):
            label = "•" if section % 2 == 0 else f"{item + 1}."
            setter.line(label, MARGIN, y)
            for line, _ in lines_of(text, setter.font, setter.size, WIDTH - 2 * MARGIN - 24):
                setter.line(line, MARGIN + 24, y)
                y -= setter.leading
            y -= 4
            out.append(f"{label} {text}")
    setter.save()
    return [" ".join(out)]


def ligatures(path: Path) -> list[str]:
    """Ligatures as single characters, and a typographic apostrophe."""
    pdfmetrics.registerFont(TTFont("DejaVu", str(FONTS / "dejavu/DejaVuSans.ttf")))
    setter = Setter(path, font="DejaVu")
    text = "The office staff find it difficult to fulfil the official workflow efficiently, so they don’t waffle. " * 6
    drawn = text.replace("ffi", "ﬃ").replace("ff", "ﬀ").replace("fi", "ﬁ").replace("fl", "ﬂ").strip()
    setter.column([drawn], MARGIN, HEIGHT - 90, 80, WIDTH - 2 * MARGIN, hyphenate=False)
    setter.save()
    return [text.strip()]


def rotated(path: Path, seed: int = 6) -> list[str]:
    """Landscape pages: text turned by 90 degrees to either side on upright pages, and a page turned with its text."""
    setter, out = Setter(path), []
    for number, turn in enumerate((90, -90, 180)):
        text = prose(seed * 10 + number, 5)
        setter.canvas.saveState()
        setter.canvas.translate(*{90: (WIDTH, 0), -90: (0, HEIGHT), 180: (WIDTH, HEIGHT)}[turn])
        setter.canvas.rotate(turn)
        setter.column(text, MARGIN, WIDTH - 90, 80, 560)
        setter.canvas.restoreState()
        setter.canvas.setPageRotation({90: 90, -90: 270, 180: 180}[turn])
        out.append(" ".join(text) + " ")
        setter.page()
    setter.save()
    return out


def hebrew(path: Path) -> list[str]:
    """Right to left, as files store it: letters from left to right as they are seen."""
    pdfmetrics.registerFont(TTFont("DejaVu", str(FONTS / "dejavu/DejaVuSans.ttf")))
    setter = Setter(path, font="DejaVu", size=11)
    sentences = [
        "שלום עולם זה טקסט בעברית שנכתב מימין לשמאל", "המחשב קורא את המילים בסדר הנכון",
        "בשנת 2024 נכתבו 15 ספרים על הנושא", "הספרייה הלאומית שומרת כתבים ישנים",
    ]  # fmt: skip
    y = HEIGHT - 90
    for text in sentences * 6:
        seen = " ".join(word if word.isdigit() else word[::-1] for word in reversed(text.split(" ")))
        setter.head(seen, WIDTH - MARGIN, y, "end")
        y -= 20
    setter.save()
    return [" ".join(sentences * 6)]


def arabic(path: Path) -> list[str]:
    """Right to left."""
    pdfmetrics.registerFont(TTFont("DejaVu", str(FONTS / "dejavu/DejaVuSans.ttf")))
    setter = Setter(path, font="DejaVu", size=11)
    sentences = ["مرحبا بالعالم هذا نص باللغة العربية", "يقرأ الحاسوب الكلمات بالترتيب الصحيح"]
    y = HEIGHT - 90
    for text in sentences * 10:
        setter.head(text[::-1], WIDTH - MARGIN, y, "end")
        y -= 20
    setter.save()
    return [" ".join(sentences * 10)]


def chinese(path: Path) -> list[str]:
    """Two columns of Chinese, which has no spaces."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    setter, rng = Setter(path, font="STSong-Light", size=11), random.Random(7)
    letters = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"  # noqa: E501
    sides = ["".join(rng.choices(letters, k=19)) + "。" for _ in range(60)]
    texts = ["".join(sides[:30]), "".join(sides[30:])]
    for side, text in enumerate(texts):
        for row, start in enumerate(range(0, len(text), 18)):
            setter.line(text[start : start + 18], MARGIN + side * 235, HEIGHT - 90 - 16 * row)
    setter.save()
    return ["".join(texts)]


def scanned(path: Path, pages: int = 2, *, text_on: tuple[int, ...] = ()) -> list[str]:
    """Pictures of text, without a text layer but on the pages of `text_on`."""
    out, setter = [], Setter(path)
    for number in range(pages):
        text = prose(800 + number, 4)
        if number in text_on:
            setter.column(text, MARGIN, HEIGHT - 90, 80, WIDTH - 2 * MARGIN)
        else:
            picture = Image.new("L", (1240, 1754), 255)
            draw = ImageDraw.Draw(picture)
            font = ImageFont.truetype(str(FONTS / "dejavu/DejaVuSans.ttf"), 22)
            y = 150
            for paragraph in text:
                for line, _ in lines_of(paragraph, "Helvetica", 10.5, 430):
                    draw.text((150, y), line, fill=0, font=font)
                    y += 32
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            setter.canvas.drawImage(ImageReader(stream), 0, 0, WIDTH, HEIGHT)
        out.append(" ".join(text) + " ")
        setter.page()
    setter.save()
    return out


def encrypted(path: Path) -> None:
    """Wants a password."""
    canvas = Canvas(str(path), encrypt="secret")
    canvas.drawString(MARGIN, 700, "Nobody reads this.")
    canvas.save()


def _set(before: list[str], left: list[str]) -> str:
    """What was set of some paragraphs."""
    whole = " ".join(before)
    rest = " ".join(left)
    return whole[: len(whole) - len(rest)] if rest else whole


DOCUMENTS: dict[str, Make] = {
    "one column": one_column, "two columns": two_columns, "columns drawn by rows": rowwise_columns, "table": table,
    "table of several lines": wrapped_table, "lists": lists, "ligatures": ligatures, "rotated": rotated, "Hebrew": hebrew,
    "Arabic": arabic, "Chinese": chinese,
}  # fmt: skip
