"""What a verifier says of an answer."""

from dataclasses import dataclass
from typing import Literal

from qwen3_jax.errors import UserError

Status = Literal["right", "wrong", "unparsable", "timed_out", "error"]
STATUSES: tuple[Status, ...] = ("right", "wrong", "unparsable", "timed_out", "error")


class BadReference(UserError):
    """The reference, not the answer, is at fault; says what is wrong with it. `verify` makes it the status "error"."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        score: 0 to 1. 1 if and only if the status is "right"; between them for an answer that is right in part.
        status: "right"; "wrong"; "unparsable": the answer holds nothing of the form that is compared; "timed_out": it could not
            be judged within the time; "error": reference or verifier are at fault. The last two say nothing about the answer.
        reason: in words.
        parts: of a verifier with several checks, what each said, in the order of the reference.
    """

    score: float
    status: Status
    reason: str
    parts: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {STATUSES}")
        if not 0 <= self.score <= 1 or (self.score == 1) != (self.status == "right"):
            raise ValueError(f"score {self.score} does not go with the status {self.status!r}")


def right(reason: str, parts: tuple[bool, ...] = ()) -> Verdict:
    """The full score."""
    return Verdict(1.0, "right", reason, parts)


def wrong(reason: str, score: float = 0.0, parts: tuple[bool, ...] = ()) -> Verdict:
    """Less than the full score."""
    return Verdict(score, "wrong", reason, parts)


def unparsable(reason: str) -> Verdict:
    """Nothing to compare."""
    return Verdict(0.0, "unparsable", reason)


def graded(score: float, reason: str, parts: tuple[bool, ...] = ()) -> Verdict:
    """Right at a score of 1, else wrong with it."""
    return right(reason, parts) if score == 1 else wrong(reason, score, parts)
