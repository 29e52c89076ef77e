"""A task for reinforcement learning with a tool: look rows up, and add their digits.

    python examples/row_lookup.py --output rows --demonstrations 3000 --prompts 4000

    user       Add the digits of these rows one by one and give the last digit of the sum: a4 b8, c2 d7
    assistant  (thinks: a4 b8) row(name="a4 b8")
    tool       e7 f3
    assistant  (thinks: c2 d7) row(name="c2 d7")
    tool       g9 h2
    assistant  (thinks: e7:7 f3:0 g9:9 h2:1) 1

Digits are drawn anew for each question, so the answer cannot be learned by heart: a model that calls no tool is right one time
in ten. `demonstrations.jsonl` is for supervised fine-tuning, `prompts.jsonl` for reinforcement learning with the class `Rows`
below (configs/posttrain/tool-rl-laptop.yaml); no question is in both.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.posttraining.environments import Start, ToolEnvironment, ToolError, tool

QUESTION = "Add the digits of these rows one by one and give the last digit of the sum: "
MOST_QUESTIONS = 10_000  # two rows, each named by two digits


class Rows(ToolEnvironment):
    """Has the rows of one question: `rows` of its record, texts by name."""

    def reset(self, record: Mapping[str, Any], seed: int) -> Start | None:
        """Take the rows of the question."""
        self._rows = record["rows"]
        return super().reset(record, seed)

    @tool
    def row(self, name: str) -> str:
        """Return the digits of a row."""
        if name not in self._rows:
            raise ToolError(f"there is no row {name}")
        return self._rows[name]


def question(index: int, seed: int = 0, *, rows: int = 2, most_digits: int = 3) -> dict[str, Any]:
    """Return a prompt: `messages`, the `rows` behind it, its `answer`, and the verifier that compares.

    Args:
        index, seed: determine it.
        rows: the number of rows asked for.
        most_digits: a row has 2 to this number of digits.
    """
    rng = random.Random(f"rows/{seed}/{index}")
    letters = iter(string.ascii_lowercase)  # a small model copies a digit by the letter before it

    def named(digits: Sequence[int]) -> str:
        return " ".join(f"{next(letters)}{digit}" for digit in digits)

    names = [named([rng.randrange(10) for _ in range(2)]) for _ in range(rows)]
    digits = [[rng.randrange(10) for _ in range(rng.randint(2, most_digits))] for _ in names]
    return {
        "messages": [{"role": "user", "content": QUESTION + ", ".join(names)}],
        "rows": dict(zip(names, map(named, digits), strict=True)),
        "answer": str(sum(map(sum, digits)) % 10),
        "verifier": "number",
    }


def demonstration(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt with the calls, the steps and the answer, as a record for supervised fine-tuning."""
    messages = list(prompt["messages"])
    for name, row in prompt["rows"].items():
        call = {"type": "function", "function": {"name": "row", "arguments": json.dumps({"name": name})}}
        messages.append({"role": "assistant", "reasoning_content": name, "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": "row", "content": row})
    total, steps = 0, []
    for digit in " ".join(prompt["rows"].values()).split():
        total = (total + int(digit[1:])) % 10
        steps.append(f"{digit}:{total}")
    messages.append({"role": "assistant", "reasoning_content": " ".join(steps), "content": prompt["answer"]})
    return {"messages": messages, "tools": Rows().tools}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write both files; return their folder."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--output", default="rows", help="folder (default: rows)")
    parser.add_argument("--demonstrations", type=int, default=3000, help="their number (default: 3000)")
    parser.add_argument("--prompts", type=int, default=4000, help="their number (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    options = parser.parse_args(arguments)
    if options.demonstrations + options.prompts > MOST_QUESTIONS:
        parser.error(f"--demonstrations and --prompts: there are {MOST_QUESTIONS:,} different questions")
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    unique: dict[str, dict[str, Any]] = {}
    index = 0
    while len(unique) < options.demonstrations + options.prompts:
        prompt = question(index, options.seed)
        unique.setdefault(prompt["messages"][0]["content"], prompt)
        index += 1
    prompts = list(unique.values())
    shown, asked = prompts[: options.demonstrations], prompts[options.demonstrations :]
    _write(folder / "demonstrations.jsonl", [demonstration(prompt) for prompt in shown])
    _write(folder / "prompts.jsonl", asked)
    return folder


def _write(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    print(f"written to {main()}")
