"""Write the quickstart's problems as queries with references, for `qwen3 data generate`.

python examples/queries.py --output queries.jsonl --count 200
python examples/queries.py --output solved.jsonl --count 400 --solved
python examples/queries.py --output solved.jsonl --count 400 --solved --checked 0.5
"""

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from qwen3_jax.data import problem_messages, running_sum_problem


def main(arguments: list[str] | None = None) -> Path:
    """Write one JSON object for each problem; return the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--count", type=int, default=200, help="problems (default: 200)")
    parser.add_argument("--digits", type=int, default=12, help="most digits of a problem (default: 12)")
    parser.add_argument("--seed", type=int, default=1, help="of the problems (default: 1)")
    parser.add_argument("--solved", action="store_true", help="chats with steps and answer, for fine-tuning")
    parser.add_argument(
        "--checked", type=float, default=0.0, metavar="SHARE",
        help="write each step twice in this share of the solved chats, so that thinking may be short or long (default: 0)",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if not 0 <= args.checked <= 1:
        parser.error(f"--checked {args.checked}: is a share between 0 and 1")
    if args.checked and not args.solved:
        parser.error("--checked: steps are written with --solved only")
    with args.output.open("w", encoding="utf-8") as out:
        for index in range(args.count):
            problem = running_sum_problem(
                index, args.seed, "train", min_digits=2, max_digits=args.digits, eval_fraction=0.01
            )
            line: dict[str, Any] = {
                "question": problem.question,
                "answer": problem.answer,
                "domain": f"{len(problem.steps.split())} digits",
            }
            if args.solved:
                if random.Random(f"checked/{args.seed}/{index}").random() < args.checked:
                    problem = dataclasses.replace(
                        problem, steps=" ".join(f"{step} {step}" for step in problem.steps.split())
                    )
                line = {"messages": problem_messages(problem, "thinking")}
            out.write(json.dumps(line) + "\n")
    return args.output


if __name__ == "__main__":
    main()
