"""Budgets of a job: what a request can cost at most is reserved before it is sent, so that no budget is ever exceeded.

Prices are decimal numbers in dollars per million tokens, given by the user and never guessed. Cached tokens count in full.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.data.factory.answers import Spending
from qwen3_jax.endpoints import Tokens
from qwen3_jax.errors import UserError

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class Limits:
    """What a job may cost; None is no limit.

    Attributes:
        tokens: of prompts and answers, over all runs of the job.
        usd: dollars, over all runs; needs both prices.
        hours: of this run; requests in progress are finished.
        price_in: dollars per million tokens of prompts.
        price_out: of answers.
    """

    tokens: int | None = None
    usd: Decimal | None = None
    hours: float | None = None
    price_in: Decimal | None = None
    price_out: Decimal | None = None

    def __post_init__(self) -> None:
        check_bounds(vars(self), "", tokens=whole(1), hours=above(0, finite=True))
        for name in ("usd", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not (value.is_finite() and value >= 0):
                raise UserError(f"{name} is {value}; it must be 0 or more and finite.")
        if (self.price_in is None) != (self.price_out is None):
            raise UserError("give both prices, --price-in and --price-out, or none.")
        if self.usd is not None and self.price_in is None:
            raise UserError("--budget-usd needs --price-in and --price-out, in dollars per million tokens.")

    def dollars(self, tokens: Tokens) -> Decimal | None:
        """What these tokens cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (self.price_in * tokens.prompt + self.price_out * tokens.completion) / _MILLION


class Budget:
    """Reservations against limits.

    Args:
        limits: of the job.
        spent: by all runs before.
    """

    def __init__(self, limits: Limits, spent: Spending):
        self._limits = limits
        at_most = spent.at_most
        self._prompt, self._completion = at_most.prompt, at_most.completion
        self._started = time.monotonic()

    @property
    def out_of_time(self) -> bool:
        """Whether no further request may be sent because of the time."""
        hours = self._limits.hours
        return hours is not None and time.monotonic() - self._started >= hours * 3600

    def reserve(self, bound: Tokens) -> bool:
        """Reserve what a request can cost at most; False if that is more than is left."""
        prompt, completion = self._prompt + bound.prompt, self._completion + bound.completion
        if self._limits.tokens is not None and prompt + completion > self._limits.tokens:
            return False
        dollars = self._limits.dollars(Tokens(prompt, completion))
        if self._limits.usd is not None and dollars is not None and dollars > self._limits.usd:
            return False
        self._prompt, self._completion = prompt, completion
        return True

    def settle(self, bound: Tokens, cost: Tokens) -> None:
        """Put what was spent in the place of a reservation."""
        self._prompt += cost.prompt - bound.prompt
        self._completion += cost.completion - bound.completion

    def reason(self, bound: Tokens) -> str:
        """Why a request does not fit."""
        limits, used = self._limits, Tokens(self._prompt, self._completion)
        if self.out_of_time:
            return f"the {limits.hours:g} hours of --budget-hours are over"
        if limits.tokens is not None and used.total + bound.total > limits.tokens:
            return f"{used.total:,} of {limits.tokens:,} tokens are used, and the next request may take {bound.total:,}"
        costs = limits.dollars(used) or 0, limits.dollars(bound) or 0
        return f"${costs[0]:.4f} of ${limits.usd} are used, and the next request may cost ${costs[1]:.4f}"
