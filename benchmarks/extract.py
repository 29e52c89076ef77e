"""Text of PDF files against peers: how alike it is to the text that was set, its order, and speed.

    python -m venv peers && peers/bin/pip install pdftext pdfplumber pypdf     # and Debian's poppler-utils
    python -m benchmarks.extract --peers peers/bin/python

Documents whose text is known: set with reportlab (`tests/helpers/typeset.py`), and this project's documentation, printed by
Chromium in one and in two columns where it is installed. The text that is wanted has no running heads and no page numbers, and
its words are whole; differences of white space do not count. Goals: more alike than every Python peer, ten times pdfplumber's
speed. Memory over many files: `benchmarks/extract_memory.py`.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.helpers import typeset
from tests.helpers.similarity import edit_similarity, order_similarity

ROOT = Path(__file__).parent.parent
PEERS = ("pdftext", "pdfplumber", "pypdf", "pypdfium2")
_STYLE = """body {font: 11pt/1.3 'DejaVu Serif'; text-align: justify} table {border-collapse: collapse; text-align: left}
td, th {padding: 2pt 9pt} pre {white-space: pre-wrap}"""
_TWO_COLUMNS = """main {columns: 2; column-gap: 18pt; font-size: 9pt} td, th {padding: 1pt 3pt}
table {width: 100%; table-layout: fixed; overflow-wrap: anywhere; font-size: 7pt} pre {font-size: 6pt}"""


def printed(folder: Path) -> dict[str, str]:
    """The text of each page of this project's documentation that was printed into the folder, now or before, by file name."""
    known = folder / "truth.json"
    if known.exists():
        return json.loads(known.read_text(encoding="utf-8"))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return {}
    from markdown_it import MarkdownIt

    out = {}
    pages = sorted((ROOT / "docs").glob("*.md"), key=lambda page: page.stat().st_size)[-12:]
    for number, page in enumerate(pages):
        body = MarkdownIt("commonmark").enable("table").render(page.read_text(encoding="utf-8"))
        body = re.sub(r"<img[^>]*>", "", body)
        columns = _TWO_COLUMNS if number % 2 else ""
        source = folder / f"{page.stem}.html"
        source.write_text(
            f'<meta charset="utf-8"><style>{_STYLE} {columns}</style><main>{body}</main>', encoding="utf-8"
        )
        target = folder / f"docs {'in two columns ' * (number % 2)}{page.stem}.pdf"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--print-to-pdf={target}"]
        subprocess.run([chromium, *options, str(source)], check=True, capture_output=True, timeout=120)
        text = re.sub(r"<(/?)(code|em|strong|a|b|i|span)\b[^>]*>", "", body)
        out[target.name] = html.unescape(re.sub(r"<[^>]+>", " ", text))
    known.write_text(json.dumps(out), encoding="utf-8")
    return out


def read(name: str, python: str, files: list[Path], rounds: int) -> dict:
    """What a reader makes of files: texts, and CPU seconds."""
    script = str(ROOT / "benchmarks/extract_peers.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, script, name, str(rounds), *map(str, files)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--rounds", type=int, default=3, help="of timing, of which the best counts")
    parser.add_argument("--keep", metavar="DIR", help="keep the documents there, and use those that it has")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(args.keep or work)
        folder.mkdir(parents=True, exist_ok=True)
        truth = {f"{title}.pdf": "".join(make(folder / f"{title}.pdf")) for title, make in typeset.DOCUMENTS.items()}
        truth |= printed(folder)
        files = [folder / file for file in truth]
        pythons = {"ours": sys.executable} | {peer: args.peers for peer in PEERS if args.peers}
        if shutil.which("pdftotext"):
            pythons["pdftotext"] = sys.executable
        found = {name: read(name, python, files, args.rounds) for name, python in pythons.items()}
        _show(truth, found, sum(_pages(file) for file in files))


def _pages(file: Path) -> int:
    from qwen3_jax.data.extraction import pdf

    return pdf.inspect(str(file))["pages"]


def _show(truth: dict[str, str], found: dict[str, dict], pages: int) -> None:
    console = Console(width=150)
    table = Table("similarity, order", *found)
    sums = {name: [0.0, 0.0] for name in found}
    for place, (file, text) in enumerate(truth.items()):
        row = [file.removesuffix(".pdf")]
        for name, result in found.items():
            pair = edit_similarity(text, result["texts"][place]), order_similarity(text, result["texts"][place])
            sums[name] = [one + other for one, other in zip(sums[name], pair, strict=True)]
            row.append(f"{pair[0]:.4f} {pair[1]:.4f}")
        table.add_row(*row)
    count = len(truth)
    table.add_row("mean", *(f"{one / count:.4f} {other / count:.4f}" for one, other in sums.values()), end_section=True)
    table.add_row("pages/s per core", *(f"{pages / result['seconds']:.1f}" for result in found.values()))
    console.print(table)


if __name__ == "__main__":
    main()
