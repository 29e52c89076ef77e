"""The report of a recipe: per claim what the report says, what was measured, and the verdict. report.html and report.png."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import report_page
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import replace_file
from qwen3_jax.recipes.claims import Finding, finding
from qwen3_jax.recipes.config import ROLES
from qwen3_jax.recipes.report_claims import CLAIMS
from qwen3_jax.recipes.runner import DESCRIPTION, Record

STYLE = """
.claim { border-top: 2px solid var(--line); margin-top: 1.5em; padding-top: .5em; }
.claim h2 { font-size: 1.1em; margin: .2em 0; }
.verdict { font-weight: bold; padding: .1em .6em; border-radius: 1em; border: 1px solid currentcolor; white-space: nowrap; }
.holds { color: #15803d; } .does-not-hold { color: #c2410c; } .open, .not-measured { color: #64748b; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; align-items: start; }
dt { font-weight: bold; } dd { margin: 0 0 .6em 0; }
"""
_COLOURS = ("#2563eb", "#ea580c", "#15803d", "#7c3aed")
_VERDICTS = {"holds": "#15803d", "does not hold": "#c2410c", "open": "#64748b", "not measured": "#64748b"}


def is_recipe_folder(folder: Path) -> bool:
    """Whether a recipe was run in a folder."""
    return (folder / DESCRIPTION).exists()


def findings(folders: Sequence[Path]) -> list[Finding]:
    """Return the finding of every claim from the folders of one recipe, one for each seed.

    Phases that are not done are no evidence, whatever they have written by then.

    Raises:
        UserError: a folder is not that of a recipe, or they are of different ones.
    """
    seeds: dict[str, list[dict[str, Path]]] = {claim.key: [] for claim in CLAIMS}
    unfinished: dict[str, list[str]] = {claim.key: [] for claim in CLAIMS}
    first = _names(folders[0])
    for folder in folders:
        if _names(folder) != first:
            raise UserError(
                f"{folders[0]} and {folder} are of recipes with different phases; give seeds of one recipe."
            )
        states = Record(folder).states
        open_phases = [name for name in first if name not in states or not states[name].done]
        for key, roles in _description(folder)["claims"].items():
            waits = [name for name in open_phases if any(Path(place).parts[:1] == (name,) for place in roles.values())]
            if waits:
                unfinished[key].append(f"phase {waits[0]!r} of {folder} is not done.")
            else:
                seeds[key].append({role: folder / place for role, place in roles.items()})
    return [finding(claim, seeds[claim.key], unfinished[claim.key]) for claim in CLAIMS]


def write_page(folders: Sequence[Path], found: Sequence[Finding]) -> Path:
    """Draw the page of a recipe, of one seed or several, into the first folder; return report.html.

    Args:
        folders: one for each seed.
        found: `findings` of them.

    Raises:
        UserError: a folder is not that of a recipe.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn = [one for one in found if one.evidence is not None]
    if drawn:
        height = math.ceil(len(drawn) / 2)
        with matplotlib.rc_context(report_page.FONTS):
            figure = Figure(figsize=(13, 3.6 * height), layout="constrained")
            figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
            grid = figure.subplots(height, 2, squeeze=False).ravel()
            for axes, one in zip(grid, drawn, strict=False):
                axes.spines[["top", "right"]].set_visible(False)
                _draw(axes, one)
                axes.set_title(
                    f"{one.claim.title}\n{one.verdict}", color=_VERDICTS[one.verdict], fontsize=8.5, wrap=True
                )
            for axes in grid[len(drawn) :]:
                axes.set_visible(False)
            image = io.BytesIO()
            figure.savefig(image, dpi=110, format="png")
        (folders[0] / "report.png").write_bytes(image.getvalue())
    page = folders[0] / "report.html"
    replace_file(page, _page(folders, found))
    return page


def summary(found: Sequence[Finding]) -> dict[str, Any]:
    """Return verdicts, words and figures by claim, as JSON values."""
    out = {}
    for one in found:
        figures = {} if one.evidence is None else one.evidence.figures
        out[one.claim.key] = {
            "verdict": one.verdict, "words": one.words, "seeds": one.seeds,
            "figures": {name: [value.value, value.error] for name, value in figures.items()},
        }  # fmt: skip
    return out


def _draw(axes: Any, one: Finding) -> None:
    """Draw the curves of a finding; texts on the x axis are bars, or points in their order."""
    assert one.evidence is not None
    curves = one.evidence.curves
    bars = len(curves) == 1 and one.evidence.axes[0] == ""
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        texts = any(isinstance(x, str) for x in curve.x)
        places = list(range(len(curve.x))) if texts else list(curve.x)
        values, errors = [point.value for point in curve.y], [2 * point.error for point in curve.y]
        if bars:
            axes.bar(places, values, yerr=errors, color=colour, width=0.6, capsize=3)
            for place, value in zip(places, values, strict=True):
                axes.annotate(f"{value:.1%}", (place, value / 2), ha="center", color="white", fontsize=9)
        else:
            marker = "" if len(places) > 40 else "o"
            axes.errorbar(
                places,
                values,
                yerr=errors if any(errors) else None,
                color=colour,
                marker=marker,
                ms=3.5,
                linestyle="-" if curve.joined else "none",
                label=curve.label,
            )
        if texts and not curve.joined:
            axes.set_xlim(-0.5, len(places) - 0.5)
        if texts:
            axes.set_xticks(places, curve.x, rotation=0 if len(curve.x) < 7 else 30, fontsize=8)
    if not bars:
        axes.set_xlabel(one.evidence.axes[0])
    axes.set_ylabel(one.evidence.axes[1])
    low, high = axes.get_ylim()
    if one.evidence.axes[1].startswith(("share", "right")):
        axes.set_ylim(max(low, -0.03), min(high, 1.03))  # an error of seeds that differ may pass the ends of a share
    if len(curves) > 1:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize=8)


def _page(folders: Sequence[Path], found: Sequence[Finding]) -> str:
    rows = [[one.claim.title, one.verdict, str(one.seeds) if one.seeds else ""] for one in found]
    parts = [
        f"<p>{html.escape(_sentence(folders))}</p>", report_page.table(["claim", "verdict", "seeds"], rows),
        *(_claim(one) for one in found), "<h2>Phases</h2>", *(_phases(folder) for folder in folders),
    ]  # fmt: skip
    return report_page.page(_description(folders[0])["about"] or folders[0].name, parts, style=STYLE)


def _sentence(folders: Sequence[Path]) -> str:
    seconds = [sum(state.seconds for state in Record(folder).states.values()) for folder in folders]
    times = ", ".join(f"{folder}: {value / 60:.0f} minutes" for folder, value in zip(folders, seconds, strict=True))
    return (
        f"Intervals are standard errors, in drawings two of them; verdicts follow from the rules beside them. {times}."
    )


def _claim(one: Finding) -> str:
    name = one.verdict.replace(" ", "-")
    entries = [
        ("The report", one.claim.report),
        ("Measured", one.words),
        ("Verdict", f"{one.verdict}: {one.claim.rule}."),
    ]
    if one.verdict == "not measured":
        entries[2] = ("Verdict", f"not measured. It would hold if {one.claim.rule}.")
    entries += [("Left out", note) for note in one.notes]
    words = "<dl>" + "".join(f"<dt>{head}</dt><dd>{html.escape(text)}</dd>" for head, text in entries) + "</dl>"
    picture = "" if one.evidence is None else report_page.drawing(lambda axes: _draw(axes, one))
    return (
        f'<section class="claim"><h2>{html.escape(one.claim.title)} <span class="verdict {name}">{one.verdict}</span></h2>'
        f'<div class="two"><div>{words}</div><div>{picture}</div></div></section>'
    )


def _phases(folder: Path) -> str:
    states, rows = Record(folder).states, []
    for phase in _description(folder)["phases"]:
        state = states.get(phase["name"])
        said = "not begun" if state is None else "done" if state.done else "interrupted"
        seconds = "" if state is None else f"{state.seconds:,.0f}"
        rows.append([phase["name"], said, seconds, phase["about"]])
    return f"<h3>{html.escape(str(folder))}</h3>" + report_page.table(
        ["phase", "state", "seconds", "what it is for"], rows
    )


def _names(folder: Path) -> list[str]:
    return [phase["name"] for phase in _description(folder)["phases"]]


def _description(folder: Path) -> dict[str, Any]:
    if not is_recipe_folder(folder):
        raise UserError(f"{folder} is not the folder of a recipe: it has no {DESCRIPTION}.")
    values = read_json(folder / DESCRIPTION)
    if not {"about", "phases", "claims"} <= values.keys() or not ROLES.keys() >= values["claims"].keys():
        raise UserError(
            f"{folder / DESCRIPTION} is damaged, or of another version; running the recipe writes it again, and what is done "
            "is not run again."
        )
    return values
