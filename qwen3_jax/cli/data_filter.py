"""`qwen3 data filter`: the filters of the report's section 4.1 over answers to queries.

qwen3 data filter --path answers/records --output filtered --held-out validation.jsonl
qwen3 data filter --path answers/records --model Qwen/Qwen3-8B --output filtered
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.factory_options import add_backend, add_input, add_verifier, run_task

if TYPE_CHECKING:
    from qwen3_jax.data.factory import Finished


def add_filter(parser: Parser) -> None:
    """Add the options of `data filter`."""
    add_input(parser)
    add = parser.add_argument_group("verdicts (default: those that `data generate --keep all` wrote)").add_argument
    add_verifier(add, "judges every answer anew")
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
    add(
        "--judge", nargs="+", metavar="NAME|FILE",
        help="recipes that the model judges queries and responses with (default: query_kind response_kind)",
    )  # fmt: skip
    add_backend(parser, without="with none, rules judge queries and responses")
    parser.set_defaults(run=_filter)


def _filter(args: argparse.Namespace) -> int:
    from qwen3_jax.data.factory import FilterTask, filter_records, load_recipe
    from qwen3_jax.data.factory.judging import READY

    judges = () if args.model is None else tuple(load_recipe(name) for name in args.judge or READY)
    task = FilterTask(
        verifier=args.verifier, settings=args.verifier_settings, reference_key=args.reference_key,
        domain_key=args.domain_key, per_domain=args.per_domain, solved_share=args.solved_share,
        held_out=tuple(args.held_out), ngram=args.ngram, similarity=args.similarity, skip=tuple(args.skip), judges=judges,
    )  # fmt: skip
    return run_task(args, task, filter_records, _show_funnel)


def _show_funnel(done: Finished) -> None:
    from qwen3_jax.data.factory.filtering import FUNNEL, NEVER_SOLVED
    from qwen3_jax.json_fields import read_json

    funnel = read_json(done.folder / FUNNEL)
    _show(funnel)
    print("rejects.jsonl has the reasons", file=sys.stderr)
    unsolved = funnel["queries_left_out"].get("never solved", 0)
    if unsolved:
        print(f"{unsolved:,} queries that no answer solves are in {done.folder / NEVER_SOLVED}", file=sys.stderr)
    if funnel["decided_by_rules"]:
        print(
            f"no model decided about: {', '.join(funnel['decided_by_rules'])}. Rules find what they have words for "
            '("not verifiable": a reference that is missing or of no use); --model judges what is meant',
            file=sys.stderr,
        )
    if funnel["left_to_rules"]:
        why = ", ".join(f"{count:,} {name}" for name, count in funnel["left_to_rules"].items())
        print(f"requests of judges that gave no labels, so that rules decided: {why}", file=sys.stderr)


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
