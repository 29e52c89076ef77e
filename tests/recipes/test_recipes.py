"""Recipes: what a file may say, that phases run once, resume after any kill and run again when they change, and verdicts."""

import dataclasses
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from qwen3_jax.cli.main import main
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.errors import UserError
from qwen3_jax.recipes import claims, runner
from qwen3_jax.recipes.claims import Curve, Evidence
from qwen3_jax.recipes.config import ROLES, is_recipe, read_recipe
from qwen3_jax.recipes.evidence import Measured, mean_of
from qwen3_jax.recipes.page import findings, summary
from qwen3_jax.recipes.report_claims import CLAIMS
from sharding.mesh import AXES
from tests.helpers import tiny_models

ROOT = Path(__file__).parents[2]
# writes its second argument, and what the files behind it hold, to the first, after some seconds
SCRIPT = """
import pathlib, sys, time
target, text, seconds, *files = sys.argv[1:]
time.sleep(float(seconds))
pathlib.Path(target).write_text("".join(pathlib.Path(file).read_text() for file in files) + text)
"""


def write(folder: Path, phases, **more) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"folder": str(folder / "out"), "phases": phases, **more}))
    return file


def simple(tmp_path: Path, *, text="one", wait=0, **more) -> Path:
    """Three phases; the second takes from the first, the third from none."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    phases = [
        {"name": "first", "about": "writes", "run": f"python {script} {{here}}/a.txt {text} {wait}"},
        {
            "name": "second",
            "run": [
                f"python {script} {{here}}/b.txt {{seed}} 0 {{first}}/a.txt", f"python {script} {{here}}/c.txt '' {wait}",
            ],
        },
        {"name": "third", "run": f"python {script} {{here}}/d.txt three {wait}"},
    ]  # fmt: skip
    return write(tmp_path, phases, seed=7, **more)


def files(tmp_path: Path) -> dict[str, str]:
    return {str(f.relative_to(tmp_path / "out")): f.read_text() for f in sorted((tmp_path / "out").rglob("*.txt"))}


WHOLE = {"first/a.txt": "one", "second/b.txt": "one7", "second/c.txt": "", "third/d.txt": "three"}


def _changed(recipe) -> list[bool]:
    """For each phase, all of which are done: whether its settings, or those of a phase that it takes from, have changed."""
    states = [row[1] for row in runner.table(recipe)]
    assert all(state == "changed" or re.fullmatch(r"\d+ s", state) for state in states), states
    return [state == "changed" for state in states]


def test_phases_run_once_and_again_when_they_or_what_they_take_changes(tmp_path, capfd):
    file, said = simple(tmp_path), []
    recipe = read_recipe(file)
    assert [phase.takes for phase in recipe.phases] == [[], ["first"], []]
    runner.run(recipe, ["first"], said.append)
    with pytest.raises(UserError, match="'second' takes from 'first', which is not done"):
        runner.run(dataclasses.replace(recipe, folder=tmp_path / "elsewhere"), ["second"], said.append)
    runner.run(recipe, say=said.append)
    assert files(tmp_path) == WHOLE
    assert any(re.fullmatch(r"\[1/3\] first: done in \d+ s", line) for line in said)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}
    runner.run(recipe, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")} == before
    # A moved folder is the same run; another seed changes the phase that reads it, and another text all that take from it.
    assert _changed(dataclasses.replace(recipe, seed=8)) == [False, True, False]
    changed = read_recipe(simple(tmp_path, text="new"))
    assert _changed(changed) == [True, True, False]
    with pytest.raises(UserError, match=r"'first' was run from other settings.*--redo first"):
        runner.run(changed, say=said.append)
    assert files(tmp_path) == WHOLE
    runner.redo(changed, "first", said.append)
    runner.run(changed, say=said.append)
    assert files(tmp_path) == WHOLE | {"first/a.txt": "new", "second/b.txt": "new7"}


def test_a_phase_that_fails_or_is_interrupted_is_named_and_resumes(tmp_path, capfd):
    file = write(tmp_path, [{"name": "bad", "run": "python -c 'raise SystemExit(5)'"}])
    assert main(["train", "--config", str(file)]) == 2
    assert "phase 'bad' failed (exit code 5): python -c" in capfd.readouterr().err
    file = simple(tmp_path, wait=1.5)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_jax.cli", "train", "--config", str(file)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _until(lambda: (tmp_path / "out/first").exists() and not (tmp_path / "out/first/a.txt").exists())
        time.sleep(0.3)
        with pytest.raises(UserError, match="is in use by another process"):
            runner.run(read_recipe(file))
        process.send_signal(number)
        error = process.communicate(timeout=20)[1]
        assert "stopped in phase 'first'; the same command resumes there" in error
        assert process.returncode == (143 if number == signal.SIGTERM else 130)
        assert not (tmp_path / "out/second").exists()
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_a_recipe_that_is_killed_in_every_phase_ends_with_the_same_files(tmp_path):
    """kill -9 of the recipe's process ends the phase too."""
    file = simple(tmp_path, wait=1.0)
    for number in range(7):
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_jax.cli", "train", "--config", str(file)], cwd=ROOT, stdin=subprocess.DEVNULL
        )
        if number == 6:
            assert process.wait(60) == 0
            break
        time.sleep(1.0 + 0.7 * number)
        process.kill()
        process.wait()
        time.sleep(0.2)
        assert not [line for line in _children() if str(tmp_path) in line]
    assert files(tmp_path) == WHOLE


def _children() -> list[str]:
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "script.py" in line:
                out.append(line)
    return out


def _until(condition, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "phases must be a list of at least one phase"),
        ([{"run": "python x"}], "phase 1 has no name"),
        ([{"name": "A b", "run": "python x"}], "a name has small letters, digits and hyphens"),
        ([{"name": "seed", "run": "python x"}], "must not be here, folder, seed"),
        ([{"name": "a", "run": "python x"}, {"name": "a", "run": "python y"}], "phase 'a' occurs twice"),
        ([{"name": "a"}], "phase 'a' needs either train, a configuration, or run, its commands"),
        ([{"name": "a", "run": "python x", "train": {}}], "needs either train"),
        ([{"name": "a", "run": "rm -r /"}], "a command begins with qwen3 or python, and this one with 'rm'"),
        ([{"name": "a", "run": "python x", "set": {"b": 1}}], "set is laid over a configuration"),
        ([{"name": "a", "train": "nowhere.yaml"}], "there is no file nowhere.yaml"),
        ([{"name": "a", "train": {"run_dir": "x"}}], "run_dir is the phase's own folder"),
        ([{"name": "a", "runs": "python x"}], "unknown key 'runs'"),
        ([{"name": "a", "run": "python 'x"}], "cannot be split into words (No closing quotation)"),
        ([{"name": "a", "run": "python {b}"}, {"name": "b", "run": "python x"}], "takes {b}, and no earlier phase"),
    ],
)  # fmt: skip
def test_a_recipe_that_says_nonsense_is_refused_by_phase(phases, message, tmp_path, capsys):
    assert main(["train", "--config", str(write(tmp_path, phases))]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("claims", "options", "message"),
    [
        ({"budgets": {"eval": "{first}"}}, [], "there is no claim 'budgets'"),
        ({"budget": {"evals": "{first}"}}, [], "budget has the roles evals; it needs eval"),
        ({"budget": {"eval": "{fourth}"}}, [], "budget names the phase 'fourth', which there is not"),
        ({}, ["--phase", "forth"], "has no phase 'forth'"),
        ({}, ["--plan", "v5p:2x2x1", "--phase", "forth"], "has no phase 'forth'"),
        ({}, ["--list", "--phase", "first"], "--list prints all phases"),
        ({}, ["--list", "--redo", "first"], "not allowed with argument"),
    ],
)
def test_claims_and_options_that_nothing_reads_are_refused(claims, options, message, tmp_path, capsys):
    words = ["train", "--config", str(simple(tmp_path, claims=claims)), *options]
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_training_phase_of_the_recipes_is_a_configuration(tmp_path):
    for file in sorted((ROOT / "configs/recipe").glob("*.yaml")):
        assert is_recipe(file)
        recipe = read_recipe(file, str(tmp_path / file.stem), seed=3)
        topology = re.search(r"--plan \w+:(\S+)", file.read_text())  # the slice on which every phase is planned and run
        chips = math.prod(map(int, topology[1].split("x"))) if topology else 1
        for phase in recipe.phases:
            if phase.train is None:
                continue
            words = runner.program(recipe, phase)
            config = parse_train(words[words.index("train") + 1 :], "train").config
            assert config.run_dir == str(recipe.place(phase))
            for stage in config.resolved():
                sizes = dict(zip(AXES, stage.run.mesh.sizes(chips), strict=True))
                assert math.prod(sizes.values()) == chips, phase.name
                rows = stage.run.data.batch_size / stage.run.micro_batches
                assert rows % (chips // sizes["tensor"] // sizes["context"]) == 0, phase.name
        roles = {claim.key: set(claim.needs) for claim in CLAIMS}
        assert roles.keys() == ROLES.keys()
        for key, places in recipe.claims.items():
            assert set(places) == roles[key], key
    assert not is_recipe(ROOT / "configs/quickstart.yaml")


def run_folder(folder: Path, rows, **config) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"data": {"sequence_length": 128}, "steps": 9, "stages": [], **config})
    )
    for name in ("router", "history"):
        (folder / f"{name}.jsonl").write_text("")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def results(folder: Path, *rows) -> None:
    """Rows of (mode, budget, value, more)."""
    folder.mkdir(parents=True)
    written = [
        {
            "mode": mode, "thinking_budget": budget, "group": None, "value": value, "standard_error": 0.01, "halted": 0.0,
            "unparsable": 0.0, "thinking_tokens": 20.0, "answer_tokens": 2.0, "pass": {"1": value, "16": 0.9}, **more,
        }
        for mode, budget, value, more in rows
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"rows": written}))


def held_out(step: int, right: float) -> dict:
    return {
        "step": step, "held_out.sums.pass_rate": right, "held_out.sums.tokens": 10.0, "held_out.sums.sampled_tokens": 2000.0
    }  # fmt: skip


def rl_rows(values, entropy):
    rows = [held_out(10 * (number + 1), value) for number, value in enumerate(values)]
    rows += [{"step": step, "train.policy": 0.0, "train.entropy": entropy} for step in range(1, 31)]
    return sorted(rows, key=lambda row: row["step"])


def write_long_stage(folder: Path, values) -> None:
    rows = [{"step": 5, "train.cross_entropy": 2.0, "train.skipped": 0}]
    run_folder(folder / "run", rows)
    # Batches differ by much more than the stages do.
    lines = [
        {"step": 6 + i, "positions": name, "losses": [loss - 1, loss + 1], "tokens": [100.0, 100.0]}
        for i, value in enumerate(values)
        for name, loss in (("0-128", 2.0), ("128-256", value))
    ]
    (folder / "run" / "positions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_reasoning(folder: Path, values) -> None:
    run_folder(folder / "run", rl_rows(*values), rl={"eval_samples": 1})


def write_budget(folder: Path, values) -> None:
    rows = zip((0, 16, 32, None), values[0], strict=True)
    results(folder / "eval", *[("thinking", b, v, {"halted": 1.0, "unparsable": values[1]}) for b, v in rows])


def write_fusion(folder: Path, values) -> None:
    results(folder / "before", ("thinking", None, values[0], {}))
    direct = ("non-thinking", None, 0.1, {"thinking_tokens": 0.0})
    results(folder / "after", ("thinking", None, values[1], {}), direct)
    results(folder / "flags", ("thinking", None, values[2], {}))


def write_balance(folder: Path, values) -> None:
    for name, apart in zip(("global", "micro"), values, strict=True):
        rows = [{"step": 5, "train.cross_entropy": 2.0}, {"step": 5, "eval.a": 2.0, "eval.b": 3.0}]
        run_folder(folder / name, rows)
        loads = [[[1 + sign * apart, 1 - sign * apart]] * 2 for sign in (1, -1)]
        lines = [{"step": 5, "held_out": domain, "load": load} for domain, load in zip("ab", loads, strict=True)]
        (folder / name / "router.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_distillation(folder: Path, values) -> None:
    *values, rl_pass = values
    for name, value in zip(("off-policy eval", "on-policy eval", "rl eval"), (0.2, *values), strict=True):
        most = {"off-policy eval": 0.5, "rl eval": rl_pass}.get(name, 0.9)
        results(folder / name, ("thinking", None, value, {"pass": {"1": value, "16": most}, "questions": 100}))
    config = tiny_models.TINY.to_hf()
    (folder / "teacher").mkdir()
    (folder / "teacher/config.json").write_text(json.dumps(config))
    for name, answers, value in (("on-policy", 8, values[0]), ("rl", 256, values[1])):
        rows = [
            {"step": step, "train.policy": 0.0, "rl.tokens": 10.0, "rl.sampled_tokens": 10.0 * answers,
             "seconds_step": 1.0, "seconds_input": 1.0} for step in range(1, 11)
        ]  # fmt: skip
        run_folder(folder / name, [*rows, held_out(10, value)], rl={"eval_samples": 1})
        (folder / name / "architecture.json").write_text(json.dumps(config))
        (folder / name / "rollouts").mkdir()
        np.savez(folder / name / "rollouts/9.npz", prompt_lengths=np.full(4, 20))


def write_laws(folder: Path, values) -> None:
    (folder / "sweep").mkdir(parents=True)
    exponents = {n: {"value": v, "standard_error": 0.1} for n, v in zip("ND", values, strict=True)}
    cells = [{"parameters": 9, "tokens": t, "usable": True, "learning_rate": 0.1, "log_error": 0.1} for t in (1, 2)]
    text = json.dumps({"learning_rate": {"exponents": exponents}, "batch_tokens": None, "cells": cells})
    (folder / "sweep/result.json").write_text(text)


def write_mixture(folder: Path, values) -> None:
    (folder / "search").mkdir(parents=True)
    check = {"proposal": [1.0], "uniform": [1.1], "difference": sum(values) / 2, "interval": values}
    text = json.dumps({"verification": check, "rank_correlation": 0.9, "proxies": 24})
    (folder / "search/result.json").write_text(text)


def write_general(folder: Path, values) -> None:
    for name, value in zip(("flags before", "flags after"), values, strict=True):
        results(folder / name, ("thinking", None, value, {}))
    for name in ("sums before", "sums after"):
        results(folder / name, ("thinking", None, 0.9, {}))


WRITERS = {
    "long-stage": write_long_stage,
    "reasoning": write_reasoning,
    "budget": write_budget,
    "fusion": write_fusion,
    "balance": write_balance,
    "distillation": write_distillation,
    "laws": write_laws,
    "mixture": write_mixture,
    "general": write_general,
}


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("long-stage", (2.0, 1.5), (2.0, 2.5)),
        ("reasoning", ((0.1, 0.5, 0.9), 0.3), ((0.5, 0.5, 0.2), 0.3)),
        ("budget", ((0.1, 0.4, 0.7, 1.0), 0.0), ((0.1, 0.1, 0.1, 1.0), 0.5)),
        ("fusion", (0.9, 0.9, 0.95), (0.9, 0.5, 0.95)),
        ("general", (0.9, 0.99), (0.9, 0.8)),
        ("balance", (0.4, 0.05), (0.05, 0.4)),
        ("distillation", (0.95, 0.9, 0.55), (0.3, 0.9, 0.55)),
        ("distillation", (0.95, 0.9, 0.55), (0.95, 0.9, 0.9)),  # reinforcement learning raises pass@k too
        ("laws", (-0.3, 0.3), None),
        ("mixture", (-0.2, -0.1), (0.1, 0.2)),
    ],
)  # fmt: skip
def test_verdicts_follow_from_the_figures(key, good, bad, tmp_path):
    claim = next(one for one in CLAIMS if one.key == key)

    def build(folder: Path, values):
        WRITERS[key](folder, values)
        return {role: folder / role for role in claim.needs}

    bad, failing = ((0.1, 0.1), "open") if bad is None else (bad, "does not hold")
    for name, values, verdict in (("good", good, "holds"), ("bad", bad, failing)):
        found = claims.finding(claim, [build(tmp_path / name, values)])
        assert (found.verdict, found.seeds) == (verdict, 1), found.words
    both = claims.finding(claim, [{role: tmp_path / name / role for role in claim.needs} for name in ("good", "bad")])
    assert both.seeds == 2
    sweep = {role: tmp_path / "good" / role for role in claim.needs}  # one folder beside the recipes of two seeds
    assert claims.finding(claim, [sweep, {role: folder / ".." / role for role, folder in sweep.items()}]).seeds == 1
    nothing = claims.finding(claim, [{role: tmp_path / "none" / role for role in claim.needs}])
    assert (nothing.verdict, nothing.evidence) == ("not measured", None)


def test_curves_of_seeds_are_means_of_both_axes():
    def evidence(*curves):
        return Evidence({}, curves, ("x", "y"))

    flops, also, longer = (
        Curve("reward", x, [Measured(y) for y in values])
        for x, values in (([0, 2], [0.1, 0.5]), ([0, 4], [0.3, 0.9]), ([0, 2, 4], [0.0, 0.0, 0.0]))
    )
    joined = claims.joined([evidence(one) for one in (flops, also, longer)]).curves[0]
    assert list(joined.x) == [0, 3]
    assert [point.value for point in joined.y] == [pytest.approx(0.2), pytest.approx(0.7)]
    first, second = (
        Curve("", ["8", "none"], [Measured(0.1)] * 2),
        Curve("", ["8", "16"], [Measured(0.3)] * 2, joined=False),
    )
    assert [point.value for point in claims.joined([evidence(first), evidence(second)]).curves[0].y] == [0.1, 0.1]
    assert not claims.joined([evidence(second)]).curves[0].joined


def test_seeds_are_joined_with_the_larger_of_their_errors():
    assert mean_of([Measured(0.5, 0.1)]) == Measured(0.5, 0.1, 1)
    near, far = mean_of([Measured(0.5, 0.1), Measured(0.5, 0.1)]), mean_of([Measured(0.2, 0.01), Measured(0.8, 0.01)])
    assert (near.value, near.error, near.seeds) == (0.5, pytest.approx(0.1 / 2**0.5), 2)
    assert (far.value, far.error) == (0.5, pytest.approx(0.3))
    assert Measured(0.3, 0.1).is_above_0
    assert not Measured(0.2, 0.1).is_above_0
    assert Measured(-0.3, 0.1).is_below_0


def test_the_page_shows_every_claim_also_of_a_recipe_that_has_not_begun(tmp_path, capsys):
    file = simple(tmp_path, claims={"budget": {"eval": "{second}"}})
    recipe = read_recipe(file)
    assert main(["train", "--config", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(recipe.folder / "report.html")
    assert said[-1 - len(CLAIMS) : -1] == [f"not measured   {claim.title}" for claim in CLAIMS]
    results(tmp_path / "out/second/x", ("thinking", None, 0.5, {}))
    (tmp_path / "out/second/x/results.json").rename(tmp_path / "out/second/results.json")
    assert main(["report", str(recipe.folder)]) == 0
    page = (recipe.folder / "report.html").read_text()
    for claim in CLAIMS:
        assert html.escape(claim.title) in page
    assert page.count('class="verdict not-measured"') == len(CLAIMS)
    assert "fewer than three budgets" in summary(findings([recipe.folder]))["budget"]["words"]
    assert main(["report", str(recipe.folder), str(tmp_path)]) == 2
    assert "is not the folder of a recipe" in capsys.readouterr().err
