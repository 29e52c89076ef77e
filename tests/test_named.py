"""What help, messages and pages tell a user to type exists: options, keys of configurations, extras, files, variables."""

import argparse
import ast
import contextlib
import dataclasses
import re
import tomllib
import typing

import pytest

from qwen3_jax.cli import data_factory
from qwen3_jax.cli.configuration import check_option
from qwen3_jax.cli.main import COMMANDS
from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.errors import UserError
from qwen3_jax.sweeps.config import MixtureConfig, ScalingConfig
from qwen3_jax.training.config import TrainConfig
from tests.helpers.documented import CONFIGS, PAGES, ROOT

HELP = [["data", name] for name in ("prepare", "show", "extract", *data_factory.COMMANDS)]
HELP += [["scaling", "fit"], ["mixture", "search"]]
HELP += [
    [name] for name in COMMANDS if name not in ("data", "scaling", "mixture", "run")
]  # `run` takes those of `infer`
SCRIPTS = [path for folder in ("examples", "benchmarks", "tests") for path in sorted((ROOT / folder).glob("**/*.py"))]
KINDS = (TrainConfig, ScalingConfig, MixtureConfig)
# Options of other programs, by who has them.
FOREIGN = set(
    re.findall(
        r"\S+",
        """
    --kl-divergence --accelerator-type --add-host --allow-private-ips --build-arg --privileged --net --gpus --spot
    --help --version --no-deps --wheel-dir
    --merge --outtype --jinja --kill-on-bad-exit --addons --user
    --reasoning-parser --enable-auto-tool-choice --tool-call-parser --model-path --outfile --hf-path --mlx-path
    --runner --direct_num_workers --flink_master --index-url --strict --logdir
    --model_args --gen_kwargs --batch_size --device --use_cache --cache_requests --apply_chat_template --system_instruction
    --fewshot_as_multiturn --repo-type --include --local-dir --word-diff
    """,
    )
)

ELSEWHERE = {"docs/gguf.md"}  # of ggml
COMMANDS_OF_OTHERS = ROOT / "qwen3_jax/sandbox/commands.py"  # bubblewrap's, prlimit's, unshare's


class _Help(argparse.Action):
    """Records the parser whose help was asked for."""

    asked: typing.ClassVar[list[argparse.ArgumentParser]] = []

    def __call__(self, parser, *_):
        self.asked.append(parser)
        raise SystemExit(0)


@pytest.fixture(scope="module")
def parsers():
    """The parser of every command, by its words."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse._HelpAction, "__call__", _Help.__call__.__get__(_Help([], "")))
        for words in HELP:
            with pytest.raises(SystemExit, match="0"):
                qwen3([*words, "--help"])
            found[" ".join(words)] = _Help.asked.pop()
    return found


def test_every_option_of_every_command_has_a_description(parsers):
    for command, parser in parsers.items():
        for action in parser._actions:
            assert action.help, f"{command}: {action.option_strings or action.dest}"


def test_every_option_of_every_script_has_a_description():
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                place = f"{script.relative_to(ROOT)}:{node.lineno}"
                assert "help" in {keyword.arg for keyword in node.keywords}, place


def messages() -> list[tuple[str, str]]:
    """The string literals of the package, with where they stand; of docstrings those of modules, which `--help` shows."""
    texts = []
    for path in [*ROOT.glob("qwen3_jax/**/*.py"), *ROOT.glob("sharding/*.py"), ROOT / "train.py", ROOT / "infer.py"]:
        if path == COMMANDS_OF_OTHERS:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        inner = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
        ]
        documentation = {id(node.body[0].value) for node in inner}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                texts.append((f"{path.relative_to(ROOT)}:{node.lineno}", node.value))
    return texts


def prose() -> list[tuple[str, str]]:
    """Inline code of pages and the comments of configurations. Blocks of commands are run by test_readme.py."""
    texts = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        texts += [(page.name, code) for code in re.findall(r"`([^`]+)`", text)]
    for config in CONFIGS:
        texts.append((config.name, "\n".join(re.findall(r"# .*", config.read_text("utf-8")))))
    return texts


def test_options_that_are_named_exist(parsers):
    wrong = []
    known = {option for parser in parsers.values() for option in parser._option_string_actions} | FOREIGN
    for path in (*SCRIPTS, ROOT / "qwen3_jax/cli/recipe.py"):  # `train` of a file with phases has options of its own
        known |= set(re.findall(r"\"(--[a-z][\w-]*)\"", path.read_text("utf-8")))
    for where, text in [*messages(), *prose()]:
        for option in re.findall(r"(?<![\w/.-])--[a-z][\w.-]*+(?!:)", text.replace("var(--", "")):
            option = option.rstrip(".-_")
            if not (option in known or option.startswith("--xla_") or _is_dotted_key(option[2:])):
                wrong.append(f"{where}: {option}")
    assert wrong == []


def test_keys_that_are_named_exist():
    sections = {name for kind in KINDS for name, hint in typing.get_type_hints(kind).items() if _nested(hint)}
    # Not files, tensors and fields of GGUF.
    others = r"(?!safetensors|layers|embed_tokens|norm|gguf|ggml|py\b|json|png|model\b)"
    named = re.compile(rf"(?<![\w./-])((?:{'|'.join(sorted(sections))})\.{others}[a-z_]+(?:\.[a-z_]+)*)\b(?![(/])")
    checked, wrong = 0, []
    texts = [(where, text) for where, text in messages() if " " in text and "\n" not in text] + prose()
    for where, text in texts:
        for key in named.findall(text):
            checked += 1
            if not _is_dotted_key(key):
                wrong.append(f"{where}: {key}")
    assert wrong == []
    assert checked > 40


def _nested(hint) -> bool:
    return dataclasses.is_dataclass(hint) or any(dataclasses.is_dataclass(inner) for inner in typing.get_args(hint))


def _is_dotted_key(key: str) -> bool:
    for kind in KINDS:
        with contextlib.suppress(UserError):
            check_option(kind, key.split("."), "")
            return "." in key
    return False


def everything() -> list[tuple[str, str]]:
    """All that a user reads, in whole."""
    patterns = ("notebooks/*", "deploy/*", "examples/*.py", "configs/**/*.yaml", "qwen3_jax/**/*.py", "*.py")
    paths = [*PAGES, *(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())]
    return [(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def test_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = 0
    for where, text in everything():
        in_brackets = re.findall(r"(?:qwen3-jax|pip install -e \W{0,2}\.|\'\.)\[([a-z,_-]+)", text)
        in_words = re.findall(r"\(extras? `?([a-z]+)`?(?:, `([a-z]+)`)*\)", text)
        for extra in [*",".join(in_brackets).split(","), *(name for names in in_words for name in names)]:
            if extra:
                named += 1
                assert extra in project["optional-dependencies"], f"{where}: {extra}"
    assert named > 25
    table = (ROOT / "docs/start.md").read_text("utf-8")
    missing = [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in table]
    assert missing == ["test-without-torch", "mutation"], "docs/start.md lists the others"


def test_files_that_are_named_exist():
    folders = "configs|docs|examples|deploy|notebooks|tests|benchmarks"
    for where, text in everything():
        for name in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./*-]*[\w*])", text):
            assert any(ROOT.glob(name)) or where.startswith("CHANGELOG") or name in ELSEWHERE, f"{where}: {name}"


def test_commands_and_variables_that_are_named_exist():
    sources = "\n".join(path.read_text("utf-8") for path in [*ROOT.glob("qwen3_jax/**/*.py"), *SCRIPTS])
    sources += "\n".join(path.read_text("utf-8") for path in ROOT.glob("notebooks/*.ipynb"))
    for where, text in everything():
        for name in re.findall(r"[`\n]\s*qwen3 ([a-z]\w*)", text):
            assert name in COMMANDS, f"{where}: qwen3 {name}"
    for where, text in [*messages(), *(both for both in everything() if not both[0].endswith(".py"))]:
        for name in re.findall(r"\bQWEN3_[A-Z_]+", text):
            assert f'"{name}"' in sources or f'\\"{name}\\"' in sources, f"{where}: {name}"
