"""A request while the engine works on it, and what the device programs are given about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_jax.generation.budget import BudgetRules, BudgetState
from qwen3_jax.generation.request import Request
from qwen3_jax.generation.rows import MAX_EOS, Output, Progress, Settings
from qwen3_jax.generation.sampling import Sampling, SamplingRows
from qwen3_jax.generation.scheduler import TokenSequence
from qwen3_jax.generation.tokens import FinishReason, Token, TokenLogprob
from qwen3_jax.generation_config import GenerationConfig


@dataclass(eq=False, kw_only=True)
class ActiveRequest(TokenSequence):
    """A request from `Engine.submit` to its last token.

    Attributes:
        request: as submitted.
        settings, progress: arrays with one row.
        penalised: its logits depend on the tokens it has seen.
        started: it has run at least once.
        slot: its slot in `Seen`, -1 while it has none.
        ngrams, indexed: index of prompt lookup, and tokens that are in it.
        in_thinking, may_think: the next token belongs to the thinking, or may begin it; only followed if the request has a
            constraint.
    """

    request: Request
    settings: Settings
    progress: Progress
    penalised: bool
    started: bool = False
    slot: int = -1
    ngrams: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0
    in_thinking: bool = False
    may_think: bool = True

    @classmethod
    def of(
        cls, request: Request, defaults: GenerationConfig, no_slot: int, thinking: Sequence[int] = ()
    ) -> ActiveRequest:
        """Wrap a new request; `no_slot` is past the last slot of `Seen`, `thinking` is that of `Engine.submit`."""
        settings, progress = arrays_of(request, defaults, no_slot)
        begun = [*thinking, *request.thinking_tokens.stop] if thinking else []
        return cls(
            tokens=[*request.prompt, *begun],
            limit=len(request.prompt) + request.max_new_tokens,
            request=request,
            settings=settings,
            progress=_halted(progress, request, begun) if begun else progress,
            penalised=bool(settings.sampling.penalised[0]),
            # `prefill` knows no constraints, so the first token has to come from a decode step. Without an answer nothing
            # reads the keys of the last token.
            last_alone=request.constraint is not None or request.max_new_tokens == 0,
            in_thinking=request.thinking,
            may_think=not request.thinking and not request.answering,
            unreported=first_scored(request),
            adapter=request.adapter,
        )

    def append(self, output: Output, step: int, row: int, ended: bool) -> Token:
        """Append the token of one step of a program; `ended` says that it is the last one of the request."""
        token, forced = int(output.token[step, row]), bool(output.forced[step, row])
        self.tokens.append(token)
        if self.request.constraint is not None:
            self._constrain(token, forced)
        finish: FinishReason | None = None
        if ended:
            finish = "stop" if token in self.request.eos and not forced else "length"
        thinking = bool(output.thinking[step, row])
        logprob = _logprob(output, step, row, self.request.sampling)
        return Token(
            self.number, token, forced, thinking, logprob, finish, min(self.cached or 0, len(self.request.prompt))
        )

    def allowed(self) -> np.ndarray | None:
        """Return the constraint's words for the next token; None in thinking or without a constraint."""
        constraint, ids = self.request.constraint, self.request.thinking_tokens
        if constraint is None or self.in_thinking:
            return None
        words = constraint.allowed()
        is_first = len(self.tokens) == len(self.request.prompt)
        if self.may_think and is_first and ids.start >= 0:  # an answer may begin with thinking
            words = words.copy()
            words[ids.start // 32] |= np.uint32(1 << ids.start % 32)
        return words

    def _constrain(self, token: int, forced: bool) -> None:
        assert self.request.constraint is not None
        ids = self.request.thinking_tokens
        if token == ids.end and self.in_thinking:
            self.in_thinking = False
        elif token == ids.start and self.may_think:
            self.in_thinking, self.may_think = True, False
        elif not forced and not self.in_thinking:
            self.may_think &= token in ids.newlines
            self.request.constraint.take(token)


def first_scored(request: Request) -> int | None:
    """Return the first token of a prompt whose log probability is computed; None if there is none. The very first has none."""
    first = None if request.score_from is None else max(request.score_from, 1)
    return None if first is None or first >= len(request.prompt) else first


def arrays_of(request: Request, defaults: GenerationConfig, slot: int) -> tuple[Settings, Progress]:
    """Return the settings of a new request and its progress, arrays with one row; `defaults` fill in its sampling."""
    eos: Any = np.full((1, MAX_EOS), -1, np.int32)
    eos[0, : len(request.eos)] = sorted(request.eos)

    def one(value: Any, kind: type) -> Any:
        return np.asarray([value], kind)

    settings = Settings(
        SamplingRows.of([request.sampling.resolve(defaults)], [request.sample_index]),
        BudgetRules.of([request.budget], [request.thinking_tokens]),
        eos,
        one(slot, np.int32),
        one(request.constraint is not None, bool),
        one(request.adapter, np.int32),
    )
    progress = Progress(
        token=one(request.prompt[-1], np.int32),
        length=one(0, np.int32),
        position=one(0, np.int32),
        remaining=one(request.max_new_tokens, np.int32),
        active=one(True, bool),
        budget=BudgetState.start([request.thinking], [request.answering]),
    )
    return settings, progress


def _halted(progress: Progress, request: Request, begun: Sequence[int]) -> Progress:
    """Return the progress of an answer that consists of its thinking, as long as the budget, and the stop text."""

    def one(value: Any, kind: type) -> Any:
        return np.asarray([value], kind)

    tokens = request.thinking_tokens
    behind = tokens.stop[tokens.stop.index(tokens.end) + 1 :]
    budget = BudgetState(
        used=one(request.budget, np.int32),
        thinking=one(False, bool),
        closed=one(True, bool),
        answering=one(any(token not in tokens.newlines for token in behind), bool),
        forcing=one(-1, np.int32),
    )
    return progress.replace(
        token=one(begun[-1], np.int32),
        position=one(len(begun), np.int32),
        remaining=one(request.max_new_tokens - len(begun), np.int32),
        budget=budget,
    )


def _logprob(output: Output, step: int, row: int, sampling: Sampling) -> TokenLogprob | None:
    alternatives, logprobs = sampling.logprobs, output.logprobs
    if alternatives is None or logprobs is None:
        return None
    sampled = None
    if sampling.sampled_logprobs and logprobs.sampled is not None:
        sampled = float(logprobs.sampled[step, row])
    ids, values = (x[step, row, :alternatives].tolist() for x in (logprobs.top_tokens, logprobs.top))
    return TokenLogprob(
        int(output.token[step, row]), float(logprobs.chosen[step, row]), tuple(zip(ids, values, strict=True)), sampled
    )
