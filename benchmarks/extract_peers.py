"""One reader of PDF files over some files: benchmarks/extract.py calls it, peers with another Python, that has them installed.

PYTHON benchmarks/extract_peers.py NAME ROUNDS FILE...     # prints {"texts": [...], "seconds": CPU seconds of the best round}
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable


def _ours(path: str) -> str:
    from qwen3_jax.data.extraction import assembly, pdf, pieces

    pages = pdf.read_pages(path, 0, pdf.inspect(path)["pages"])
    return assembly.assemble(
        [
            assembly.Page([pieces.from_json(block) for block in page["blocks"]], "", page["top"], page["bottom"])
            for page in pages
        ]
    )[0]


def _pdftext(path: str) -> str:
    from pdftext.extraction import plain_text_output

    return plain_text_output(path, sort=False, hyphens=False)


def _pdfplumber(path: str) -> str:
    import pdfplumber

    with pdfplumber.open(path) as document:
        return "\n".join(page.extract_text() for page in document.pages)


def _pypdf(path: str) -> str:
    from pypdf import PdfReader

    return "\n".join(page.extract_text() for page in PdfReader(path).pages)


def _pypdfium2(path: str) -> str:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        return "\n".join(page.get_textpage().get_text_bounded() for page in document)


def _pdftotext(path: str) -> str:
    return subprocess.run(["pdftotext", path, "-"], capture_output=True, check=True).stdout.decode("utf-8", "replace")


READERS: dict[str, Callable[[str], str]] = {
    "ours": _ours, "pdftext": _pdftext, "pdfplumber": _pdfplumber, "pypdf": _pypdf, "pypdfium2": _pypdfium2,
    "pdftotext": _pdftotext,
}  # fmt: skip


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Read every file, `ROUNDS` times after one that is not counted."""
    read, rounds, files = READERS[sys.argv[1]], int(sys.argv[2]), sys.argv[3:]
    texts = [read(file) for file in files]
    seconds = []
    for _ in range(rounds):
        began = _spent()
        for file in files:
            read(file)
        seconds.append(_spent() - began)
    json.dump({"texts": texts, "seconds": min(seconds)}, sys.stdout)


if __name__ == "__main__":
    main()
