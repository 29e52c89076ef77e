"""Judges of `qwen3 data filter`: recipes whose answers take the place of rules about words.

A judge is a recipe that gives a query or a response labels, as `qwen3 data annotate` writes them into records: query_kind and
response_kind, or recipes of a user. What no judge has labelled is left to the rules of `filters.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3_jax.data.factory.recipe import Recipe
from qwen3_jax.data.factory.recipe_task import RecipeTask
from qwen3_jax.data.records import Record
from qwen3_jax.endpoints import Reply
from qwen3_jax.errors import UserError

QUERY, RESPONSE = "query_labels", "response_labels"
READY = ("query_kind", "response_kind")
"""Recipes of this project that are judges."""

LABELS: Mapping[str, Mapping[str, str]] = {
    QUERY: {"verifiable": "not verifiable", "several_parts": "several parts", "general_writing": "general writing"},
    RESPONSE: {"guessed": "guessed", "consistent": "inconsistent"},
}
"""Of queries and of responses: the filter that reads each label."""

Labels = Mapping[str, Mapping[str, Any]]
"""What is said about the query (QUERY) and the response (RESPONSE) of a record."""


def kind_of(judge: Recipe) -> str:
    """Whether a judge labels queries or responses: QUERY or RESPONSE.

    Raises:
        UserError: neither, both, or several answers for a record.
    """
    kinds = [kind for kind in LABELS if isinstance(judge.record.get(kind), Mapping)]
    if len(kinds) != 1 or not LABELS[kinds[0]].keys() & judge.record[kinds[0]].keys():
        raise UserError(
            f"the recipe {judge.name!r} is no judge: its record must have {QUERY} or {RESPONSE}, with labels such as "
            f"{', '.join(LABELS[QUERY])}; or {', '.join(LABELS[RESPONSE])}."
        )
    if judge.samples != 1 or judge.each:
        raise UserError(f"the recipe {judge.name!r} is no judge: it must give one answer for each record.")
    return kinds[0]


def filters_of(judge: Recipe) -> set[str]:
    """Names of the filters that read a judge's labels."""
    kind = kind_of(judge)
    return {name for label, name in LABELS[kind].items() if label in judge.record[kind]}


def written(record: Record) -> dict[str, Mapping[str, Any]]:
    """The labels that a record has."""
    return {kind: value for kind in LABELS if isinstance(value := record.body.get(kind), Mapping)}


def read(judge: Recipe, record: Record, reply: Reply) -> tuple[Mapping[str, Any] | None, str]:
    """(The labels that a judge's reply gives, ""), or (None, the outcome that stands for them)."""
    made = RecipeTask(judge).made(record, [[reply]])
    if made.rejected:
        return None, made.rejected[0].outcome
    labels = made.records[0][kind_of(judge)]
    known = LABELS[kind_of(judge)].keys() & labels.keys()
    return (labels, "") if all(isinstance(labels[name], bool) for name in known) else (None, "invalid")
