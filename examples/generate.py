"""Answer one question under several thinking budgets, then stream an answer.

    python examples/generate.py --model runs/quickstart/hf
    python examples/generate.py --model Qwen/Qwen3-0.6B --prompt "What is 7 * 8?" --budgets 0 64 512

All answers are decoded together: a budget is a setting of each request.
"""

import argparse
from collections.abc import Sequence

import qwen3_jax

QUESTION = "Add these digits one by one and give the last digit of the sum: a7 b3 c9"


def main(argv: Sequence[str] | None = None) -> list[qwen3_jax.Generation]:
    """Print the answers; return them in the order of the budgets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's format, or a hub id")
    parser.add_argument("--prompt", default=QUESTION, help="the question (default: a sum of three digits)")
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        default=[0, 4, 8, 16, 32],
        metavar="TOKENS",
        help="thinking budgets to measure",
    )
    parser.add_argument("--max-new-tokens", type=int, default=112, help="most tokens of an answer (default: 112)")
    args = parser.parse_args(argv)

    model, tokenizer = qwen3_jax.load(args.model)
    messages = [{"role": "user", "content": args.prompt}]
    answers = qwen3_jax.generate(
        model,
        tokenizer,
        [messages] * len(args.budgets),
        thinking_budget=args.budgets,
        sampling=qwen3_jax.Sampling(temperature=0),
        max_new_tokens=args.max_new_tokens,
    )
    for budget, answer in zip(args.budgets, answers, strict=True):
        print(f"budget {budget:5}: {answer.usage.thinking_tokens:5} thinking tokens, answer {answer.content.strip()!r}")

    print("\nstreamed, without a budget:")
    kind = None
    for delta in qwen3_jax.stream(model, tokenizer, messages, max_new_tokens=args.max_new_tokens):
        if delta.kind != kind and delta.text:
            kind = delta.kind
            print(f"\n{kind}: ", end="")
        print(delta.text, end="", flush=True)
    print()
    return answers


if __name__ == "__main__":
    main()
