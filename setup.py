"""What pyproject.toml cannot declare of a distribution.

- A line in site-packages that imports qwen3_jax_lm_eval.py, which says what for.
- Files of the checkout's root that are used where the package is installed (qwen3_jax/shipped.py finds them).
- The README with whole addresses: a registry shows it without the files that its links name.
"""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("configs/**/*.yaml", "examples/*.py", "examples/*.yaml", "notebooks/install.py")


class BuildPy(build_py):
    """Writes qwen3_jax_lm_eval.pth, with and without -e; without, also what is shipped."""

    def run(self) -> None:
        super().run()
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "qwen3_jax_lm_eval.pth").write_text("import qwen3_jax_lm_eval\n", encoding="ascii")
        if self.editable_mode:  # the checkout's own are found
            return
        target = Path(folder, "qwen3_jax/shipped")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for file in (file for pattern in SHIPPED for file in ROOT.glob(pattern)):
            (target / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(ROOT))


def readme() -> str:
    """Return README.md with links and images at the repository's address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    repository = project["urls"]["Repository"]

    def whole(link: re.Match[str]) -> str:
        kind = "raw" if link[1].endswith((".png", ".svg")) else "blob"
        return f"]({repository}/{kind}/main/{link[1]})"

    return re.sub(r"\]\((?!https?://|#)([^)\s]+)\)", whole, (ROOT / "README.md").read_text("utf-8"))


setup(cmdclass={"build_py": BuildPy}, long_description=readme(), long_description_content_type="text/markdown")
