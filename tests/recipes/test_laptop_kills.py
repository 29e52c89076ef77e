"""The laptop's recipe, every phase of it made small, killed in each of its phases."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from qwen3_jax.recipes.page import findings, summary
from qwen3_jax.recipes.runner import RECORD

ROOT = Path(__file__).parents[2]
SMALLER = (
    (r"--count \d+", "--count 60"), (r"problems=\d+", "problems=4"), (r"--samples 16", "--samples 4"),
    (r"--max-mb \d+", "--max-mb 0.2"), (r"--vocab-size \d+", "--vocab-size 512"),
    (r"--thinking-budget .* none", "--thinking-budget 0 8 none"),
    # Such a model is never right.
    (r"(data generate .*)--verifier number(?: --keep all)?", r"\1--verifier number --keep all"),
)  # fmt: skip


def small_recipe(folder: Path) -> Path:
    """Write the recipe with a few steps, prompts and problems for each phase; the phases and what they take are the same."""
    recipe = yaml.safe_load((ROOT / "configs/recipe/laptop.yaml").read_text(encoding="utf-8"))
    for phase in recipe["phases"]:
        if "run" in phase:
            commands = phase["run"] if isinstance(phase["run"], list) else [phase["run"]]
            for pattern, text in SMALLER:
                commands = [re.sub(pattern, text, command) for command in commands]
            phase["run"] = commands
            continue
        train = phase["train"]
        train |= {"steps": 4, "log_every": 1, "eval_every": 2, "checkpoint_every": 1}
        train["optimizer"] |= {"warmup_steps": 0}
        if "eval_batches" in train:
            train["eval_batches"] = 1
        if phase["name"] == "cold-start":
            train |= {"steps": 30, "checkpoint_every": 5}  # later phases need answers that think, right or not
        if train.get("stages"):
            del train["steps"]
            train["stages"] = [stage | {"steps": 3} for stage in train["stages"]]
        if "rl" in train:
            group = train["rl"]["rollouts"]["group_size"]
            train["rl"] |= {
                "rollouts": {"prompts": 16 // group, "group_size": group, "max_new_tokens": 24},
                "eval_prompts": 4,
            }
            train["data"]["batch_size"], train["micro_batches"] = 16, 4
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def start(file: Path, folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--config", str(file), "--folder", str(folder), *options]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def states(folder: Path) -> dict[str, dict]:
    file = folder / RECORD
    return json.loads(file.read_text()) if file.exists() else {}


def program_of(process: subprocess.Popen) -> int | None:
    """The process of the phase that the recipe runs now."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = children.read_text().split() if children.exists() else []
    return int(found[0]) if found else None


def kill_in(file: Path, folder: Path, name: str, seconds: float, rng: random.Random, *, whole: bool) -> bool:
    """Run the recipe until a phase runs, and kill it there at a random moment; return whether it was within the phase.

    A phase that ended before, because its programs were compiled already, is done again and killed earlier.

    Args:
        seconds: what the phase took.
        whole: kill the recipe's process, else that of the phase.
    """
    options: list[str] = []
    for attempt in range(5):
        process = start(file, folder, *options)
        if attempt:
            wait_while(process, lambda: states(folder).get(name, {}).get("done", False))
        wait_while(process, lambda: name not in states(folder))
        time.sleep(rng.uniform(0, 0.9) * seconds / 2**attempt)
        within = process.poll() is None and not states(folder)[name]["done"]
        child = None if whole or not within else program_of(process)
        try:
            os.kill(process.pid if child is None else child, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended by itself
            process.kill()
        process.wait()
        time.sleep(0.2)  # the phase's process ends with it
        if within:
            return True
        options = ["--redo", name]
    return False


def wait_while(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Wait until a condition ends, or the process."""
    while process.poll() is None and condition():
        time.sleep(0.01)


def outcome(folder: Path) -> dict:
    """What was measured, and what the models are; seconds left out."""
    found = summary(findings([folder]))
    for claim in found.values():
        claim["figures"] = {name: value for name, value in claim["figures"].items() if "seconds" not in name}
        del claim["words"]
    return {"claims": found} | {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("*/hf/model.safetensors"))
    }


@pytest.mark.soak
def test_killed_in_every_phase_the_recipe_ends_with_the_same_models_and_the_same_page(tmp_path):
    """`kill -9`, in turn of the recipe's process and of the phase's, at a random moment of each phase."""
    file, whole, broken = small_recipe(tmp_path), tmp_path / "whole", tmp_path / "broken"
    process = start(file, whole)
    assert process.wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]
    took = {name: state["seconds"] for name, state in states(whole).items()}
    expected, rng, killed = outcome(whole), random.Random(0), 0
    assert len(expected) >= 9  # models
    for number, (name, seconds) in enumerate(took.items()):
        killed += kill_in(file, broken, name, seconds, rng, whole=number % 2 == 1)
    process = start(file, broken)
    assert process.wait() == 0, (tmp_path / "broken.log").read_text()[-3000:]
    assert killed == len(took)
    assert outcome(broken) == expected
