"""Draw accuracy over the thinking budget, as in figure 2 of the Qwen3 technical report.

    python examples/budget_curve.py --model runs/quickstart/hf --output curve.png

The problems are generated sums that need one step per digit. Give your own with --data, JSONL of {"question", "answer"}: an
answer is right when its last word is the reference.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import qwen3_jax
from qwen3_jax.data import running_sum_problem


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Measure, print and draw; return the accuracies in the order of the budgets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's format, or a hub id")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL of questions and answers, as above")
    parser.add_argument("--problems", type=int, default=100, help="how many problems (default: 100)")
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        default=[0, 8, 16, 24, 32, 40, 48],
        metavar="TOKENS",
        help="thinking budgets to measure",
    )
    parser.add_argument("--max-new-tokens", type=int, default=112, help="most tokens of an answer (default: 112)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("budget_curve.png"),
        metavar="FILE",
        help="the figure (default: budget_curve.png)",
    )
    args = parser.parse_args(argv)

    questions = problems(args.data, args.problems)
    model, tokenizer = qwen3_jax.load(args.model)
    accuracies, used = [], []
    for budget in args.budgets:
        answers = qwen3_jax.generate(
            model,
            tokenizer,
            [[{"role": "user", "content": question}] for question, _ in questions],
            thinking_budget=budget,
            sampling=qwen3_jax.Sampling(temperature=0),
            max_new_tokens=args.max_new_tokens,
            progress=None,
        )
        right = [a.content.split()[-1:] == [reference] for a, (_, reference) in zip(answers, questions, strict=True)]
        accuracies.append(sum(right) / len(right))
        used.append(sum(answer.usage.thinking_tokens for answer in answers) / len(answers))
        print(f"budget {budget:5}: accuracy {accuracies[-1]:6.1%}, {used[-1]:6.1f} thinking tokens on average")
    draw(args.budgets, accuracies, len(questions), args.output)
    return accuracies


def problems(data: Path | None, count: int) -> list[tuple[str, str]]:
    """(question, reference answer) pairs: from a file, or generated and held out from training."""
    if data is not None:
        lines = data.read_text(encoding="utf-8").splitlines()[:count]
        return [(record["question"], str(record["answer"])) for record in map(json.loads, lines)]
    generated = [running_sum_problem(index, split="eval", eval_fraction=0.05) for index in range(count)]
    return [(problem.question, problem.answer) for problem in generated]


def draw(budgets: list[int], accuracies: list[float], count: int, output: Path) -> None:
    """One line with binomial standard errors."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    errors = [(accuracy * (1 - accuracy) / count) ** 0.5 for accuracy in accuracies]
    axes.errorbar(budgets, accuracies, yerr=errors, marker="o", capsize=3)
    axes.set(xlabel="thinking budget (tokens)", ylabel=f"accuracy on {count} problems", ylim=(0, 1.03), xticks=budgets)
    axes.grid(alpha=0.25)
    figure.savefig(output, dpi=130)


if __name__ == "__main__":
    main()
