"""Run a recipe: a list of training runs and commands, each taking what those before it made.

    python train.py --config configs/recipe/laptop.yaml
    python train.py --config configs/recipe/laptop.yaml --list
    python train.py --config configs/recipe/laptop.yaml --phase pretrain cold-start
    python train.py --config configs/recipe/laptop.yaml --redo reasoning
    python train.py --config configs/recipe/qwen3-8b.yaml --plan v5p:4x4x4

Phases that are done are skipped; the same command resumes one that was interrupted. After the last one FOLDER/report.html and
report.png are drawn, which `qwen3 report FOLDER` does at any time and for several seeds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError
from qwen3_jax.progress import doing
from qwen3_jax.recipes import runner
from qwen3_jax.recipes.config import Recipe, is_recipe, read_recipe
from qwen3_jax.shipped import configuration_file


def file_of(words: Sequence[str]) -> Path | None:
    """Return the recipe that a command line of `train` names with --config; None where it names another configuration."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--config":
            try:
                file = configuration_file(value or next(iter(words[place + 1 : place + 2]), ""))
            except UserError:  # the command that wants it says so
                return None
            return file if is_recipe(file) else None
    return None


def main(argv: Sequence[str], prog: str) -> int:
    """Run a recipe; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the recipe")
    add("--folder", metavar="FOLDER", help="where phases have their folders (default: the recipe's `folder`)")
    add("--seed", type=whole_number(0), metavar="N", help="what {seed} stands for (default: the recipe's `seed`)")
    add(
        "--phase",
        nargs="+",
        default=[],
        metavar="NAME",
        help="run these phases alone; those that they take from must be done",
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--redo", metavar="NAME", help="first delete what this phase made, and what was made from it")
    add("--list", action="store_true", help="print all phases and what is done, and run nothing")
    add("--plan", metavar="TOPOLOGY", help="compile each training phase for absent devices, and run nothing")
    args = parser.parse_args(argv)

    def work() -> int:
        recipe = read_recipe(configuration_file(args.config), args.folder, args.seed)
        if args.list:
            if args.phase:
                raise UserError("--list prints all phases: leave --phase out.")
            for name, state, about in runner.table(recipe):
                print(f"{name:<24} {state:>12}  {about}")
            return 0
        if args.plan is not None:
            return _plan(recipe, args.phase, args.plan)
        if args.redo is not None:
            runner.redo(recipe, args.redo)
        runner.run(recipe, args.phase, say=lambda text: print(text, flush=True))
        if recipe.claims and not args.phase:
            _report(recipe)
        return 0

    return guarded(prog, work)


def _report(recipe: Recipe) -> None:
    """Draw the page of a recipe that is done; print the verdicts."""
    from qwen3_jax.recipes import page  # imports JAX

    with doing("drawing"):
        found = page.findings([recipe.folder])
        place = page.write_page([recipe.folder], found)
    for one in found:
        print(f"{one.verdict:<14} {one.claim.title}")
    print(place)


def _plan(recipe: Recipe, only: Sequence[str], topology: str) -> int:
    """Plan the training phases; return the exit code of the first that fails."""
    chosen = recipe.chosen(only)
    commands = [phase.name for phase in chosen if phase.train is None]
    if only and commands:
        raise UserError(f"--plan compiles training phases, and {commands[0]!r} runs commands: leave it out.")
    if len(commands) == len(chosen):
        raise UserError(f"--plan compiles training phases, and {recipe.file} has none.")
    for phase in chosen:
        if phase.train is None:
            continue
        words = [*runner.program(recipe, phase, planned=True), "--plan", topology]
        for stage in recipe.stages(phase) or [""]:
            print(f"phase {phase.name}" + (f", stage {stage}" if stage else ""), flush=True)
            code = subprocess.call([*words, *(["--stage", stage] if stage else [])])
            if code:
                return code
    return 0
