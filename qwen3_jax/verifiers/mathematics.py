r"""Mathematical answers, compared by math-verify: numbers, expressions, sets, intervals, equations, matrices.

    verify("math", r"... so \boxed{\frac{1}{2}}", "0.5")

The verdict is math-verify's own. Its time limits use signals, which work in the main thread alone and don't interrupt a long
product of integers; they are off, and the process is ended instead. See `verify_math` for references without dollar signs.
"""

import functools
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.errors import UserError
from qwen3_jax.processes.steps import step
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong

# One number or quotient, which math-verify finds without delimiters; of several it would read the last or a part alone.
_PLAIN = re.compile(r"[-+]?\s*(?:\d{1,3}(?:[, ]\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?\s*%?")
_EXPONENT = re.compile(r"[-+]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})[eE][-+]?\d{1,3}")
_DELIMITED = re.compile(r"(?<!\\)(?:\$|\\\(|\\\[|\\boxed)")  # \$ is money, \\[ a line of a matrix


@dataclass(frozen=True)
class MathSettings:
    """Of `verify_math`.

    Attributes:
        seconds: for one pair; after them it is "timed_out".
        float_rounding: decimal places that floating-point numbers must share.
        numeric_precision: digits that expressions are evaluated to.
        strict: names of variables count, and a set is no tuple.
        set_as_relation: an interval may answer an inequality, and an inequality an interval.
        delimit: a reference of LaTeX without delimiters is read as if it had dollar signs.
    """

    seconds: float = 5.0
    float_rounding: int = 6
    numeric_precision: int = 15
    strict: bool = True
    set_as_relation: bool = False
    delimit: bool = True

    def __post_init__(self) -> None:
        check_bounds(
            vars(self),
            "settings of 'math': ",
            seconds=above(0, finite=True),
            float_rounding=whole(0),
            numeric_precision=whole(1),
        )


def preload() -> None:
    """Import math-verify and build its parser; a UserError where it is not installed."""
    parse = _math_verify()[0]
    parse(r"$\frac{1}{2}$", parsing_timeout=None)


def delimited(reference: str) -> str:
    """The reference as math-verify reads it: LaTeX without delimiters gets dollar signs, a number stays; 1e-3 is 0.001."""
    if _EXPONENT.fullmatch(reference.strip()):
        return f"{Decimal(reference.strip()):f}"
    return reference if _DELIMITED.search(reference) or _PLAIN.fullmatch(reference) else f"${reference}$"


def verify_math(answer: str, reference: Any, settings: MathSettings) -> Verdict:
    r"""Whether the answer's last boxed, announced or displayed expression equals the reference.

    Args:
        answer: text with LaTeX or plain numbers.
        reference: text or a number. LaTeX without delimiters (`\frac{1}{2}`, as MATH-500 has it) is read as if it had dollar
            signs, where math-verify reads nothing or a number out of it (`delimit`).
        settings: see `MathSettings`.
    """
    parse, compare = _math_verify()
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise BadReference(f"'math' compares with text or a number, got {type(reference).__name__}")
    step("while reading the reference")
    expected = _expected(parse, delimited(str(reference)) if settings.delimit else str(reference))
    if not expected:
        raise BadReference(f"math-verify reads no expression in {str(reference)[:200]!r}")
    step("while reading the answer")
    found = parse(answer, parsing_timeout=None)
    if not found:
        return unparsable("the answer holds no expression that math-verify reads")
    step("while comparing")
    equal = compare(
        list(expected),
        found,
        settings.float_rounding,
        settings.numeric_precision,
        settings.strict,
        settings.set_as_relation,
        timeout_seconds=None,
    )
    shown = f"{found[-1][:200]!r}" if isinstance(found[-1], str) else "the expression"
    if equal:
        return right(f"{shown} equals the reference", extracted=_normal(found))
    return wrong(f"{shown} does not equal {str(reference)[:200]!r}", extracted=_normal(found))


def _normal(found: list[Any]) -> str:
    """The expression that was read, as text; 0.5 is 1/2. Nothing is evaluated, which could take for ever."""
    from sympy import Float, Rational

    expression = found[0]
    try:
        return str(Rational(str(expression)) if isinstance(expression, Float) else expression)
    except (ValueError, RecursionError, TypeError):  # an integer of thousands of digits
        return str(found[-1])


@functools.lru_cache(maxsize=64)  # a question has many answers
def _expected(parse: Any, reference: str) -> tuple[Any, ...]:
    return tuple(parse(reference, parsing_timeout=None))


@functools.cache
def _math_verify() -> tuple[Any, Any]:
    try:
        import math_verify
    except ImportError:
        raise UserError("the verifier 'math' needs the package math-verify: pip install \"qwen3-jax[eval]\".") from None
    import logging

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    return math_verify.parse, math_verify.verify
