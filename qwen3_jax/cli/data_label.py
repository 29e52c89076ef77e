"""`qwen3 data label`: labels beside a prepared corpus, which `where` then selects by, without tokenising again.

qwen3 data label prepared/web --labelled web-labelled --labels education topic=field
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.errors import UserError, repeated

HELP = "put labels of annotate or distil beside a prepared corpus, for where to select by"


def add_label(parser: Parser) -> None:
    """Add the options of `data label`."""
    add = parser.add_argument
    add("corpus", type=Path, help="a prepared corpus")
    add("--labelled", type=Path, required=True, metavar="DIR", help="--output of annotate or distil, of the same files")
    add(
        "--labels", nargs="+", required=True, metavar="[NAME=]FIELD",
        help="fields of its records; a label has the field's name unless another is given",
    )  # fmt: skip
    add("--replace", action="store_true", help="take the place of labels of the same name that came from elsewhere")
    add("--processes", type=whole_number(1), default=1, metavar="N", help="that read records (default: 1)")
    parser.set_defaults(run=_label)


def label_name(text: str) -> tuple[str, str]:
    """(label, field) of `NAME=FIELD` or `FIELD`."""
    name, sign, field = text.partition("=")
    return (name, field) if sign else (text, text)


def _label(args: argparse.Namespace) -> int:
    from qwen3_jax.data.attached import attach

    pairs = [label_name(text) for text in args.labels]
    twice = repeated([name for name, _ in pairs])
    if twice is not None:
        raise UserError(f"--labels names {twice!r} twice; give one of them another name, as in {twice}2=FIELD.")
    done = attach(args.corpus, args.labelled, dict(pairs), replace=args.replace, processes=args.processes)
    for name, label in done.labels.items():
        count = len(label.column)
        values = "numbers" if label.names is None else f"{len(label.names):,} values"
        print(
            f"{name}: {values} for {count - label.without:,} of {count:,} documents; {label.without:,} have none",
            file=sys.stderr,
        )
    if done.unknown:
        print(
            f"{done.unknown:,} labelled records are no document of {args.corpus}: it left them out, or they were not prepared",
            file=sys.stderr,
        )
    return 0
