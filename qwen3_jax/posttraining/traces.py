"""What is kept of an episode besides its last answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.posttraining.samples import Sample

Ending = Literal["done", "tokens", "turns", "timed_out", "error"]
"""Of an episode: by itself or by its environment; by a limit of tokens, its own or that of its row; by the limit of turns.
Without a reward: the environment took too long, or failed."""


@dataclass(frozen=True)
class Trace:
    """An episode.

    Attributes:
        ending: how it ended.
        reason: why it has no reward; "" otherwise.
        messages: of the conversation, all before the last answer.
        earlier: samples before that of the last answer, in order (`history: new_sample`).
        reward: the sum of those that the environment gave; None where it gave none.
        tokens: sampled in all turns; forced ones do not count.
        thinking_tokens: sampled within think tags in all turns.
        turns: answers of the model.
        calls: calls of tools in them.
        failed_calls: calls that brought an error.
        truncated_results: results of tools that were cut off.
        seconds: that the environment took.
        infos: what the environment noted of each step, JSON values.
    """

    ending: Ending
    reason: str
    messages: tuple[Mapping[str, Any], ...]
    earlier: tuple[Sample, ...] = ()
    reward: float | None = None
    tokens: int = 0
    thinking_tokens: int = 0
    turns: int = 0
    calls: int = 0
    failed_calls: int = 0
    truncated_results: int = 0
    seconds: float = 0.0
    infos: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def is_lost(self) -> bool:
        """Whether the environment failed, so that nothing can be said of the episode."""
        return self.ending in ("timed_out", "error")

    @property
    def is_cut(self) -> bool:
        """Whether a limit of tokens or turns ended it."""
        return self.ending in ("tokens", "turns")
