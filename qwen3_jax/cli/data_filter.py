"""`qwen3 data filter`: the filters of the report's section 4.1 over answers to queries.

qwen3 data filter --path answers/records --output filtered --held-out validation.jsonl
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.factory_options import add_input, json_object


def add_filter(parser: Parser) -> None:
    """Add the options of `data filter`."""
    add_input(parser)
    add = parser.add_argument_group("verdicts (default: those that `data generate --keep all` wrote)").add_argument
    add("--verifier", default="", metavar="NAME", help="judges every answer anew")
    add("--verifier-settings", type=json_object, default={}, metavar="JSON", help="settings of the verifier")
    add(
        "--reference-key",
        default="answer",
        metavar="KEY",
        help="field of a record with the reference (default: answer)",
    )
    add = parser.add_argument_group("filters").add_argument
    add("--skip", nargs="+", default=[], metavar="FILTER", help='filters that are not applied, as "general writing"')
    add(
        "--solved-share", type=float, default=0.5, metavar="SHARE",
        help="a query is left out where this share of its answers without thinking is right (default: 0.5)",
    )  # fmt: skip
    add("--domain-key", metavar="KEY", help="field of a record with the domain of its query")
    add("--per-domain", type=whole_number(1), metavar="N", help="most queries of a domain")
    add("--held-out", nargs="+", default=[], metavar="PATH", help="queries that no query may come close to")
    add("--ngram", type=whole_number(1), default=13, metavar="N", help="words in a row that are close (default: 13)")
    add(
        "--similarity", type=float, default=0.3, metavar="S",
        help="share of 5-word shingles in common that is close (default: 0.3)",
    )  # fmt: skip
    parser.set_defaults(run=_filter)


def _filter(args: argparse.Namespace) -> int:
    from qwen3_jax.data import Cleaning, Source
    from qwen3_jax.data.factory import FilterTask, filter_records
    from qwen3_jax.data.factory.filtering import FUNNEL, NEVER_SOLVED
    from qwen3_jax.json_fields import read_json

    task = FilterTask(
        verifier=args.verifier, settings=args.verifier_settings, reference_key=args.reference_key,
        domain_key=args.domain_key, per_domain=args.per_domain, solved_share=args.solved_share,
        held_out=tuple(args.held_out), ngram=args.ngram, similarity=args.similarity, skip=tuple(args.skip),
    )  # fmt: skip
    source = Source(
        name="answers", path=args.path, format=args.format, text_key=args.text_key,
        cleaning=Cleaning(max_malformed=args.max_malformed),
    )  # fmt: skip
    split_bytes = max(int(args.split_mb * 2**20), 1)
    done = filter_records(source, task, args.output, processes=args.processes, split_bytes=split_bytes)
    funnel = read_json(done.folder / FUNNEL)
    _show(funnel)
    print(f"{done.counts.made:,} records in {done.records}; rejects.jsonl has the reasons", file=sys.stderr)
    unsolved = funnel["queries_left_out"].get("never solved", 0)
    if unsolved:
        print(f"{unsolved:,} queries that no answer solves are in {done.folder / NEVER_SOLVED}", file=sys.stderr)
    return 0


def _show(funnel: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "left out", "left")
    left = funnel["queries"]
    table.add_row("queries", "", f"{left:,}")
    for name, count in funnel["queries_left_out"].items():
        left -= count
        table.add_row(f"  {name}", f"{count:,}", f"{left:,}")
    left = funnel["responses"]
    table.add_row("responses", "", f"{left:,}")
    left -= funnel["responses_to_queries_left_out"]
    table.add_row("  to queries that are left out", f"{funnel['responses_to_queries_left_out']:,}", f"{left:,}")
    for name, count in funnel["responses_left_out"].items():
        left -= count
        table.add_row(f"  {name}", f"{count:,}", f"{left:,}")
    Console().print(table)
