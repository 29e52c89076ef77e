"""300 problems under 8 thinking budgets: one stream of requests against a run for each budget, and against transformers.

    python -m benchmarks.evaluation --model runs/quickstart/hf          # the quickstart's model; or QWEN3_MODEL=DIR

| part         | what is compared with `qwen3 eval`                                                       | goal    |
|--------------|------------------------------------------------------------------------------------------|---------|
| one_by_one   | `generate` for one budget after the other, as the quickstart's curve was measured before | <= 0.6x |
| transformers | its `generate`, in batches, for one budget after the other                               | >= 5x   |

All sides decode greedily, have compiled their programs, and give the same accuracies (which is checked). They run in turn.
XLA computes a small model's products on one core; `--devices 2` divides the rows over two devices of the CPU, a mesh as in
training, and so over its cores. transformers has no thinking budget: it generates thinking up to the budget, and then, for the
answers that were halted, behind the stop text.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.common import add_devices, cpu_mesh, interleaved, show

BUDGETS: tuple[int | None, ...] = (0, 8, 16, 24, 32, 40, 48, None)
PROBLEMS, MAX_NEW_TOKENS = 300, 112


class Ours:
    """The same problems through the runner, or through `generate`."""

    def __init__(self, folder: str, count: int, rows: int, mesh: Any):
        import qwen3_jax
        from qwen3_jax.evaluation.plan import EvalConfig, Plan
        from qwen3_jax.evaluation.tasks import find, load

        self.model, self.tokenizer = qwen3_jax.load(folder, dtype="float32", mesh=mesh)
        self.rows = rows
        task = find("running_sum")
        self.problems = load(task, None, {"problems": count})
        config = EvalConfig(("thinking",), BUDGETS, max_new_tokens=MAX_NEW_TOKENS)
        self.plan = Plan.of([(task, self.problems)], config, thinks=True, model=folder)
        self.found: dict[str, list[float]] = {}

    def stream(self, *, share: bool = True) -> None:
        from qwen3_jax import Engine
        from qwen3_jax.evaluation.engine_source import EngineSource
        from qwen3_jax.evaluation.runner import run
        from qwen3_jax.evaluation.samples import SampleList

        source = EngineSource(Engine(self.model, rows=self.rows, offline=True), self.tokenizer, share=share)
        right = dict.fromkeys(BUDGETS, 0)
        for sample in run(self.plan, source, SampleList()):
            right[sample["budget"]] += sample["verdict"]["status"] == "right"
        self.found["stream" if share else "whole"] = [right[budget] / len(self.problems) for budget in BUDGETS]

    def one_by_one(self) -> None:
        import qwen3_jax

        accuracies = []
        for budget in BUDGETS:
            answers = qwen3_jax.generate(
                self.model, self.tokenizer, [list(problem.prompt) for problem in self.problems],
                sampling=qwen3_jax.Sampling(temperature=0), max_new_tokens=MAX_NEW_TOKENS, thinking_budget=budget,
                batch_size=self.rows,
            )  # fmt: skip
            accuracies.append(self._accuracy([answer.text for answer in answers]))
        self.found["one_by_one"] = accuracies

    def _accuracy(self, texts: Sequence[str]) -> float:
        return accuracy(texts, [problem.reference for problem in self.problems])


def accuracy(texts: Sequence[str], references: Sequence[str]) -> float:
    """The share of right answers, judged as the task does."""
    from qwen3_jax.verifiers import verify_all

    verdicts = verify_all("number", list(zip(texts, references, strict=True)), {"take": "only"})
    return sum(verdict.status == "right" for verdict in verdicts) / len(verdicts)


class Theirs:
    """transformers, in batches of equal size, padded on the left."""

    def __init__(self, folder: str, problems: Sequence, rows: int):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from qwen3_jax.generation import STOP_TEXT

        torch.manual_seed(0)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end = self.tokenizer.convert_tokens_to_ids("</think>")
        self.stops = self.tokenizer.encode(STOP_TEXT, add_special_tokens=False)
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.problems, self.rows = problems, rows
        self.found: list[float] = []

    def run(self) -> None:
        self.found = [
            accuracy(self._answers(budget), [problem.reference for problem in self.problems]) for budget in BUDGETS
        ]

    def _answers(self, budget: int | None) -> list[str]:
        prompts = [
            self.tokenizer.apply_chat_template(
                list(problem.prompt),
                add_generation_prompt=True,
                enable_thinking=budget != 0,
                tokenize=True,
                return_dict=False,
            )
            for problem in self.problems
        ]
        if not budget:
            return [self._text(answer) for answer in self._generate(prompts, MAX_NEW_TOKENS)]
        begun = self._generate(prompts, budget + 1)  # <think> does not count
        halted = [place for place, answer in enumerate(begun) if self.end not in answer]
        rest = [place for place, answer in enumerate(begun) if self.end in answer]
        answers = dict.fromkeys(range(len(prompts)), "")
        for places in (halted, rest):
            stops = self.stops if places is halted else []
            longer = [prompts[place] + begun[place] + stops for place in places]
            for place, answer in zip(
                places, self._generate(longer, MAX_NEW_TOKENS - budget - 1 - len(stops)), strict=True
            ):
                answers[place] = self._text(begun[place] + stops + answer)
        return list(answers.values())

    def _generate(self, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        """The tokens of each answer, without the one that ends it."""
        import torch

        out = []
        for start in range(0, len(prompts), self.rows):
            part = prompts[start : start + self.rows]
            batch = self.tokenizer.pad({"input_ids": part}, return_tensors="pt")
            with torch.no_grad():
                ids = self.model.generate(**batch, max_new_tokens=most, do_sample=False, pad_token_id=min(self.ends))
            for answer in ids[:, batch["input_ids"].shape[1] :].tolist():
                length = next((i for i, token in enumerate(answer) if token in self.ends), len(answer))
                out.append(answer[:length])
        return out

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("QWEN3_MODEL"), help="a trained model (default: QWEN3_MODEL)")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="how many (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=100, help="answers decoded together (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=["one_by_one", "whole", "transformers"], default=["one_by_one", "transformers"],
        help="sides; whole is the runner without shared thinking (default: one_by_one and transformers)",
    )  # fmt: skip
    add_devices(parser)
    options = parser.parse_args()
    if not options.model:
        parser.error("--model or QWEN3_MODEL: train one with `python train.py --config configs/quickstart.yaml`")
    ours = Ours(options.model, options.problems, options.batch_size, cpu_mesh(options.devices))
    sides = {"stream": ours.stream}
    if "one_by_one" in options.only:
        sides["one_by_one"] = ours.one_by_one
    if "whole" in options.only:
        sides["whole"] = lambda: ours.stream(share=False)
    if "transformers" in options.only:
        theirs = Theirs(options.model, ours.problems, options.batch_size)
        sides["transformers"] = theirs.run
    seconds = interleaved(sides, options.rounds, "evaluation")
    found = ours.found | ({"transformers": theirs.found} if "transformers" in options.only else {})
    rows = []
    for name, value in seconds.items():
        same = max(abs(a - b) for a, b in zip(found[name], found["stream"], strict=True))
        ratio = f"{seconds['stream'] / value:.2f}x", f"{value / seconds['stream']:.1f}x"
        rows.append([name, f"{value:.2f} s", *ratio, f"{same:.1%}"])
    title = f"{options.problems} problems under {len(BUDGETS)} budgets, batches of {options.batch_size}"
    show(title, ["side", "median", "stream / side", "side / stream", "largest difference of accuracy"], rows)


if __name__ == "__main__":
    main()
