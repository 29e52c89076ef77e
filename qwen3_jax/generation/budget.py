"""The thinking budget: at most so many sampled tokens of thinking, then the stop text, then the answer.

Source: Qwen3 technical report, section 4.3: "When the length of the model's thinking reaches a user-defined threshold, we
manually halt the thinking process and insert the stop-thinking instruction ... the model then proceeds to generate a final
response based on its accumulated reasoning up to that point." The stop text is that of Qwen's documentation (the report
prints a stray period after </think>).

What counts, and when, for each row:

- Every sampled token after `<think>` counts, up to and without `</think>`; all spans of one answer count together.
- As soon as the count equals the budget and `</think>` has not come, the tokens of the stop text are forced. Forced tokens
  are not thinking that the model did and do not count.
- Once the budget is used up, `<think>` cannot be sampled again.
- While a tool call is open in the answer (and tools are in play), think tags are part of its arguments.

With the budget not reached, no token differs from a run without one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3_jax.errors import UserError
from qwen3_jax.text import STOP_TEXT, Tokenizer

UNLIMITED = np.iinfo(np.int32).max
_NONE = -1  # an id that no token has


@dataclass(frozen=True)
class ThinkingTokens:
    """The ids that the budget works with, read from a tokenizer.

    Attributes:
        start, end: `<think>` and `</think>`; -1 where the vocabulary has none.
        stop: the stop text's ids, `end` among them.
        call_start, call_end: `<tool_call>` and `</tool_call>` where tools are in play, else -1.
    """

    start: int = _NONE
    end: int = _NONE
    stop: tuple[int, ...] = ()
    call_start: int = _NONE
    call_end: int = _NONE

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, stop_text: str = STOP_TEXT, tools: bool = False) -> ThinkingTokens:
        """Read the ids; a tokenizer without think tokens gives an object with which no budget can be set.

        Raises:
            UserError: the stop text does not end the thinking.
        """
        if tokenizer is None or tokenizer.think_start_id is None or tokenizer.think_end_id is None:
            return cls()
        stop = tuple(tokenizer.encode(stop_text))
        if stop.count(tokenizer.think_end_id) != 1 or tokenizer.think_start_id in stop:
            raise UserError(f"the thinking stop text must contain </think> once and no <think>; got {stop_text!r}.")
        calls = (tokenizer.tool_call_start_id, tokenizer.tool_call_end_id) if tools else (None, None)
        start, end = (_NONE if id is None else id for id in calls)
        return cls(tokenizer.think_start_id, tokenizer.think_end_id, stop, start, end)

    def is_open(self, prompt: list[int], header: int | None) -> bool:
        """Whether a prompt leaves thinking open; tags before the last `<|im_start|>` (`header`) are someone's text."""
        if self.start == _NONE:
            return False
        for token in reversed(prompt):
            if token == self.start:
                return True
            if token in (self.end, header):
                return False
        return False


@struct.dataclass
class BudgetState:
    """Where each row stands, arrays [B].

    Attributes:
        budget: int32, sampled thinking tokens allowed.
        used: int32, sampled thinking tokens so far.
        thinking: bool, between the tags.
        in_call: bool, between the tags of a tool call outside thinking.
        forcing: int32, index of the stop token that comes next, -1 when none does.
    """

    budget: jax.Array
    used: jax.Array
    thinking: jax.Array
    in_call: jax.Array
    forcing: jax.Array

    @classmethod
    def start(cls, budgets: list[int | None], thinking: list[bool]) -> BudgetState:
        """Return the state before the first token; a budget of None is unlimited."""
        rows = len(budgets)
        arrays: dict[str, Any] = dict(
            budget=np.asarray([UNLIMITED if b is None else min(b, UNLIMITED) for b in budgets], np.int32),
            used=np.zeros(rows, np.int32),
            thinking=np.asarray(thinking, bool),
            in_call=np.zeros(rows, bool),
            forcing=np.full(rows, -1, np.int32),
        )
        return cls(**arrays)

    def forbid(self, logits_bv: jax.Array, tokens: ThinkingTokens) -> jax.Array:
        """Take `<think>` out of reach of rows that have used up their budget."""
        if tokens.start == _NONE:
            return logits_bv
        spent_b = (self.used >= self.budget) & ~self.thinking
        return logits_bv.at[:, tokens.start].set(jnp.where(spent_b, -jnp.inf, logits_bv[:, tokens.start]))

    def advance(self, sampled_b: jax.Array, tokens: ThinkingTokens) -> tuple[jax.Array, jax.Array, BudgetState]:
        """Return (token that is taken, whether it was forced, next state), each [B]."""
        if tokens.start == _NONE:
            return sampled_b, jnp.zeros(sampled_b.shape, bool), self
        stop_s = jnp.asarray(tokens.stop, jnp.int32)
        forcing_b = jnp.where((self.forcing < 0) & self.thinking & (self.used >= self.budget), 0, self.forcing)
        forced_b = forcing_b >= 0
        token_b = jnp.where(forced_b, stop_s[jnp.maximum(forcing_b, 0)], sampled_b)
        last_b = forcing_b == len(tokens.stop) - 1

        ends_b = self.thinking & (token_b == tokens.end)
        begins_b = ~self.thinking & ~self.in_call & (token_b == tokens.start)
        counts_b = self.thinking & ~ends_b & ~forced_b
        calls_b = ~self.thinking & (token_b == tokens.call_start)
        returns_b = ~self.thinking & (token_b == tokens.call_end)
        state = dataclasses.replace(
            self,
            used=self.used + counts_b.astype(jnp.int32),
            thinking=(self.thinking & ~ends_b) | begins_b,
            in_call=(self.in_call | calls_b) & ~returns_b,
            forcing=jnp.where(forced_b & ~last_b, forcing_b + 1, -1),
        )
        return token_b, forced_b, state
