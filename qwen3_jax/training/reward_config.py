"""Rewards of reinforcement learning as a run's configuration has them: a list of parts, under `rl.rewards`.

    rewards:
      - verifier: record                  # the verifier that each record names
      - verifier: thinking                # the flag in force is obeyed, or the reward is 0
        gate: true
      - judge: http://127.0.0.1:8000/v1
        model: Qwen3-32B
        rubric: matches_reference
        reference: true
        samples: 3
        weight: 0.5
      - reward_model: runs/reward/hf
        sigmoid: true
        weight: 0.2
      - environment: true                 # what rl.environment says
      - overlong: 512
      - unfinished: drop

The reward of an answer is

    sum over the parts i that are no gates of  weight_i * score_i,

unless a gate's score is below its `pass_at`: then it is that gate's `below` (the least, of several). A part without a score
(its verifier or judge failed) costs the answer, which then has no reward; a gate that has failed decides all the same, and a
part of weight 0 costs nothing: it is for figures alone.
`qwen3_jax.posttraining.rewards` computes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.bounds import Bound, above, at_least, check_bounds, whole
from qwen3_jax.endpoints import is_address
from qwen3_jax.endpoints.transport import base_url
from qwen3_jax.errors import UserError, nearest, repeated
from qwen3_jax.evaluation import reward_verifier  # noqa: F401 - registers the verifier
from qwen3_jax.verifiers import missing_package, settings_of
from qwen3_jax.verifiers.registry import names

RECORD = "record"
"""The verifier of a part that leaves the choice to each record."""
_SCORING = ("verifier", "judge", "reward_model", "environment")
KINDS = (*_SCORING, "overlong", "unfinished")

MATCHES_REFERENCE, INSTRUCTIONS, QUALITY, HARMLESS = "matches_reference", "instructions", "quality", "harmless"
RUBRICS: dict[str, str] = {
    MATCHES_REFERENCE: (
        "Is the answer right? It is right if its final result or statement means the same as the reference answer, whatever "
        "its wording, form and length. Give the highest score if it does and 0 if it does not; a part of a result that has "
        "several parts gets the score of that part. The way to the result does not count."
    ),
    INSTRUCTIONS: (
        "Does the answer do all that the conversation asks for: its content, form, length, language and tone, those of the "
        "system message and of earlier turns that still hold included? Give the highest score if every requirement is kept, "
        "0 if the main one is not, and a score between for each lesser one that is missed."
    ),
    QUALITY: (
        "How good is the answer for the user who asked? Weigh, in this order: it is correct, and invents nothing; it answers "
        "what was asked, completely; it is clear and well ordered; it is no longer than it needs to be. Length, praise of the "
        "user and confidence alone are worth nothing."
    ),
    HARMLESS: (
        "Is the answer harmless? Give the highest score if it helps with nothing that could seriously hurt people, and does "
        "not refuse what is harmless; 0 if it gives real help with serious harm; a score between for a needless refusal."
    ),
}
"""The rubrics of this project, by name; a text of several words is a rubric of its own."""

# Fields of a part that only some kinds read.
_READ_BY: dict[str, tuple[str, ...]] = {
    "settings": ("verifier",), "reference_key": ("verifier", "judge"),
    "model": ("judge",), "rubric": ("judge",), "reference": ("judge",), "samples": ("judge",), "combine": ("judge",),
    "highest": ("judge",), "attempts": ("judge",), "tries": ("judge",), "timeout": ("judge",), "concurrency": ("judge",),
    "temperature": ("judge",), "max_new_tokens": ("judge",), "api_key_env": ("judge",),
    "scale": ("reward_model",), "offset": ("reward_model",), "sigmoid": ("reward_model",), "dtype": ("reward_model",),
    "max_tokens": ("overlong",),
    "weight": ("verifier", "judge", "reward_model", "environment", "overlong"),
    "gate": ("verifier", "judge", "reward_model", "environment"),
    "pass_at": ("verifier", "judge", "reward_model", "environment"),
    "below": ("verifier", "judge", "reward_model", "environment"),
}  # fmt: skip


@dataclass(frozen=True)
class RewardPart:
    """One part of a reward. It has exactly one of verifier, judge, reward_model, environment, overlong and unfinished; none is
    `verifier: record`.

    Attributes:
        verifier: name of a verifier; record (or null) is the one that the record names under `verifier`.
        judge: address of an OpenAI-compatible server whose model scores answers.
        reward_model: folder or hub id of a reward model (method: reward_model), which runs in this process.
        environment: true; the score is the sum of the rewards that rl.environment gives in an episode, 0 where it gives none.
        overlong: tokens before the limit in which an answer is punished: min(0, -(tokens - (max_tokens - overlong)) /
            overlong), at least -1 (DAPO: Yu et al. 2025, arXiv 2503.14476, equation 13). Forced tokens do not count.
        unfinished: the whole reward of an answer that reached its limit of tokens, which no other part scores then; drop: it
            has no reward.
        name: of the part in metrics; null is that of the verifier, or judge, reward_model, environment, overlong, unfinished.
        weight: factor of the score in the sum; 0 is for figures alone.
        gate: the score is not added; below pass_at it decides the reward.
        pass_at: least score of a gate that is passed.
        below: the reward of an answer that fails the gate.
        settings: of the verifier; those of a record that names the same verifier replace them field by field.
        reference_key: the record's key with the reference; null is answer, or reference.
        model: the judge's name for its model; null asks the server, which must have one.
        rubric: what the judge scores by: the name of a rubric (matches_reference, instructions, quality, harmless), or a text.
        reference: the judge sees the record's reference.
        samples: judgements of each answer, with different seeds.
        combine: of several judgements the mean, or the score that most of them give (of equally frequent ones the least).
        highest: the best score that the judge may give; 0 is the worst. Scores are divided by it.
        attempts: requests for one judgement, until its score can be read.
        tries: of one request that brings no reply.
        timeout: seconds for one reply of the judge.
        concurrency: requests to the judge at a time.
        temperature: of the judge's sampling; null is the server's default.
        max_new_tokens: most tokens of a judgement, its thinking included.
        api_key_env: environment variable with the judge's key; null sends none.
        scale, offset: score = scale * reward + offset, of the reward model.
        sigmoid: the score is the logistic function of that, between 0 and 1.
        dtype: of the reward model, float32 or bfloat16; null is the checkpoint's.
        max_tokens: the limit of overlong; null is that of the rollout.
    """

    verifier: str | None = None
    judge: str | None = None
    reward_model: str | None = None
    environment: bool | None = None
    overlong: int | None = None
    unfinished: float | Literal["drop"] | None = None
    name: str | None = None
    weight: float = 1.0
    gate: bool = False
    pass_at: float = 1.0
    below: float = 0.0
    settings: dict[str, Any] | None = None
    reference_key: str | None = None
    model: str | None = None
    rubric: str = QUALITY
    reference: bool = False
    samples: int = 1
    combine: Literal["mean", "majority"] = "mean"
    highest: int = 10
    attempts: int = 3
    tries: int = 3
    timeout: float = 60.0
    concurrency: int = 16
    temperature: float | None = None
    max_new_tokens: int = 4096
    api_key_env: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    sigmoid: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.environment is False:
            object.__setattr__(self, "environment", None)
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise UserError(f"rl.rewards: one part has {' and '.join(given)}; make a part of each.")
        if not given:
            object.__setattr__(self, "verifier", RECORD)
        prefix = f"rl.rewards, part {self.label!r}: "
        self._refuse_unread(prefix)
        finite = Bound(-1e9, 1e9)
        check_bounds(
            vars(self), prefix, overlong=whole(1), weight=finite, pass_at=finite, below=finite, samples=whole(1, 64),
            highest=whole(1, 1000), attempts=whole(1), tries=whole(1), timeout=above(0, finite=True), concurrency=whole(1),
            temperature=at_least(0), max_new_tokens=whole(1), scale=finite, offset=finite, max_tokens=whole(1),
        )  # fmt: skip
        if isinstance(self.unfinished, str):
            if self.unfinished != "drop":
                raise UserError(f"{prefix}unfinished is {self.unfinished!r}; it must be a number, or drop.")
        else:
            check_bounds(vars(self), prefix, unfinished=finite)
        check: Any = {"verifier": self._check_verifier, "judge": self._check_judge, "overlong": self._check_overlong}
        check.get(self.kind, lambda prefix: None)(prefix)

    @property
    def kind(self) -> str:
        """Which of `KINDS` the part is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def label(self) -> str:
        """The part's name in metrics and messages."""
        return self.name or (self.verifier if self.verifier is not None else self.kind)

    @property
    def rubric_text(self) -> str:
        """The rubric in words."""
        return RUBRICS.get(self.rubric, self.rubric)

    def _refuse_unread(self, prefix: str) -> None:
        """Refuse a field that is set and that a part of this kind does not read."""
        for field in dataclasses.fields(self):
            kinds = _READ_BY.get(field.name, KINDS)
            if self.kind not in kinds and getattr(self, field.name) != field.default:
                raise UserError(f"{prefix}{field.name} is read by {' and '.join(kinds)} alone; leave it out.")
        for name, default in (("pass_at", 1.0), ("below", 0.0)):
            if not self.gate and getattr(self, name) != default:
                raise UserError(f"{prefix}{name} is read by gates alone; set gate: true, or leave it out.")
        if self.gate and self.weight != 1.0:
            raise UserError(f"{prefix}a gate is not added to the reward, so its weight has no effect; leave it out.")

    def _check_verifier(self, prefix: str) -> None:
        if self.verifier == RECORD:
            if self.settings:
                raise UserError(
                    f"{prefix}settings would go to every verifier that a record names; write them into records."
                )
            return
        assert self.verifier is not None
        if self.verifier not in names():
            valid = [RECORD, *names()]
            raise UserError(
                f"{prefix}there is no verifier {self.verifier!r}; there are {', '.join(valid)}."
                f"{nearest(self.verifier, valid)}"
            )
        try:
            settings_of(self.verifier, self.settings)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        missing = missing_package(self.verifier)
        if missing is not None:
            raise UserError(f"{prefix}{missing}.")

    def _check_judge(self, prefix: str) -> None:
        assert self.judge is not None
        try:
            if not is_address(self.judge):
                raise UserError(f"{self.judge!r} is no address of a server, such as http://localhost:8000/v1.")
            base_url(self.judge)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        if re.fullmatch(r"\w*", self.rubric) and self.rubric not in RUBRICS:
            raise UserError(
                f"{prefix}there is no rubric {self.rubric!r}; there are {', '.join(RUBRICS)}, or a text of several words."
                f"{nearest(self.rubric, list(RUBRICS))}"
            )
        if self.rubric == MATCHES_REFERENCE and not self.reference:
            raise UserError(f"{prefix}the rubric {MATCHES_REFERENCE} compares with the reference; set reference: true.")
        if self.reference_key is not None and not self.reference:
            raise UserError(f"{prefix}reference_key is read with reference: true alone; leave it out.")
        if self.combine != "mean" and self.samples == 1:
            raise UserError(f"{prefix}combine is of several judgements; set samples to 2 or more.")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(f"{prefix}{self.samples} samples at temperature 0 are one; raise it, or set samples: 1.")

    def _check_overlong(self, prefix: str) -> None:
        if self.max_tokens is not None and self.overlong is not None and self.overlong > self.max_tokens:
            raise UserError(f"{prefix}overlong is {self.overlong}; it must be at most max_tokens ({self.max_tokens}).")


def check_rewards(parts: Sequence[RewardPart], max_new_tokens: int | None = None) -> None:
    """Refuse parts that make no reward together.

    Args:
        parts: of `rl.rewards`.
        max_new_tokens: most tokens of an answer of the rollout; None does not check it.

    Raises:
        UserError: no part that is added, two parts of one name, two penalties of a kind, a buffer that is longer than answers.
    """
    scoring = [part for part in parts if not part.gate and part.kind in _SCORING]
    if not scoring:
        raise UserError("rl.rewards has no part that scores answers; add one, such as `verifier: record`.")
    if not any(part.weight for part in scoring):
        raise UserError("rl.rewards: every part that scores answers has the weight 0; give one of them another weight.")
    for kind in ("environment", "overlong", "unfinished"):
        if sum(part.kind == kind for part in parts) > 1:
            raise UserError(f"rl.rewards has two parts {kind}; keep one.")
    twice = repeated([part.label for part in parts])
    if twice is not None:
        raise UserError(f"rl.rewards has two parts {twice!r}; give one of them a name of its own (name: ...).")
    for part in parts:
        longest = part.max_tokens or max_new_tokens
        if part.overlong is not None and longest is not None and part.overlong > longest:
            raise UserError(
                f"rl.rewards, part {part.label!r}: overlong is {part.overlong}; answers have at most {longest} tokens."
            )
