"""README and docs state only what runs: Python blocks are executed, commands are run or parsed, CI uses the same lines."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import qwen3_jax
from qwen3_jax.cli import convert, infer, plan, quantize, serve, train
from qwen3_jax.cli import main as qwen3
from qwen3_jax.cli.typed import parse_into
from qwen3_jax.sweeps import MixtureConfig, ScalingConfig
from tests.helpers import tiny_models

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
NEED_A_SERVER = ("serving.md", "agents.md")  # tests/serving runs their Python


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder in which the quickstart has run, as far as the README's examples can tell."""
    folder = tmp_path_factory.mktemp("checkout")
    qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), folder / "runs/quickstart/hf")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "corpus/a").mkdir(parents=True)
    (folder / "corpus/a/b.txt").write_text((ROOT / "README.md").read_text() * 3)
    record = json.dumps({"text": (ROOT / "docs/log.md").read_text(), "domain": "docs", "language": "en"})
    (folder / "corpus/docs-000.jsonl").write_text(f"{record}\n")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NEED_A_SERVER], ids=lambda page: page.name)
def test_python_blocks_run_top_to_bottom(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    source = "\n".join(blocks(page, "python"))
    exec(compile(source, f"<python blocks of {page.name}>", "exec"), {})


def test_the_two_commands_are_what_ci_runs():
    script = (ROOT / ".ci/run").read_text()
    first, second = (block.strip().splitlines() for block in blocks(ROOT / "README.md", "bash")[:2])
    assert first == ["pip install -e .", "python train.py --config configs/quickstart.yaml"]
    assert second == ['pip install -e ".[test]"', "python -m pytest"]
    for line in first + second:
        assert line.replace("pip install", "pip install -q") in script


def test_every_command_line_in_the_docs_is_accepted(checkout, monkeypatch, capsys):
    """infer.py lines run, on a tiny model in the place of each model named; train.py lines are parsed; qwen3 lines run."""
    monkeypatch.chdir(checkout)
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[:2] == ["python", "infer.py"]:
            if "--help" in words or "--chat" in words:
                continue
            if "--plan" in words:  # tests/cli runs it
                assert infer._parser("infer.py").parse_args(words[2:]).plan
                continue
            place = words.index("--model") + 1
            words[place] = "runs/quickstart/hf"
            if "--mesh" in words:
                words[words.index("--mesh") + 1] = "tensor=2"  # the tiny model has two key/value heads
            assert infer.main([*words[2:], "--max-new-tokens", "400"], "infer.py") == 0, (line, capsys.readouterr().err)
        elif words[:2] == ["python", "train.py"]:
            if "--help" not in words:
                assert train.parse(plan.take(words[2:], "train.py")[1]).total_steps > 0
        elif words[:2] == ["qwen3", "plan"]:
            options, rest = plan.take(words[2:], "qwen3 plan", "topology")
            assert options is not None
            assert train.parse(rest).total_steps > 0
        elif words[:3] == ["qwen3", "tokenizer", "train"]:
            words[words.index("--vocab-size") + 1] = "400"
            shutil.rmtree(checkout / "tokenizer", ignore_errors=True)  # each page makes it in its own way
            assert qwen3(words[1:]) == 0, capsys.readouterr().err
            assert (checkout / "tokenizer/tokenizer.json").exists()
        elif words[:2] in (["qwen3", "scaling"], ["qwen3", "mixture"]):  # tests/sweeps run them
            kind = ScalingConfig if words[1] == "scaling" else MixtureConfig
            config = parse_into(kind, words[3:], " ".join(words[:3]), "")
            if config.train is not None:
                train.parse(["--config", config.train])
        elif words[:2] == ["qwen3", "data"]:
            if words[2] == "prepare":
                shutil.rmtree(checkout / "prepared", ignore_errors=True)
            assert qwen3(words[1:]) == 0, capsys.readouterr().err
        elif words[:2] == ["qwen3", "report"]:  # tests/training draw one
            assert len(words) == 3
        elif words[0] == "python" and words[1].startswith(("examples/", "benchmarks/")):
            assert (ROOT / words[1]).exists()
        elif words[0] == "tests/pythons.sh":  # .ci/run does
            assert os.access(ROOT / words[0], os.X_OK)
        elif words[:2] == ["qwen3", "quantize"]:  # tests/cli runs it
            assert quantize.parser("qwen3 quantize").parse_args(words[2:]).out
        elif words[:2] == ["qwen3", "serve"]:  # tests/serving starts one
            assert serve._parser("qwen3 serve").parse_args(words[2:]).model
        elif words[:2] == ["qwen3", "run"]:
            assert qwen3(["run", "runs/quickstart/hf", *words[3:], "--max-new-tokens", "40"]) == 0
        elif words[:2] == ["qwen3", "convert"]:
            convert._parser("qwen3 convert").parse_args(words[2:])  # tests/cli runs it on what it names
        else:
            assert words[:3] == ["pip", "install", "-e"] or words[:3] == ["python", "-m", "pytest"], line
        ran.append(words[1] if words[0] == "python" else words[0])
    assert ran.count("infer.py") >= 3
    assert ran.count("train.py") >= 2
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
