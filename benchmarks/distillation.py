"""Distillation against TRL's GKDTrainer: divergence over the steps, rewards, and seconds of a step by phase.

    python -m benchmarks.distillation --student DIR --teacher DIR --prompts FILE      # goal: at least 3x TRL
    python -m benchmarks.distillation --student DIR --teacher DIR --prompts FILE --steps 8 --seeds 1 --modes reverse_kl

Off-policy (reverse_kl, jsd; lmbda 0) both sides learn the same documents in every step, answers of the teacher: ours in packed
rows, TRL's in rows of a document each, padded to the longest. So their losses are compared step by step. On-policy (lmbda 1)
both sample answers to the same prompts in every step, and curves are compared; TRL also learns our answers of the first seed,
step by step, which tells a difference of the update from one of sampling. Both have the same models in float32, learning
rate, AdamW, clipping and temperature 1. Each seed is run by both sides in turn. The first two steps, which compile, are not
timed.

GKDTrainer divides the loss of sampled answers by the number of tokens of the data's answers; here it is their mean, as ours is.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common import add_devices, cpu_mesh, show

RATE, BETAS, CLIP = 4e-4, (0.9, 0.99), 1.0
MODES = ("reverse_kl", "jsd", "on_policy")
PHASES = ("rollout", "teacher", "rest")
FIRST = 2  # steps that are not timed
LENGTH = 256  # tokens of a row
Step = dict[str, float]  # divergence, tokens, whole, cpu; on-policy also reward, rollout, teacher, rest
Document = dict[str, Any]  # tokens, labels (-100: not learned); of prompts answer instead of labels


def documents_of(batch: Mapping[str, np.ndarray]) -> list[Document]:
    """Return the documents of a packed batch."""
    documents = []
    for row, segments in enumerate(batch["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            here = np.flatnonzero(segments == segment)
            targets = batch["targets"][row, here]
            labels = np.where(batch["loss_mask"][row, here] > 0, targets, -100)
            documents.append(
                {"tokens": [int(batch["tokens"][row, here[0]]), *targets.tolist()], "labels": [-100, *labels.tolist()]}
            )
    return documents


@contextlib.contextmanager
def placed_batches() -> Iterator[list[list[Document]]]:
    """The documents of every batch that a trainer of ours places from now on."""
    from qwen3_jax.training.step import Trainer

    place, placed = Trainer.place, list[list[Document]]()

    def recording(self: Trainer, batch: Mapping[str, Any], batch_size: int | None = None) -> Any:
        placed.append(documents_of({name: np.asarray(value) for name, value in batch.items()}))
        return place(self, batch, batch_size)

    with mock.patch.object(Trainer, "place", recording):
        yield placed


@contextlib.contextmanager
def timed_teacher() -> Iterator[list[float]]:
    """The seconds of every pass of our teacher from now on."""
    import jax

    from qwen3_jax.training.teacher import Teacher

    states, seconds = Teacher.states, list[float]()

    def timed(self: Teacher, batch: Any) -> Any:
        started = time.perf_counter()
        out = jax.block_until_ready(states(self, batch))
        seconds.append(time.perf_counter() - started)
        return out

    with mock.patch.object(Teacher, "states", timed):
        yield seconds


def configuration(options: argparse.Namespace, mode: str, data: Path, seed: int, run_dir: Path) -> dict[str, Any]:
    """Our configuration of a run."""
    on_policy = mode == "on_policy"
    config: dict[str, Any] = {
        "method": "distillation", "run_dir": str(run_dir), "steps": options.steps, "log_every": 1, "eval_every": 0,
        "checkpoint_every": 0, "seed": seed, "model": {"init_from": options.student, "scan_layers": False},
        "distillation": {"teacher": options.teacher, "divergence": "reverse_kl" if on_policy else mode},
        "data": {"sequence_length": LENGTH, "batch_size": options.rows, "packing_rows": 64, "seed": seed},
        "optimizer": {
            "learning_rate": RATE, "warmup_steps": 0, "schedule": "constant", "beta1": BETAS[0], "beta2": BETAS[1],
            "weight_decay": 0.0, "clip_norm": CLIP,
        },
        "mesh": {"data": options.devices},
    }  # fmt: skip
    if not on_policy:
        config["data"]["sources"] = [{"name": "answers", "path": str(data)}]
        return config
    config["data"] = {"sequence_length": LENGTH, "batch_size": options.answers, "seed": seed}
    rollouts = {
        "prompts": options.answers,
        "group_size": 1,
        "max_new_tokens": options.max_new_tokens,
        "keep": options.steps,
    }
    return config | {
        "micro_batches": max(options.answers // 4 // options.devices, 1),
        "rl": {
            "prompts": [{"name": "questions", "path": str(data)}], "rollouts": rollouts,
            "rewards": [{"verifier": options.verifier}],
        },
    }  # fmt: skip


def ours(
    options: argparse.Namespace, mode: str, data: Path, seed: int, folder: Path
) -> tuple[list[Step], list[list[Document]], list[list[Document]]]:
    """Train; return the figures of each step, the documents that it learned from, and on-policy its prompts."""
    from qwen3_jax.cli.train_options import parse_train
    from qwen3_jax.posttraining import samples
    from qwen3_jax.posttraining.reinforcement import train

    file, on_policy = folder / f"{mode}-{seed}.json", mode == "on_policy"
    file.write_text(json.dumps(configuration(options, mode, data, seed, folder / f"{mode}-{seed}")))
    ends: list[tuple[float, float]] = []
    with placed_batches() as documents, timed_teacher() if on_policy else contextlib.nullcontext([]) as teacher:
        config = parse_train([f"--config={file}"], "train").config
        run = train(config, lambda *_: ends.append((time.perf_counter(), time.process_time()))).parent
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = []
    rows = [line for line in lines if "train.divergence" in line]
    taken = np.diff([(np.nan, np.nan), *ends], axis=0)
    for number, (row, (whole, cpu)) in enumerate(zip(rows, taken, strict=True)):
        step = Step(divergence=row["train.divergence"], tokens=row["train.tokens"], whole=whole, cpu=cpu)
        if on_policy:
            rollout = row["rl.seconds_rollout"]
            rest = whole - rollout - teacher[number]
            step |= Step(reward=row["rl.reward"], rollout=rollout, teacher=teacher[number], rest=rest)
        steps.append(step)
    prompts: list[list[Document]] = []
    if on_policy:
        rounds = [samples.load(run / "rollouts", step)[0] for step in range(options.steps)]
        prompts = [
            [{"tokens": one.prompt.tolist(), "answer": one.about["answer"]} for one in answers] for answers in rounds
        ]
    return steps, documents[: options.steps], prompts


def compare(options: argparse.Namespace, mode: str, data: Path, folder: Path) -> None:
    """Run a mode on both sides in turn, and print its figures."""
    from benchmarks.gkd import gkd

    on_policy, beta = mode == "on_policy", 0.5 if mode == "jsd" else 1.0
    runs: dict[str, list[list[Step]]] = {"qwen3-jax": [], "TRL": []}
    replayed: list[list[Step]] = []
    for seed in range(options.seeds):
        output, pair = folder / f"trl-{mode}-{seed}", (options.student, options.teacher)
        steps, documents, prompts = ours(options, mode, data, seed, folder)
        runs["qwen3-jax"].append(steps)
        settings = dict(seed=seed, beta=beta, verifier=options.verifier, max_new_tokens=options.max_new_tokens)
        given = prompts if on_policy else documents
        runs["TRL"].append(gkd(*pair, given, output, lmbda=float(on_policy), **settings)[1])
        if on_policy and not replayed:
            replayed.append(gkd(*pair, documents, output, lmbda=0.0, **settings)[1])
    report(options, mode, runs, replayed or runs["TRL"])


def teacher_answers(options: argparse.Namespace, folder: Path) -> Path:
    """Let the teacher answer the prompts, with our engine; return the file of the chats."""
    from qwen3_jax.cli.main import main as qwen3

    words = [
        "data",
        "generate",
        "--path",
        str(folder / "prompts.jsonl"),
        "--model",
        options.teacher,
        "--temperature",
        "1",
    ]
    words += ["--top-k", "0", "--top-p", "1", "--max-new-tokens", str(options.max_new_tokens)]
    if qwen3([*words, "--output", str(folder / "answers")]):
        raise SystemExit("the teacher gave no answers")
    return folder / "answers/records"


def report(
    options: argparse.Namespace, mode: str, runs: Mapping[str, list[list[Step]]], same: list[list[Step]]
) -> None:
    """Print the figures of a mode; `same` are TRL's steps on the documents that ours learned from."""
    on_policy, rows, medians = mode == "on_policy", [], []
    for name, all_steps in runs.items():
        timed = [step for steps in all_steps for step in steps[FIRST:]]
        last = -(options.steps // 3)

        def ended(of: str, all_steps: list[list[Step]] = all_steps, last: int = last) -> str:
            means = [statistics.fmean(step[of] for step in steps[last:]) for steps in all_steps]
            spread = f" ± {statistics.stdev(means):.4f}" if len(means) > 1 else ""
            return f"{statistics.fmean(means):.4f}{spread}"

        keys = ("whole", "cpu", *PHASES) if on_policy else ("whole", "cpu")
        medians.append([statistics.median(step[key] for step in timed) for key in keys[:2]])
        row = [name, *(f"{statistics.median(step[key] for step in timed):.3f}" for key in keys)]
        row += [f"{statistics.median(step['tokens'] for step in timed):,.0f}", ended("divergence")]
        rows.append([*row, ended("reward")] if on_policy else row)
    columns = ["", "s/step", "CPU s", *(phase for phase in PHASES if on_policy), "tokens", "divergence"]
    title = f"{mode}, {options.steps} steps, {options.seeds} seeds; divergence of the last third"
    show(title, [*columns, "reward"] if on_policy else columns, rows)
    wall, cpu = (other / one for one, other in zip(*medians, strict=True))
    print(f"{mode}: TRL / qwen3-jax: {wall:.2f}x seconds per step, {cpu:.2f}x seconds of the processor")
    one, other = (np.array([[s["divergence"] for s in steps] for steps in runs[name]]) for name in runs)
    again = np.array([[step["divergence"] for step in steps] for steps in same])
    apart, where = np.abs(one[: len(again)] - again) / again, "on our answers " if on_policy else ""
    print(
        f"{mode}: {where}losses of a step differ by {apart[:, 0].max():.1e} at first, by at most {apart.max():.1e} later"
    )
    for number in range(0, options.steps, max(options.steps // 6, 1)):
        text = ", ".join(
            f"{name} {values[:, number].mean():.4f}" for name, values in zip(runs, (one, other), strict=True)
        )
        if on_policy:
            rewards = [statistics.fmean(steps[number]["reward"] for steps in runs[name]) for name in runs]
            text += "; reward " + ", ".join(f"{name} {value:.3f}" for name, value in zip(runs, rewards, strict=True))
        print(f"{mode}: step {number + 1}: divergence {text}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder of a model that answers some of the prompts")
    parser.add_argument("--teacher", required=True, help="folder of a model of the same tokenizer that answers more")
    parser.add_argument("--prompts", required=True, help="JSON lines with `question` and `answer`")
    parser.add_argument("--verifier", default="number", help="of answers (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES], help="(default: all)")
    parser.add_argument("--steps", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side, in turn (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help=f"of {LENGTH} tokens, off-policy (default: %(default)s)")
    parser.add_argument("--answers", type=int, default=64, help="of a step, on-policy (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=1000, help="that are read of the file (default: %(default)s)")
    add_devices(parser)
    options = parser.parse_args()
    if options.steps < 2 * FIRST:
        parser.error(f"--steps must be at least {2 * FIRST}")
    cpu_mesh(options.devices)
    options.student, options.teacher = (str(Path(one).resolve()) for one in (options.student, options.teacher))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()[: options.questions]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        answers = teacher_answers(options, folder) if set(options.modes) - {"on_policy"} else folder
        for mode in options.modes:
            data = folder / "prompts.jsonl" if mode == "on_policy" else answers
            compare(options, mode, data, folder)
    import trl

    print(f"trl {trl.__version__}; {cpu_name()}")


def cpu_name() -> str:
    """The processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
