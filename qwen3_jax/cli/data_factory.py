"""The commands of the data factory that ask a model.

    qwen3 data generate --path queries.jsonl --model Qwen/Qwen3-8B --verifier math --samples 8 --output answers
    qwen3 data generate --path queries.jsonl --model http://localhost:8000/v1 --budget-usd 5 --price-in 0.1 --price-out 0.4 \
        --output answers
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

from qwen3_jax.cli import data_fuse, data_label, data_tasks, model_options
from qwen3_jax.cli.arguments import Parser, number_or_none, whole_number
from qwen3_jax.cli.data_distil import add_distil
from qwen3_jax.cli.data_filter import add_filter
from qwen3_jax.cli.factory_options import add_backend, add_input, add_verifier, run_task
from qwen3_jax.progress import doing


def add_generate(parser: Parser) -> None:
    """Add the options of `data generate`."""
    add_input(parser)
    add = parser.add_argument_group("answers").add_argument
    add("--samples", type=whole_number(1), default=1, metavar="K", help="answers in each mode and under each budget")
    add(
        "--mode", nargs="+", choices=["thinking", "non-thinking"], default=["thinking"],
        help="with thinking, without, or both (default: thinking)",
    )  # fmt: skip
    add(
        "--thinking-budget", nargs="+", type=number_or_none(1, "or none (0 is --mode non-thinking)"), default=[None],
        metavar="N", help="thinking budgets, none for no limit (default: none)",
    )  # fmt: skip
    add("--system", default="", metavar="TEXT", help="system message of queries that have none")
    add("--max-new-tokens", type=whole_number(1), default=32_768, metavar="N", help="most tokens of an answer")
    model_options.add_sampling(add)
    add = parser.add_argument_group("verification").add_argument
    add_verifier(add, "judges the answers (default: all whole answers are kept)")
    add(
        "--keep", choices=["right", "all"], default="right",
        help="answers that are right, or all with their verdicts, which `data filter` reads (default: right)",
    )  # fmt: skip
    add(
        "--flagged", type=float, default=0.5, metavar="SHARE",
        help="with both modes: share of the thinking records whose query ends with /think (default: 0.5)",
    )  # fmt: skip
    add(
        "--carry",
        nargs="+",
        default=[],
        metavar="KEY",
        help="fields of a record that its answers keep: a domain, labels",
    )
    add_backend(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from qwen3_jax.data.factory import GenerateTask
    from qwen3_jax.verifiers import verify

    task = GenerateTask(
        samples=args.samples, modes=tuple(args.mode), budgets=tuple(args.thinking_budget), verifier=args.verifier,
        settings=args.verifier_settings, reference_key=args.reference_key, keep=args.keep, system=args.system,
        max_new_tokens=args.max_new_tokens, sampling=model_options.sampling_fields(args), flagged=args.flagged,
        carry=tuple(args.carry),
    )  # fmt: skip
    if args.verifier:
        with doing("starting the verifier"):
            verify(
                args.verifier, "0", "0", args.verifier_settings
            )  # a missing package is named before anything is paid
    return run_task(args, task)


def add_refine(parser: Parser) -> None:
    """Add the options of `data refine`."""
    add_input(parser)
    add = parser.add_argument_group("what is accepted").add_argument
    add("--recipe", default="refine", metavar="NAME|FILE", help="the request (default: refine)")
    add("--passage", type=whole_number(100), default=2000, metavar="N", help="characters of a passage (default: 2000)")
    add(
        "--least",
        type=float,
        default=0.8,
        metavar="S",
        help="least length, as a share of the original's (default: 0.8)",
    )
    add("--most", type=float, default=1.25, metavar="S", help="greatest length (default: 1.25)")
    add("--names", type=float, default=0.9, metavar="S", help="share of the names that must survive (default: 0.9)")
    add_backend(parser)
    parser.set_defaults(run=_refine)


def _refine(args: argparse.Namespace) -> int:
    from qwen3_jax.data.factory import RefineTask, load_recipe

    recipe = load_recipe(args.recipe)
    return run_task(args, RefineTask(recipe, args.text_key, args.passage, args.least, args.most, args.names))


def add_synthesize(parser: Parser) -> None:
    """Add the options of `data synthesize`."""
    _add_recipe(parser, None, "synthesize")


def add_annotate(parser: Parser) -> None:
    """Add the options of `data annotate`."""
    _add_recipe(parser, "annotate", "annotate")


def _add_recipe(parser: Parser, default: str | None, task: str) -> None:
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--recipe", required=default is None, default=default, metavar="NAME|FILE",
        help=f"a recipe of this project, or a file of your own; `qwen3 data recipes` lists them{shown}",
    )  # fmt: skip
    add_input(parser)
    add_backend(parser)
    parser.set_defaults(run=functools.partial(_run_recipe, task))


def _run_recipe(task: str, args: argparse.Namespace) -> int:
    from qwen3_jax.data.factory import RecipeTask, load_recipe

    return run_task(args, RecipeTask(load_recipe(args.recipe), task, args.text_key))


def add_recipes(parser: Parser) -> None:
    """Add the options of `data recipes`."""
    parser.add_argument("name", nargs="?", help="print this recipe's file, to be copied and changed")
    parser.set_defaults(run=_recipes)


def _recipes(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from qwen3_jax.data.factory import load_recipe, recipe_names
    from qwen3_jax.data.factory.recipe import FOLDER
    from qwen3_jax.text_files import read_text

    if args.name is not None:
        recipe = load_recipe(args.name)
        print(read_text(FOLDER / f"{recipe.name}.yaml"), end="")
        return 0
    table = Table("recipe", "what it gives", "source")
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(name, recipe.about, recipe.source)
    Console().print(table)
    return 0


# command -> (adds its options, one line of help)
COMMANDS: dict[str, tuple[Callable[[Parser], None], str]] = {
    "generate": (add_generate, "answer queries, several times each, and verify the answers"),
    "refine": (add_refine, "correct recognised text, passage by passage"),
    "synthesize": (add_synthesize, "make documents, questions, code and chats from documents, by a recipe"),
    "annotate": (add_annotate, "label documents by a recipe"),
    "distil": (add_distil, "train a small student on annotated documents, and label all others with it"),
    "label": (data_label.add_label, data_label.HELP),
    "recipes": (add_recipes, "list the recipes, or print one"),
    "fuse": (data_fuse.add_fuse, data_fuse.HELP),
    "tasks": (data_tasks.add_tasks, data_tasks.HELP),
    "filter": (add_filter, "leave out queries and answers as the report's section 4.1 does"),
}
