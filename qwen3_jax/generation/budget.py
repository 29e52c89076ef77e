"""The thinking budget: at most `budget` sampled thinking tokens, then the stop text, then the answer.

Source: Qwen3 technical report, section 4.3: "When the length of the model's thinking reaches a user-defined threshold, we
manually halt the thinking process and insert the stop-thinking instruction ... the model then proceeds to generate a final
response based on its accumulated reasoning up to that point." The stop text is that of Qwen's documentation (the report
prints a stray period after </think>).

What counts, and when, for each row:

- An answer has one thinking section, at its start: newlines at most come before `<think>`. In the answer itself think tags
  are text, which it may quote, also in the arguments of a tool call. An answer that the prompt has begun has none.
- Every sampled token after `<think>` counts, up to but excluding `</think>`.
- When the count reaches the budget before `</think>` is sampled, the tokens of the stop text are forced. Forced tokens do not
  count.
- Once the budget is used up, `<think>` cannot be sampled again.

Until the budget is reached, the tokens are those of a run without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3_jax.errors import RequestError
from qwen3_jax.text import STOP_TEXT, Tokenizer

UNLIMITED = np.iinfo(np.int32).max
MAX_STOP_TOKENS = 128  # of a stop text; every row is padded to it; the default is 111 bytes long
MAX_NEWLINES = 16  # tokens that consist of newlines
_NONE = -1  # no token has this id
Place = Literal["start", "thinking", "answer"]
"""Before the thinking or the answer, within the thinking, or within the answer."""


@dataclass(frozen=True)
class ThinkingTokens:
    """Token ids that the budget needs, read from a tokenizer.

    Attributes:
        start, end: `<think>` and `</think>`; -1 if the vocabulary has none.
        stop: the stop text's ids, `end` among them.
        newlines: tokens that consist of newlines, which may come before the answer or its thinking.
    """

    start: int = _NONE
    end: int = _NONE
    stop: tuple[int, ...] = ()
    newlines: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, stop_text: str = STOP_TEXT) -> ThinkingTokens:
        """Read the ids; without think tokens in the vocabulary all are -1, and no budget can be set.

        Raises:
            RequestError: the stop text does not end the thinking.
        """
        if tokenizer is None or tokenizer.think_start_id is None or tokenizer.think_end_id is None:
            return cls()
        stop = tuple(tokenizer.encode(stop_text))
        if stop.count(tokenizer.think_end_id) != 1 or tokenizer.think_start_id in stop:
            reason = f"the thinking stop text must contain </think> once and no <think>; got {stop_text!r}."
            raise RequestError(reason, "thinking_stop_text")
        return cls(tokenizer.think_start_id, tokenizer.think_end_id, stop, tokenizer.newline_ids[:MAX_NEWLINES])

    def check_stop(self) -> None:
        """Refuse a stop text that is too long to be forced; without a budget nothing is forced, and any length will do.

        Raises:
            RequestError: it has more than MAX_STOP_TOKENS tokens.
        """
        if len(self.stop) > MAX_STOP_TOKENS:
            reason = f"the thinking stop text has {len(self.stop)} tokens; the most is {MAX_STOP_TOKENS}."
            raise RequestError(reason, "thinking_stop_text")

    def place(self, prompt: Sequence[int], header: int | None) -> Place:
        """Where the next token stands; tags before the last `<|im_start|>` (`header`) are text of earlier turns.

        A turn has one thinking section, at its start, behind the line with its role; later tags are text that it quotes.
        Where there is no turn the last tag decides.
        """
        if self.start == _NONE:
            return "start"
        turn = self._turn(prompt, header)
        if turn is None:
            last = next((token for token in reversed(prompt) if token in (self.start, self.end, header)), None)
            return "thinking" if last == self.start else "start"
        place: Place = "start"
        closed = False
        for token in turn:
            if place == "thinking":
                place, closed = ("start", True) if token == self.end else (place, closed)
            elif token == self.start and not closed:
                place = "thinking"
            elif token == self.end and not closed:
                closed = True
            elif token not in self.newlines:
                return "answer"
        return place

    def _turn(self, prompt: Sequence[int], header: int | None) -> list[int] | None:
        """The tokens of the last turn, behind the line with its role; None if there is no such line."""
        tokens: list[int] = []
        for token in reversed(prompt):
            if token == header:
                line = next((i for i, each in enumerate(reversed(tokens)) if each in self.newlines), None)
                return None if line is None else tokens[::-1][line + 1 :]
            tokens.append(token)
        return None


def may_force(budget: int | None, is_open: bool) -> bool:
    """Whether a budget may force the stop text; 0 does where the prompt leaves thinking open (`is_open`)."""
    return budget is not None and (budget > 0 or is_open)


@struct.dataclass
class BudgetRules:
    """Budget and `ThinkingTokens` of each row, constant over a request; arrays [B].

    Attributes:
        budget: int32, sampled thinking tokens allowed.
        start, end: int32, -1 if absent.
        stop: int32 [B, MAX_STOP_TOKENS], the stop text's ids.
        stop_length: int32.
        newlines: int32 [B, MAX_NEWLINES], padded with -1.
    """

    budget: jax.Array
    start: jax.Array
    end: jax.Array
    stop: jax.Array
    stop_length: jax.Array
    newlines: jax.Array

    @classmethod
    def of(cls, budgets: Sequence[int | None], tokens: Sequence[ThinkingTokens]) -> BudgetRules:
        """Stack the rules of rows; a budget of None is unlimited."""

        def column(values: Iterable[int]) -> Any:
            return np.asarray(list(values), np.int32)

        stop: Any = np.zeros((len(budgets), MAX_STOP_TOKENS), np.int32)
        newlines: Any = np.full((len(budgets), MAX_NEWLINES), _NONE, np.int32)
        for row, of in enumerate(tokens):
            forced = of.stop[:MAX_STOP_TOKENS]  # `check_stop`: only a row without a budget has a longer one
            stop[row, : len(forced)] = forced
            newlines[row, : len(of.newlines)] = of.newlines
        return cls(
            budget=column(UNLIMITED if b is None else min(b, UNLIMITED) for b in budgets),
            start=column(of.start for of in tokens),
            end=column(of.end for of in tokens),
            stop=stop,
            stop_length=column(len(of.stop) for of in tokens),
            newlines=newlines,
        )


@struct.dataclass
class BudgetState:
    """State of each row, arrays [B].

    Attributes:
        used: int32, sampled thinking tokens so far.
        thinking: bool, between the think tags.
        closed: bool, the thinking section is over.
        answering: bool, the answer has begun: a token that is no newline came outside thinking.
        forcing: int32, index of the next stop token, -1 if none is forced.
    """

    used: jax.Array
    thinking: jax.Array
    closed: jax.Array
    answering: jax.Array
    forcing: jax.Array

    @classmethod
    def start(cls, thinking: Sequence[bool], answering: Sequence[bool]) -> BudgetState:
        """Return the state before the first token: the prompt leaves `<think>` open, or has begun the answer."""
        rows = len(thinking)
        arrays: dict[str, Any] = dict(
            used=np.zeros(rows, np.int32),
            thinking=np.asarray(thinking, bool),
            closed=np.zeros(rows, bool),
            answering=np.asarray(answering, bool),
            forcing=np.full(rows, -1, np.int32),
        )
        return cls(**arrays)

    @property
    def busy(self) -> jax.Array:
        """Whether the next token belongs to the thinking or the stop text, bool [B]."""
        return self.thinking | (self.forcing >= 0)

    def forbid(self, logits_bv: jax.Array, rules: BudgetRules) -> jax.Array:
        """Mask `<think>` in rows that have used up their budget."""
        spent_b = (self.used >= rules.budget) & ~self.thinking & (rules.start >= 0)
        token_b = jnp.where(spent_b, rules.start, logits_bv.shape[1])  # past the last is dropped
        return logits_bv.at[jnp.arange(logits_bv.shape[0]), token_b].set(-jnp.inf, mode="drop")

    def advance(self, sampled_b: jax.Array, rules: BudgetRules) -> tuple[jax.Array, jax.Array, BudgetState]:
        """Return (token taken: the sampled or a forced one, whether it was forced, next state), each [B]."""
        forcing_b = jnp.where((self.forcing < 0) & self.thinking & (self.used >= rules.budget), 0, self.forcing)
        forced_b = forcing_b >= 0
        next_b = jnp.take_along_axis(rules.stop, jnp.maximum(forcing_b, 0)[:, None], axis=1)[:, 0]
        token_b = jnp.where(forced_b, next_b, sampled_b)
        last_b = forcing_b == rules.stop_length - 1

        ends_b = self.thinking & (token_b == rules.end)
        outside_b = ~self.thinking
        begins_b = outside_b & ~self.closed & ~self.answering & (token_b == rules.start)
        # A </think> before anything else closes a section that the prompt had closed already.
        closes_b = outside_b & ~self.closed & ~self.answering & (token_b == rules.end)
        newline_b = (token_b[:, None] == rules.newlines).any(axis=1)
        counts_b = self.thinking & ~ends_b & ~forced_b
        state = BudgetState(
            used=self.used + counts_b.astype(jnp.int32),
            thinking=(self.thinking & ~ends_b) | begins_b,
            closed=self.closed | ends_b | closes_b,
            answering=self.answering | (outside_b & ~begins_b & ~closes_b & ~newline_b),
            forcing=jnp.where(forced_b & ~last_b, forcing_b + 1, -1),
        )
        return token_b, forced_b, state
