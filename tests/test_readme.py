"""Documentation states only what runs: Python blocks are executed, commands are run, and CI uses the same lines.

Commands run in this process on a tiny model and a tiny run in the place of those named. What takes minutes is stopped where its
work would begin, and another test does that work: see `RUN_ELSEWHERE`.
"""

import argparse
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import qwen3_jax
import sharding
from qwen3_jax import endpoints, evaluation, planner, posttraining, sandbox, verifiers
from qwen3_jax.cli import data_factory, infer, recipe, scaling, serve, train
from qwen3_jax.cli.configuration import parse_configuration
from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.cli.train_options import parse_config, parse_plan, parse_train
from qwen3_jax.data import extraction, factory
from qwen3_jax.sweeps import MixtureConfig
from tests.helpers import adapters, documented, tiny_models, typeset
from tests.helpers.documented import PAGES, ROOT, blocks
from tests.helpers.isolated import require_isolation

PUBLIC = [  # documented on pages of docs/api
    qwen3_jax, sharding, planner, evaluation, posttraining, verifiers, sandbox, endpoints, factory, extraction,
]  # fmt: skip
NEED_A_SERVER = {
    "serving.md": "tests/serving/test_docs.py",
    "agents.md": "tests/serving/test_agents.py",
    "embeddings.md": "tests/serving/test_embeddings.py",
}  # run their Python
RUN_ELSEWHERE = {  # command -> the test that runs it to its end
    "infer.py --chat": "tests/cli/test_chat.py",
    "infer.py --plan": "tests/cli/test_plan.py::test_decoding_is_planned_from_a_config_json",
    "plan": "tests/planner/test_training_step.py::test_a_plan_needs_only_the_configuration",
    "serve": "tests/serving/test_worker.py",
    "scaling": "tests/sweeps/test_sweeps.py::test_a_sweep_is_resumed_fitted_and_read_by_train",
    "mixture": "tests/sweeps/test_sweeps.py::test_a_search_proposes_verifies_and_is_read_by_train",
    "examples": "tests/test_examples.py",
    "data generate": "tests/data/factory/test_generate.py",
    "data filter": "tests/data/factory/test_filter.py",
    "data fuse": "tests/data/test_fusion.py",
    "data synthesize": "tests/data/factory/test_recipes.py",
    "agent_tools.py": "tests/serving/test_agents.py",
}
TINY_RUN = [  # over configs/quickstart.yaml
    "--steps=2", "--log_every=1", "--eval_every=0", "--checkpoint_every=1", "--tokenizer.path=tokenizer", "--budget_curve=null",
    '--data.sources=[{"name": "text", "path": "corpus/a", "eval_fraction": 0.0}]', "--data.sequence_length=32", "--mesh.data=1",
    "--optimizer.warmup_steps=1", "--model.config.num_hidden_layers=1", "--model.config.hidden_size=32",
]  # fmt: skip


COMMANDS = documented.commands()


def _by_tier(pages):
    """README.md in the default tier, the other pages in CI."""
    names = {getattr(page, "name", page): page for page in pages}
    return [
        pytest.param(page, id=name, marks=[] if name == "README.md" else pytest.mark.slow)
        for name, page in names.items()
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder in which the quickstart has run, as far as the examples can tell: two steps, and a model that likes to think."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "examples", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "corpus/a").mkdir(parents=True)
    (folder / "corpus/a/b.txt").write_text((ROOT / "README.md").read_text() * 3)
    record = json.dumps({"text": (ROOT / "docs/log.md").read_text(), "domain": "docs", "language": "en"})
    (folder / "corpus/docs-000.jsonl").write_text(f"{record}\n")
    chat = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    (folder / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    answers = [{"role": "assistant", "content": text} for text in ("4", "5")]
    pair = {"prompt": chat["messages"][:1], "chosen": answers[:1], "rejected": answers[1:]}
    (folder / "posttrain").mkdir()
    for name, record in (("preferences", pair), ("posttrain/preferences", pair), ("posttrain/chats", chat)):
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    asked = {"messages": [{"role": "user", "content": "2 + 2? /no_think"}], "thinks": False}
    (folder / "flags.jsonl").write_text(json.dumps(asked) + "\n")
    (folder / "papers").mkdir()
    typeset.two_columns(folder / "papers/a.pdf")
    tiny_models.tokenizer().save_pretrained(folder / "tokenizer")
    before = Path.cwd()
    os.chdir(folder)
    try:
        (line,) = [line for line in blocks(ROOT / "README.md", "bash")[0].splitlines() if "train.py" in line]
        assert train.main([*shlex.split(line)[2:], *TINY_RUN], "train.py") == 0
    finally:
        os.chdir(before)
    base = qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), folder / "runs/quickstart/hf", overwrite=True)
    settings = qwen3_jax.AdapterConfig(target_modules=("q_proj",), base=str(base))
    adapters.saved(tiny_models.model(), settings, folder / "runs/lora/adapter")
    return folder


@pytest.mark.parametrize("page", _by_tier(page for page in PAGES if blocks(page, "python")))
def test_python_blocks_run_top_to_bottom(page, checkout, monkeypatch):
    if page.name in NEED_A_SERVER:
        assert page.name in (ROOT / NEED_A_SERVER[page.name]).read_text()
        return
    monkeypatch.chdir(checkout)
    source = "\n".join(blocks(page, "python"))
    if page.name == "verifiers.md":
        require_isolation()
    if "import transformers" in source or "from transformers" in source:
        pytest.importorskip("torch")
    exec(compile(source, f"<python blocks of {page.name}>", "exec"), {})


def test_the_two_commands_are_what_ci_runs():
    script = (ROOT / ".ci/run").read_text()
    first, second = (block.strip().splitlines() for block in blocks(ROOT / "README.md", "bash")[:2])
    assert first == ["pip install -e .", "python train.py --config configs/quickstart.yaml"]
    assert second == ['pip install -e ".[test]"', "python -m pytest"]
    for line in first + second:
        assert line.replace("pip install", "pip install -q --no-compile") in script
    assert "run: .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_what_runs_elsewhere_is_there():
    for place in RUN_ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / path).read_text(), place


def test_enough_commands_are_documented():
    lines = [words for page in COMMANDS.values() for words in page]
    kinds = [Path(words[1]).name if words[0] == "python" else words[-1 if len(words) == 1 else 1] for words in lines]
    assert kinds.count("infer.py") >= 8
    assert kinds.count("train.py") >= 15
    assert {"plan", "serve", "scaling", "mixture", "convert", "quantize", "report", "data", "tokenizer", "run"} <= set(
        kinds
    )


@pytest.mark.parametrize("page", _by_tier(COMMANDS))
def test_the_commands_of_a_page_run(page, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    for words in COMMANDS[page]:
        try:
            with monkeypatch.context() as patch:
                _run(words, checkout, patch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{shlex.join(words)}\n{capsys.readouterr().err}") from error
        capsys.readouterr()


def _run(words, checkout, monkeypatch):
    if words[0] == "tests/pythons.sh":  # .ci/run does
        assert os.access(ROOT / words[0], os.X_OK)
    elif words[:3] in (["pip", "install", "-e"], ["python", "-m", "pytest"]) or words[0] == "mkdocs":
        _check_environment_command(words)
    elif words[0] == "python":
        script, arguments = (words[1:3], words[3:]) if words[1] == "-m" else (words[1:2], words[2:])
        {"train.py": _train, "infer.py": _infer}.get(script[-1], _script)(script, arguments, monkeypatch)
    else:
        assert words[0] == "qwen3"
        if words[1:] == ["--version"]:
            assert qwen3(words[1:]) == 0
            return
        _qwen3(words[1], words[2:], checkout, monkeypatch)


def _check_environment_command(words):
    if words[0] == "mkdocs":
        assert words[1] in ("build", "serve")
    elif words[0] == "pip":
        declared = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"[\w-]+", words[3].partition("[")[2]):
            assert re.search(rf"^{extra} = \[", declared, flags=re.MULTILINE), extra
    else:
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))


def _train(script, arguments, monkeypatch):
    if recipe.file_of(arguments) is not None:
        _recipe(arguments, monkeypatch)
        return
    if "--plan" in arguments:
        command = parse_train(arguments, "train.py")
        assert command.plan is not None
        assert command.config.total_steps > 0
        return
    given = []
    monkeypatch.setattr("qwen3_jax.posttraining.reinforcement.train", lambda config, **_: given.append(config))
    monkeypatch.setattr("sharding.initialize", lambda **_: None)
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            train.main(arguments, "train.py")
    else:
        assert train.main(arguments, "train.py") == 0
        assert given[0].total_steps > 0


def _recipe(arguments, monkeypatch):
    """Phases are not run: their first commands, the training configurations, are tests of tests/recipes."""
    called = []
    monkeypatch.setattr("qwen3_jax.recipes.runner.run", lambda recipe, *_, **__: called.append(recipe))
    monkeypatch.setattr("qwen3_jax.cli.recipe._report", called.append)
    monkeypatch.setattr("subprocess.call", lambda words: called.append(words) or 0)
    assert recipe.main(arguments, "train.py") == 0
    assert called or "--list" in arguments


def _infer(script, arguments, monkeypatch):
    if "--plan" in arguments or "--chat" in arguments:
        assert infer._parser("infer.py").parse_args(arguments)
    elif "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            infer.main(arguments, "infer.py")
    else:
        arguments[arguments.index("--model") + 1] = "runs/quickstart/hf"
        if "--mesh" in arguments:
            arguments[arguments.index("--mesh") + 1] = "tensor=2"  # the tiny model has two key/value heads
        budget = arguments[arguments.index("--thinking-budget") + 1] if "--thinking-budget" in arguments else 0
        assert infer.main([*arguments, "--max-new-tokens", str(int(budget) + 80)], "infer.py") == 0


def _script(script, arguments, monkeypatch):
    """A benchmark or example is stopped when its own parser has accepted the options."""
    path = ROOT / (f"{script[1].replace('.', '/')}.py" if script[0] == "-m" else script[0])
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", _parse_and_stop)
    with pytest.raises(_Parsed):
        runpy.run_path(str(path), run_name="__main__")


class _Parsed(Exception):
    """The command line was accepted."""


def _parse_and_stop(self, args=None, namespace=None):
    _, unknown = self.parse_known_args(args, namespace)
    assert not unknown
    raise _Parsed


def _replaced(words, flag, value):
    place = words.index(flag) + 1
    return [*words[:place], value, *words[place + 1 :]]


def _qwen3(command, rest, checkout, monkeypatch):
    if command == "plan":
        assert parse_plan(rest, "qwen3 plan")[0].total_steps > 0
    elif command == "serve":
        if "--help" not in rest:
            assert serve._parser("qwen3 serve").parse_args(rest).model
    elif command in ("scaling", "mixture"):
        if command == "scaling":
            config, _ = scaling.parse_fit(rest[1:])
        else:
            config = parse_configuration(MixtureConfig, rest[1:], "qwen3 mixture search", "")
        assert config.train is None or parse_config(["--config", config.train])
    elif command == "tokenizer":
        output = rest[rest.index("--output") + 1]
        shutil.rmtree(output, ignore_errors=True)  # each page makes it in its own way
        assert qwen3([command, *_replaced(rest, "--vocab-size", "400")]) == 0
        assert (checkout / output / "tokenizer.json").exists()
    elif command == "data" and rest[0] in data_factory.COMMANDS.keys() - {"recipes"}:
        monkeypatch.setattr("qwen3_jax.cli.data.guarded", lambda prog, work: 0)  # the options are accepted
        assert qwen3([command, *rest]) == 0
    elif command == "data" and rest[0] == "recipes":
        assert qwen3([command, *rest]) == 0
    elif command == "data":
        if rest[0] in ("prepare", "extract"):
            shutil.rmtree(checkout / "prepared", ignore_errors=True)
        elif not Path(rest[1]).exists():
            assert qwen3(["data", "prepare", "--path", "corpus", "--tokenizer", "tokenizer", "--output", rest[1]]) == 0
        assert qwen3([command, *rest]) == 0
    elif command == "configs":
        assert qwen3([command, *rest]) == 0
        assert "--copy" not in rest or (checkout / rest[1] / "configs/quickstart.yaml").exists()
    elif command == "report":
        assert qwen3([command, "runs/quickstart"]) == 0
        assert Path("runs/quickstart/report.html").exists()
    elif command == "eval":
        _eval(rest)
    elif command == "run":
        assert qwen3([command, "runs/quickstart/hf", *rest[1:], "--max-new-tokens", "40"]) == 0
    elif command == "quantize":
        rest = [*_replaced(["MODEL", *rest[1:]], "--out", "quantized"), "--length", "40"]
        if rest[rest.index("--to") + 1] == "int4":
            rest = [*rest, "--group-size", "16"]  # widths of the tiny model are multiples of 16
        shutil.rmtree("quantized", ignore_errors=True)
        assert qwen3([command, "runs/quickstart/hf", *rest[1:]]) == 0
        assert Path("quantized/config.json").exists()
    else:
        assert command == "convert"
        rest = _replaced(rest, "--step", "1") if "--step" in rest else rest
        model = "runs/quickstart/hf" if "/" in rest[0] and rest[0].startswith("Qwen") else rest[0]
        shutil.rmtree("converted", ignore_errors=True)
        assert qwen3([command, model, "converted", *rest[2:]]) == 0
        assert any(Path("converted").iterdir())


def _eval(rest):
    """On two problems; what compares or draws a run makes it first."""
    if rest[0] in ("compare", "report"):
        for folder in rest[1:]:
            if not Path(folder).exists():
                _eval(["--model", "runs/quickstart/hf", "--task", "running_sum", "--output", folder])
    elif rest[0] != "tasks":
        if "--output" in rest:
            shutil.rmtree(rest[rest.index("--output") + 1], ignore_errors=True)
        if "runs/fusion-laptop/hf" in rest:
            rest = _replaced(rest, "--model", "runs/quickstart/hf")
        rest = [*rest, "--limit", "2"]
    assert qwen3(["eval", *rest]) == 0


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in documented.links(page):
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in documented.anchors(path), f"{page.name}: {link}"


def test_every_page_begins_with_its_title():
    for page in PAGES:
        assert re.match(r"# \w.*\n\n", page.read_text("utf-8")), page


def test_every_page_is_in_the_site_s_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in ROOT.glob("docs/**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation, page


def test_files_that_pages_name_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:qwen3_jax|sharding|tests|configs|examples|benchmarks|docs)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("name", [module.__name__ for module in PUBLIC])
def test_the_api_reference_has_every_public_name(name):
    page = (ROOT / f"docs/api/{name.rpartition('.')[2]}.md").read_text()
    names = re.findall(rf"^::: {re.escape(name)}\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(importlib.import_module(name).__all__)


def test_entries_of_the_log_have_one_form():
    entries = (ROOT / "docs/log.md").read_text().split("\n## ")[1:]
    assert len(entries) > 30
    dates = []
    for entry in entries:
        form = r".+\n\n(\d{4}-\d\d-\d\d), commit [0-9a-f]{7}[^\n]*\n"
        form += "".join(rf"\n- \*\*{field}:\*\* [^\n]+(?:\n  [^\n]+)*" for field in ("Tried", "Figure", "Verdict"))
        match = re.fullmatch(form, entry.strip())
        assert match, entry.splitlines()[0]
        dates.append(match[1])
    assert dates == sorted(dates)


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_docstrings_of_public_names_can_be_rendered(package):
    """One attribute per line, because two with a comma become a name and a type; tags in backticks, because HTML hides them."""
    for name in package.__all__:
        public = getattr(package, name)
        members = inspect.getmembers(public, inspect.isroutine) if inspect.isclass(public) else []
        for member, value in [(name, public), *((n, v) for n, v in members if n in vars(public) and n[0] != "_")]:
            text = value.__doc__ or ""
            assert not re.search(r"^\s+\w+, \w+: ", text, flags=re.MULTILINE), f"{name}.{member}"
            assert not re.search(r"<[a-z/|]", re.sub(r"`[^`]*`", "", text)), f"{name}.{member}"
