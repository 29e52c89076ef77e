"""Draw one page about a training run: losses, norms, routers, throughput, and where the time went.

qwen3 report runs/quickstart              # writes runs/quickstart/report.html and report.png
qwen3 report gs://bucket/run --json
"""

import json

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.paths import run_path
from qwen3_jax.progress import doing


def main(argv: list[str] | None = None, prog: str = "qwen3 report") -> int:
    """Draw; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("run", help="the folder of a run, finished or not; local or gs://")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    args = parser.parse_args(argv)

    def work() -> int:
        with doing("drawing"):
            from qwen3_jax.training.report import summary, write_report

            run = run_path(args.run, "the run")
            page = write_report(run)
        print(json.dumps(summary(run)) if args.json else page)
        return 0

    return guarded(prog, work)
