"""A verifier that fails as the answer says, in its own process and in this one. A module of few imports: processes load it."""

import os
import time
from dataclasses import dataclass

from qwen3_jax.verifiers import Verdict, register, right


@dataclass(frozen=True)
class Faults:
    """Its settings.

    Attributes:
        seconds: of time in its own process.
    """

    seconds: float = 1.0


def faulty(answer: str, reference: str, settings: Faults) -> Verdict:
    """Right, unless the answer is the name of a fault."""
    if answer == "hang":
        time.sleep(30)
    if answer == "loop":
        sum(range(10**12))
    if answer == "exit":
        os._exit(3)
    if answer == "raise":
        raise SystemExit(3)
    return 1e9 if answer == "lie" else right("so it is")  # type: ignore[return-value]


register("test_faults_in_process", faulty, killable=True)
register("test_faults_here", faulty)
