"""A sandbox for programs that models write: one process per program, isolated by the kernel, within limits. No JAX.

from qwen3_jax.sandbox import Limits, find_isolation, run
print(find_isolation())                                       # what is in force on this machine
run("print(input())", stdin="1", limits=Limits(seconds=2))    # Outcome(ended="exit", code=0, stdout="1\\n", ...)
check_calls(solution, ["assert f(2) == 4"])                   # a program's functions, called from outside of its process
"""

from qwen3_jax.sandbox.calls import CannotTest, Checked, check_calls
from qwen3_jax.sandbox.commands import Isolation
from qwen3_jax.sandbox.isolation import find_isolation
from qwen3_jax.sandbox.limits import Limits, Outcome
from qwen3_jax.sandbox.program import SandboxFailed
from qwen3_jax.sandbox.run import run

__all__ = [
    "CannotTest",
    "Checked",
    "Isolation",
    "Limits",
    "Outcome",
    "SandboxFailed",
    "check_calls",
    "find_isolation",
    "run",
]
