"""`qwen3 data fuse`: conversations for thinking mode fusion (section 4.3 of the report), from answers of both modes.

qwen3 data fuse --path answers/records direct.jsonl --output fusion.jsonl
qwen3 data fuse --path answers/records direct.jsonl --output fusion.jsonl --turns 4 --flagged 0.5 --thinking 0.5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from qwen3_jax.cli.arguments import Parser, local_target, whole_number
from qwen3_jax.cli.input_options import add_max_malformed, add_paths, add_records
from qwen3_jax.errors import UserError
from qwen3_jax.paths import is_url

HELP = "join answers of both modes to conversations, with /think and /no_think"


def add_fuse(parser: Parser) -> None:
    """Add the options of `data fuse`."""
    from qwen3_jax.data.fusion import FusionConfig

    default = FusionConfig()
    add = parser.add_argument
    add_paths(add)
    add("--output", type=local_target, required=True, metavar="FILE.jsonl", help="the file to write")
    add_records(add)
    add_max_malformed(add)
    add(
        "--prompts", action="store_true",
        help="write questions for an evaluation: messages up to the last question, thinks (the mode that it asks for), answer",
    )  # fmt: skip
    add = parser.add_argument_group("shares (the report publishes none)").add_argument
    add(
        "--turns", type=whole_number(1), default=default.turns, metavar="N",
        help="most questions of a conversation; chats of one are joined (default: %(default)s)",
    )  # fmt: skip
    add(
        "--thinking", type=float, metavar="SHARE",
        help="share of the answers that think; what is too many is left over (default: all are used)",
    )  # fmt: skip
    shares = {
        "flagged": "of the turns that carry a flag and need none",
        "system": "of conversations with their first flag in a system message",
        "several": "of flags before which others stand that do not hold",
        "front": "of flags that stand before the text",
    }
    for name, what in shares.items():
        add(
            f"--{name}",
            type=float,
            default=getattr(default, name),
            metavar="SHARE",
            help=f"{what} (default: %(default)s)",
        )
    add("--seed", type=whole_number(0), default=0, help="of all that is drawn (default: 0)")
    parser.set_defaults(run=_fuse)


def _fuse(args: argparse.Namespace) -> int:
    from qwen3_jax.data import Source
    from qwen3_jax.data.fusion import FusionConfig, chat_of, fuse, lines_of, prompt_of
    from qwen3_jax.data.records import DataError, Malformed
    from qwen3_jax.data.sources import records_of
    from qwen3_jax.paths import replace_file

    names = [field.name for field in dataclasses.fields(FusionConfig)]
    config = FusionConfig(**{name: getattr(args, name) for name in names})
    source = Source(name="fusion", path=args.path, format=args.format, text_key=args.text_key)
    chats, malformed = [], 0
    for record in records_of(source, "reading"):
        try:
            if isinstance(record, Malformed):
                raise DataError(record.reason)
            chats.append(dataclasses.replace(chat_of(record), location=_from(args.output, record.location)))
        except DataError as error:
            malformed += 1
            if malformed > args.max_malformed:
                raise UserError(f"{error} (--max-malformed {args.max_malformed})") from None
            print(f"left out: {error}", file=sys.stderr)
    if not chats:
        raise UserError(f"{', '.join(args.path)}: there is no answer to write a flag for.")
    unread = sorted({key for chat in chats for key in chat.unread})
    if unread:
        print(f"keys of the records that are not carried over: {', '.join(unread)}", file=sys.stderr)
    records, report = fuse(chats, config)
    if args.prompts:
        records = [prompt_of(record) for record in records]
    replace_file(args.output, lines_of(records))
    print(json.dumps(report.json()))
    print(f"{len(records):,} conversations in {args.output}", file=sys.stderr)
    return 0


def _from(output: Path, location: str) -> str:
    """A record's place as seen from the folder of the output.

    Training holds records out by where they begin in their file: with absolute paths in the records that would depend on the
    length of the folder's name.
    """
    return location if is_url(location) else os.path.relpath(location, output.parent)
