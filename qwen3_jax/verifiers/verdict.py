"""What a verifier says of an answer."""

import hashlib
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
        extracted: what was read from the answer and compared, in a normal form: answers with equal ones are the same answer to
            the question; None where the verifier compares no single value.
        parts: of a verifier with several checks, what each said, in the order of the reference.
    """

    score: float
    status: Status
    reason: str
    parts: tuple[bool, ...] = ()
    extracted: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {STATUSES}")
        if not 0 <= self.score <= 1 or (self.score == 1) != (self.status == "right"):
            raise ValueError(f"score {self.score} does not go with the status {self.status!r}")


def right(reason: str, parts: tuple[bool, ...] = (), extracted: str | None = None) -> Verdict:
    """The full score."""
    return Verdict(1.0, "right", reason, parts, _short(extracted))


def wrong(reason: str, score: float = 0.0, parts: tuple[bool, ...] = (), extracted: str | None = None) -> Verdict:
    """Less than the full score."""
    return Verdict(score, "wrong", reason, parts, _short(extracted))


def unparsable(reason: str) -> Verdict:
    """Nothing to compare."""
    return Verdict(0.0, "unparsable", reason)


def graded(score: float, reason: str, parts: tuple[bool, ...] = ()) -> Verdict:
    """Right at a score of 1, else wrong with it."""
    return right(reason, parts) if score == 1 else wrong(reason, score, parts)


_LONGEST = 200  # characters of an extracted value


def _short(text: str | None) -> str | None:
    """A long text as its beginning and its digest: still equal to itself alone."""
    if text is None or len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 35]}...{hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=16).hexdigest()}"
