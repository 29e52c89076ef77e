"""Which tokens of prompts a prefill gives the log probabilities of, and what it gives.

The hidden state of a token predicts the next one, so a prompt whose tokens are scored from `unreported` on is computed from the
token before that on; what is earlier may come from the prefix cache. Its last token is computed only if an answer follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qwen3_jax.generation.active import ActiveRequest
from qwen3_jax.generation.sampling import Logprobs
from qwen3_jax.generation.scheduler import Prefill
from qwen3_jax.generation.tokens import FinishReason, Token, TokenLogprob


class Scored(NamedTuple):
    """Tokens `first` to `end` - 1 of a request's prompt; `place` is that of the token before them in its shard's prefill."""

    active: ActiveRequest
    first: int
    end: int
    shard: int
    place: int

    @property
    def wanted(self) -> list[tuple[int, int, int]]:
        """(place of the token before it, token, adapter), for each token."""
        tokens = enumerate(self.active.tokens[self.first : self.end], start=self.place)
        return [(place, token, self.active.adapter) for place, token in tokens]


def scored_by(plan: Prefill[ActiveRequest]) -> list[Scored]:
    """Return the tokens that a prefill scores, in the order of its rows; call it before the requests advance."""
    found = []
    for shard, parts in enumerate(plan.parts):
        start = 0
        for active, count in parts:
            if active.unreported is not None:
                first = max(active.unreported, active.computed + 1)
                end = min(active.computed + count + 1, len(active.request.prompt))
                if first < end:
                    found.append(Scored(active, first, end, shard, start + first - 1 - active.computed))
            start += count
    return found


def tokens_of(scored: Sequence[Scored], pieces: Sequence[Logprobs], shards: int) -> Iterator[Token]:
    """Yield the scored tokens with their log probabilities, and note in their requests that they are reported.

    Args:
        scored: of `scored_by`.
        pieces: of `Runner.score`, on the host: arrays [shards * K].
        shards: of the batch.
    """
    if not scored:
        return

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(piece, name) for piece in pieces]
        return np.concatenate([x.reshape(shards, -1, *x.shape[1:]) for x in arrays], axis=1)

    chosen, top, top_tokens = joined("chosen"), joined("top"), joined("top_tokens")
    used = [0] * shards
    for active, first, end, shard, _ in scored:
        request, alternatives = active.request, active.request.sampling.logprobs or 0
        ends_with_prompt = request.max_new_tokens == 0
        for index in range(first, end):
            at = shard, used[shard]
            best = zip(top_tokens[at][:alternatives].tolist(), top[at][:alternatives].tolist(), strict=True)
            logprob = TokenLogprob(active.tokens[index], float(chosen[at]), tuple(best))
            finish: FinishReason | None = "length" if ends_with_prompt and index == len(request.prompt) - 1 else None
            yield prompt_token(active.number, active.tokens[index], logprob, finish, active.cached or 0)
            used[shard] += 1
        active.unreported = end if end < len(request.prompt) else None


def prompt_token(
    number: int, token: int, logprob: TokenLogprob | None, finish: FinishReason | None, cached: int = 0
) -> Token:
    """Return a token of a prompt."""
    return Token(number, token, False, False, logprob, finish, cached, prompt=True)
