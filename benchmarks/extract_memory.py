"""Memory of the command `qwen3 data extract` over 1,000 different files, by process: does it grow?

    python -m benchmarks.extract_memory
    python -m benchmarks.extract_memory --files 3000 --processes 2
    python -m benchmarks.extract_memory --pages 1000                    # one PDF of 1,000 pages, in two columns

Six files of ten are PDF, set with reportlab (2 to 6 pages: one and two columns, columns drawn by rows, tables, lists), three
are HTML that this machine holds (/usr/share/doc, installed packages, documentation of Rust), one is an EPUB. They lie
in one folder in a mixed order, which is the order in which they are read. The command runs once; every 0.1 s the resident
memory of each of its processes is read: the command itself, which assembles the text and, with one process, does all else;
worker processes of --processes; what starts PDFium's processes; and PDFium's processes, of which each reads some hundred
pages or files.

The table has the largest value of each third of the time, the first tenth of a minute left out, in which modules are loaded.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.helpers import typeset

ROOT = Path(__file__).parent.parent
START = 6.0  # seconds in which modules are loaded
_HTML = ("/usr/share/doc", sys.prefix, str(Path.home() / ".rustup/toolchains"))
_CHAPTER = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body><h1>{0}</h1>{1}</body></html>'


def pdf(path: Path, seed: int) -> None:
    """A document of 1 to 6 pages."""
    rng = random.Random(seed)
    pages = rng.randint(2, 6)
    kind = rng.randrange(5)
    if kind == 4:
        typeset.lists(path, seed)
    else:
        make = (typeset.one_column, typeset.two_columns, typeset.rowwise_columns, typeset.table)[kind]
        make(path, pages, seed)


def book(path: Path, seed: int, chapters: int = 10) -> None:
    """An EPUB."""
    names = [f"c{number}.xhtml" for number in range(chapters)]
    items = "".join(f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in names)
    order = "".join(f'<itemref idref="{name}"/>' for name in names)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        out.writestr(
            "META-INF/container.xml",
            '<c xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfile full-path="a.opf"/></c>',
        )
        package = f"<manifest>{items}</manifest><spine>{order}</spine>"
        out.writestr("a.opf", f'<package xmlns="http://www.idpf.org/2007/opf" version="3.0">{package}</package>')
        for number, name in enumerate(names):
            text = "".join(f"<p>{one}</p>" for one in typeset.prose(1000 * seed + number, 20))
            out.writestr(name, _CHAPTER.format(f"Chapter {number}", text))


def make_files(folder: Path, count: int) -> dict[str, int]:
    """Write `count` files in a mixed order; return how many there are of each kind."""
    pages = sorted(
        path for place in _HTML for path in Path(place).rglob("*.html") if 2000 < path.stat().st_size < 200_000
    )
    pages = random.Random(0).sample(pages, min(len(pages), count * 3 // 10))
    kinds = ["html"] * len(pages) + ["epub"] * (count // 10)
    kinds += ["pdf"] * (count - len(kinds))
    random.Random(1).shuffle(kinds)
    left = iter(pages)
    for number, kind in enumerate(kinds):
        path = folder / f"{number:05d}.{kind}"
        if kind == "html":
            path.write_bytes(next(left).read_bytes())
        elif kind == "pdf":
            pdf(path, number)
        else:
            book(path, number)
    return {kind: kinds.count(kind) for kind in ("pdf", "html", "epub")}


def processes_of(process: int, depth: int = 0) -> list[tuple[str, int]]:
    """(role, bytes of resident memory) of a process and of those that it started."""
    out = []
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        resident = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        parent = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1]
        if depth == 0:
            role = "the command"
        elif b"qwen3_jax.processes.worker" in command:
            above = Path(f"/proc/{parent}/cmdline").read_bytes()
            role = "PDFium and parsers" if b"qwen3_jax.processes.worker" in above else "what starts these"
        else:
            role = "workers" if b"resource_tracker" not in command else ""
        if role and resident:  # a process that has just ended has none
            out.append((role, resident))
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                out += processes_of(int(child), depth + 1)
    except OSError:
        pass
    return out


def watch(command: list[str]) -> tuple[float, dict[str, list[tuple[float, int]]]]:
    """Run a command; return its seconds, and by role (second, bytes of the largest process)."""
    found: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    stop = threading.Event()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def look() -> None:
        while not stop.wait(0.1):
            largest: dict[str, int] = {}
            for role, resident in processes_of(child.pid):
                largest[role] = max(largest.get(role, 0), resident)
            largest["all together"] = sum(resident for _, resident in processes_of(child.pid))
            for role, resident in largest.items():
                found[role].append((time.monotonic() - began, resident))

    watcher = threading.Thread(target=look)
    watcher.start()
    said = child.communicate()[1]
    took = time.monotonic() - began
    stop.set()
    watcher.join()
    if child.returncode:
        raise SystemExit(said)
    print(said.strip().splitlines()[-1])
    return took, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="documents (default: 1000)")
    parser.add_argument("--pages", type=int, help="read one PDF with this number of pages instead")
    parser.add_argument("--processes", type=int, default=1, help="of the command (default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "files"
        files.mkdir()
        if args.pages is None:
            made = make_files(files, args.files)
        else:
            typeset.two_columns(files / "long.pdf", args.pages)
            made = {"pdf": 1}
        size = sum(file.stat().st_size for file in files.iterdir()) / 2**20
        print(f"{', '.join(f'{count:,} {kind}' for kind, count in made.items())}; {size:.0f} MB")
        program = "import sys; from qwen3_jax.cli.main import main; sys.exit(main())"
        options = ["--path", str(files), "--output", f"{work}/out", "--processes", str(args.processes)]
        took, found = watch([sys.executable, "-c", program, "data", "extract", *options])
    each = f"{args.files / took:.1f} files/s" if args.pages is None else f"{args.pages / took:.1f} pages/s"
    print(f"{took:.0f} s, {each}, beginning and end included")
    table = Table("largest resident memory, MB", "first third", "second third", "last third", "last / first")
    for role, values in found.items():
        width = (took - START) / 3
        thirds = [
            [size for at, size in values if START + third * width <= at < START + (third + 1) * width]
            for third in range(3)
        ]
        if min(map(len, thirds)) < 10:  # a process that was just forked
            continue
        most = [max(third) / 2**20 for third in thirds]
        table.add_row(role, *(f"{value:.1f}" for value in most), f"{most[2] / most[0]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
