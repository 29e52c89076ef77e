"""Several verifiers of one answer, all of which must be right: a form and a content, a mode and an answer.

verify("checks", answer, [
    {"verifier": "thinking", "reference": False},
    {"verifier": "number", "reference": 42, "settings": {"take": "only"}},
])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.registry import find, register, settings_of, verify
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, wrong

_FIELDS = {"verifier", "reference", "settings"}


@dataclass(frozen=True)
class ChecksSettings:
    """Of `verify_checks`.

    Attributes:
        partial: the score is the mean of the checks' scores; otherwise it is 0 unless all of them are right.
    """

    partial: bool = False


def verify_checks(answer: str, reference: Any, settings: ChecksSettings) -> Verdict:
    """Whether all checks of an answer are right; `parts` says which are.

    A check that times out or fails makes that the status of the whole, unless another one is wrong.

    Args:
        reference: a list of objects with `verifier`, and as that verifier needs them `reference` and `settings`.
    """
    if not isinstance(reference, list) or not reference:
        raise BadReference("'checks' needs a list of objects with verifier, reference and settings")
    for check in reference:
        _refuse(check)
    verdicts = [verify(check["verifier"], answer, check.get("reference"), check.get("settings")) for check in reference]
    parts = tuple(verdict.status == "right" for verdict in verdicts)
    reasons = [
        f"{check['verifier']}: {verdict.reason}"
        for check, verdict in zip(reference, verdicts, strict=True)
        if verdict.status != "right"
    ]
    if all(parts):
        return right(f"all {len(parts)} checks are right", parts)
    failed = [verdict for verdict in verdicts if verdict.status in ("error", "timed_out")]
    if failed and (settings.partial or not any(verdict.status in ("wrong", "unparsable") for verdict in verdicts)):
        return Verdict(0.0, failed[0].status, "; ".join(reasons)[:500], parts)
    score = sum(verdict.score for verdict in verdicts) / len(verdicts) if settings.partial else 0.0
    return wrong("; ".join(reasons)[:500], score, parts)


def _refuse(check: Any) -> None:
    """Refuse a check that is none.

    Raises:
        BadReference: says what is wrong with it.
    """
    if not isinstance(check, Mapping) or "verifier" not in check or not check.keys() <= _FIELDS:
        raise BadReference(f"a check is an object with verifier, reference and settings, got {check!r:.200}")
    if check["verifier"] == "checks":
        raise BadReference("a check cannot be a list of checks")
    try:
        find(check["verifier"])
        settings_of(check["verifier"], check.get("settings"))
    except UserError as error:
        raise BadReference(str(error)) from None


register("checks", verify_checks, reads="text")
