"""Tokens as they leave the engine."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log probability of one token (natural log, before penalties and temperature).

    Attributes:
        token_id, logprob: the token of the answer.
        top: (token id, log probability) of the most likely tokens, best first, as many as requested.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """One token of one request, as `Engine.step` returns it.

    Attributes:
        number: of the request, as `Engine.submit` returned it.
        id: the token.
        forced: it is part of the stop text.
        thinking: it was sampled and counted against the budget.
        logprob: None unless requested.
        finish: the reason if this token finishes the request, else None.
        cached: prompt tokens of the request whose keys and values were in the cache.
    """

    number: int
    id: int
    forced: bool
    thinking: bool
    logprob: TokenLogprob | None
    finish: FinishReason | None
    cached: int = 0
