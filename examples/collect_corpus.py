"""Collect the text that every Linux machine with Python already holds, as a small corpus in many languages.

    python examples/collect_corpus.py --output corpus
    qwen3 tokenizer train --input 'corpus/*.jsonl' --vocab-size 16000 --output tokenizer
    qwen3 data prepare --path corpus --tokenizer tokenizer --output prepared/machine \
        --domain-key domain --language-key language --duplicates near --max-malformed 100

Every record is {"text", "domain", "language", "path"}. Domains:

    code      Python's standard library without its tests, and the Python source of installed packages
    docs      README and documentation files of installed packages and of /usr/share/doc
    manual    /usr/share/man, without its markup, in all languages
    messages  the translated messages of programs: /usr/share/locale/*/LC_MESSAGES/*.mo, a document for each program

A machine set up without documentation has less of it. The same machine gives the same corpus each time.
"""

import argparse
import gettext
import gzip
import json
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qwen3_jax.data import Source
from qwen3_jax.data.files import find_files
from qwen3_jax.progress import progress_bar

DOMAINS = ("code", "docs", "manual", "messages")
SHARE = Path("/usr/share")
_PROSE = {".md", ".rst", ".txt", ".gz", "", ".tex", ".texi"}
_NOT_PROSE = re.compile(
    r"licen[cs]e|copying|copyright|top_level|entry_points|record|installer|requires|sources|changelog|vectors", re.I
)
# troff requests of man and mdoc that are followed by text.
_PARAGRAPHS = {".SH", ".SS", ".Sh", ".Ss", ".PP", ".P", ".LP", ".Pp", ".TP", ".IP", ".It"}
_TEXT = {
    *(".B", ".I", ".R", ".BR", ".RB", ".IR", ".RI", ".BI", ".IB", ".SM", ".SB"),
    *(".Nm", ".Nd", ".Fl", ".Ar", ".Op", ".Em", ".Sy", ".Pa", ".Xr", ".Li", ".Ql", ".Dq", ".Sq", ".Cm", ".Va", ".Ev"),
}
_LONGEST = 4 * 2**20  # characters; longer files are data rather than text


class Text(NamedTuple):
    """One document."""

    text: str
    domain: str
    language: str
    path: str


def code(packages: Path) -> Iterator[Text]:
    """The standard library, then installed packages."""
    for file in find_files(Source("stdlib", "stdlib:")):
        yield Text(_read(Path(file.url)), "code", "python", file.key)
    for path in _scattered(packages.rglob("*.py")):
        if not {"test", "tests", "_vendor"}.intersection(path.parts):
            yield Text(_read(path), "code", "python", str(path.relative_to(packages)))


def docs(packages: Path, root: Path) -> Iterator[Text]:
    """Prose: README, METADATA, guides; both folders in one order, so that a limit leaves some of each."""
    for path in _scattered([*root.rglob("*"), *packages.rglob("*")]):
        prose = path.name == "METADATA" or (path.suffix in _PROSE and (path.suffix or path.is_relative_to(root)))
        if prose and path.is_file() and not path.is_symlink() and not _NOT_PROSE.search(path.name):
            yield Text(_read(path), "docs", "en", str(path))


def manual(root: Path) -> Iterator[Text]:
    """Manual pages as plain text."""
    for path in _scattered(root.rglob("*.gz")):
        folder = path.relative_to(root).parts[0]
        if not path.is_symlink():
            yield Text(plain(_read(path)), "manual", "en" if folder.startswith("man") else _language(folder), str(path))


def messages(root: Path) -> Iterator[Text]:
    """Translated messages of programs, one document per program and language; the English originals once per program."""
    seen = set()
    for path in sorted(root.glob("*/LC_MESSAGES/*.mo")):
        language = _language(path.parts[-3])
        if language == "en" or path.is_symlink():
            continue  # equals the original except for quotation marks
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
        except (OSError, ValueError, LookupError):  # damaged, or without required plural forms
            continue
        # Plural forms are keyed by (original, number).
        pairs = [(key if isinstance(key, str) else key[0], value) for key, value in catalog.items() if key]
        yield Text("\n".join(value for _, value in pairs), "messages", language, str(path))
        if path.stem not in seen:
            seen.add(path.stem)
            yield Text("\n".join(dict.fromkeys(key for key, _ in pairs)), "messages", "en", path.stem)


def plain(page: str) -> str:
    """A manual page without troff's requests and escapes."""
    lines = []
    for line in page.splitlines():
        request, _, rest = line.partition(" ")
        if not line.startswith((".", "'")):
            lines.append(line)
        elif request in _PARAGRAPHS:
            lines += ["", rest.replace('"', "")]
        elif request in _TEXT:
            lines.append(rest.replace('"', ""))
    text = "\n".join(lines).replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "").replace("\\e", "\\")
    text = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)|\\s[-+]?\d+|\\[|^%/,]|\\[*n]?\(..|\\[*mn]?\[\w*\]", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> None:
    """Write the shards, then print their sizes by domain and language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--domains", nargs="+", choices=DOMAINS, default=DOMAINS, help="kinds of text, as above (default: all)"
    )
    parser.add_argument(
        "--max-mb", type=float, default=40, metavar="N", help="most text of each domain and language (default: 40)"
    )
    parser.add_argument("--shard-mb", type=float, default=16, metavar="N", help="size of a file (default: 16)")
    args = parser.parse_args()
    packages = Path(sysconfig.get_paths()["purelib"])
    collectors = {
        "code": lambda: code(packages),
        "docs": lambda: docs(packages, SHARE / "doc"),
        "manual": lambda: manual(SHARE / "man"),
        "messages": lambda: messages(SHARE / "locale"),
    }
    try:
        args.output.mkdir(parents=True)
    except FileExistsError:
        parser.error(f"{args.output} exists; choose another folder, or delete it.")
    sizes: Counter[tuple[str, str]] = Counter()
    for domain in args.domains:
        texts = list_within(collectors[domain](), args.max_mb * 1e6, domain, sizes)
        write(texts, args.output, domain, args.shard_mb * 1e6)
    for (domain, language), size in sizes.most_common():
        print(f"{domain:10} {language:8} {size / 1e6:8.2f} MB")


def list_within(texts: Iterator[Text], most: float, domain: str, sizes: Counter) -> Iterator[Text]:
    """Non-empty texts, up to `most` bytes per language."""
    with progress_bar(f"collecting {domain}", 0) as bar:
        for one in texts:
            size, key = len(one.text.encode()), (domain, one.language)
            if one.text.strip() and len(one.text) <= _LONGEST and sizes[key] + size <= most:
                sizes[key] += size
                yield one
            bar.advance(note=f"{sum(sizes.values()) / 1e6:.0f} MB")


def write(texts: Iterator[Text], folder: Path, domain: str, shard: float) -> None:
    """Write JSONL files of about `shard` bytes."""
    file, number = None, 0
    for one in texts:
        if file is None or file.tell() > shard:
            if file:
                file.close()
            file = (folder / f"{domain}-{number:03}.jsonl").open("wb")
            number += 1
        file.write(json.dumps(one._asdict(), ensure_ascii=False).encode() + b"\n")
    if file:
        file.close()


def _scattered(paths: Iterable[Path]) -> list[Path]:
    """Sorted by a hash of the path: a fixed pseudo-random order, so that the first megabytes are a sample of everything."""
    return sorted(paths, key=lambda path: (zlib.crc32(str(path).encode()), path))


def _language(locale: str) -> str:
    return re.split(r"[_@.]", locale)[0]


def _read(path: Path) -> str:
    """The file's text; empty if it cannot be read as UTF-8."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode()
    except (OSError, UnicodeDecodeError, EOFError):
        return ""


if __name__ == "__main__":
    main()
