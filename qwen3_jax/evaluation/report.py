"""The page of a run: accuracy against the thinking budget, a bar for each task, a table, and the samples to look at.

    qwen3 eval report results            # writes results/report.html and results/report.png

Source of the curve: Qwen3 technical report, figure 2. The page is one file without a network; of huge runs it holds a part of
the samples, and says so.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from qwen3_jax import report_page
from qwen3_jax.evaluation import tables
from qwen3_jax.evaluation.samples import PROBLEMS, key_of, read_samples
from qwen3_jax.paths import replace_file
from qwen3_jax.text_files import lines, read_text

MOST_SAMPLES = 2000  # on the page
_MOST_TEXT = 20_000  # characters of a sample's thinking or answer there
Row = Mapping[str, Any]


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Draw the page of a run as report.html and report.png; return the first.

    Args:
        folder: of the run.
        results: of `results.write_results`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if row["group"] is None]
    curves = len({row["thinking_budget"] for row in rows if row["mode"] == "thinking"}) > 1
    draws = [functools.partial(draw_bars, rows=rows)]
    if curves:
        draws.insert(0, functools.partial(draw_curves, rows=rows))
    height = max(3.3, 0.9 + 0.32 * len({(row["task"], row["mode"]) for row in rows}))
    with matplotlib.rc_context(report_page.FONTS):
        figure = Figure(figsize=(6.6 * len(draws), height), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes)
        image = io.BytesIO()
        figure.savefig(image, dpi=110, format="png")
    (folder / "report.png").write_bytes(image.getvalue())
    parts = [
        f"<p>{html.escape(_sentence(results))}</p>",
        report_page.panels([report_page.drawing(draw, (6.4, height)) for draw in draws]),
        *_tables(results),
        *_samples(folder, int(results["samples"])),
    ]
    page = files("qwen3_jax.evaluation") / "page"
    style, script = ((page / f"samples.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    target = folder / "report.html"
    replace_file(target, report_page.page(folder.resolve().name, parts, style=style, script=script))
    return target


def draw_curves(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a line over the budgets for each task; an unlimited one is the rightmost point."""
    rows = [row for row in rows if row["mode"] == "thinking"]
    finite = sorted({row["thinking_budget"] for row in rows} - {None})
    steps = [b - a for a, b in itertools.pairwise(finite)]
    # Budgets that double are even on a logarithmic axis; 0 is drawn a step before the first.
    logarithmic = (
        len(finite) > 3 and min(finite[1:]) > 0 and finite[-1] >= 16 * (finite[1] if finite[0] == 0 else finite[0])
    )
    places: dict[int | None, float] = {budget: float(budget) for budget in finite}
    if logarithmic:
        places = {budget: math.log2(budget) if budget else math.log2(finite[1]) - 1.5 for budget in finite}
    last = max(places.values(), default=0.0)
    places[None] = last + (1.5 if logarithmic else max(steps, default=1) if steps else 1)
    for task in dict.fromkeys(row["task"] for row in rows):
        points = [(places[row["thinking_budget"]], row) for row in rows if row["task"] == task]
        points.sort(key=lambda point: point[0])
        errors = [row["standard_error"] or 0.0 for _, row in points]
        axes.errorbar(
            [x for x, _ in points], [row["value"] for _, row in points], yerr=errors, marker="o", markersize=4, capsize=3,
            label=task,
        )  # fmt: skip
    shown = [budget for budget in places if any(row["thinking_budget"] == budget for row in rows)]
    axes.set_xticks([places[budget] for budget in shown], [tables.budget_name(budget) for budget in shown])
    axes.tick_params(axis="x", rotation=35 if len(shown) > 8 else 0)
    axes.set(
        xlabel="thinking budget (tokens)", ylabel="accuracy, with its standard error", ylim=(0, 1.03),
        title="accuracy against thinking budget",
    )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a bar for each task and mode, under its largest budget, with intervals of 95%."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["task"], row["mode"]
        if key not in best or _size(row["thinking_budget"]) > _size(best[key]["thinking_budget"]):
            best[key] = row
    several = len({mode for _, mode in best}) > 1
    names = [f"{task} ({mode})" if several else task for task, mode in best][::-1]
    values = [row["value"] for row in best.values()][::-1]
    reach = [1.96 * (row["standard_error"] or 0.0) for row in best.values()][::-1]
    axes.barh(
        names, values, xerr=reach, color=["C0" if "non-thinking" not in name else "C1" for name in names], capsize=3
    )
    for place, (value, error) in enumerate(zip(values, reach, strict=True)):
        axes.annotate(f" {value:.1%}", (min(value + error, 1.0), place), va="center", fontsize=8)
    axes.set(
        title="tasks, with 95% intervals", xlabel="accuracy (or score)", xlim=(0, 1.15), xticks=[0, 0.25, 0.5, 0.75, 1]
    )
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    spare = max(4 - len(names), 0) / 2  # few bars are no thicker than many
    axes.set_ylim(-0.6 - spare, len(names) - 0.4 + spare)


def _size(budget: int | None) -> float:
    return math.inf if budget is None else budget


def _sentence(results: Mapping[str, Any]) -> str:
    rows = [row for row in results["rows"] if row["group"] is None]
    lost = [row for row in rows if row["timed_out"] + row["error"] + row["too_long"] > 0]
    tasks = len({row["task"] for row in rows})
    parts = [f"{results['samples']:,} samples", f"{tasks} task{'s' * (tasks != 1)}"]
    if lost:
        parts.append(f"{len(lost)} of {len(rows)} figures hold answers without a verdict, which count as wrong")
    return ", ".join(parts)


_HEADS = (
    "task", "mode", "budget", "questions", "samples", "value", "± error", "pass@k", "maj@n", "thinking tokens", "answer tokens",
    "halted", "cut off", "unparsable", "timed out", "error", "too long",
)  # fmt: skip


def _tables(results: Mapping[str, Any]) -> Iterator[str]:
    """The table of all tasks, and, folded, that of their groups."""
    groups = [row for row in results["rows"] if row["group"] is not None]
    yield _table([row for row in results["rows"] if row["group"] is None])
    if groups:
        yield f"<details><summary>by group</summary>{_table(groups)}</details>"


def _table(rows: Sequence[Row]) -> str:
    """Columns that are empty in every row are left out."""
    cells = [_cells(row) for row in rows]
    kept = [place for place in range(len(_HEADS)) if any(line[place] for line in cells)]
    return report_page.table([_HEADS[i] for i in kept], [[line[i] for i in kept] for line in cells])


def _cells(row: Row) -> list[str]:
    name = row["task"] if row["group"] is None else f"{row['task']}: {row['group'] or 'none'}"
    passes = ", ".join(f"{k}: {tables.percent(value)}" for k, value in row["pass"].items() if k != "1")
    samples = row["samples"]
    tokens = ["" if row[key] is None else f"{row[key]:,.1f}" for key in ("thinking_tokens", "answer_tokens")]
    shares = ("halted", "cut_off", "unparsable", "timed_out", "error", "too_long")
    return [
        name, row["mode"], tables.budget_name(row["thinking_budget"], row["mode"]), str(row["questions"]),
        str(samples) if isinstance(samples, int) else f"{samples[0]} to {samples[-1]}", tables.percent(row["value"]),
        tables.percent(row["standard_error"]), passes, tables.percent(row["majority"]), *tokens,
        *(tables.percent(row[key]) for key in shares),
    ]  # fmt: skip


def _samples(folder: Path, total: int) -> Iterator[str]:
    """The samples and what they were asked, as data of the page's script."""
    yield "<h2>Samples</h2>"
    # A fixed share, by a hash of the key: every n-th line would meet some budgets always and others never.
    every = max(-(-total // MOST_SAMPLES), 1)
    chosen = (sample for sample in read_samples(folder) if zlib.crc32(repr(key_of(sample)).encode()) % every == 0)
    kept = [_shown(sample) for sample in itertools.islice(chosen, 2 * MOST_SAMPLES)]
    if every > 1:
        yield f'<p class="note">{len(kept):,} of {total:,} samples are on this page; samples.jsonl has all.</p>'
    wanted = {(sample["task"], sample["problem"]) for sample in kept}
    asked = {}
    if (folder / PROBLEMS).exists():
        for line in lines(read_text(folder / PROBLEMS)):
            row = json.loads(line)
            if (row["task"], row["problem"]) in wanted:
                reference = row["reference"]
                text = reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False, indent=1)
                asked[f"{row['task']}\n{row['problem']}"] = {"prompt": _prompt(row["prompt"]), "reference": _cut(text)}
    yield '<div id="filters" class="filters"></div><div id="list"></div>'
    yield _data("samples", kept)
    yield _data("problems", asked)


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    verdict, key = sample["verdict"], key_of(sample)
    thinking = sample["thinking_tokens"]
    return {
        "task": key.task, "problem": key.problem, "mode": key.mode, "budget": tables.budget_name(key.budget, key.mode),
        "number": key.sample, "status": verdict["status"], "score": f"{verdict['score']:g}", "reason": verdict["reason"],
        "thinking": _cut(sample["thinking"] or ""), "content": _cut(sample["content"]),
        "tokens": "tokens unknown" if thinking is None else f"{thinking:,} tokens" + ", halted" * bool(sample["halted"]),
        "calls": "\n".join(f"{call['name']}({call['arguments']})" for call in sample["tool_calls"]),
    }  # fmt: skip


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return _cut(prompt)
    parts = []
    for message in prompt:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        parts.append(f"{message.get('role')}: {text}")
    return _cut("\n\n".join(parts))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ... ({len(text):,} characters)"


def _data(name: str, value: Any) -> str:
    """JSON for the page's script. No text of it can end the element, begin a comment, or be half a character."""
    text = json.dumps(value, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{text}</script>'
