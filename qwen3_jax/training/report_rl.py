"""The report of a run of the method grpo: panels of rewards, lengths, entropy and agreement, and sampled transcripts."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qwen3_jax.training import report_panels
from qwen3_jax.training.loss_plot import nan_for_null, running_mean
from qwen3_jax.training.metrics import read as read_lines
from qwen3_jax.training.report_panels import over_steps
from qwen3_jax.training.rl_config import PASS_RATE_BINS
from qwen3_jax.training.run_log import RunLog
from qwen3_jax.verifiers import STATUSES

_STATUSES = (*STATUSES, "scored", "not_judged")  # of a part: `qwen3_jax.posttraining.sampled`
Panel = Callable[[Any, RunLog], None]
_TRANSCRIPTS = 6  # groups of the newest round
_LONGEST = 4000  # characters of one text
STYLE = """
details { border-top: 1px solid var(--line); padding: .4em 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--shade); padding: .6em; margin: .4em 0; }
pre.thinking { opacity: .75; }
"""


def panels(run: RunLog) -> list[Panel]:
    """Return the panels of a run on sampled answers; those of rewards, ratios and divergences where the run has them."""
    divergence = [report_panels.loss] if run.loss == "train.divergence" else []
    rewards = [reward, held_out_reward, parts, pass_rates] if any("rl.reward" in row for row in run.train) else []
    ratios = [clipping] if any("train.ratio" in row for row in run.train) else []
    return [
        *divergence, *rewards, lengths, ended, entropy, agreement, *ratios, seconds, report_panels.learning_rate,
        report_panels.norms, speed, report_panels.time,
    ]  # fmt: skip


def _series(run: RunLog, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, where there are any."""
    rows = [row for row in run.train if name in row]
    return [row["step"] for row in rows], nan_for_null(row[name] for row in rows)


def _lines(axes: Any, run: RunLog, names: Iterable[tuple[str, str]]) -> bool:
    drawn = False
    for name, label in names:
        steps, values = _series(run, name)
        if steps:
            axes.plot(steps, values, linewidth=1.0, label=label)
            drawn = True
    return drawn


def reward(axes: Any, run: RunLog) -> None:
    steps, values = _series(run, "rl.reward")
    axes.plot(steps, values, color="0.78", linewidth=0.8, label="rounds")
    if steps:
        axes.plot(steps, running_mean(values), color="C0", label="running mean")
    axes.set(ylabel="reward", title="reward of sampled answers")
    over_steps(axes, run)
    axes.legend(fontsize=8)


def held_out_reward(axes: Any, run: RunLog) -> None:
    names = sorted(
        {name for row in run.rows for name in row if name.startswith("held_out.") and name.endswith(".reward")}
    )
    for name in names:
        points = [(row["step"], row[name]) for row in run.rows if row.get(name) is not None]
        label = name.removeprefix("held_out.").removesuffix(".reward")
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set(ylabel="reward", title="held-out reward by source")
    over_steps(axes, run)
    if names:
        axes.legend(fontsize=8)


def parts(axes: Any, run: RunLog) -> None:
    every = {name for row in run.train for name in row if name.startswith("rl.part.")}
    names = sorted(name for name in every if name.rpartition(".")[2] not in _STATUSES)  # a part's name may have points
    drawn = _lines(axes, run, [(name, name.removeprefix("rl.part.")) for name in names])
    for status in ("timed_out", "error", "not_judged"):
        failing = sorted(name for name in every if name.endswith(f".{status}"))
        drawn |= _lines(axes, run, [(name, name.removeprefix("rl.part.")) for name in failing])
    drawn |= _lines(axes, run, [("rl.lost", "answers without a reward")])
    axes.set(ylabel="mean score, share", title="parts of the reward, and what failed")
    over_steps(axes, run)
    if drawn:
        axes.legend(fontsize=7.5)


def pass_rates(axes: Any, run: RunLog) -> None:
    rows = [row for row in run.train if "rl.pass_rates.0" in row]
    if rows:
        steps = [row["step"] for row in rows]
        shares = [[row[f"rl.pass_rates.{name}"] for row in rows] for name in PASS_RATE_BINS]
        colours = ["#b2182b", "#ef8a62", "#fddbc7", "#d1e5f0", "#67a9cf", "#2166ac"]
        axes.stackplot(steps, shares, labels=[f"{name}% right" for name in PASS_RATE_BINS], colors=colours)
        axes.legend(fontsize=7, loc="lower left")
    axes.set(ylabel="share of prompts", title="pass rate of prompts", ylim=(0, 1))
    over_steps(axes, run)


def lengths(axes: Any, run: RunLog) -> None:
    drawn = _lines(axes, run, [("rl.tokens", "sampled tokens"), ("rl.thinking_tokens", "thinking tokens")])
    axes.set(ylabel="tokens per answer", title="lengths, without forced tokens", ylim=(0, None))
    over_steps(axes, run)
    if drawn:
        axes.legend(fontsize=8)


def ended(axes: Any, run: RunLog) -> None:
    names = [("rl.halted", "thinking halted by the budget"), ("rl.truncated", "cut off by the limit")]
    if run.config.get("method") == "grpo":
        names.append(("rl.equal", "prompts without signal"))
    drawn = _lines(axes, run, names)
    axes.set(ylabel="share", title="how answers end", ylim=(-0.02, 1.02))
    over_steps(axes, run)
    if drawn:
        axes.legend(fontsize=8)


def entropy(axes: Any, run: RunLog) -> None:
    steps, values = _series(run, "train.entropy")
    axes.plot(steps, values, color="C0", linewidth=1.0, label="entropy (left)")
    band = (run.config.get("rl") or {}).get("entropy")
    if band:
        axes.axhspan(band["low"], band["high"], color="C2", alpha=0.15, label="band")
    axes.set(ylabel="nats per token", title="entropy", ylim=(0, None))
    over_steps(axes, run)
    handles = axes.get_legend_handles_labels()
    if band:
        right = axes.twinx()
        right.plot(*_series(run, "rl.entropy_coefficient"), color="C1", linewidth=0.8, label="coefficient (right)")
        right.spines["top"].set_visible(False)
        handles = tuple(one + other for one, other in zip(handles, right.get_legend_handles_labels(), strict=True))
    axes.legend(*handles, fontsize=8)


def agreement(axes: Any, run: RunLog) -> None:
    names = [("train.mismatch", "mean"), ("train.mismatch_999", "99.9% below"), ("train.mismatch_max", "largest")]
    drawn = _lines(axes, run, names)
    drawn |= _lines(axes, run, [("train.kl", "KL to the reference"), ("train.kl_old", "KL to the round's start")])
    axes.set(ylabel="nats", title="|log p| of rollout and trainer; KL", yscale="symlog")
    axes.set_yscale("symlog", linthresh=1e-7)
    over_steps(axes, run)
    handles = axes.get_legend_handles_labels()
    steps, values = _series(run, "train.router_agreement")
    if steps:
        right = axes.twinx()
        right.plot(steps, values, color="C5", linewidth=0.8, label="experts of the rollout chosen (right)")
        right.set_ylim(0, 1.02)
        right.spines["top"].set_visible(False)
        handles = tuple(one + other for one, other in zip(handles, right.get_legend_handles_labels(), strict=True))
    if drawn:
        axes.legend(*handles, fontsize=7.5)


def clipping(axes: Any, run: RunLog) -> None:
    names = [
        ("train.clipped_low", "ratio clipped low"), ("train.clipped_high", "ratio clipped high"),
        ("train.clipped_dual", "dual clip"), ("train.capped", "importance weight capped"),
        ("train.masked", "answers masked"), ("train.dropped", "answers dropped"),
    ]  # fmt: skip
    drawn = _lines(axes, run, [(name, label) for name, label in names if any(_series(run, name)[1])])
    axes.set(ylabel="share", title="clipped, capped and masked", ylim=(0, None))
    over_steps(axes, run)
    if drawn:
        axes.legend(fontsize=8)


def seconds(axes: Any, run: RunLog) -> None:
    names = [
        ("rl.seconds_rollout", "rollout"), ("rl.seconds_rewards", "rewards"),
        ("rl.seconds_log_probabilities", "log probabilities"), ("rl.seconds_transfer", "weights to the engine"),
    ]  # fmt: skip
    rows = [row for row in run.train if "rl.seconds_rollout" in row]
    if rows:
        steps = [row["step"] for row in rows]
        every = (run.config.get("log_every") or 1) / max(run.config["rl"]["rollouts"]["updates"], 1)
        update = [row.get("seconds_step", 0.0) / max(every, 1) for row in rows]
        values = [[row.get(name, 0.0) for row in rows] for name, _ in names]
        axes.stackplot(steps, [*values, update], labels=[*(label for _, label in names), "update"])
        axes.legend(fontsize=7.5)
    axes.set(ylabel="seconds", title="time of a round")
    over_steps(axes, run)


def speed(axes: Any, run: RunLog) -> None:
    _lines(axes, run, [("rl.rollout_tokens_per_second", "rollout")])
    axes.set(ylabel="tokens per second", title="sampled tokens per second", ylim=(0, None))
    over_steps(axes, run)


def transcripts(folder: Path) -> str:
    """Return the newest round's answers as HTML: for some prompts the best answer and the worst one."""
    files = sorted(
        (file for file in (folder / "rollouts").glob("*.jsonl") if file.stem.isdigit()), key=lambda f: int(f.stem)
    )
    if not files:
        return ""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(files[-1]):
        groups.setdefault(row["group"], []).append(row)
    # Prompts with different rewards first: they are what is learned from. Distillation may have answers without a reward.
    ordered = sorted(groups.values(), key=lambda rows: len(set(_rewards(rows))) < 2)
    out = [f"<h2>Answers of the round before step {int(files[-1].stem) + 1:,}</h2>"]
    for rows in ordered[:_TRANSCRIPTS]:
        rows = sorted(rows, key=lambda row: math.inf if row["reward"] is None else -row["reward"])
        question = html.escape(_short(str(rows[0]["messages"][-1].get("content", ""))))
        rewards = _rewards(rows)
        mean = f"mean reward {sum(rewards) / len(rewards):.2f} of {len(rewards)}" if rewards else f"{len(rows)} answers"
        shown = rows if len(rows) == 1 else [rows[0], rows[-1]]
        answers = "".join(_answer(row) for row in shown)
        out.append(f"<details><summary>{question[:160]} ({mean})</summary>{answers}</details>")
    return "\n".join(out)


def _rewards(rows: Iterable[dict[str, Any]]) -> list[float]:
    return [row["reward"] for row in rows if row["reward"] is not None]


def _answer(row: dict[str, Any]) -> str:
    verdicts = "; ".join(f"{part['name']}: {part['status']}, {part['reason']}" for part in row.get("parts", []))
    budget = (
        "" if row.get("budget") is None else f", budget {row['budget']}" + (" (halted)" if row.get("halted") else "")
    )
    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.3f}"
    head = f"{reward}, {row['mode']}{budget}, {row['tokens']} tokens, ended by {row['finish_reason']}"
    expected = (
        "" if row.get("answer") is None else f"<p>reference: {html.escape(_short(json.dumps(row['answer'])))}</p>"
    )
    thinking = f'<pre class="thinking">{html.escape(_short(row["thinking"]))}</pre>' if row.get("thinking") else ""
    content = row["content"] + "".join(f"\n{json.dumps(call)}" for call in row.get("tool_calls", []))
    written = f"{thinking}<pre>{html.escape(_short(content))}</pre>"
    return f"<p>{html.escape(head)}</p>{expected}{written}<p>{html.escape(verdicts)}</p>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text):,} characters)"
