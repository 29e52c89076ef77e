"""Pages of figures that a browser opens without a network: drawings as SVG in the page's own colours, tables, one style.

    page("runs/quickstart", [table(["stage", "loss"], [["1", "2.5"]]), panels([drawing(draw)])])

As wide as the screen, and dark where the reader's system is. All text is escaped but what a caller passes as HTML.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

SHADES = ("#f2f5f9", "#fdfefe")  # of areas behind a drawing; the page has its own for dark screens
FONTS: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 15,
}
# Colours that the page replaces by its own: black on white and white on black are both read.
_INK, _SHADE, _PAPER = "#010203", *SHADES
_PAGE_COLOURS = {_INK: "var(--ink)", _SHADE: "var(--shade)", _PAPER: "var(--paper)"}

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --shade: #f2f5f9; --line: #e4e4e4; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #16181c; --shade: #20242b; --line: #34383f; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; padding: 0 1em; }
body { color: var(--ink); background: var(--paper); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { padding: .25em .9em .25em 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; }
"""


def drawing(draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 3.3)) -> str:
    """Return what `draw` draws on matplotlib axes as SVG, in colours of the page; `size` is in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    colours: Any = dict.fromkeys(ink, _INK) | {
        "figure.facecolor": "none", "axes.facecolor": "none", "legend.facecolor": _PAPER, "legend.edgecolor": "none", **FONTS,
    }  # fmt: skip
    with matplotlib.rc_context(colours):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg")
    text = out.getvalue()[out.getvalue().index("<svg") :]
    for colour, variable in _PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    return text


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts as HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return '<div class="wide"><table>' + line(heads, "th") + "".join(line(row, "td") for row in rows) + "</table></div>"


def panels(drawings: Sequence[str]) -> str:
    """Return drawings side by side, as many as the screen holds."""
    return '<div class="panels">\n' + "".join(drawings) + "</div>"


def page(title: str, parts: Sequence[str], *, style: str = "", script: str = "") -> str:
    """Return a whole page.

    Args:
        title: shown as the headline; escaped.
        parts: HTML, one below the other.
        style, script: CSS and JavaScript of the caller's.
    """
    ended = f"<script>{script}</script>\n" if script else ""
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>
<h1>{html.escape(title)}</h1>
{body}
{ended}</html>
"""
