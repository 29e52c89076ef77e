"""Folders of recipes that are not as the recipe left them: gone, damaged, of another recipe, unfinished; and odd files."""

import dataclasses
import json
import shutil

import pytest
import yaml

from qwen3_jax.cli.main import main
from qwen3_jax.errors import UserError
from qwen3_jax.recipes import claims, runner
from qwen3_jax.recipes.claims import Curve, Evidence
from qwen3_jax.recipes.config import read_recipe
from qwen3_jax.recipes.evidence import Measured
from qwen3_jax.recipes.page import findings, summary
from qwen3_jax.recipes.report_claims import CLAIMS
from tests.recipes.test_recipes import WHOLE, WRITERS, files, simple, write


@pytest.fixture
def done(tmp_path):
    """A recipe all phases of which are done."""
    recipe = read_recipe(simple(tmp_path, claims={"budget": {"eval": "{second}"}}))
    runner.run(recipe, say=lambda _: None)
    return recipe


def nothing(_: str) -> None:
    pass


def test_a_phase_whose_folder_is_gone_is_no_phase_that_is_done(done, tmp_path):
    shutil.rmtree(done.folder / "first")
    assert next(row[1] for row in runner.table(done)) == "gone"
    with pytest.raises(UserError, match=r"phase 'first' is done, but .*first is gone; put it back, or --redo first"):
        runner.run(done, say=nothing)
    runner.run(done, ["third"], nothing)  # takes nothing from it
    runner.redo(done, "first", nothing)
    runner.run(done, say=nothing)
    assert files(tmp_path) == WHOLE


def test_nothing_is_deleted_that_no_phase_has_made(tmp_path):
    recipe = read_recipe(simple(tmp_path))
    precious = tmp_path / "out/second/precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    runner.redo(recipe, "second", nothing)
    with pytest.raises(UserError, match="second is there already, and phase 'second' has not begun; move it"):
        runner.run(recipe, say=nothing)
    assert files(tmp_path) == {"second/precious.txt": "mine"}  # not even the first phase has run
    assert not (tmp_path / "out/recipe.json").exists()


def test_redo_empties_a_folder_on_another_disk_and_keeps_the_link(done, tmp_path):
    disk = tmp_path / "disk"
    shutil.move(done.folder / "second", disk)
    (done.folder / "second").symlink_to(disk)
    runner.redo(done, "second", nothing)
    assert (done.folder / "second").is_symlink()
    assert not list(disk.iterdir())
    runner.run(done, say=nothing)
    assert (disk / "b.txt").read_text() == "one7"


def test_a_deletion_that_is_killed_leaves_no_phase_to_resume(done, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.redo(done, "first", nothing)
    monkeypatch.undo()
    with pytest.raises(UserError, match="--redo first"):
        runner.run(done, say=nothing)
    runner.redo(done, "first", nothing)
    runner.run(done, say=nothing)


def test_another_recipe_or_seed_leaves_a_folder_and_its_page_alone(done, tmp_path):
    said = (done.folder / "recipe.json").read_text()
    with pytest.raises(UserError, match="'second' was run from other settings"):
        runner.run(dataclasses.replace(done, seed=8), say=nothing)
    other = read_recipe(write(tmp_path, [{"name": "other", "run": "python -c pass"}]))
    with pytest.raises(UserError, match=r"holds phases of another recipe \(first, second, third\); choose another"):
        runner.run(other, say=nothing)
    assert (done.folder / "recipe.json").read_text() == said


@pytest.mark.parametrize("text", ['{"first": {"key": "x", "what": 1}}', '{"first": 3}', '{"first": {}}', "{"])
def test_a_damaged_record_of_phases_is_named(text, done, capsys):
    (done.folder / "phases.json").write_text(text)
    for words in (["train", "--config", str(done.file), "--list"], ["report", str(done.folder)]):
        assert main(words) == 2
        assert "phases.json is" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"about": "x"}', '{"about": "x", "phases": [], "claims": {"unknown": {}}}', "[]"])
def test_a_damaged_description_is_named(text, done, capsys):
    (done.folder / "recipe.json").write_text(text)
    assert main(["report", str(done.folder)]) == 2
    assert f"{done.folder / 'recipe.json'}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "{}", '{"rows": [{"mode": 1}]}', '{"rows": 3}'])
def test_a_damaged_result_is_no_evidence_and_the_page_says_which(text, done):
    (done.folder / "second/results.json").write_text(text)
    budget = summary(findings([done.folder]))["budget"]
    assert budget["verdict"] == "not measured"
    assert "second/results.json is" in budget["words"]


def test_damaged_rollouts_and_a_run_without_answers_are_no_evidence(tmp_path):
    claim = next(one for one in CLAIMS if one.key == "distillation")
    WRITERS["distillation"](tmp_path, (0.95, 0.9, 0.55))
    folders = {role: tmp_path / role for role in claim.needs}
    rollouts, metrics = folders["rl"] / "rollouts/9.npz", folders["rl"] / "metrics.jsonl"
    whole = rollouts.read_bytes(), metrics.read_text()
    for raw in (b"", b"text", whole[0][:-40]):
        rollouts.write_bytes(raw)
        assert f"{rollouts} is damaged" in claims.finding(claim, [folders]).words
    rollouts.write_bytes(whole[0])
    metrics.write_text(
        whole[1].replace('"step": 10, "held_out', '"step": 0, "held_out')
    )  # stopped after its first evaluation
    found = claims.finding(claim, [folders])
    assert found.verdict == "not measured"
    assert "has measured no held-out prompts after its first step" in found.words
    metrics.write_text(whole[1])
    (folders["rl"] / "config.json").write_text("{}")
    assert "config.json is damaged" in claims.finding(claim, [folders]).words


def test_phases_that_are_not_done_are_no_evidence(done):
    """Half a run of reinforcement learning would not have reached what the claim says of the whole."""
    WRITERS["budget"](done.folder / "second", ((0.1, 0.4, 0.7, 1.0), 0.0))
    shutil.move(done.folder / "second/eval/results.json", done.folder / "second/results.json")
    assert summary(findings([done.folder]))["budget"]["verdict"] == "holds"
    record = runner.Record(done.folder)
    record.states["second"].done = False
    record.write()
    budget = summary(findings([done.folder]))["budget"]
    assert budget["verdict"] == "not measured"
    assert budget["words"] == f"phase 'second' of {done.folder} is not done."


def test_seeds_are_different_folders_of_one_recipe(done, tmp_path, capsys):
    other = read_recipe(write(tmp_path, [{"name": "other", "run": "python -c pass"}]), str(tmp_path / "other"))
    runner.run(other, say=nothing)
    for folders, message in (
        ([done.folder, done.folder], "is given twice; a seed counts once"),
        ([done.folder, other.folder], "are of recipes with different phases"),
        ([tmp_path], "nor of a recipe, which has recipe.json"),
    ):
        assert main(["report", *map(str, folders)]) == 2
        assert message in capsys.readouterr().err


def test_curves_are_joined_by_their_labels():
    """Sweeps beside two seeds may have different sizes of models."""

    def evidence(*curves):
        return Evidence({}, [Curve(label, [1, 2], [Measured(y)] * 2) for label, y in curves], ("x", "y"))

    joined = claims.joined([evidence(("small", 0.1), ("large", 0.3)), evidence(("large", 0.5))])
    assert [(curve.label, round(curve.y[0].value, 3)) for curve in joined.curves] == [("small", 0.1), ("large", 0.4)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("[{name: a, run: python x, 3: 1}]", [], "unknown key 3"),
        ("[{name: a, run: python x}]\nphases: [{name: b, run: python x}]", [], "the key 'phases' stands twice"),
        ("[{name: a-b, run: python x}, {name: c, run: 'python {a_b}'}]", [], "takes {a_b}, and no earlier phase has that"),
        ("[{name: a, train: configs/recipe/laptop.yaml}]", [], "laptop.yaml is a recipe; train must be the configuration"),
        ("[{name: a, train: README.md}]", [], "README.md"),
        ("[{name: a, run: python x}]", ["--plan", "v5p:2x2x1"], "--plan compiles training phases, and"),
        ("[{name: a, run: python x}, {name: b, train: {}}]", ["--plan", "v5p:2x2x1", "--phase", "a"], "'a' runs commands"),
        ("[{name: a, run: python x}]", ["--folder", "README.md"], "README.md cannot be the folder of a recipe"),
    ],
)  # fmt: skip
def test_odd_files_and_options_are_refused_with_a_sentence(text, options, message, tmp_path, capfd):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"folder: {tmp_path / 'out'}\nphases: {text}\n")
    assert main(["train", "--config", str(file), *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_settings_may_be_dates_and_stages_are_those_that_are_planned(tmp_path):
    train = {"stages": [{"name": "one", "steps": 1}], 3: 1}
    phases = [
        {"name": "a", "train": train, "set": {"stages": [{"name": "two", "steps": 1}]}},
        {"name": "b", "train": train, "set": {"x": yaml.safe_load("2026-01-02")}},
    ]
    recipe = read_recipe(write(tmp_path, phases))
    first, second = recipe.phases
    assert (recipe.stages(first), recipe.stages(second)) == (["two"], ["one"])
    unnamed = read_recipe(write(tmp_path, [{"name": "a", "train": {"stages": [{"steps": 3}]}}]))
    assert unnamed.stages(unnamed.phases[0]) == []  # the configuration is refused as a whole
    assert '--x="2026-01-02"' in recipe.commands(second)[0]
    assert recipe.key(first) != recipe.key(second)


def test_keys_of_phases_that_take_from_many_are_computed_once(tmp_path):
    phases = [{"name": "p0", "run": "python x"}, {"name": "p1", "run": "python {p0}"}]
    phases += [{"name": f"p{i}", "run": f"python {{p{i - 1}}} {{p{i - 2}}}"} for i in range(2, 60)]
    recipe = read_recipe(write(tmp_path, phases))
    assert len(json.dumps([recipe.key(phase) for phase in recipe.phases])) > 60
