"""How questions are asked: as Qwen recommends for benchmarks (the model cards of Qwen3, "Best Practices").

Texts of the data are joined and never formatted: braces, percent signs and backslashes in them stay as they are.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE = 'Please show your choice in the `answer` field with only the choice letter, e.g., `"answer": "C"`.'
LETTERS = string.ascii_uppercase

Messages = tuple[Mapping[str, Any], ...]


def user(text: str) -> Messages:
    """A conversation of one message of the user."""
    return ({"role": "user", "content": text},)


def mathematics(question: str) -> Messages:
    """A question whose answer is boxed."""
    return user(f"{question.strip()}\n\n{BOXED}")


def multiple_choice(question: str, choices: Sequence[str]) -> Messages:
    """A question, its choices with letters from A on, and the form of the answer."""
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return user("\n".join([question.strip(), "", *lines, "", CHOICE]))
