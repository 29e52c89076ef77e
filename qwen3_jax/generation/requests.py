"""What an engine is asked and what it answers with: requests in, tokens out, and on the way between a job.

A `Constraint` is a grammar's view of an answer: before each token outside thinking it says which may come.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qwen3_jax.generation.answer import FinishReason, TokenLogprob
from qwen3_jax.generation.budget import BudgetRules, BudgetState, ThinkingTokens
from qwen3_jax.generation.program import MAX_EOS, Output, Progress, Settings
from qwen3_jax.generation.sampling import Sampling, SamplingRows
from qwen3_jax.generation.scheduler import Text
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.model import Qwen3


class Constraint(Protocol):
    """Which tokens may come next in one answer, thinking and what the budget forces left out."""

    def allowed(self) -> np.ndarray:
        """Return uint32 [words]: bit t % 32 of word t // 32 is set where token t may come; at least one is."""

    def take(self, token: int) -> None:
        """The next token of the answer is this one, which was allowed."""


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one.
        sampling: settings; what is None follows the model's generation_config. `stop` and `n` are for the caller to act on.
        max_new_tokens: tokens after which the answer ends.
        eos: tokens that end it, at most `program.MAX_EOS`.
        budget: thinking tokens allowed; None is unlimited.
        thinking: the prompt leaves `<think>` open.
        tokens: ids that the budget works with.
        sample_index: which of the n answers to the prompt this is.
        constraint: what the answer outside its thinking may be, of this request alone; None is anything.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    budget: int | None = None
    thinking: bool = False
    tokens: ThinkingTokens = ThinkingTokens()  # noqa: RUF009 - frozen
    sample_index: int = 0
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Token:
    """One token of one request, as `Engine.step` gives it.

    Attributes:
        number: of the request.
        id: the token.
        forced: it is part of the stop text.
        thinking: it was sampled and counted against the budget.
        logprob: if the request asked for it.
        finish: why the request is finished with this token, or None.
        cached: tokens of the request's prompt that were found in the cache.
    """

    number: int
    id: int
    forced: bool
    thinking: bool
    logprob: TokenLogprob | None
    finish: FinishReason | None
    cached: int = 0


@dataclass
class Stats:
    """What an engine has done.

    Attributes:
        prefill_tokens, prefill_seconds: tokens of prompts that were computed, and the time of it.
        cached_tokens: tokens of prompts that were found in the cache instead.
        decode_tokens, decode_seconds: tokens generated after a prompt's first, and the time of it.
        compile_seconds: time spent compiling, in neither of the two.
        guessed, accepted: tokens that speculation guessed, and of these the right ones.
        preemptions: how often a request had to make room.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    cached_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    compile_seconds: float = 0.0
    guessed: int = 0
    accepted: int = 0
    preemptions: int = 0

    def since(self, before: Stats) -> Stats:
        """What was done since a copy of these was taken."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return Stats(*(now - then for now, then in pairs))


@dataclass(eq=False, kw_only=True)
class Job(Text):
    """A request on its way."""

    request: Request
    settings: Settings
    progress: Progress
    penalised: bool
    started: bool = False
    slot: int = -1
    index: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0
    in_thinking: bool = False

    def take(self, output: Output, step: int, row: int) -> Token:
        """Go on by the token that a program gave in one of its steps."""
        token, forced = int(output.token[step, row]), bool(output.forced[step, row])
        self.tokens.append(token)
        if self.request.constraint is not None:
            self._constrain(token, forced)
        finish: FinishReason | None = None
        if token in self.request.eos:
            finish = "stop"
        elif len(self.tokens) == self.limit:
            finish = "length"
        thinking = bool(output.thinking[step, row])
        logprob = _logprob(output, step, row, self.request.sampling.logprobs)
        return Token(self.number, token, forced, thinking, logprob, finish, self.cached or 0)

    def allowed(self) -> np.ndarray | None:
        """The words of the constraint on the next token, if there is one and the answer is not in its thinking."""
        constraint, tokens = self.request.constraint, self.request.tokens
        if constraint is None or self.in_thinking:
            return None
        words = constraint.allowed()
        if len(self.tokens) == len(self.request.prompt) and tokens.start >= 0:  # the answer may begin with its thinking
            words = words.copy()
            words[tokens.start // 32] |= np.uint32(1 << tokens.start % 32)
        return words

    def _constrain(self, token: int, forced: bool) -> None:
        assert self.request.constraint is not None
        if token == self.request.tokens.end and self.in_thinking:
            self.in_thinking = False
        elif token == self.request.tokens.start and not forced:
            self.in_thinking = True
        elif not forced and not self.in_thinking:
            self.request.constraint.take(token)


def arrays_of(request: Request, defaults: GenerationConfig, slot: int) -> tuple[Settings, Progress]:
    """Return what the programs are told of a request that has not begun, arrays with one row."""
    sampling = request.sampling.resolve(defaults)
    eos: Any = np.full((1, MAX_EOS), -1, np.int32)
    eos[0, : len(request.eos)] = sorted(request.eos)

    def one(value: Any, kind: type) -> Any:
        return np.asarray([value], kind)

    settings = Settings(
        SamplingRows.of([sampling], [request.sample_index]),
        BudgetRules.of([request.budget], [request.tokens]),
        eos,
        one(slot, np.int32),
        one(request.constraint is not None, bool),
    )
    progress = Progress(
        token=one(request.prompt[-1], np.int32),
        length=one(0, np.int32),
        position=one(0, np.int32),
        remaining=one(request.max_new_tokens, np.int32),
        active=one(True, bool),
        budget=BudgetState.start([request.thinking]),
    )
    return settings, progress


def job_of(request: Request, model: Qwen3, no_slot: int) -> Job:
    """Return a request that has not begun; `no_slot` is a place in `Seen` past the last."""
    settings, progress = arrays_of(request, model.generation_config, no_slot)
    return Job(
        tokens=list(request.prompt),
        limit=len(request.prompt) + request.max_new_tokens,
        request=request,
        settings=settings,
        progress=progress,
        penalised=bool(settings.sampling.penalised[0]),
        # Its first token is chosen among those that are allowed, as all are that decoding gives.
        last_alone=request.constraint is not None,
        in_thinking=request.thinking,
    )


def _logprob(output: Output, step: int, row: int, wanted: int | None) -> TokenLogprob | None:
    if wanted is None or output.logprobs is None:
        return None
    all_of = output.logprobs
    top = zip(all_of.top_tokens[step, row, :wanted].tolist(), all_of.top[step, row, :wanted].tolist(), strict=True)
    return TokenLogprob(int(output.token[step, row]), float(all_of.chosen[step, row]), tuple(top))
