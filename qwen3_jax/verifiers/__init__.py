"""Verifiers: (answer, reference, settings) -> score, status, reason. One module for evaluation, data filtering and RL. No JAX.

from qwen3_jax.verifiers import verify
verify("math", r"<think>...</think>So it is \\boxed{1/2}.", "0.5")        # Verdict(score=1.0, status="right", ...)
verify("number", "#### 1,234", 1234, {"take": "marked"})
"""

from qwen3_jax.verifiers import checks  # noqa: F401 - registers the verifier
from qwen3_jax.verifiers.packages import missing_package
from qwen3_jax.verifiers.registry import names, register, settings_of, verify, verify_all
from qwen3_jax.verifiers.verdict import STATUSES, BadReference, Status, Verdict, graded, right, unparsable, wrong

__all__ = [
    "STATUSES",
    "BadReference",
    "Status",
    "Verdict",
    "graded",
    "missing_package",
    "names",
    "register",
    "right",
    "settings_of",
    "unparsable",
    "verify",
    "verify_all",
    "wrong",
]
