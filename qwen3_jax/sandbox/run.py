r"""One program in the sandbox.

outcome = run("print(sum(map(int, input().split())))", stdin="1 2")
outcome.stdout, outcome.reason            # "3\n", "it ended with exit code 0"
"""

from qwen3_jax.sandbox.isolation import find_isolation
from qwen3_jax.sandbox.limits import Limits, Outcome
from qwen3_jax.sandbox.program import Program


def run(program: str, stdin: str = "", limits: Limits | None = None, isolation: str = "auto") -> Outcome:
    """Run a Python program to its end, or to its limits.

    The program sees Python's standard library, an empty writable working folder, no environment, no network and no other
    process. May be called from several threads.

    Args:
        program: source text.
        stdin: what it reads.
        limits: the defaults of `Limits` if None.
        isolation: see `find_isolation`.

    Raises:
        UserError: this machine gives no isolation, or the sandbox did not start the program.
    """
    return Program(program, find_isolation(isolation), stdin=stdin, limits=limits).wait()
