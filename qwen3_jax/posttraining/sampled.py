"""What a reward sees of an answer, and what it says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.generation import Generation
from qwen3_jax.posttraining.traces import Trace

STATUSES = ("right", "wrong", "unparsable", "timed_out", "error", "scored", "not judged")
"""Of a part: those of `qwen3_jax.verifiers.STATUSES`; "scored", a number of a judge, a model or a penalty; "not judged"."""


@dataclass(frozen=True)
class Sampled:
    """One answer of a rollout.

    Attributes:
        record: the prompt's record as in the data file: `messages`, `answer` or `reference`, `verifier`, `settings`, ...
        messages: of the prompt; after several turns, all before the last answer.
        generation: the answer.
        mode: "thinking" or "non-thinking": what the chat template was asked for.
        budget: most thinking tokens; None is no limit.
        halted: the budget's stop text was forced.
        trace: of an episode of several turns, whose last answer `generation` is; None of a single answer.
    """

    record: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...]
    generation: Generation
    mode: str
    budget: int | None = None
    halted: bool = False
    trace: Trace | None = None

    @property
    def tokens(self) -> int:
        """Tokens that were sampled, in all turns: forced ones do not count."""
        if self.trace is not None:
            return self.trace.tokens
        return len(self.generation.token_ids) - sum(self.generation.forced_mask)

    @property
    def in_thinking(self) -> bool:
        """Whether the prompt had opened `<think>`: there is thinking, and no tag that opens it."""
        is_opened = self.generation.text.lstrip("\n").startswith("<think>")
        return self.generation.thinking is not None and not is_opened and self.mode == "thinking"

    @property
    def is_finished(self) -> bool:
        """Whether the answer ended by itself and not at its limit of tokens, or the episode at one of tokens or turns."""
        if self.trace is not None and self.trace.is_cut:
            return False
        return self.generation.finish_reason != "length"


@dataclass(frozen=True)
class PartScore:
    """What one part says of an answer.

    Attributes:
        name: of the part.
        score: None where there is none: the verifier or the judge failed.
        status: one of `STATUSES`. Without a score "timed_out", "error" or "not judged", which say nothing about the answer.
        reason: in words.
    """

    name: str
    score: float | None
    status: str
    reason: str

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {STATUSES}")


@dataclass(frozen=True)
class Scored:
    """The reward of an answer.

    Attributes:
        reward: None where the answer is lost: a part that counts has no score, or it is unfinished and such are dropped.
        parts: in the order of the configuration; of an unfinished answer that `unfinished` decides, this part alone.
    """

    reward: float | None
    parts: tuple[PartScore, ...]

    @property
    def lost(self) -> str:
        """Why there is no reward: the first part without a score, and its reason; "" where there is one."""
        if self.reward is not None:
            return ""
        return next(f"{part.name}: {part.status}: {part.reason}" for part in self.parts if part.score is None)


@dataclass(frozen=True)
class PartStatistics:
    """A part over the answers of one call.

    Attributes:
        answers: that the part was asked about.
        mean: of the scores that there are; None without any.
        shares: by status, of the answers.
    """

    answers: int
    mean: float | None
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Statistics:
    """The last call of `Scorer.score`.

    Attributes:
        answers: their number.
        mean: of the rewards that there are; None without any.
        lost: share of the answers without a reward.
        parts: by name.
    """

    answers: int
    mean: float | None
    lost: float
    parts: Mapping[str, PartStatistics]

    def metrics(self) -> dict[str, float]:
        """As numbers by name: `mean`, `lost`, and for each part NAME.mean and NAME.STATUS ("not_judged") where it occurs."""
        out = {"lost": self.lost} | ({} if self.mean is None else {"mean": self.mean})
        for name, part in self.parts.items():
            if part.mean is not None:
                out[f"{name}.mean"] = part.mean
            for status, share in part.shares.items():
                if share:
                    out[f"{name}.{status.replace(' ', '_')}"] = share
        return out
