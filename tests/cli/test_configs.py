"""Configurations and examples that come with the package, found from a folder that has neither."""

import shutil
from pathlib import Path

import pytest

from qwen3_jax import shipped
from qwen3_jax.cli import main as qwen3
from qwen3_jax.cli import recipe as recipe_command
from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.errors import UserError
from qwen3_jax.recipes.config import read_recipe
from qwen3_jax.shipped import configuration_file, configuration_names, shipped_file, shipped_word
from tests.helpers.repository_url import ROOT


@pytest.fixture(params=["wheel", "checkout"])
def place(request, tmp_path, monkeypatch):
    """Where the files lie; the current folder is an empty one."""
    root = ROOT
    if request.param == "wheel":
        root = tmp_path / "site-packages/qwen3_jax/shipped"
        for name in shipped.FOLDERS:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(shipped, "_PACKAGE", root.parent)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return root


def test_a_configuration_is_found_by_its_path_and_name_and_a_users_own_comes_first(place, tmp_path):
    quickstart = place / "configs/quickstart.yaml"
    assert configuration_file("configs/quickstart.yaml") == configuration_file("quickstart") == quickstart
    assert configuration_file("posttrain/lora") == place / "configs/posttrain/lora.yaml"
    assert configuration_names() == sorted(
        file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in ROOT.glob("configs/**/*.yaml")
    )
    assert shipped_file("examples/queries.py") == place / "examples/queries.py"
    for name in (
        "setup.py",
        "notebooks/install.py",
        "qwen3_jax/paths.py",
    ):  # of the checkout or the package, but no user's
        assert shipped_file(name) == Path(name)
    words = ["examples/none.py", "examples/../setup.py", "http://host//x", "--output", "configs.yaml", "a // b"]
    assert [shipped_word(word) for word in words] == words
    assert parse_config(["--config=quickstart", "--steps=70"]).steps == 70
    own = tmp_path / "empty/configs/quickstart.yaml"
    own.parent.mkdir()
    own.write_text((ROOT / "configs/quickstart.yaml").read_text("utf-8").replace("steps: 1300", "steps: 60"))
    assert parse_config(["--config", "configs/quickstart.yaml"]).steps == 60
    for name, said in [
        ("quickstat", r"'quickstat' does not exist\. Did you mean 'quickstart'\? `qwen3 configs` lists"),
        ("configs/posttrain/lara.yaml", "Did you mean 'posttrain/lora'"),
        ("/none.yaml", "'/none.yaml' does not exist"),
    ]:
        with pytest.raises(UserError, match=said):
            configuration_file(name)


def test_a_recipe_finds_the_configurations_and_examples_that_it_names(place):
    file = recipe_command.file_of(["--config", "configs/recipe/laptop.yaml"])
    assert file == place / "configs/recipe/laptop.yaml"
    assert recipe_command.file_of(["--config=quickstart"]) is recipe_command.file_of(["--config=none"]) is None
    recipe = read_recipe(file)
    (words,) = recipe.commands(recipe.phase("corpus"))
    assert words[:2] == ["python", str(place / "examples/collect_corpus.py")]
    named = [
        phase for phase in read_recipe(configuration_file("recipe/qwen3-8b")).phases if isinstance(phase.train, str)
    ]
    assert len(named) >= 6, "their configurations exist, or the recipe is refused"


def test_the_command_lists_prints_and_copies_them_and_overwrites_nothing(place, tmp_path, capsys):
    assert qwen3.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == configuration_names()
    assert "A small Qwen3, trained on this machine" in next(line for line in lines if line.startswith("quickstart"))
    assert qwen3.main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/quickstart.yaml").read_text("utf-8")

    assert qwen3.main(["configs", "--copy", "work"]) == 0
    work = tmp_path / "empty/work"
    copied = sorted(str(file.relative_to(work)) for file in work.rglob("*") if file.is_file())
    expected = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("examples/*.py"), *ROOT.glob("examples/*.yaml")]
    assert copied == sorted(str(file.relative_to(ROOT)) for file in expected)
    assert qwen3.main(["configs", "--copy", "work"]) == 0, "the same again"
    changed = work / "configs/quickstart.yaml"
    changed.write_text("steps: 1\n")
    (work / "examples/queries.py").unlink()
    capsys.readouterr()
    assert qwen3.main(["configs", "--copy", "work"]) == 2
    assert "work/configs/quickstart.yaml is there and differs" in capsys.readouterr().err
    assert changed.read_text() == "steps: 1\n"
    assert not (work / "examples/queries.py").exists(), "nothing is written"
    assert qwen3.main(["configs", "quickstart", "--copy", "work"]) == 2
