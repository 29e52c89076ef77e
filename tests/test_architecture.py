"""Imports point one way, heavy ones are late, and nothing outside tests needs torch or transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# room -> rooms of qwen3_jax that it may import besides itself and the ones that everybody may
MAY_IMPORT = {
    "model": {"kernels"},
    "kernels": set(),
    "text": set(),
    "data": {"text"},
    "checkpoint": {"model", "kernels", "text"},
    "generation": {"kernels", "model", "text"},
    "evaluation": {"checkpoint", "data", "generation", "model", "text"},
    "serving": {"generation", "text"},
    "training": {"checkpoint", "data", "evaluation", "kernels", "model", "text"},
    "sweeps": {"checkpoint", "data", "model", "text", "training"},
    "cli": {"checkpoint", "data", "evaluation", "sweeps", "generation", "kernels", "model", "serving", "text",
            "training"},
}  # fmt: skip
EVERYBODY = {"bounds", "config", "errors", "generation_config", "json_fields", "progress"}


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}." if node.level else ""
            found.add(base + (node.module or ""))
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room):
    files = list((ROOT / "qwen3_jax" / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "qwen3_jax" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[room] | EVERYBODY | {room}, f"{file}: {name}"


def test_sharding_knows_no_model_and_text_data_and_serving_know_no_jax():
    for file in (ROOT / "sharding").glob("*.py"):
        assert not any(name.startswith("qwen3_jax") for name in imports(file)), file
    for room in ("text", "data", "serving"):
        for file in (ROOT / "qwen3_jax" / room).glob("*.py"):
            assert not {name.split(".")[0] for name in imports(file)} & {"jax", "flax", "optax", "orbax"}, file


def test_nothing_outside_tests_and_benchmarks_imports_a_peer():
    files = [*ROOT.glob("*.py"), *(ROOT / "qwen3_jax").rglob("*.py"), *(ROOT / "sharding").rglob("*.py")]
    for file in files:
        assert not {name.split(".")[0] for name in imports(file)} & {"torch", "transformers", "trl", "qwen_agent"}, file


def test_only_kernels_asks_which_platform_it_is_on():
    for file in (ROOT / "qwen3_jax").rglob("*.py"):
        if "kernels" not in file.relative_to(ROOT).parts:
            assert "default_backend" not in file.read_text(encoding="utf-8"), file


def test_importing_the_package_imports_nothing_heavy():
    """`import qwen3_jax` is milliseconds because JAX comes with the first name that needs it."""
    code = "import sys, qwen3_jax; print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax', 'numpy', 'grain'}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert out.stdout.strip() == "[]"
    import qwen3_jax

    assert all(getattr(qwen3_jax, name) is not None for name in qwen3_jax.__all__)
