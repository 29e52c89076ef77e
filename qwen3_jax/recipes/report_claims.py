"""The report's claims that a recipe gives evidence for: how each is measured, and by what rule it holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.json_fields import read_json
from qwen3_jax.recipes.claims import Claim, Curve, Evidence, Folders, Verdict
from qwen3_jax.recipes.evidence import (
    Measured,
    Missing,
    compute_of,
    evaluation_of,
    held_out_curve,
    mean_of,
    row_of,
    run_of,
    share,
    value_of,
)
from qwen3_jax.training.metrics import last_held_out


def _falls(before: Measured, after: Measured) -> bool:
    """Whether the second of two values is below the first by more than two standard errors."""
    return (after - before).is_below_0


def _long_stage(folders: Folders) -> Evidence:
    run = run_of(folders["run"])
    ends: dict[int, dict[str, np.ndarray]] = {}  # by step and range: losses and tokens of each batch, [2, N]
    for row in run.positions:
        ends.setdefault(row["step"], {})[row["positions"]] = np.asarray([row["losses"], row["tokens"]], float)
    if len(ends) < 2:
        raise Missing(f"{run.folder} has not measured the loss by position after two stages.")
    before, after = (ends[step] for step in sorted(ends)[-2:])
    first, *_ = ranges = list(after)
    beyond = [name for name in ranges if int(name.partition("-")[0]) >= run.config["data"]["sequence_length"]]
    if not beyond:
        raise Missing(f"{run.folder} has no stage of rows longer than data.sequence_length.")
    long_before, long_after = (_together([end[name] for name in beyond]) for end in (before, after))
    figures = {
        "before": _over_batches(long_before), "after": _over_batches(long_after), "gain": _gain(long_before, long_after),
        "near before": _over_batches(before[first]), "near after": _over_batches(after[first]),
    }  # fmt: skip
    labels = [name.replace("-", " to ") for name in ranges]
    curve = Curve("long stage", labels, [_gain(before[name], after[name]) for name in ranges])
    return Evidence(figures, [curve], ("position in the document, tokens", "fall of the held-out loss, nats per token"))


def _together(ranges: Sequence[np.ndarray]) -> np.ndarray:
    """Losses and tokens [2, N] of several ranges of positions as one range."""
    tokens = sum(tokens for _, tokens in ranges)
    return np.stack([sum(losses * tokens for losses, tokens in ranges) / np.maximum(tokens, 1), tokens])


def _gain(before_2n: np.ndarray, after_2n: np.ndarray) -> Measured:
    """By how much the loss falls: the same batches were measured, so differences are of each batch."""
    return _over_batches(np.stack([before_2n[0] - after_2n[0], after_2n[1]]))


def _over_batches(range_2n: np.ndarray) -> Measured:
    """The mean over all tokens, and its standard error over batches, which count by their tokens."""
    values, tokens = range_2n[:, range_2n[1] > 0]
    shares = tokens / tokens.sum()
    mean, count = float((shares * values).sum()), len(values)
    error = math.sqrt(float((shares**2 * (values - mean) ** 2).sum()) * count / (count - 1)) if count > 1 else 0.0
    return Measured(mean, error)


def _judge_long_stage(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    gain = figures["gain"]
    words = (
        f"Beyond the length of the second stage the held-out loss goes from {figures['before'].text()} to "
        f"{figures['after'].text()} nats per token, in the same batches lower by {gain.text()}; within that length it goes "
        f"from {figures['near before'].text()} to {figures['near after'].text()}."
    )
    return ("holds" if gain.is_above_0 else "does not hold" if gain.is_below_0 else "open"), words


def _reasoning(folders: Folders) -> Evidence:
    run = run_of(folders["run"])
    steps, values = held_out_curve(run)
    entropy = [row["train.entropy"] for row in run.train if "train.entropy" in row]
    third = max(len(entropy) // 3, 1)
    pairs = list(itertools.pairwise(values))
    kept = sum(not _falls(a, b) for a, b in pairs) / max(len(pairs), 1)
    figures = {
        "first": values[0], "last": values[-1], "kept": Measured(kept),
        "entropy first": Measured(math.fsum(entropy[:third]) / third),
        "entropy last": Measured(math.fsum(entropy[-third:]) / third),
    }  # fmt: skip
    logged = [row["step"] for row in run.train if "train.entropy" in row]
    curves = [
        Curve("right, held-out questions", steps, values),
        Curve("entropy, nats per token", logged, [Measured(value) for value in entropy]),
    ]
    return Evidence(figures, curves, ("step of reinforcement learning", "share, nats"))


def _judge_reasoning(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    gain = figures["last"] - figures["first"]
    first, last = figures["entropy first"].value, figures["entropy last"].value
    words = (
        f"Held-out accuracy goes from {figures['first'].percent()} to {figures['last'].percent()}; "
        f"{figures['kept'].value:.0%} of the evaluations are not below the one before. Entropy: {first:.2f} nats in the first "
        f"third of the steps, {last:.2f} in the last."
    )
    if gain.is_above_0 and figures["kept"].value >= 0.9 and last >= 0.8 * first:
        return "holds", words
    return ("open" if gain.is_above_0 else "does not hold"), words


def _fusion(folders: Folders) -> Evidence:
    before = value_of(row_of(evaluation_of(folders["before"])))
    rows, flags = evaluation_of(folders["after"]), value_of(row_of(evaluation_of(folders["flags"])))
    thinking, direct = row_of(rows), row_of(rows, "non-thinking")
    figures = {
        "before": before, "after": value_of(thinking), "flags": flags,
        "thinking tokens": Measured(thinking["thinking_tokens"] or 0.0),
        "direct thinking": Measured(direct["thinking_tokens"] or 0.0),
        "direct tokens": Measured(direct["answer_tokens"] or 0.0),
    }  # fmt: skip
    labels = ["thinking, before", "thinking, after", "flags obeyed, after"]
    return Evidence(figures, [Curve("share right", labels, [before, figures["after"], flags])], ("", "share"))


def _judge_fusion(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    loss = figures["before"] - figures["after"]
    words = (
        f"Thinking answers are right in {figures['before'].percent()} before fusion and {figures['after'].percent()} after it. "
        f"Without thinking an answer has {figures['direct tokens'].value:.1f} tokens and "
        f"{figures['direct thinking'].value:.1f} of thinking, with it {figures['thinking tokens'].value:.1f}. Flags are obeyed "
        f"in {figures['flags'].percent()} of unseen conversations."
    )
    kept = loss.value <= 0.05 and figures["direct thinking"].value < 1 <= figures["thinking tokens"].value
    return ("holds" if kept and figures["flags"].value >= 0.85 else "does not hold"), words


def _budgets(folders: Folders) -> Evidence:
    rows = [row for row in evaluation_of(folders["eval"]) if row["mode"] == "thinking"]
    rows.sort(key=lambda row: math.inf if row["thinking_budget"] is None else row["thinking_budget"])
    if len(rows) < 3:
        raise Missing(f"{folders['eval']} has fewer than three budgets.")
    values = [value_of(row) for row in rows]
    rise = values[-1].value - values[0].value
    steps = [b.value - a.value for a, b in itertools.pairwise(values)]
    halted = [row for row in rows if row["halted"]]
    figures = {
        "least": values[0], "most": values[-1],
        "largest step": Measured(max(steps) / rise if rise > 0 else 1.0),
        "falls": Measured(sum(_falls(a, b) for a, b in itertools.pairwise(values))),
        "unparsable": Measured(math.fsum(row["unparsable"] for row in halted) / len(halted) if halted else 0.0),
    }  # fmt: skip
    labels = ["none" if row["thinking_budget"] is None else str(row["thinking_budget"]) for row in rows]
    return Evidence(figures, [Curve("accuracy", labels, values)], ("thinking budget, tokens", "share right"))


def _judge_budgets(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    rise = figures["most"] - figures["least"]
    words = (
        f"Accuracy goes from {figures['least'].percent()} under the smallest budget to {figures['most'].percent()} without "
        f"one; the largest step between two budgets is {figures['largest step'].value:.0%} of the rise, and it falls "
        f"{figures['falls'].value:.0f} times. After a stop {figures['unparsable'].value:.0%} of the answers cannot be read."
    )
    smooth = figures["largest step"].value <= 0.6 and figures["falls"].value == 0
    if rise.is_above_0 and smooth and figures["unparsable"].value <= 0.1:
        return "holds", words
    return "does not hold", words


def _general(folders: Folders) -> Evidence:
    before, after = (row_of(evaluation_of(folders[name])) for name in ("flags before", "flags after"))
    sums = [row_of(evaluation_of(folders[name])) for name in ("sums before", "sums after")]
    figures = {
        "flags before": value_of(before), "flags after": value_of(after), "sums before": value_of(sums[0]),
        "sums after": value_of(sums[1]),
    }  # fmt: skip
    labels = ["flags, stage 3", "flags, stage 4", "reasoning, stage 3", "reasoning, stage 4"]
    return Evidence(figures, [Curve("share right", labels, list(figures.values()))], ("", "share"))


def _judge_general(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    gain, cost = figures["flags after"] - figures["flags before"], figures["sums before"] - figures["sums after"]
    words = (
        f"Flags are obeyed in {figures['flags before'].percent()} before stage 4 and {figures['flags after'].percent()} after "
        f"it; reasoning goes from {figures['sums before'].percent()} to {figures['sums after'].percent()}."
    )
    if (
        figures["flags after"].value >= 0.98
        and (gain.is_above_0 or figures["flags before"].value >= 0.98)
        and cost.value <= 0.05
    ):
        return "holds", words
    return ("open" if gain.is_above_0 else "does not hold"), words


def _distillation(folders: Folders) -> Evidence:
    start, on, rl = (row_of(evaluation_of(folders[name])) for name in ("off-policy eval", "on-policy eval", "rl eval"))
    runs = {name: run_of(folders[name]) for name in ("on-policy", "rl")}
    figures = {"start": value_of(start), "on-policy": value_of(on), "rl": value_of(rl)}
    for name, row in (("start", start), ("on-policy", on), ("rl", rl)):
        if not row["pass"]:
            raise Missing("the evaluations have one answer to each question, and pass@k needs several.")
        figures[f"{name} pass"] = share(max(row["pass"].items(), key=lambda item: int(item[0]))[1], row["questions"])
    curves = []
    for name, label in (("on-policy", "on-policy distillation"), ("rl", "reinforcement learning")):
        run = runs[name]
        steps, values = held_out_curve(run)
        teacher = folders["teacher"] if name == "on-policy" else None
        whole = compute_of(run, steps[-1], teacher)
        if not (whole.flops and whole.seconds):
            raise Missing(f"{run.folder} has measured no held-out prompts after its first step.")
        figures |= {f"{name} flops": Measured(whole.flops), f"{name} seconds": Measured(whole.seconds)}
        # The first evaluation after a step that has reached what the other run ends with.
        goal = held_out_curve(runs["rl" if name == "on-policy" else "on-policy"])[1][-1]
        reached = next(
            (
                step
                for step, value in zip(steps, values, strict=True)
                if step and value.value >= goal.value - goal.error
            ),
            None,
        )
        if reached is not None:
            cost = compute_of(run, reached, teacher)
            figures |= {
                f"{name} reaches flops": Measured(cost.flops),
                f"{name} reaches seconds": Measured(cost.seconds),
            }
        curves.append(Curve(label, [compute_of(run, step, teacher).flops for step in steps], values))
    return Evidence(figures, curves, ("FLOPs of products", "right, held-out questions"))


def _judge_distillation(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    gap = figures["on-policy"] - figures["rl"]
    flops = figures["rl flops"].value / figures["on-policy flops"].value
    seconds = figures["rl seconds"].value / figures["on-policy seconds"].value
    words = (
        f"From {figures['start'].percent()} after off-policy distillation: on-policy distillation "
        f"{figures['on-policy'].percent()}, reinforcement learning {figures['rl'].percent()}, which took {flops:.1f} times its "
        f"FLOPs and {seconds:.1f} times its seconds. pass@k: {figures['start pass'].percent()}, "
        f"{figures['on-policy pass'].percent()}, {figures['rl pass'].percent()}."
    )
    if "on-policy reaches flops" in figures:
        earlier = figures["rl flops"].value / figures["on-policy reaches flops"].value
        words += (
            f" What reinforcement learning ends with, on-policy distillation reaches with 1/{earlier:.0f} of its FLOPs."
        )
    spent = figures.get("on-policy reaches flops", figures["on-policy flops"]).value
    if gap.is_below_0:
        return "does not hold", words
    if figures["rl flops"].value < 10 * spent:
        return "open", words
    raised, also = ((figures[f"{name} pass"] - figures["start pass"]).is_above_0 for name in ("on-policy", "rl"))
    if also:
        return "does not hold", f"{words} The half about compute is seen; pass@k rises with reinforcement learning too."
    if raised:
        return "holds", words
    return "open", f"{words} The half about compute is seen, that about pass@k is not."


def _balance(folders: Folders) -> Evidence:
    figures, curves = {}, []
    for name, label in (("global", "balanced over the batch"), ("micro", "balanced in micro-batches")):
        run = run_of(folders[name])
        last = {row["held_out"]: np.asarray(row["load"]) for row in run.held_out_routers}  # the last of each domain
        if len(last) < 2:
            raise Missing(f"{run.folder} has no loads of experts on held-out data of two domains.")
        shares = np.stack(
            [load / load.sum(axis=-1, keepdims=True) for load in last.values()]
        )  # [domains, layers, experts]
        apart = _jensen_shannon(shares)
        figures[name] = Measured(
            float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(len(apart))) if len(apart) > 1 else 0.0
        )
        figures[f"{name} loss"] = Measured(
            float(np.mean([value for value in last_held_out(run.rows).values() if value is not None]))
        )
        spread = shares.std(axis=0).mean(axis=0)  # of an expert's share over domains
        curves.append(
            Curve(label, list(range(1, len(spread) + 1)), [Measured(float(value)) for value in np.sort(spread)[::-1]])
        )
    return Evidence(figures, curves, ("expert, by its spread", "spread of its share over domains"))


def _jensen_shannon(shares_dle: np.ndarray) -> np.ndarray:
    """Mean divergence of the domains' distributions over experts from their mean, in nats, [L]."""
    mean = shares_dle.mean(axis=0)
    safe = np.where(shares_dle > 0, shares_dle, 1)
    return (shares_dle * (np.log(safe) - np.log(np.where(mean > 0, mean, 1)))).sum(axis=-1).mean(axis=0)


def _judge_balance(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    gain = figures["global"] - figures["micro"]
    words = (
        f"The distributions of domains over experts differ by {figures['global'].text()} nats with balancing over the batch "
        f"and by {figures['micro'].text()} with balancing in micro-batches (mean over layers). Held-out loss: "
        f"{figures['global loss'].value:.3f} and {figures['micro loss'].value:.3f} nats per token."
    )
    return ("holds" if gain.is_above_0 else "does not hold" if gain.is_below_0 else "open"), words


def _result_of(folder: Path, command: str) -> dict[str, Any]:
    file = folder / "result.json"
    if not file.exists():
        raise Missing(f"{folder} has no result.json; {command} writes it.")
    return read_json(file)


def _laws(folders: Folders) -> Evidence:
    result = _result_of(folders["sweep"], "qwen3 scaling fit --config configs/sweeps/scaling-laptop.yaml")
    rate = result["learning_rate"]
    figures = {f"rate {name}": Measured(one["value"], one["standard_error"]) for name, one in rate["exponents"].items()}
    if result["batch_tokens"] is not None:
        figures |= {
            f"batch {name}": Measured(one["value"], one["standard_error"])
            for name, one in result["batch_tokens"]["exponents"].items()
        }
    curves = []
    for parameters in sorted({cell["parameters"] for cell in result["cells"]}):
        cells = [cell for cell in result["cells"] if cell["parameters"] == parameters and cell["usable"]]
        sure = [cell for cell in cells if cell["log_error"] <= 1]  # the others would fill the drawing with their error
        uncertain = f" ({len(cells) - len(sure)} uncertain)" if len(sure) < len(cells) else ""
        rates = [Measured(cell["learning_rate"], cell["learning_rate"] * cell["log_error"]) for cell in sure]
        curves.append(Curve(f"{parameters:,.0f} parameters{uncertain}", [cell["tokens"] for cell in sure], rates))
    return Evidence(figures, curves, ("tokens", "best learning rate"))


def _judge_laws(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    words = "Exponents, with a published law as prior: " + ", ".join(
        f"{name} {value.value:+.2f} ± {value.error:.2f}" for name, value in figures.items()
    )
    parameters, tokens = (
        next((v for n, v in figures.items() if n.startswith("rate") and n.endswith(end)), None) for end in "ND"
    )
    if parameters is None or tokens is None:
        return "open", f"{words}. The sweep varies only one of size and tokens."
    return ("holds" if parameters.is_below_0 and tokens.is_above_0 else "open"), f"{words}."


def _mixture(folders: Folders) -> Evidence:
    result = _result_of(folders["search"], "qwen3 mixture search --config configs/sweeps/mixture-laptop.yaml")
    check = result["verification"]
    low, high = check["interval"]
    pairs = [mean_of([Measured(value) for value in check[name]]) for name in ("proposal", "uniform")]
    figures = {
        "difference": Measured(check["difference"]), "low": Measured(low), "high": Measured(high),
        "rank": Measured(result["rank_correlation"]), "proxies": Measured(result["proxies"]),
    }  # fmt: skip
    curve = Curve("mean held-out loss", ["proposal", "uniform"], pairs, joined=False)
    return Evidence(figures, [curve], ("mixture", "held-out loss, nats per token"))


def _judge_mixture(figures: Mapping[str, Measured]) -> tuple[Verdict, str]:
    words = (
        f"{figures['proxies'].value:.0f} proxies, ranked with a correlation of {figures['rank'].value:.2f}. On the same tokens "
        f"the proposed mixture's loss differs from the uniform one's by {figures['difference'].value:+.3f} nats (95% interval "
        f"{figures['low'].value:+.3f} to {figures['high'].value:+.3f})."
    )
    return ("holds" if figures["high"].value < 0 else "does not hold" if figures["low"].value > 0 else "open"), words


CLAIMS = (
    Claim(
        "long-stage", "The long stage lowers the loss beyond the second stage's length.",
        "Section 3.2: 32,768 tokens in the third stage instead of 4,096. The report has no figure of the loss.",
        _long_stage, _judge_long_stage, "in the same batches the mean loss beyond that length falls, by two standard errors",
    ),
    Claim(
        "reasoning", "Reinforcement learning raises accuracy step by step, with entropy steady or rising.",
        "Section 4.2: AIME'24 from 70.1 to 85.1 in 170 steps, without any manual intervention.",
        _reasoning, _judge_reasoning,
        "accuracy rises by two standard errors, nine of ten evaluations are not below the one before, and the entropy of the "
        "last third of the steps is at least 80% of that of the first",
    ),
    Claim(
        "fusion", "Fusion keeps thinking and adds non-thinking; flags are obeyed.",
        "Table 22 (32B): ThinkFollow 88.7, AIME'24 in thinking mode 83.8 before and 81.9 after.",
        _fusion, _judge_fusion,
        "at most 5 points of thinking accuracy are lost, answers without thinking have none, and 85% of the flags are obeyed",
    ),
    Claim(
        "budget", "Stopping at a thinking budget works without having been trained, and accuracy rises smoothly with it.",
        "Section 4.3 and figure 2: performance rises smoothly with the budget; the ability emerges from fusion.",
        _budgets, _judge_budgets,
        "accuracy rises by two standard errors and never falls by two, no step between two budgets is more than 60% of the "
        "rise, and at most 10% of the answers after a stop cannot be read",
    ),
    Claim(
        "general", "General reinforcement learning takes the following of flags to above 98, at a small cost in reasoning.",
        "Table 22 (32B): ThinkFollow from 88.7 to 98.9, AIME'24 from 81.9 to 81.4.",
        _general, _judge_general,
        "at least 98% of the flags are obeyed after it, and at most 5 points of accuracy are lost",
    ),
    Claim(
        "distillation",
        "On-policy distillation beats reinforcement learning at a tenth of the compute, and it alone raises pass@k.",
        "Table 21 (8B): AIME'24 67.6 by reinforcement learning in 17,920 GPU hours, 74.4 by on-policy distillation in 1,800; "
        "pass@64 90.0 before, 90.0 and 93.3.",
        _distillation, _judge_distillation,
        "its accuracy is not below by two standard errors, it takes a tenth of the FLOPs, in all or to reach what "
        "reinforcement learning ends with, and pass@k rises by two standard errors with it alone",
    ),
    Claim(
        "balance", "Balancing over the global batch lets experts specialise by domain, balancing in micro-batches does not.",
        "Section 2 (global-batch load balancing) and Qiu et al. 2025, arXiv 2501.11873, figures of experts' load by domain.",
        _balance, _judge_balance,
        "the domains' distributions over experts differ more, by two standard errors over layers and seeds",
    ),
    Claim(
        "laws", "The best learning rate falls with the size of the model and rises with the tokens.",
        "Section 3.2: scaling laws predict learning rate and batch size of every model; they are not published.",
        _laws, _judge_laws, "both exponents have these signs by two standard errors",
    ),
    Claim(
        "mixture", "A mixture that small proxies find is better than the uniform one.",
        "Section 3.1: the mixture is optimised at the level of instances by ablations on small proxy models; no figure.",
        _mixture, _judge_mixture, "the 95% interval of the difference over pairs of runs is below 0",
    ),
)  # fmt: skip
