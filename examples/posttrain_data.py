"""Write chats and preferences for the laptop configurations of post-training: the quickstart's running sums.

    python examples/posttrain_data.py --output posttrain
    python train.py --config configs/posttrain/sft-laptop.yaml

chats.jsonl has answers with thinking and, flagged /no_think, without; preferences.jsonl a right answer and a wrong one.
"""

import argparse
import json
import random
from pathlib import Path

from qwen3_jax.data import problem_messages, running_sum_problem


def main(argv: list[str] | None = None) -> Path:
    """Write both files; return their folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--problems", type=int, default=2000, help="problems of each file (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the problems and wrong answers (default: 1)")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    with (args.output / "chats.jsonl").open("w") as chats, (args.output / "preferences.jsonl").open("w") as pairs:
        for number in range(args.problems):
            problem = running_sum_problem(number, args.seed)
            mode = "thinking" if rng.random() < 0.7 else "non_thinking"
            messages = problem_messages(problem, mode)
            chats.write(json.dumps({"messages": messages}) + "\n")
            wrong = str((int(problem.answer) + rng.randrange(1, 10)) % 10)
            prompt, answer = messages[:-1], messages[-1]
            worse = {**answer, "content": answer["content"].replace(problem.answer, wrong)}
            pairs.write(json.dumps({"prompt": prompt, "chosen": [answer], "rejected": [worse]}) + "\n")
    return args.output


if __name__ == "__main__":
    main()
