"""Tasks by name: what is asked, where it lies, how it is judged.

from qwen3_jax.evaluation.tasks import find, load, names
task = find("gsm8k")                      # a name, a YAML file, or reasoning_gym:NAME
problems = load(task, Path("gsm8k"), {})  # [Problem(id="0", prompt=({"role": "user", ...},), reference="18"), ...]
"""

from qwen3_jax.evaluation.tasks.options import options_of
from qwen3_jax.evaluation.tasks.registry import find, load, names, register

__all__ = ["find", "load", "names", "options_of", "register"]
