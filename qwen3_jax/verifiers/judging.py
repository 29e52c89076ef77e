"""One judgement, as the process makes it that processes.py asks for it."""

import dataclasses
import importlib
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.registry import Verifier, settings_class
from qwen3_jax.verifiers.verdict import BadReference, Verdict


def judge(function: str, answer: str, reference: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of a verdict.

    Args:
        function: of the verifier, "module:name".
        answer: to be judged.
        reference: what is right.
        settings: fields of the verifier's settings.

    Raises:
        UserError: a package is missing.
    """
    module, _, path = function.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    given = settings_class(Verifier(value), value.__name__)(**settings)
    try:
        verdict = value(answer, reference, given)
    except BadReference as error:
        verdict = Verdict(0.0, "error", f"the reference is at fault: {error}")
    except UserError:
        raise
    except Exception as error:
        verdict = Verdict(0.0, "error", f"the verifier failed: {type(error).__name__}: {error}"[:500])
    return dataclasses.asdict(verdict)
