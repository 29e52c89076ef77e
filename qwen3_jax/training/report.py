"""The report of a run on one page: losses by source and domain, norms, router load, throughput, and time by activity.

    qwen3 report runs/quickstart            # writes runs/quickstart/report.html and report.png

Goodput is the time spent in steps that the run kept, divided by all time since its first start. The rest is compilation, input
wait, evaluation, checkpoints, startup, steps lost to a kill, and the time between a kill and the restart.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import report_page
from qwen3_jax.paths import replace_file
from qwen3_jax.training import report_panels, report_rl
from qwen3_jax.training.metrics import last_held_out
from qwen3_jax.training.report_panels import finite_losses
from qwen3_jax.training.run_log import RunLog, read_run


def write_report(run_dir: Path) -> Path:
    """Draw the page as report.html and report.png; return the first.

    Raises:
        UserError: see `read_run`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    run = read_run(run_dir)
    panels: list[Callable[[Any, RunLog], None]] = [
        report_panels.loss,
        report_panels.held_out,
        report_panels.learning_rate,
        report_panels.norms,
        report_panels.throughput,
        report_panels.time,
    ]
    if run.config.get("rl"):
        panels = report_rl.panels(run)
    if any(name.startswith("position.") for row in run.rows for name in row):
        panels.insert(2, report_panels.position)
    if run.routers:
        panels += [report_panels.busiest, report_panels.experts]
    height = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(report_page.FONTS):
        figure = Figure(figsize=(13, 3.3 * height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        # One subfigure for each row, so that a colour bar in one row does not shrink the others.
        for number, row in enumerate(figure.subfigures(height, 1, squeeze=False).ravel()):
            for axes, panel in zip(row.subplots(1, 2), panels[2 * number : 2 * number + 2], strict=False):
                axes.spines[["top", "right"]].set_visible(False)
                panel(axes, run)
            for axes in row.axes[len(panels) - 2 * number : 2]:
                axes.set_visible(False)
        figure.suptitle(_sentence(run), x=0.01, ha="left", fontsize=10)
        image = io.BytesIO()
        figure.savefig(image, dpi=110, format="png")
    (run_dir / "report.png").write_bytes(image.getvalue())
    page = run_dir / "report.html"
    replace_file(page, _page(run, [report_page.drawing(_bound(panel, run)) for panel in panels]))
    return page


def _bound(panel: Callable[[Any, RunLog], None], run: RunLog) -> Callable[[Any], None]:
    return lambda axes: panel(axes, run)


def summary(run_dir: Path) -> dict[str, Any]:
    """Return the numbers of the report: steps, last losses, seconds by activity, goodput, and medians of throughput and MFU."""
    return _summary(read_run(run_dir))


def _summary(run: RunLog) -> dict[str, Any]:
    out = {
        "step": run.train[-1]["step"],
        "steps": [end for *_, end, _ in run.stages()][-1],
        "training_loss": run.train[-1][run.loss],
        "held_out_loss": finite_losses(last_held_out(run.rows)),
        "skipped": run.train[-1]["train.skipped"],
        "starts": len(run.starts()),
        "seconds": run.time_spent(),
        "goodput": run.goodput(),
    }
    for name in ("tokens_per_second", "tflops_per_device", "mfu", "input_wait_share"):
        values = [row[name] for row in run.train if name in row]
        if values:
            out[name] = sorted(values)[len(values) // 2]
    return out


def _sentence(run: RunLog) -> str:
    numbers = _summary(run)
    parts = [
        f"{run.folder.name}: step {numbers['step']:,} of {numbers['steps']:,}",
        f"reward {run.train[-1]['rl.reward']:.3f}"
        if "rl.reward" in run.train[-1]
        else f"training loss {_loss_text(numbers['training_loss'])}",
    ]
    if "tokens_per_second" in numbers:
        parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in numbers:
        parts.append(f"MFU {numbers['mfu']:.0%}")
    if numbers["skipped"]:
        parts.append(f"{numbers['skipped']:.0f} step{'s' if numbers['skipped'] > 1 else ''} skipped")
    parts.append("started once" if numbers["starts"] == 1 else f"started {numbers['starts']} times")
    return ", ".join([*parts, f"goodput {numbers['goodput']:.0%}"])


def _loss_text(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"


def _page(run: RunLog, drawings: Sequence[str]) -> str:
    """Return the HTML page: headline, a table of stages, a table of time by activity, the drawings."""
    stages = []
    for name, first, last, tokens in run.stages():
        inside = [row for row in run.train if first < row["step"] <= last]
        if not inside:
            stages.append([name, f"{first + 1:,} to {last:,}", f"{(last - first) * tokens:,}", "not started", "", ""])
            continue
        losses = finite_losses(last_held_out(row for row in run.rows if first < row["step"] <= last))
        speed = sorted(row["tokens_per_second"] for row in inside if "tokens_per_second" in row)
        stages.append([
            name, f"{first + 1:,} to {last:,}", f"{(last - first) * tokens:,}", _loss_text(inside[-1][run.loss]),
            ", ".join(f"{source} {value:.3f}" for source, value in losses.items()),
            f"{speed[len(speed) // 2]:,.0f}" if speed else "",
        ])  # fmt: skip
    spent = run.time_spent()
    total = max(sum(spent.values()), 1e-9)
    time = [
        [report_panels.part_name(name, run), f"{value:,.1f}", f"{value / total:.1%}"] for name, value in spent.items()
    ]
    heads = ["stage", "steps", "tokens", "training loss", "held-out loss", "tokens/s"]
    parts = [
        f"<p>{html.escape(_sentence(run))}</p>",
        report_page.table(heads, stages),
        report_page.table(["activity", "seconds", "share"], time),
        report_page.panels(drawings),
        report_rl.transcripts(run.folder),
    ]
    return report_page.page(run.folder.name, parts, style=report_rl.STYLE)
