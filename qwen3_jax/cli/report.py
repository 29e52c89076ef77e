"""Draw one page about a training run: losses, norms, routers, throughput, and where the time went. Or about a recipe: each of
the report's claims with what was measured and a verdict.

qwen3 report runs/quickstart              # writes runs/quickstart/report.html and report.png
qwen3 report gs://bucket/run --json
qwen3 report runs/recipe runs/recipe-1    # a recipe, here of two seeds
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError, repeated
from qwen3_jax.paths import run_path
from qwen3_jax.progress import doing


def main(argv: list[str] | None = None, prog: str = "qwen3 report") -> int:
    """Draw; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "run",
        nargs="+",
        help="the folder of a run, finished or not, local or gs://; or folders of one recipe, a seed each",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    args = parser.parse_args(argv)

    def work() -> int:
        with doing("drawing"):
            page, numbers = _draw([run_path(run, "the run") for run in args.run])
        print(json.dumps(numbers()) if args.json else page)
        return 0

    return guarded(prog, work)


def _draw(runs: list[Path]) -> tuple[Path, Callable[[], dict[str, Any]]]:
    """Draw the page; return it and a function that gives its numbers."""
    from qwen3_jax.recipes import page

    twice = repeated([str(run) for run in runs])
    if twice is not None:
        raise UserError(f"{twice} is given twice; a seed counts once.")
    if page.is_recipe_folder(runs[0]):
        found = page.findings(runs)
        return page.write_page(runs, found), lambda: page.summary(found)
    if len(runs) > 1:
        raise UserError(
            f"several folders are seeds of one recipe, and {runs[0]} is not that of a recipe: give one run."
        )
    from qwen3_jax.training.report import summary, write_report

    return write_report(runs[0]), lambda: summary(runs[0])
