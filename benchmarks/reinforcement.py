"""GRPO against TRL's GRPOTrainer and google-tunix' GRPOLearner: rewards over the steps, and seconds of a step by phase.

    python -m benchmarks.reinforcement --model runs/cold-start-laptop/hf       # goals: at least 3x TRL, 1.5x tunix
    python -m benchmarks.reinforcement --model DIR --steps 10 --seeds 1 --devices 2
    python -m benchmarks.reinforcement --model DIR --tunix TUNIX_ENVIRONMENT/bin/python

All sides have the same model in float32, prompts, verifier, temperature 1, group size, learning rate, AdamW and clipping; one
update of all answers a step, no KL term. Each seed is run by each side in turn. Samples differ, so rewards are compared as
curves: the mean of the last third of the steps, with its spread over seeds. The first two steps, which compile, are not timed.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_devices, cpu_mesh, show
from qwen3_jax.verifiers import verify

RATE, BETAS, CLIP = 4e-4, (0.9, 0.99), 1.0
PHASES = ("rollout", "rewards", "update")
FIRST = 2  # steps that are not timed
Step = dict[str, float]  # reward, tokens, rollout, rewards, update, whole


def write_prompts(path: Path, count: int, digits: int, seed: int) -> list[dict[str, str]]:
    """Write questions with their answers; return them."""
    from qwen3_jax.data import running_sum_problem

    problems = [
        running_sum_problem(index, seed, "train", min_digits=2, max_digits=digits, eval_fraction=0.01)
        for index in range(count)
    ]
    records = [{"question": one.question, "answer": str(one.answer)} for one in problems]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def ours(options: argparse.Namespace, prompts: Path, seed: int, folder: Path) -> list[Step]:
    """Train; return the figures of each step."""
    from qwen3_jax.cli.train_options import parse_train
    from qwen3_jax.posttraining.reinforcement import train

    answers = options.prompts * options.group_size
    config = {
        "method": "grpo", "run_dir": str(folder / f"ours-{seed}"), "steps": options.steps, "log_every": 1, "eval_every": 0,
        "checkpoint_every": 0, "seed": seed, "model": {"init_from": options.model, "scan_layers": False},
        "data": {"sequence_length": 256, "batch_size": answers, "seed": seed}, "micro_batches": max(answers // 8, 1),
        "optimizer": {
            "learning_rate": RATE, "warmup_steps": 0, "schedule": "constant", "beta1": BETAS[0], "beta2": BETAS[1],
            "weight_decay": 0.0, "clip_norm": CLIP,
        },
        "mesh": {"data": options.devices},
        "rl": {
            "prompts": [{"name": "sums", "path": str(prompts)}],
            "rollouts": {
                "prompts": options.prompts, "group_size": options.group_size, "max_new_tokens": options.max_new_tokens,
            },
            "rewards": [{"verifier": "number"}],
            "policy": {"algorithm": "grpo"},
        },
    }  # fmt: skip
    file = folder / f"ours-{seed}.json"
    file.write_text(json.dumps(config))
    ends: list[float] = []
    run = train(parse_train([f"--config={file}"], "train").config, lambda *_: ends.append(time.perf_counter())).parent
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = []
    for row, whole in zip((line for line in lines if "rl.reward" in line), np.diff([np.nan, *ends]), strict=True):
        rollout, rewards = row["rl.seconds_rollout"], row["rl.seconds_rewards"]
        steps.append(
            Step(
                reward=row["rl.reward"], tokens=row["rl.sampled_tokens"], rollout=rollout, rewards=rewards,
                update=whole - rollout - rewards, whole=whole,
            )
        )  # fmt: skip
    return steps


def theirs(options: argparse.Namespace, records: list[dict[str, str]], seed: int, folder: Path) -> list[Step]:
    """Train with TRL; return the figures of each step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: Step = dict.fromkeys((*PHASES, "tokens", "reward"), 0.0)
    steps: list[Step] = []

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - started

    class Trainer(GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            with timed("rollout"):
                return super()._generate(*args, **kwargs)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with timed("rewards"):
                return super()._calculate_rewards(*args, **kwargs)

    class Clock(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.update(dict.fromkeys(seconds, 0.0))
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            whole = time.perf_counter() - self.started
            steps.append(seconds | {"whole": whole, "update": whole - seconds["rollout"] - seconds["rewards"]})

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")

    def reward(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float | None]:
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        scores = [float(verify("number", one, right).score or 0.0) for one, right in zip(texts, answer, strict=True)]
        seconds["reward"], seconds["tokens"] = statistics.fmean(scores), float(sum(map(len, completion_ids)))
        return [*scores]

    config = GRPOConfig(
        output_dir=str(folder / f"trl-{seed}"), seed=seed, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_strategy="no", gradient_checkpointing=False, max_steps=options.steps,
        per_device_train_batch_size=options.prompts * options.group_size // options.accumulate,
        gradient_accumulation_steps=options.accumulate, num_generations=options.group_size,
        max_completion_length=options.max_new_tokens, temperature=1.0, top_p=1.0, top_k=0, beta=0.0, num_iterations=1,
        epsilon=0.2, loss_type="grpo", scale_rewards="group", learning_rate=RATE, lr_scheduler_type="constant",
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=0.0, max_grad_norm=CLIP,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": one["question"]}], "answer": one["answer"]} for one in records]
    )
    Trainer(model, reward, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
    return steps


def tunix(options: argparse.Namespace, records: list[dict[str, str]], seed: int, folder: Path) -> list[Step]:
    """Train with google-tunix, in its own environment; return the figures of each step."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    chats = [[{"role": "user", "content": one["question"]}] for one in records]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    settings = {
        "model": options.model, "prompts": options.prompts, "group_size": options.group_size, "steps": options.steps,
        "records": [
            {"prompt": text, "answer": one["answer"]} for text, one in zip(texts, records, strict=True)
        ],
        "max_new_tokens": options.max_new_tokens, "rate": RATE,
        "betas": BETAS, "clip": CLIP,
    }  # fmt: skip
    file = folder / f"tunix-{seed}.json"
    file.write_text(json.dumps(settings))
    command = [options.tunix, str(Path(__file__).with_name("tunix_grpo.py")), str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line.removeprefix("step ")) for line in done.stdout.splitlines() if line.startswith("step {")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=os.environ.get("QWEN3_MODEL"), help="a model that answers some (default: QWEN3_MODEL)"
    )
    parser.add_argument("--steps", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side, in turn (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="of a step (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="answers to a prompt (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="(default: %(default)s)")
    parser.add_argument("--digits", type=int, default=8, help="most digits of a problem (default: %(default)s)")
    add_devices(parser)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step in TRL (default: 1)")
    parser.add_argument("--tunix", metavar="PYTHON", help="of an environment with google-tunix, which is measured too")
    options = parser.parse_args()
    if not options.model:
        parser.error("--model or QWEN3_MODEL: a folder with a model that answers some of the questions")
    if options.steps < 2 * FIRST:
        parser.error(f"--steps must be at least {2 * FIRST}")
    cpu_mesh(options.devices)
    options.model = str(Path(options.model).resolve())
    runs: dict[str, list[list[Step]]] = {"qwen3-jax": [], "TRL": []} | ({"tunix": []} if options.tunix else {})
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for seed in range(options.seeds):
            prompts = folder / f"prompts-{seed}.jsonl"
            records = write_prompts(prompts, options.prompts * options.steps, options.digits, seed)
            runs["qwen3-jax"].append(ours(options, prompts, seed, folder))
            runs["TRL"].append(theirs(options, records, seed, folder))
            if options.tunix:
                runs["tunix"].append(tunix(options, records, seed, folder))
    rows = []
    for name, all_steps in runs.items():
        timed = [step for steps in all_steps for step in steps[FIRST:]]
        last = [statistics.fmean(step["reward"] for step in steps[-(len(steps) // 3) :]) for steps in all_steps]
        spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
        rows.append(
            [name, f"{statistics.median(step['whole'] for step in timed):.2f}"]
            + [f"{statistics.median(step[phase] for step in timed):.2f}" for phase in PHASES]
            + [f"{statistics.median(step['tokens'] for step in timed):,.0f}", f"{statistics.fmean(last):.3f}{spread}"]
        )
    columns = ["", "s/step", *(f"{phase}, s" for phase in PHASES), "tokens", "reward, last third"]
    show(f"GRPO, {options.prompts} prompts x {options.group_size} answers, {options.steps} steps", columns, rows)
    medians = {name: statistics.median(s["whole"] for steps in runs[name] for s in steps[FIRST:]) for name in runs}
    for name in list(runs)[1:]:
        print(f"{name} / qwen3-jax: {medians[name] / medians['qwen3-jax']:.2f}x seconds per step")
    for number in range(0, options.steps, max(options.steps // 9, 1)):
        means = [statistics.fmean(steps[number]["reward"] for steps in runs[name]) for name in runs]
        print(
            f"step {number + 1}: reward "
            + ", ".join(f"{name} {mean:.3f}" for name, mean in zip(runs, means, strict=True))
        )


if __name__ == "__main__":
    main()
