"""The report's claims: what it says, what a recipe measures of each, and a verdict that is computed from the figures.

A verdict is "holds" or "does not hold" by a rule that stands beside it, with differences of at least two standard errors; what
lies within them is "open". Evidence of several seeds is joined first (`evidence.mean_of`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from qwen3_jax.errors import UserError
from qwen3_jax.recipes.config import ROLES
from qwen3_jax.recipes.evidence import Measured, Missing, mean_of

Verdict = Literal["holds", "does not hold", "open", "not measured"]
Folders = Mapping[str, Path]


@dataclass(frozen=True)
class Curve:
    """Points of a drawing.

    Attributes:
        label: of the legend.
        x: numbers, or texts of bars.
        y: with errors.
        joined: draw a line through the points; the points of unordered categories have none.
    """

    label: str
    x: Sequence[Any]
    y: Sequence[Measured]
    joined: bool = True


@dataclass(frozen=True)
class Evidence:
    """What one seed, or all of them, give for a claim.

    Attributes:
        figures: by name.
        curves: to be drawn.
        axes: labels of the drawing, x and y.
    """

    figures: dict[str, Measured]
    curves: list[Curve]
    axes: tuple[str, str]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        key: its name in recipes, under `claims`.
        title: the claim in a sentence.
        report: what the report says, with its figures and where.
        collect: folders by role -> evidence of one seed; raises `Missing`.
        judge: figures -> verdict and the words for it.
        rule: by what the verdict is computed.
    """

    key: str
    title: str
    report: str
    collect: Callable[[Folders], Evidence]
    judge: Callable[[Mapping[str, Measured]], tuple[Verdict, str]]
    rule: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The roles that phases must fill."""
        return ROLES[self.key]


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict.

    Attributes:
        claim: what was claimed.
        verdict: a word.
        words: what was measured.
        evidence: joined over seeds; None where nothing was measured.
        seeds: their number.
        notes: why seeds are left out.
    """

    claim: Claim
    verdict: Verdict
    words: str
    evidence: Evidence | None = None
    seeds: int = 0
    notes: tuple[str, ...] = ()


def finding(claim: Claim, seeds: Sequence[Folders], unfinished: Sequence[str] = ()) -> Finding:
    """Return the finding of a claim from the folders of one or several seeds.

    Seeds whose folders lack something, or are damaged, are left out, and folders that several seeds name count once: a sweep
    beside the recipe is one measurement, however many recipes there are.

    Args:
        claim: to be judged.
        seeds: folders by role.
        unfinished: why further seeds are left out.
    """
    collected, missing = [], list(unfinished)
    unique = {tuple(sorted((role, folder.resolve()) for role, folder in folders.items())): folders for folders in seeds}
    for folders in unique.values():
        try:
            collected.append(claim.collect(folders))
        except (Missing, UserError) as error:
            missing.append(str(error))
    if not collected:
        return Finding(claim, "not measured", missing[0] if missing else "no recipe was run.")
    evidence = joined(collected)
    verdict, words = claim.judge(evidence.figures)
    return Finding(claim, verdict, words, evidence, len(collected), tuple(dict.fromkeys(missing)))


def joined(some: Sequence[Evidence]) -> Evidence:
    """Evidence of several seeds as one: the figures that all of them have.

    The curves are those of the first seed, and their points means of x and of y over the seeds: FLOPs of a step differ from
    seed to seed. A seed without a curve of that label, or with other texts or another number of points in it, is left out
    of the curve.
    """
    names = [name for name in some[0].figures if all(name in one.figures for one in some)]
    figures = {name: mean_of([one.figures[name] for one in some]) for name in names}
    curves = []
    for curve in some[0].curves:
        alike = [other for one in some for other in one.curves if _has_the_points(other, curve)]
        points = [mean_of(values) for values in zip(*(one.y for one in alike), strict=True)]
        x = curve.x if _has_texts(curve) else [fmean(values) for values in zip(*(one.x for one in alike), strict=True)]
        curves.append(dataclasses.replace(curve, x=x, y=points))
    return Evidence(figures, curves, some[0].axes)


def _has_texts(curve: Curve) -> bool:
    return any(isinstance(text, str) for text in curve.x)


def _has_the_points(curve: Curve, first: Curve) -> bool:
    """Whether a curve can be joined with that of the first seed."""
    same = list(curve.x) == list(first.x) if _has_texts(first) else len(curve.x) == len(first.x)
    return same and curve.label == first.label
