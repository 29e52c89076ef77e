"""Settings and state of the rows that a device program computes together, and its results.

Shapes: b rows of all shards of the batch, l MoE layers, k experts of a token.
"""

from __future__ import annotations

import jax
from flax import struct

from qwen3_jax.generation.budget import BudgetRules, BudgetState
from qwen3_jax.generation.sampling import Logprobs, SamplingRows, Seen
from qwen3_jax.kernels import Pages

MAX_EOS = 24  # end tokens per request: the model's own, and those that the request adds


class Settings(struct.PyTreeNode):
    """Settings of each row, constant over a request; arrays [B].

    Attributes:
        sampling: sampling settings.
        rules: the thinking budget.
        eos: int32 [B, MAX_EOS], tokens that end the answer where they are sampled, padded with -1.
        slot: int32, the row's slot in `Seen`; past the last without penalties.
        constrained: bool, outside thinking the row takes one token, from `allowed_bw`, and then waits for the host.
        adapter: int32, which of the model's adapters the row has, counted from 1; 0 is the base model.
    """

    sampling: SamplingRows
    rules: BudgetRules
    eos: jax.Array
    slot: jax.Array
    constrained: jax.Array
    adapter: jax.Array


class Progress(struct.PyTreeNode):
    """State of each row, arrays [B].

    Attributes:
        token: int32, the newest token; its keys are not in the cache yet.
        length: int32, tokens whose keys are in the cache.
        position: int32, tokens generated so far.
        remaining: int32, tokens that may still be generated.
        active: bool, the row is unfinished.
        budget: the thinking budget's state.
    """

    token: jax.Array
    length: jax.Array
    position: jax.Array
    remaining: jax.Array
    active: jax.Array
    budget: BudgetState


class Output(struct.PyTreeNode):
    """Result of one step, arrays [B].

    Attributes:
        valid: bool, the row was active; otherwise ignore the rest.
        token: int32.
        forced: bool, the token is part of the stop text.
        thinking: bool, the token was sampled and counted against the budget.
        logprobs: see `Logprobs`.
        experts: int16 [B, L, K], the experts that each MoE layer sent the step's input token to; None unless asked for, and in
            a prefill, which reports those of all its tokens.
    """

    valid: jax.Array
    token: jax.Array
    forced: jax.Array
    thinking: jax.Array
    logprobs: Logprobs
    experts: jax.Array | None = None


class State(struct.PyTreeNode):
    """Device state between calls. The programs donate it and return its successor; do not reuse it.

    Attributes:
        groups: pages of the model.
        draft: pages of the draft model, or an empty tuple.
        seen: tokens that each slot has seen.
    """

    groups: tuple[Pages, ...]
    draft: tuple[Pages, ...]
    seen: Seen


def row_size(count: int, most: int) -> int:
    """Round up the rows of a decode step, to `most` at the most: three and five answers share a program of eight rows."""
    return min(count if count <= 2 else size_of(count, 8), most)


def size_of(count: int, least: int = 1, factor: int = 2) -> int:
    """Round up to `least` times a power of `factor`: few shapes, at most that many times the work."""
    size = least
    while size < count:
        size *= factor
    return size
