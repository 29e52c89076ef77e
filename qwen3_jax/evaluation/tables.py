"""The figures of runs as tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_WIDTH = 150


def budget_name(budget: int | None, mode: str = "thinking") -> str:
    """A thinking budget in words; "-" for a mode without thinking."""
    return "-" if mode != "thinking" else "unlimited" if budget is None else str(budget)


def percent(value: float | None, sign: str = "") -> str:
    """A share with one decimal; "" for None."""
    return "" if value is None else f"{value:{sign}.1%}"


def results(rows: Sequence[Row], title: str) -> str:
    """Return a line for each task, mode and budget; those of groups come behind theirs."""
    heads = (
        "task", "mode", "budget", "questions", "value", "error", "pass", "maj", "thinking", "answer", "halted",
        "unparsable", "no verdict",
    )  # fmt: skip
    lines = []
    for row in rows:
        name = row["task"] if row["group"] is None else f"  {row['group']}"
        k = max(row["pass"], key=int)
        lines.append([
            name, row["mode"], budget_name(row["thinking_budget"], row["mode"]), str(row["questions"]), percent(row["value"]),
            "" if row["standard_error"] is None else f"± {percent(row['standard_error'])}",
            "" if k == "1" else f"pass@{k} {percent(row['pass'][k])}", percent(row["majority"]),
            _tokens(row["thinking_tokens"]), _tokens(row["answer_tokens"]), percent(row["halted"]), percent(row["unparsable"]),
            percent(row["timed_out"] + row["error"] + row["too_long"]),
        ])  # fmt: skip
    empty = [
        place for place, name in enumerate(heads) if name in ("pass", "maj") and not any(line[place] for line in lines)
    ]
    kept = [place for place in range(len(heads)) if place not in empty]
    return _table(title, [heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def comparison(rows: Sequence[Row], first: str, second: str) -> str:
    """Return a line for each task, mode and budget that two runs have, and what was left out."""
    heads = [
        "task",
        "mode",
        "budget",
        "questions",
        "first",
        "second",
        "difference",
        "95% interval",
        "better",
        "worse",
        "p",
    ]
    lines, notes = [], []
    for row in rows:
        interval = "" if row["interval"] is None else "{:+.1%} to {:+.1%}".format(*row["interval"])
        lines.append([
            row["task"], row["mode"], budget_name(row["thinking_budget"], row["mode"]), str(row["questions"]),
            percent(row["first"]), percent(row["second"]), percent(row["difference"], "+"), interval,
            str(row["better"]), str(row["worse"]), f"{row['p']:.3g}",
        ])  # fmt: skip
        if row["only_first"] or row["only_second"]:
            budget = budget_name(row["thinking_budget"], row["mode"])
            counts = f"{row['only_first']} questions of the first run and {row['only_second']} of the second"
            notes.append(f"{row['task']}, {row['mode']}, budget {budget}: {counts} are not in the other, and left out.")
    title = f"second less first: {second} less {first}"
    return "\n".join([_table(title, heads, lines), *notes])


def _tokens(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for name in heads:
        table.add_column(name, justify="left" if name in ("task", "mode") else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    out = io.StringIO()
    Console(file=out, width=_WIDTH).print(table)
    return out.getvalue().rstrip("\n")
