"""Bounds of configuration fields and options, declared as a table where the values come in:

    def __post_init__(self) -> None:
        check_bounds(vars(self), "optimizer.", learning_rate=at_least(0), warmup_steps=whole(0), clip_norm=above(0))

A value that breaks its bound is a `UserError`: "optimizer.clip_norm is 0.0; it must be above 0."
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError


@dataclass(frozen=True)
class Bound:
    """An interval of numbers. NaN lies in no interval.

    Attributes:
        low, high: ends of the interval.
        low_excluded, high_excluded: an end is not part of the interval.
        whole: only integers.
    """

    low: float = -math.inf
    high: float = math.inf
    low_excluded: bool = False
    high_excluded: bool = False
    whole: bool = False

    def broken_rule(self, value: Any) -> str | None:
        """What `value` must be and is not ("at least 1"); None if it is within the bound."""
        kind: Any = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return "a whole number" if self.whole else "a number"
        above_low = value > self.low if self.low_excluded else value >= self.low
        below_high = value < self.high if self.high_excluded else value <= self.high
        return None if above_low and below_high else self._interval()

    def _interval(self) -> str:
        low = f"above {self.low}" if self.low_excluded else f"at least {self.low}"
        if self.high == math.inf:
            return f"{low} and finite" if self.high_excluded else low
        if not self.low_excluded and not self.high_excluded:
            return f"between {self.low} and {self.high}"
        return f"{low} and {'below' if self.high_excluded else 'at most'} {self.high}"


def at_least(low: float, *, below: float | None = None) -> Bound:
    """A number of `low` or more; with `below`, less than that."""
    return Bound(low) if below is None else Bound(low, below, high_excluded=True)


def above(low: float, *, finite: bool = False) -> Bound:
    """A number larger than `low`; with `finite`, infinity is refused."""
    return Bound(low, low_excluded=True, high_excluded=finite)


def between(low: float, high: float) -> Bound:
    """A number from `low` to `high`, both included."""
    return Bound(low, high)


def whole(low: int, high: float = math.inf) -> Bound:
    """An integer from `low` to `high`, both included."""
    return Bound(low, high, whole=True)


def check_bounds(values: Mapping[str, Any], prefix: str = "", /, **bounds: Bound) -> None:
    """Raise a `UserError` for the first field that breaks its bound.

    Args:
        values: fields by name: `vars(self)` of a dataclass. A list or tuple is checked item by item; None is skipped.
        prefix: what stands before a field's name in the message: "optimizer.".
        bounds: the bound of each field that has one.
    """
    for name, bound in bounds.items():
        value = values[name]
        for item in value if isinstance(value, (list, tuple)) else (value,):
            rule = None if item is None else bound.broken_rule(item)
            if rule is not None:
                raise UserError(f"{prefix}{name} is {item!r}; it must be {rule}.")
