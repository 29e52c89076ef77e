"""One page about a run, from what it wrote: losses, domains, norms, routers, throughput, and where the time went.

    qwen3 report runs/quickstart            # writes runs/quickstart/report.html and report.png

Goodput is the time that went to steps which the run still has, over all time since it was first started: what is missing from 1
is compilation, input wait, evaluation, checkpoints, starts, steps lost to a kill, and the time between a kill and the restart.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.training import metrics

Rows = list[dict[str, Any]]
_NAMES = {
    "step": "training steps",
    "input": "waiting for input",
    "compile": "compilation",
    "eval": "evaluation",
    "checkpoint": "checkpoints",
    "other": "logging",
    "rest": "starts, stops, lost steps",
}
_SHADES = ("#f2f5f9", "#ffffff")


@dataclass
class Run:
    """What a run's folder says.

    Attributes:
        folder: of the run.
        config: as saved.
        train: lines of training metrics.
        rows: all lines.
        routers: lines of router.jsonl.
        history: starts and ends.
    """

    folder: Path
    config: dict[str, Any]
    train: Rows
    rows: Rows
    routers: Rows
    history: Rows

    @property
    def steps(self) -> list[int]:
        """Of `train`."""
        return [row["step"] for row in self.train]

    def stages(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, steps before it, its last step, its tokens per step) of every stage."""
        done, data = 0, self.config["data"]
        for stage in self.config["stages"] or [{"name": "train", "steps": self.config["steps"]}]:
            rows = stage.get("batch_size") or data["batch_size"]
            length = stage.get("sequence_length") or data["sequence_length"]
            yield stage["name"], done, done + stage["steps"], rows * length
            done += stage["steps"]

    def time_spent(self) -> dict[str, float]:
        """Seconds since the first start by what they went to; "rest" is what no line accounts for."""
        spent = {part: sum(row.get(f"seconds_{part}", 0.0) for row in self.rows) for part in metrics.PARTS}
        begun = self.history[0]["time"] if self.history else self.rows[0]["time"]
        end = max(row["time"] for row in [*self.rows, *self.history])
        return spent | {"rest": max(end - begun - sum(spent.values()), 0.0)}

    def goodput(self) -> float:
        """Share of the time since the first start that went to steps which the run still has."""
        spent = self.time_spent()
        return spent["step"] / max(sum(spent.values()), 1e-9)

    def starts(self) -> list[int]:
        """The step from which on each start went on."""
        return [row["step"] for row in self.history if row["event"] == "start"]


def read(run_dir: Path) -> Run:
    """Return what a run's folder says, also while it runs.

    Raises:
        UserError: the folder is not a run's, or nothing was logged yet.
    """
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} is not the folder of a training run: it has no config.json.")
    rows, routers, history = (metrics.read(run_dir / f"{name}.jsonl") for name in ("metrics", "router", "history"))
    train = [row for row in rows if "train.cross_entropy" in row]
    if not train:
        raise UserError(f"{run_dir} has no metrics yet.")
    return Run(run_dir, read_json(run_dir / "config.json"), train, rows, routers, history)


def report(run_dir: Path) -> Path:
    """Draw the page as report.html and report.png; return the first.

    Raises:
        UserError: see `read`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    run = read(run_dir)
    panels: list[Callable[[Any, Run], None]] = [_loss, _held_out, _learning_rate, _norms, _throughput, _time]
    if any(name.startswith("position.") for row in run.rows for name in row):
        panels.insert(2, _position)
    if run.routers:
        panels += [_busiest, _experts]
    height = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlepad": 15}
    ):
        figure = Figure(figsize=(13, 3.3 * height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        # Rows by themselves: what one needs beside its axes takes no room from the others.
        for number, row in enumerate(figure.subfigures(height, 1, squeeze=False).ravel()):
            for axes, panel in zip(row.subplots(1, 2), panels[2 * number : 2 * number + 2], strict=False):
                axes.spines[["top", "right"]].set_visible(False)
                panel(axes, run)
            for axes in row.axes[len(panels) - 2 * number : 2]:
                axes.set_visible(False)
        vector = io.StringIO()
        figure.savefig(vector, format="svg")
        figure.suptitle(_sentence(run), x=0.01, ha="left", fontsize=10)
        figure.savefig(run_dir / "report.png", dpi=110)
    drawing = vector.getvalue()
    page = run_dir / "report.html"
    page.write_text(_page(run, drawing[drawing.index("<svg") :]), encoding="utf-8")
    return page


def summary(run_dir: Path) -> dict[str, Any]:
    """The page's numbers: steps, last losses, seconds by part, goodput, mean throughput after the first tenth."""
    return _summary(read(run_dir))


def _summary(run: Run) -> dict[str, Any]:
    out = {
        "step": run.train[-1]["step"],
        "steps": [end for *_, end, _ in run.stages()][-1],
        "training_loss": run.train[-1]["train.cross_entropy"],
        "held_out_loss": _losses(metrics.last_held_out(run.rows)),
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


def _sentence(run: Run) -> str:
    numbers = _summary(run)
    parts = [
        f"{run.folder.name}: step {numbers['step']:,} of {numbers['steps']:,}",
        f"training loss {numbers['training_loss']:.3f}",
    ]
    if "tokens_per_second" in numbers:
        parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in numbers:
        parts.append(f"MFU {numbers['mfu']:.0%}")
    if numbers["skipped"]:
        parts.append(f"{numbers['skipped']:.0f} step{'s' if numbers['skipped'] > 1 else ''} skipped")
    parts.append("started once" if numbers["starts"] == 1 else f"started {numbers['starts']} times")
    return ", ".join([*parts, f"goodput {numbers['goodput']:.0%}"])


def _page(run: Run, drawing: str) -> str:
    """The HTML: headline, a table of stages, a table of time, the drawing."""
    stages = []
    for name, first, last, tokens in run.stages():
        inside = [row for row in run.train if first < row["step"] <= last]
        if not inside:
            stages.append([name, f"{first + 1:,} to {last:,}", f"{(last - first) * tokens:,}", "not begun", "", ""])
            continue
        losses = _losses(metrics.last_held_out(row for row in run.rows if first < row["step"] <= last))
        speed = sorted(row["tokens_per_second"] for row in inside if "tokens_per_second" in row)
        stages.append([
            name, f"{first + 1:,} to {last:,}", f"{(last - first) * tokens:,}", f"{inside[-1]['train.cross_entropy']:.3f}",
            ", ".join(f"{source} {value:.3f}" for source, value in losses.items()),
            f"{speed[len(speed) // 2]:,.0f}" if speed else "",
        ])  # fmt: skip
    spent = run.time_spent()
    total = max(sum(spent.values()), 1e-9)
    time = [[_NAMES[name], f"{value:,.1f}", f"{value / total:.1%}"] for name, value in spent.items()]
    heads = ["stage", "steps", "tokens", "training loss", "held-out loss", "tokens/s"]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(run.folder.name)}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 14px; }}
th, td {{ padding: .25em .9em .25em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }}
svg {{ width: 100%; height: auto; }}
</style>
<h1>{html.escape(run.folder.name)}</h1>
<p>{html.escape(_sentence(run))}</p>
{_table(heads, stages)}
{_table(["time went to", "seconds", "share"], time)}
{drawing}
</html>
"""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(heads, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _losses(found: dict[str, float | None]) -> dict[str, float]:
    """Without those that are not finite."""
    return {name: value for name, value in found.items() if value is not None}


def _over_steps(axes: Any, run: Run) -> None:
    """What all panels over steps share: the stages behind, the restarts, the axis."""
    last = max(run.steps)
    stages = list(run.stages())
    for number, (name, first, end, _) in enumerate(stages):
        if len(stages) > 1 and first < last:
            axes.axvspan(first, min(end, last), color=_SHADES[number % 2], zorder=0, linewidth=0)
            middle = (first + min(end, last)) / 2
            axes.annotate(
                name, (middle, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=7.5, color="0.45",
            )  # fmt: skip
    for step in run.starts()[1:]:
        axes.axvline(step, color="C3", linewidth=0.7, linestyle=":")
    axes.grid(alpha=0.25)
    axes.set(xlabel="step", xlim=(0, last))


def _loss(axes: Any, run: Run) -> None:
    finite = metrics.finite(row["train.cross_entropy"] for row in run.train)
    axes.plot(run.steps, finite, color="0.78", linewidth=0.8, label="batches")
    axes.plot(run.steps, metrics.running_mean(finite), color="C0", label="running mean")
    for step in run.starts()[1:2]:
        axes.plot([], [], color="C3", linewidth=0.7, linestyle=":", label=f"resumed (first at step {step:,})")
    axes.set(ylabel="nats per token", title="training loss")
    _over_steps(axes, run)
    axes.legend(fontsize=8)


def _held_out(axes: Any, run: Run) -> None:
    names = sorted({name for row in run.rows for name in _losses(metrics.held_out_losses(row))})
    for number, name in enumerate(names):
        points = [(row["step"], row[f"eval.{name}"]) for row in run.rows if row.get(f"eval.{name}") is not None]
        style = "-" if number < 10 else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
    axes.set(ylabel="nats per token", title="held-out loss by source and domain")
    _over_steps(axes, run)
    if names:
        axes.legend(fontsize=7.5, ncols=1 + len(names) // 7)


def _position(axes: Any, run: Run) -> None:
    ends = {last: name for name, _, last, _ in run.stages()}
    for row in run.rows:
        points = {name: value for name, value in row.items() if name.startswith("position.")}
        if points:
            labels = [name.removeprefix("position.").replace("-", " to ") for name in points]
            axes.plot(labels, list(points.values()), marker="o", markersize=4, label=f"after {ends[row['step']]}")
    axes.set(ylabel="nats per token", xlabel="position in the text (tokens)", title="held-out loss by position")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _norms(axes: Any, run: Run) -> None:
    finite = metrics.finite(row["train.gradient_norm"] for row in run.train)
    axes.plot(run.steps, finite, color="C1", linewidth=0.9, label="gradient (left)")
    axes.set(ylabel="gradient norm", yscale="log", title="global norms")
    _over_steps(axes, run)
    right = axes.twinx()
    right.plot(run.steps, [row["train.parameter_norm"] for row in run.train], color="C4", label="parameters (right)")
    right.set_ylabel("parameter norm")
    right.spines["top"].set_visible(False)
    handles = [*axes.get_lines()[:1], *right.get_lines()]
    axes.legend(handles, [line.get_label() for line in handles], fontsize=8, loc="lower right")


def _learning_rate(axes: Any, run: Run) -> None:
    axes.plot(run.steps, [row["train.learning_rate"] for row in run.train], color="C2")
    axes.set(title="learning rate", ylim=(0, None))
    _over_steps(axes, run)


def _throughput(axes: Any, run: Run) -> None:
    points = [(row["step"], row["tokens_per_second"]) for row in run.train if "tokens_per_second" in row]
    if points:
        axes.plot(*zip(*points, strict=True), color="C3", linewidth=0.9)
    axes.set(ylabel="tokens per second", title="throughput", ylim=(0, None))
    _over_steps(axes, run)
    scaled, unit = [(row["step"], 100 * row["mfu"]) for row in run.train if "mfu" in row], "MFU (%), dashed"
    if not scaled:
        scaled = [(row["step"], 1e3 * row["tflops_per_device"]) for row in run.train if "tflops_per_device" in row]
        unit = "GFLOP/s per device, dashed"
    if scaled:
        right = axes.twinx()
        right.plot(*zip(*scaled, strict=True), color="C7", linewidth=0.8, linestyle="--")
        right.set(ylabel=unit, ylim=(0, None))
        right.spines["top"].set_visible(False)


def _time(axes: Any, run: Run) -> None:
    spent = run.time_spent()
    total = max(sum(spent.values()), 1e-9)
    names = [_NAMES[part] for part in spent][::-1]
    values = list(spent.values())[::-1]
    axes.barh(names, values, color=["C0" if name == _NAMES["step"] else "0.7" for name in names])
    for place, value in enumerate(values):
        axes.annotate(f" {value:,.1f} s, {value / total:.1%}", (value, place), va="center", fontsize=8)
    axes.set(title=f"where the time went (goodput {run.goodput():.0%})", xlabel="seconds", xlim=(0, 1.3 * max(values)))


def _busiest(axes: Any, run: Run) -> None:
    """Load of the busiest expert by layer over steps."""
    layers = sorted(name for name in run.train[-1] if name.startswith("train.router_max_load."))
    values = [[math.nan if row.get(name) is None else row[name] for row in run.train] for name in layers]
    image = axes.imshow(
        values, aspect="auto", cmap="magma", interpolation="nearest",
        extent=(run.steps[0], run.steps[-1], len(layers) - 0.5, -0.5),
    )  # fmt: skip
    axes.set(
        xlabel="step",
        ylabel="layer",
        title="load of the busiest expert (1 is an even share)",
        yticks=_ticks(len(layers)),
    )
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)


def _experts(axes: Any, run: Run) -> None:
    """Load of every expert at the last evaluation."""
    last = run.routers[-1]
    load = last["load"]
    from matplotlib.colors import TwoSlopeNorm

    most = max(max(map(max, load)), 1.01)
    image = axes.imshow(load, aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(1, 0, most), interpolation="nearest")
    axes.set(
        xlabel="expert", ylabel="layer", title=f"load of every expert at step {last['step']:,} (1 is an even share)",
        xticks=_ticks(len(load[0])), yticks=_ticks(len(load)),
    )  # fmt: skip
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(count // 8, 1)))
