"""Tokens as they leave the engine."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log probabilities of one token (natural logarithm).

    Attributes:
        token_id, logprob: the token, and its log probability by the model itself, before penalties and temperature.
        top: (token id, log probability) of the most likely tokens, likewise, best first, as many as requested.
        sampled: log probability under the distribution that the token was drawn from (`Sampling.sampled_logprobs`): 0 under
            greedy decoding, NaN for a forced token, which was not drawn. None unless requested.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    sampled: float | None = None


@dataclass(frozen=True)
class Token:
    """One token of one request, as `Engine.step` returns it.

    Attributes:
        number: of the request, as `Engine.submit` returned it.
        id: the token.
        forced: it is part of the stop text.
        thinking: it was sampled and counted against the budget.
        logprob: None unless requested, and for the first token of a prompt.
        finish: the reason if this token finishes the request, else None.
        cached: prompt tokens of the request whose keys and values were in the cache.
        prompt: it is a token of the prompt (`Request.score_from`), and none of the answer.
        experts: int16 [N - 1, L, K], the K experts that each of L MoE layers sent each of the N tokens of prompt and answer to,
            but the last, which no program has read; on the token that finishes a request of an engine with `report_experts`.
    """

    number: int
    id: int
    forced: bool
    thinking: bool
    logprob: TokenLogprob | None
    finish: FinishReason | None
    cached: int = 0
    prompt: bool = False
    experts: np.ndarray | None = None
