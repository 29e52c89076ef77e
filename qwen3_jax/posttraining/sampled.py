"""What a reward sees of an answer, and what it says of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """What one part says of some answers.

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
    """Scored answers together.

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

    @classmethod
    def of(cls, scored: Sequence[Scored]) -> Statistics:
        """Return the means, and the shares of statuses, over some answers."""
        by_part: dict[str, list[PartScore]] = {}
        for one in scored:
            for part in one.parts:
                by_part.setdefault(part.name, []).append(part)
        rewards = [one.reward for one in scored if one.reward is not None]
        lost = (len(scored) - len(rewards)) / len(scored) if scored else 0.0
        return cls(len(scored), _mean(rewards), lost, {name: _part(parts) for name, parts in by_part.items()})

    def metrics(self) -> dict[str, float]:
        """Return `mean`, `lost` and the numbers of `part_metrics`."""
        return {"lost": self.lost} | ({} if self.mean is None else {"mean": self.mean}) | self.part_metrics()

    def part_metrics(self) -> dict[str, float]:
        """Return for each part NAME, its mean score, and NAME.STATUS ("not_judged"), the share of a status that occurs."""
        out = {}
        for name, part in self.parts.items():
            if part.mean is not None:
                out[name] = part.mean
            for status, share in part.shares.items():
                if share:
                    out[f"{name}.{status.replace(' ', '_')}"] = share
        return out


def _part(scores: Sequence[PartScore]) -> PartStatistics:
    counts = Counter(score.status for score in scores)
    shares = {status: counts[status] / len(scores) for status in STATUSES}
    return PartStatistics(len(scores), _mean([one.score for one in scores if one.score is not None]), shares)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
