"""What a corpus holds, and which tokens of it are learned: `qwen3 data show`.

A prepared corpus is described in tables. Of raw files, and of a prepared corpus with --tokenizer or --json, every training
document is shown: on a terminal what is learned is green, elsewhere (and with NO_COLOR) it stands between {+ and +}, as
`git diff --word-diff` marks what was added. A preference is two documents, the chosen one and the rejected one. Raw files take
the path of preparation (`qwen3_jax.data.encoding`).
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3_jax.cli.arguments import whole_number
from qwen3_jax.cli.exit_codes import BAD_INPUT
from qwen3_jax.cli.input_options import FORMATS
from qwen3_jax.errors import UserError
from qwen3_jax.progress import clear_status

if TYPE_CHECKING:
    import numpy as np

    from qwen3_jax.data import Encoded, Prepared, Source
    from qwen3_jax.text import Tokenizer

_AT_ONCE = 2**16  # tokens that are written in one piece
_READ_AT_ONCE = 64  # documents of a prepared corpus
# Control characters but newline and tab, and marks of direction: they move the cursor, colour the screen, reorder the line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LEARNED, _CONTEXT, _HEADING, _END = "\x1b[32m", "\x1b[2m", "\x1b[1;36m", "\x1b[0m"


class Shown(NamedTuple):
    """One training document.

    Attributes:
        source: where it is from.
        place: its place among the documents of that record, or "".
        document: what training reads.
        answer: of a preference, "chosen" or "rejected"; else "".
    """

    source: str
    place: str
    document: "Encoded"
    answer: str = ""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `qwen3 data show`."""
    add = parser.add_argument
    add("path", nargs="+", metavar="PATH", help="a prepared corpus; or files, folders, globs in quotes, or URLs")
    add(
        "--row",
        type=whole_number(2),
        metavar="T",
        help="of a prepared corpus: also pack it into rows of T tokens, and print the share of padding",
    )
    add("--tokenizer", metavar="DIR|ID", help="tokenizer folder or hub repository; needed for raw files")
    add(
        "--json", action="store_true",
        help="one JSON object for each training document: source, tokens, learned; of preferences also answer",
    )  # fmt: skip
    add(
        "--loss-on", choices=["all", "assistant"],
        help="of raw files: tokens of chat records that are trained on (default: assistant)",
    )  # fmt: skip
    add("--history", choices=["new_sample", "keep"], help="of raw files: as for `qwen3 data prepare`")
    add("--read-control-tokens", action="store_true", help="of raw files: as for `qwen3 data prepare`")
    add("--pairs", action="store_true", help="of raw files: records are preferences (chosen, rejected)")
    add("--format", choices=FORMATS, help="of raw files: their form (default: auto, by their names)")
    add("--text-key", metavar="KEY", help="of raw files: field of a record with its text (default: text)")
    add("--limit", type=whole_number(1), metavar="N", help="stop after N records (default: show all)")


def show(args: argparse.Namespace) -> int:
    """Run the command; return the exit code: that of bad input if a record cannot be used."""
    from qwen3_jax.data.prepared import Prepared, is_prepared

    folders = [path for path in args.path if is_prepared(path)]
    if not folders:
        return _show_files(args)
    if len(args.path) > 1:
        raise UserError(f"{folders[0]} is a prepared corpus; show it by itself.")
    for name in ("loss_on", "history", "read_control_tokens", "pairs", "format", "text_key"):
        if getattr(args, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} is for raw files; {folders[0]} is prepared.")
    corpus = Prepared(folders[0])
    if not args.json and args.tokenizer is None:
        if args.limit is not None:
            raise UserError("--limit is for documents; add --tokenizer DIR or --json to show them.")
        return _describe(corpus, args.row)
    if args.row is not None:
        raise UserError("--row is for the tables of a prepared corpus; leave out --tokenizer and --json.")
    tokenizer = None if args.tokenizer is None else _tokenizer(args.tokenizer)
    if tokenizer is not None:
        corpus.check_tokenizer(tokenizer)
    _print_documents(_of_corpus(corpus, args.limit), tokenizer, args.json)
    return 0


def _tokenizer(name: str) -> "Tokenizer":
    from qwen3_jax.checkpoint.hub import resolve
    from qwen3_jax.text import Tokenizer

    return Tokenizer.from_pretrained(resolve(name, key="--tokenizer"))


def _show_files(args: argparse.Namespace) -> int:
    from qwen3_jax.data import Source

    if args.row is not None:
        raise UserError(
            f"--row is for a prepared corpus, and {args.path[0]} is not one; make one with `qwen3 data prepare`."
        )
    if args.tokenizer is None:
        path = args.path[0]
        if ":" not in path and not set("*?[") & set(path) and not Path(path).expanduser().exists():
            raise UserError(f"{path} does not exist; show wants a prepared corpus, or files and --tokenizer.")
        raise UserError(
            f"{path} is not a whole prepared corpus; to see what is learned of raw files, give --tokenizer DIR."
        )
    source = Source(
        "shown", args.path, format=args.format or "auto", text_key=args.text_key or "text",
        loss_on=args.loss_on or "assistant", history=args.history or "new_sample",
        read_control_tokens=args.read_control_tokens, pairs=args.pairs,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    tokenizer = _tokenizer(args.tokenizer)
    _print_documents(_of_files(source, tokenizer, args.limit, counts), tokenizer, args.json)
    if counts["unusable"]:
        print(
            f"{counts['unusable']:,} of {counts['records']:,} records cannot be used; training refuses them, or skips up to "
            "cleaning.max_malformed.",
            file=sys.stderr,
        )
    return BAD_INPUT if counts["unusable"] else 0


def _of_files(source: "Source", tokenizer: "Tokenizer", limit: int | None, counts: Counter[str]) -> Iterator[Shown]:
    """The documents of raw files. What is wrong with a record is printed; `records` and `unusable` ones are counted."""
    from qwen3_jax.data.encoding import encode_records
    from qwen3_jax.data.sources import records_of

    records = itertools.islice(records_of(source, skip_files=True), limit)
    for read in encode_records(records, source, tokenizer):
        counts["records"] += 1
        if read.problem is not None:
            counts["unusable"] += 1
            _warn(read.problem)
        elif not read.documents:
            _warn(f"{_location(read.record)}: nothing to train on, it has fewer than two tokens")
        for number, document in enumerate(read.documents, 1):
            place = f"document {number} of {len(read.documents)}" if len(read.documents) > 1 else ""
            yield from _documents(_location(read.record), place, document)


def _location(record: Any) -> str:
    return record.location


def _of_corpus(corpus: "Prepared", limit: int | None) -> Iterator[Shown]:
    numbers = range(len(corpus) if limit is None else min(limit, len(corpus)))
    for start in range(0, len(numbers), _READ_AT_ONCE):
        chosen = numbers[start : start + _READ_AT_ONCE]
        for number, document in zip(chosen, corpus.read(chosen), strict=True):
            yield from _documents(f"{corpus.folder} document {number}", "", document)


def _documents(source: str, place: str, document: "Encoded") -> Iterator[Shown]:
    """The document, or both of a preference."""
    if not document.rejected:
        yield Shown(source, place, document)
        return
    for answer, part in zip(("chosen", "rejected"), document.sides(), strict=True):
        yield Shown(source, answer, part, answer)


def _warn(text: str) -> None:
    sys.stdout.flush()
    clear_status()
    print(_visible(" ".join(text.split())), file=sys.stderr, flush=True)


def _print_documents(documents: Iterator[Shown], tokenizer: "Tokenizer | None", as_json: bool) -> None:
    colour = not as_json and _has_colour()
    for shown in documents:
        clear_status()
        if as_json:
            _write_json(shown)
        else:
            assert tokenizer is not None
            _write_text(shown, tokenizer, colour)
            sys.stdout.flush()


def _write_json(shown: Shown) -> None:
    """One line; a list of millions of tokens is written in pieces."""
    write = sys.stdout.write
    answer = f'"answer": "{shown.answer}", ' if shown.answer else ""
    write(f'{{"source": {json.dumps(shown.source)}, {answer}"tokens": [')
    _write_list(shown.document.tokens)
    write('], "learned": [')
    _write_list(shown.document.loss)
    write("]}\n")


def _write_list(values: "np.ndarray") -> None:
    for start in range(0, len(values), _AT_ONCE):
        separator = ", " if start else ""
        sys.stdout.write(separator + json.dumps(values[start : start + _AT_ONCE].tolist())[1:-1])


def _write_text(shown: Shown, tokenizer: "Tokenizer", colour: bool) -> None:
    tokens, loss = shown.document.tokens, shown.document.loss
    learned = int(loss[1:].sum())  # nothing comes before the first token that could predict it
    heading = f"{shown.source}{shown.place and f', {shown.place}'}: {len(tokens):,} tokens, {learned:,} learned"
    _write(f"{_HEADING}{_visible(heading)}{_END}\n" if colour else f"=== {_visible(heading)}\n")
    last = "\n"
    for start, stop in _stretches(loss):
        text = _visible(tokenizer.decode(tokens[start:stop].tolist()))
        _write(_marked(text, bool(loss[start]), colour))
        last = text[-1:] or last
    _write("\n" if last == "\n" and colour else "\n\n")


def _stretches(loss: "np.ndarray") -> Iterator[tuple[int, int]]:
    """Where neighbouring tokens are all learned or all not: (start, stop) of each stretch."""
    import numpy as np

    edges = [0, *(np.flatnonzero(loss[1:] != loss[:-1]) + 1).tolist(), len(loss)]
    return itertools.pairwise(edges)


def _marked(text: str, learned: bool, colour: bool) -> str:
    """The text with what says that it is learned, or not. Pagers want a colour in every line."""
    if not colour:
        return f"{{+{text}+}}" if learned else text
    begin = _LEARNED if learned else _CONTEXT
    return "\n".join(f"{begin}{line}{_END}" if line else "" for line in text.split("\n"))


def _visible(text: str) -> str:
    """The text with control characters spelled out: data must not steer a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _has_colour() -> bool:
    from rich.console import Console

    console = Console()
    return console.color_system is not None and not console.no_color and not os.environ.get("NO_COLOR")


def _describe(corpus: "Prepared", row: int | None) -> int:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    lengths = np.asarray(corpus.lengths, np.int64)
    what, files = "preferences" if corpus.pairs else "documents", corpus.manifest["settings"]["source"]["path"]
    print(f"{len(corpus):,} {what}, {corpus.tokens:,} tokens, prepared from {files}")
    console = Console()
    for label in ("domain", "language"):
        table = Table(label, "documents", "tokens", "share of tokens", "mean quality")
        column = np.asarray(getattr(corpus, label))
        for index, name in enumerate(corpus.names(label)):
            chosen = column == index
            tokens = lengths[chosen].sum()
            table.add_row(
                name, f"{chosen.sum():,}", f"{tokens:,}", f"{tokens / corpus.tokens:.1%}",
                f"{np.asarray(corpus.quality)[chosen].mean():.2f}",
            )  # fmt: skip
        console.print(table)
    table = Table("length", "documents", "share of tokens")
    edges = [0, 256, 1024, 4096, 16384, 32768, 2**31]
    for low, high in itertools.pairwise(edges):
        chosen = (lengths > low) & (lengths <= high)
        name = f"over {low:,}" if high == 2**31 else f"up to {high:,}"
        table.add_row(name, f"{chosen.sum():,}", f"{lengths[chosen].sum() / corpus.tokens:.1%}")
    console.print(table)
    for name, attached in corpus.attached.items():
        table = Table(name, "documents", "share of tokens", title=f"attached: {attached.field!r} of {attached.source}")
        for value, chosen in attached.groups():
            table.add_row(str(value), f"{chosen.sum():,}", f"{lengths[chosen].sum() / corpus.tokens:.1%}")
        console.print(table)
    if row is not None:
        print(f"packed into rows of {row:,} tokens, {_waste(corpus, row):.3%} of them is padding")
    return 0


def _waste(corpus: "Prepared", length: int) -> float:
    """The share of padding in the rows of one epoch, or of the first 20,000 rows."""
    from qwen3_jax.data import DataConfig, Source
    from qwen3_jax.data.mixture import RowPlanner
    from qwen3_jax.data.streams import streams

    config = DataConfig([Source("corpus", str(corpus.folder), eval_fraction=0)], sequence_length=length)
    planner = RowPlanner(config, streams(config, [corpus], {"corpus": 1.0}))
    rows = max(min(corpus.tokens // length, 20_000), 1)
    return 1 - sum(piece.pairs for _ in range(rows) for piece in next(planner)) / (rows * length)
