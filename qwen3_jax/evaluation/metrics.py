"""What the samples of a run say: means with their errors, pass@k, maj@k, shares of every status, tokens.

The unit is the question: a mean is one over the means of questions, and its standard error is that of these means,

    avg@k = mean_q (mean_i s_qi)        SE = sqrt(var_q (mean_i s_qi) / Q), variance with Q - 1

so that k answers to one question do not count as k questions. pass@k is unbiased (Chen et al. 2021, arXiv 2107.03374), with c
of n answers right:

    pass@k = mean_q (1 - C(n - c, k) / C(n, k))

maj@n is the share of questions whose most frequent answer is right. Answers are equal if the verifier read the same from
them, or if it found both right; an answer of which it read nothing has no vote. Of m answers that are equally frequent each
counts 1/m: the expectation of a draw, which depends on no order.

An answer without a verdict (timed out, error, too long to be asked) counts as not right, and its share is reported beside.
`judged` is the mean over the answers that have one.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError

TOO_LONG = "too_long"  # a finish reason, see `reply`
WITHOUT_VERDICT = ("timed_out", "error")


@dataclass(frozen=True)
class Scored:
    """What the metrics need of a sample; see `samples` for the fields."""

    task: str
    problem: str
    mode: str
    budget: int | None
    sample: int
    group: str
    digest: str
    status: str
    score: float
    extracted: str | None
    finish_reason: str
    thinking_tokens: int | None
    answer_tokens: int | None
    halted: bool | None

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> Scored:
        """Read a line of samples.jsonl."""
        verdict, thinking = sample["verdict"], sample["thinking_tokens"]
        asked = sample["finish_reason"] != TOO_LONG
        answer = None
        if asked and thinking is not None:
            answer = sample["completion_tokens"] - thinking - (sample["forced_tokens"] or 0)
        return cls(
            sample["task"], sample["problem"], sample["mode"], sample["budget"], sample["sample"], sample["group"],
            sample["digest"], verdict["status"], verdict["score"], verdict.get("extracted"), sample["finish_reason"],
            thinking if asked else None, answer, sample["halted"] if asked else None,
        )  # fmt: skip

    @property
    def right(self) -> bool:
        """Whether it has the full score."""
        return self.status == "right"

    def value(self, metric: str) -> float:
        """What the sample counts in a task whose headline is `metric`, "accuracy" or "score"."""
        return self.score if metric == "score" else float(self.right)


Cell = tuple[str, str, int | None]
"""Task, mode and thinking budget: what one figure is about."""


def cells(samples: Iterable[Scored]) -> dict[Cell, dict[str, list[Scored]]]:
    """Samples by cell and question, each in the order in which they come."""
    out: dict[Cell, dict[str, list[Scored]]] = {}
    for sample in samples:
        questions = out.setdefault((sample.task, sample.mode, sample.budget), {})
        questions.setdefault(sample.problem, []).append(sample)
    return out


def summarise(samples: Iterable[Scored], metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row of figures for each cell, and one for each of its groups.

    Args:
        samples: of a run, finished or not.
        metrics: the headline of each task, "accuracy" or "score".
    """
    rows = []
    for (task, mode, budget), questions in cells(samples).items():
        named = {"task": task, "mode": mode, "thinking_budget": budget}
        rows.append({**named, "group": None, **figures(list(questions.values()), metrics.get(task, "accuracy"))})
        groups: dict[str, list[list[Scored]]] = {}
        for answers in questions.values():
            groups.setdefault(answers[0].group, []).append(answers)
        if len(groups) > 1:
            for group in sorted(groups):
                rows.append({**named, "group": group, **figures(groups[group], metrics.get(task, "accuracy"))})
    return rows


def figures(questions: Sequence[Sequence[Scored]], metric: str) -> dict[str, Any]:
    """Return the figures of questions, each with its answers; `metric` says which mean is `value`."""
    every = [sample for answers in questions for sample in answers]
    counts = sorted({len(answers) for answers in questions})
    right = clustered([[float(sample.right) for sample in answers] for answers in questions])
    score = clustered([[sample.score for sample in answers] for answers in questions])
    value = score if metric == "score" else right
    judged = [sample for sample in every if sample.status not in WITHOUT_VERDICT]
    most = counts[0]
    return {
        "questions": len(questions),
        "samples": most if len(counts) == 1 else counts,
        "metric": metric,
        "value": value[0],
        "standard_error": value[1],
        "accuracy": right[0],
        "accuracy_standard_error": right[1],
        "score": score[0],
        "score_standard_error": score[1],
        "judged": _mean([sample.value(metric) for sample in judged]),
        "pass": {
            str(k): statistics.fmean(pass_at(len(a), sum(sample.right for sample in a), k) for a in questions)
            for k in powers(most)
        },
        "majority": _majority_of(questions) if most > 1 else None,
        "unparsable": _share(sample.status == "unparsable" for sample in every),
        "timed_out": _share(sample.status == "timed_out" for sample in every),
        "error": _share(sample.status == "error" and sample.finish_reason != TOO_LONG for sample in every),
        "too_long": _share(sample.finish_reason == TOO_LONG for sample in every),
        "cut_off": _share(sample.finish_reason == "length" for sample in every),
        "thinking_tokens": _mean([s.thinking_tokens for s in every if s.thinking_tokens is not None]),
        "answer_tokens": _mean([s.answer_tokens for s in every if s.answer_tokens is not None]),
        "halted": _mean([float(s.halted) for s in every if s.halted is not None]),
    }


def clustered(values: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Return the mean over questions of the means of their answers, and its standard error; None for one question."""
    means = [statistics.fmean(each) for each in values]
    if len(means) < 2:
        return means[0], None
    return statistics.fmean(means), statistics.stdev(means) / math.sqrt(len(means))


def pass_at(n: int, c: int, k: int) -> float:
    """Return the probability that one of k answers is right, drawn without replacement from n of which c are.

    Raises:
        UserError: k is not between 1 and n, or c not between 0 and n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise UserError(f"pass@{k} of {c} right answers in {n}: k must be between 1 and n, and c between 0 and n.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def powers(most: int) -> list[int]:
    """The powers of two up to `most`, and `most`."""
    return sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})


def majority(votes: Sequence[tuple[bool, str | None]]) -> float:
    """Return the probability that the most frequent answer is right, ties drawn evenly.

    Args:
        votes: of each answer whether it is right, and what was read from it; None is no vote unless it is right.
    """
    counts = Counter(None if right else text for right, text in votes if right or text is not None)
    if not counts:
        return 0.0
    best = max(counts.values())
    first = [text for text, count in counts.items() if count == best]
    return float(None in first) / len(first)


def _majority_of(questions: Sequence[Sequence[Scored]]) -> float | None:
    """maj@n of all questions; None if the verifier reads no single value from an answer."""
    if any(s.extracted is None and s.status in ("right", "wrong") for answers in questions for s in answers):
        return None
    return statistics.fmean(majority([(s.right, s.extracted) for s in answers]) for answers in questions)


def _share(values: Iterable[bool]) -> float:
    return statistics.fmean(map(float, values))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
