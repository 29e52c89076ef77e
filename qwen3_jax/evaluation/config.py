"""Evaluations after training, as sections of a training configuration. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError, repeated


@dataclass(frozen=True)
class BudgetCurveConfig:
    """Accuracy on held-out generated problems under several thinking budgets, measured after training.

    Attributes:
        source: the data source of the problems.
        budgets: thinking tokens; null is unlimited.
        problems: number of problems.
        max_new_tokens: most tokens of an answer.
        batch_size: answers generated together.
    """

    source: str
    budgets: list[int | None] = field(default_factory=lambda: [0, 4, 8, 16, 32, None])
    problems: int = 200
    max_new_tokens: int = 128
    batch_size: int = 100

    def __post_init__(self) -> None:
        check_bounds(
            vars(self),
            "budget_curve.",
            budgets=whole(0),
            problems=whole(1),
            max_new_tokens=whole(1),
            batch_size=whole(1),
        )
        if not self.budgets:
            raise UserError("budget_curve.budgets is empty; leave budget_curve out for no curve.")
        twice = repeated(["null" if budget is None else str(budget) for budget in self.budgets])
        if twice is not None:
            raise UserError(f"budget_curve.budgets has {twice} twice.")
