"""Write questions with answers that need no thinking, for `qwen3 data fuse`: half of configs/posttrain/fusion-laptop.yaml.

    python examples/direct_answers.py --output direct.jsonl
    python examples/direct_answers.py --output held_out.jsonl --held-out --thinking --count 2400
    python examples/direct_answers.py --output instructions.jsonl --lists --count 8000

Half of them are the quickstart's running sums, answered at once (a small model can only guess); half ask for a digit of a list.
With --thinking half of the sums have their steps: both modes of questions that no training data holds, to measure a model with.
With --lists there are no sums: chats for a base model to have read.
"""

import argparse
import json
import random
import string
from pathlib import Path

from qwen3_jax.data import problem_messages, running_sum_problem


def lookup(rng: random.Random) -> list[dict[str, str]]:
    """A question about a list of named digits, and its answer."""
    names = rng.sample(string.ascii_lowercase, rng.randint(3, 8))
    digits = {name: str(rng.randrange(10)) for name in names}
    name = rng.choice(names)
    listed = " ".join(name + digit for name, digit in digits.items())
    return [
        {"role": "user", "content": f"Which digit has {name}? {listed}"},
        {"role": "assistant", "content": digits[name]},
    ]


def main(arguments: list[str] | None = None) -> Path:
    """Write one chat a line; return the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--count", type=int, default=2000, help="chats (default: 2000)")
    parser.add_argument("--seed", type=int, default=2, help="of the questions (default: 2)")
    parser.add_argument("--held-out", action="store_true", help="sums that no training data holds")
    parser.add_argument("--thinking", action="store_true", help="half of the sums with their steps")
    parser.add_argument("--lists", action="store_true", help="no sums, which --held-out and --thinking are about")
    args = parser.parse_args(arguments)
    if args.lists and (args.held_out or args.thinking):
        parser.error("--held-out and --thinking are about sums, of which --lists writes none")
    rng = random.Random(f"direct/{args.seed}/{args.held_out}")
    with args.output.open("w", encoding="utf-8") as out:
        for number in range(args.count):
            if args.lists or number % 2:
                messages = lookup(rng)
            else:
                problem = running_sum_problem(
                    number, args.seed, "eval" if args.held_out else "train", eval_fraction=0.05
                )
                messages = problem_messages(problem, "thinking")
                if not args.thinking or number % 4:
                    del messages[-1]["reasoning_content"]
            out.write(json.dumps({"messages": messages}) + "\n")
    return args.output


if __name__ == "__main__":
    main()
