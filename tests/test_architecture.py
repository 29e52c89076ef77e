"""Imports point one way, without circles of files; heavy ones are late; nothing outside tests needs torch or transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiers import LONG, MOVED_TO_SLOW

ROOT = Path(__file__).parent.parent
# package -> packages of qwen3_jax that it may import, besides itself and the modules that all may import
MAY_IMPORT = {
    "model": {"kernels"},
    "kernels": set(),
    "text": set(),
    "endpoints": {"text"},
    "data": {"endpoints", "processes", "text", "verifiers"},
    "checkpoint": {"model", "kernels", "text"},
    "generation": {"endpoints", "kernels", "model", "text"},
    "processes": set(),
    "sandbox": set(),
    "verifiers": {"processes", "sandbox", "text"},
    "evaluation": {"checkpoint", "data", "endpoints", "generation", "model", "text", "verifiers"},
    "serving": {"generation", "text"},
    "training": {"checkpoint", "data", "endpoints", "evaluation", "kernels", "model", "text", "verifiers"},
    "posttraining": {"checkpoint", "data", "endpoints", "evaluation", "generation", "kernels", "model", "sandbox", "text",
                     "training", "verifiers"},
    "sweeps": {"checkpoint", "data", "model", "text", "training"},
    "recipes": {"training"},
    "planner": {"checkpoint", "generation", "kernels", "model", "training"},
    "cli": {"checkpoint", "data", "endpoints", "evaluation", "sweeps", "generation", "kernels", "model", "planner",
            "posttraining", "recipes", "serving", "text", "training", "verifiers"},
}  # fmt: skip
ALL_MAY_IMPORT = {
    "absent_tpu", "bounds", "config", "embedding_config", "errors", "file_writes", "generation_config", "json_fields", "paths",
    "position_config", "progress", "report_page", "shipped", "text_files", "threads", "yaml_files",
}  # fmt: skip


def module_name(path: Path) -> str:
    """The dotted name of a file; a package's is that of its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for top in ("qwen3_jax", "sharding") for file in (ROOT / top).rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports at run time, inside functions too; of a package's modules, the modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, path
            base = ".".join(part for part in (package if node.level else "", node.module) if part)
            submodules = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= submodules
            if len(submodules) < len(node.names):
                names.add(base)
    return names


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of nodes that reach one another."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reachable(name) for name in graph}
    return {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_one_way(package):
    files = list((ROOT / "qwen3_jax" / package).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "qwen3_jax" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[package] | ALL_MAY_IMPORT | {package}, f"{file}: {name}"


def test_the_table_names_every_package():
    packages = {file.parent.name for file in (ROOT / "qwen3_jax").glob("*/__init__.py")}
    assert packages == MAY_IMPORT.keys()


def test_no_circle_of_files():
    graph = {name: imports(file) & MODULES.keys() - {name} for name, file in MODULES.items()}
    assert circles(graph) == set()


def test_circles_are_seen():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"f"}, "f": {"e", "a"}, "g": {"a"}}
    assert circles(graph) == {frozenset("abc"), frozenset("ef")}


def test_sharding_knows_no_model_and_what_handles_text_knows_no_jax():
    for file in (ROOT / "sharding").glob("*.py"):
        assert not any(name.startswith("qwen3_jax") for name in imports(file)), file
    for package in ("text", "data", "serving", "processes", "sandbox", "verifiers", "endpoints"):
        for file in (ROOT / "qwen3_jax" / package).rglob("*.py"):
            assert not {name.split(".")[0] for name in imports(file)} & {"jax", "flax", "optax", "orbax"}, file


def test_nothing_outside_tests_and_benchmarks_imports_a_peer():
    files = [*ROOT.glob("*.py"), *(ROOT / "qwen3_jax").rglob("*.py"), *(ROOT / "sharding").rglob("*.py")]
    for file in files:
        assert not {name.split(".")[0] for name in imports(file)} & {"torch", "transformers", "trl", "qwen_agent"}, file


def test_only_kernels_asks_which_platform_it_is_on():
    for file in (ROOT / "qwen3_jax").rglob("*.py"):
        if "kernels" not in file.relative_to(ROOT).parts:
            assert "default_backend" not in file.read_text(encoding="utf-8"), file


def test_files_and_functions_are_read_in_one_sitting():
    for folder in ("qwen3_jax", "sharding", "benchmarks", "examples", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert text.count("\n") <= 450, file
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno - node.lineno < 60, f"{file}: {node.name}"


def test_planted_bugs_follow_the_code():
    from tests.mutation.planted import PLANTED

    assert all(planted.source(ROOT) for planted in PLANTED)


def test_the_tests_that_a_table_moves_to_another_tier_exist():
    for name in [*LONG, *MOVED_TO_SLOW]:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text("utf-8"), name


def test_importing_the_package_imports_nothing_heavy():
    """`import qwen3_jax` is milliseconds because JAX comes with the first name that needs it."""
    code = "import sys, qwen3_jax; print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax', 'numpy', 'grain'}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert out.stdout.strip() == "[]"
    import qwen3_jax

    assert all(getattr(qwen3_jax, name) is not None for name in qwen3_jax.__all__)


def test_docs_show_this_table():
    from tests.helpers import architecture_page

    page = architecture_page.PAGE.read_text(encoding="utf-8")
    assert page == architecture_page.with_table(page), "run: python -m tests.helpers.architecture_page"
