"""Adds a line to site-packages that pyproject.toml cannot declare; it imports qwen3_jax_lm_eval.py, which says what for."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Writes qwen3_jax_lm_eval.pth into the wheel, with and without -e."""

    def run(self) -> None:
        super().run()
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "qwen3_jax_lm_eval.pth").write_text("import qwen3_jax_lm_eval\n", encoding="ascii")


setup(cmdclass={"build_py": BuildPy})
