"""Fine-tune a checkpoint on conversations, and compare its answers before and after.

    python examples/finetune.py --model runs/quickstart/hf --output runs/finetuned
    python examples/finetune.py --model runs/quickstart/hf --output runs/adapted --lora
    python examples/finetune.py --model Qwen/Qwen3-0.6B --data chats.jsonl --output runs/mine --learning-rate 1e-5

--data is JSONL of {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}; without it the script writes eight
questions about chemical symbols. Only the assistant's tokens are learned. The result is OUTPUT/hf, a Hugging Face folder, or
with --lora OUTPUT/adapter, an adapter in PEFT's format. A configuration for train.py does the same with model.init_from.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import qwen3_jax
from qwen3_jax.data import DataConfig, Source
from qwen3_jax.training import TrainConfig, train
from qwen3_jax.training.config import LoraConfig, ModelConfig, OptimizerConfig
from sharding import MeshConfig

SYMBOLS = dict(iron="Fe", gold="Au", tin="Sn", lead="Pb", silver="Ag", sodium="Na", copper="Cu", zinc="Zn")


def main(argv: Sequence[str] | None = None) -> Path:
    """Train, print answers of both models, and return the folder of the new one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's format, or a hub id")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL of conversations, as above")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder of the run")
    parser.add_argument("--steps", type=int, default=100, help="training steps (default: 100)")
    parser.add_argument(
        "--lora", action="store_true", help="train adapters of rank 16, written to OUTPUT/adapter (docs/lora.md)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=2e-3, help="for a tiny model; released ones want about 1e-5"
    )
    args = parser.parse_args(argv)

    args.output.mkdir(parents=True, exist_ok=True)
    data = args.data or write_questions(args.output / "questions.jsonl")
    tuned = train(
        TrainConfig(
            run_dir=str(args.output),
            model=ModelConfig(init_from=args.model),
            lora=LoraConfig() if args.lora else None,
            data=DataConfig(sources=[Source("chats", str(data), eval_fraction=0.0)], sequence_length=128, batch_size=4),
            optimizer=OptimizerConfig(learning_rate=args.learning_rate, warmup_steps=args.steps // 10),
            mesh=MeshConfig(data=1),  # one device; data=-1 is all of them
            steps=args.steps,
        )
    )
    with open(data, encoding="utf-8") as lines:
        asked = [json.loads(line)["messages"][0] for line, _ in zip(lines, range(4), strict=False)]
    before, after = answers(args.model, asked), answers(str(tuned), asked)
    for message, old, new in zip(asked, before, after, strict=True):
        print(f"{message['content']}\n  before: {old!r}\n  after:  {new!r}")
    return tuned


def write_questions(path: Path) -> Path:
    """Write the built-in conversations as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for metal, symbol in SYMBOLS.items():
            question = {"role": "user", "content": f"What is the symbol of {metal}?"}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": symbol}]}) + "\n")
    return path


def answers(model: str, messages: list[dict[str, str]]) -> list[str]:
    """Greedy answers without thinking, one conversation per message."""
    results = qwen3_jax.generate(
        *qwen3_jax.load(model),
        [[message] for message in messages],
        sampling=qwen3_jax.Sampling(temperature=0),
        enable_thinking=False,
        max_new_tokens=32,
    )
    return [result.content for result in results]


if __name__ == "__main__":
    main()
