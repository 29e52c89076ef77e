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


def finding(claim: Claim, seeds: Sequence[Folders]) -> Finding:
    """Return the finding of a claim from the folders of one or several seeds.

    Seeds that are not finished are left out, and folders that several seeds name count once: a sweep beside the recipe is one
    measurement, however many recipes there are.
    """
    collected, missing = [], []
    unique = {tuple(sorted((role, folder.resolve()) for role, folder in folders.items())): folders for folders in seeds}
    for folders in unique.values():
        try:
            collected.append(claim.collect(folders))
        except Missing as error:
            missing.append(str(error))
    if not collected:
        return Finding(claim, "not measured", missing[0] if missing else "no recipe was run.")
    evidence = joined(collected)
    verdict, words = claim.judge(evidence.figures)
    return Finding(claim, verdict, words, evidence, len(collected), tuple(dict.fromkeys(missing)))


def joined(some: Sequence[Evidence]) -> Evidence:
    """Evidence of several seeds as one: the figures that all of them have.

    Points of curves are means of x and y: FLOPs of a step differ from seed to seed. A seed whose curve has other texts or
    another number of points is left out of that curve.
    """
    names = [name for name in some[0].figures if all(name in one.figures for one in some)]
    figures = {name: mean_of([one.figures[name] for one in some]) for name in names}
    curves = []
    for place, curve in enumerate(some[0].curves):
        x, all_y = curve.x, [curve.y]
        if any(isinstance(text, str) for text in x):
            all_y = [one.curves[place].y for one in some if list(one.curves[place].x) == list(x)]
        else:
            alike = [one.curves[place] for one in some if len(one.curves[place].x) == len(x)]
            x, all_y = (
                [fmean(values) for values in zip(*(one.x for one in alike), strict=True)],
                [one.y for one in alike],
            )
        points = [mean_of(values) for values in zip(*all_y, strict=True)]
        curves.append(dataclasses.replace(curve, x=x, y=points))
    return Evidence(figures, curves, some[0].axes)
