"""Rounds of reinforcement learning: draw prompts, sample answers, score them, and give them to the trainer in batches.

    draw -> sample -> score -> advantages -> [log probabilities] -> pack -> `updates` batches

Invariants: a round depends on the configuration, the weights at its beginning and the position of the prompts alone. It is
written whole to RUN/rollouts before its first update, so a run that is killed in the middle of a round resumes with the same
answers, and with the log probabilities of the weights that it began with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_jax.data.token_targets import TopTokens
from qwen3_jax.errors import UserError, warn
from qwen3_jax.generation import Engine
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.advantages import advantages, teaches
from qwen3_jax.posttraining.prompts import Draw, Prompts
from qwen3_jax.posttraining.rewards import Scorer
from qwen3_jax.posttraining.rollouts import Rollout, Rollouts, about_of
from qwen3_jax.posttraining.round_figures import RoundFigures
from qwen3_jax.posttraining.sampled import Sampled, Scored
from qwen3_jax.posttraining.samples import Sample
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.training.hosts import from_first
from qwen3_jax.training.rl_config import RlConfig
from qwen3_jax.verifiers import STATUSES

# (samples) -> log probabilities of each sample's tokens
LogProbs = Callable[[Sequence[Sample]], list[np.ndarray]]
# (samples) -> the most probable tokens of a teacher at each sample's learned tokens
Targets = Callable[[Sequence[Sample]], list[TopTokens]]


@dataclass
class Group:
    """The scored answers to one prompt."""

    draw: Draw
    rollouts: list[Rollout]
    scored: list[Scored]

    @property
    def rewards(self) -> list[float | None]:
        """Of each answer; None where it has none."""
        return [one.reward for one in self.scored]

    @property
    def pass_rate(self) -> float:
        """Share of the answers that are right, of those with a reward; 0 where none has any.

        An answer is right if all verifiers say so; without verifiers, if its reward is at least 1.
        """
        kept = [one for one in self.scored if one.reward is not None]
        return sum(map(_is_right, kept)) / len(kept) if kept else 0.0


def _is_right(scored: Scored) -> bool:
    verdicts = [part.status for part in scored.parts if part.status in STATUSES]
    assert scored.reward is not None
    return all(status == "right" for status in verdicts) if verdicts else scored.reward >= 1


@dataclass
class Round:
    """What the updates of a round read.

    Attributes:
        step: steps taken before its first update.
        parts: the samples of each update.
        figures: see `RoundFigures`; {} of a round that was read from the disk.
    """

    step: int
    parts: list[list[Sample]]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Answers:
    """The answers of a round, before the log probabilities of trainer and reference are known.

    Attributes:
        samples: of all updates.
        position: of the prompts behind the round.
        figures: see `RoundFigures`.
    """

    samples: list[Sample]
    position: dict[str, Any]
    figures: dict[str, float]


class Stopped(Exception):
    """A round that is sampled ahead was given up."""


class Rounds:
    """Makes rounds.

    Args:
        config: of the run.
        prompts: what is drawn; its position moves.
        rollouts: the engine.
        scorer: judges answers; only the first process asks it, and None on the others.
        folder: RUN/rollouts.
        reference: log probabilities under the reference model or a teacher; None where the objective reads none.
        teacher: targets of distillation with `top_k`; None without.
        by_rewards: answers are learned from by their rewards; else rewards are only measured.
        saved_steps: gives the steps of the checkpoints; the rounds that they are in the middle of are never deleted.

    Attributes:
        stopping: set it to give up the round that is being sampled.
    """

    def __init__(
        self, config: RlConfig, prompts: Prompts, rollouts: Rollouts, scorer: Scorer | None, folder: Path,
        reference: LogProbs | None = None, saved_steps: Callable[[], Sequence[int]] = tuple,
        by_rewards: bool = True, teacher: Targets | None = None,
    ):  # fmt: skip
        self._config, self._prompts, self._rollouts, self._scorer = config, prompts, rollouts, scorer
        self._by_rewards = by_rewards
        self._folder, self._saved_steps = folder, saved_steps
        self._reference, self._teacher = reference, teacher
        self._refused: set[str] = set()
        self.stopping = threading.Event()

    @property
    def engine(self) -> Engine:
        """What samples."""
        return self._rollouts.engine

    def make(self, step: int, old: LogProbs | None = None) -> Round:
        """Sample a round with the engine's weights, and write it; the position of the prompts moves behind it.

        Args:
            step: steps taken so far.
            old: log probabilities under the trainer's weights; None where the only update of the round computes them itself.
        """
        return self.finish(step, self.sample(step), old)

    def sample(self, step: int) -> Answers:
        """Sample the answers of a round with the engine's weights; the position of the prompts moves behind it.

        Raises:
            Stopped: `stopping` was set.
        """
        figures = RoundFigures()
        started = time.perf_counter()
        count = self._config.rollouts.prompts * self._config.rollouts.group_size
        with progress_bar("rollouts", count, visible=False) as bar:
            groups, left_out = self._groups(figures, bar)
        samples = [sample for group in groups for sample in self._samples(group)]
        figures.add_groups(groups, left_out)
        row = figures.row() | {"seconds_round": time.perf_counter() - started}
        answers = Answers(samples, self._prompts.state, row)
        if self._config.rollouts.mesh is not None:  # a run that resumes in the round before finds it here
            self._write(step, answers)
        return answers

    def finish(self, step: int, answers: Answers, old: LogProbs | None) -> Round:
        """Compute the log probabilities that the updates need, and write the round."""
        started = time.perf_counter()
        of_samples = ("old", old), ("reference", self._reference), ("teacher", self._teacher)
        for name, compute in of_samples:
            if compute is not None and answers.samples:
                for sample, values in zip(answers.samples, compute(answers.samples), strict=True):
                    setattr(sample, name, values)
        seconds = time.perf_counter() - started
        self._write(step, answers)
        if jax.process_index() == 0:
            self._prune(step)
        figures = answers.figures | {"seconds_log_probabilities": seconds}
        if "seconds_round" in figures:
            figures["seconds_round"] += seconds
        return Round(step, self._parts(answers.samples), figures)

    def _write(self, step: int, answers: Answers) -> None:
        if jax.process_index() == 0:
            storage.save(self._folder, step, answers.samples, answers.position, answers.figures)

    def sampled_before(self, step: int) -> Answers | None:
        """Return the answers of a round that was sampled ahead, as written; the position of the prompts is behind it."""
        loaded = storage.load(self._folder, step)
        if loaded is None:
            return None
        samples, self._prompts.state, figures = loaded
        return Answers(samples, self._prompts.state, figures)

    def resume(self, step: int) -> Round:
        """Return the round that began at a step, as it was written; the position of the prompts is behind it.

        Raises:
            UserError: it is not there, or damaged.
        """
        loaded = storage.load(self._folder, step)
        if loaded is None:
            raise UserError(
                f"{self._folder} lacks {step}.npz, the answers of the round that the checkpoint is in the middle of; restore "
                f"it, or delete the checkpoints after step {step}."
            )
        samples, self._prompts.state, _ = loaded
        return Round(step, self._parts(samples))

    def measure(self, draws: Sequence[Draw], bar: Bar | None = None) -> list[Group]:
        """Answer and score prompts that nothing is learned from."""
        groups, refused = self._answered(draws, RoundFigures(), self._config.eval_samples, bar)
        self._warn(refused)
        return groups

    def _warn(self, refused: Sequence[tuple[Draw, str]]) -> None:
        """Say once of each prompt that it cannot be asked, and why."""
        for draw, reason in refused:
            if draw.prompt.id not in self._refused:
                self._refused.add(draw.prompt.id)
                warn(f"{draw.prompt.location}: the prompt is left out: {reason}")

    def _groups(self, figures: RoundFigures, bar: Bar | None) -> tuple[list[Group], list[Group]]:
        """Return the groups to learn from, in the order of their draws, and those that were left out."""
        rollouts = self._config.rollouts
        kept: list[Group] = []
        left_out: list[Group] = []
        skipped, waves = 0, 0
        while len(kept) < rollouts.prompts and waves <= rollouts.refill:
            missing = rollouts.prompts - len(kept)
            while missing:  # prompts that cannot be asked are always replaced
                groups, refused = self._answered(self._prompts.draw(missing), figures, None, bar)
                skipped, missing = skipped + len(refused), len(refused)
                self._warn(refused)
                if skipped > self._prompts.count:
                    raise UserError(
                        f"rl.prompts: {skipped:,} prompts of one round cannot be asked; the last: {refused[-1][1]}"
                    )
                for group in groups:
                    self._prompts.note(group.draw, group.pass_rate)
                    useful = not rollouts.refill or teaches(group.rewards)
                    (kept if useful else left_out).append(group)
            waves += 1
        figures.values["waves"] = waves
        figures.values["prompts_skipped"] = skipped
        return kept, left_out

    def _answered(
        self, draws: Sequence[Draw], figures: RoundFigures, samples: int | None, bar: Bar | None
    ) -> tuple[list[Group], list[tuple[Draw, str]]]:
        """Answer and score prompts; return the groups, and the prompts that cannot be asked with the reasons."""
        answers: dict[int, list[Rollout]] = {}
        refused: list[tuple[Draw, str]] = []
        with figures.timed("rollout"):
            for draw, result in self._rollouts.sample(draws, samples, bar):
                if self.stopping.is_set():
                    raise Stopped
                if isinstance(result, str):
                    refused.append((draw, result))
                else:
                    answers[draw.number] = result
        ordered = [answers[draw.number] for draw in draws if draw.number in answers]
        with figures.timed("rewards"):
            scored = iter(self._scores([one for rollouts in ordered for one in rollouts]))
        groups = [Group(rollouts[0].draw, rollouts, [next(scored) for _ in rollouts]) for rollouts in ordered]
        return groups, sorted(refused, key=lambda one: one[0].number)

    def _scores(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """Score answers on the first process, for all: a verifier that is out of time on one host must not be on another."""

        if not self._config.rewards:
            return [Scored(None, ()) for _ in rollouts]

        def score() -> list[Scored]:
            assert self._scorer is not None
            return self._scorer.score([sampled(one) for one in rollouts])

        return from_first(score)

    def _samples(self, group: Group) -> list[Sample]:
        """Return the samples of a group with their advantages; an answer without a reward is left out, where it is needed, and
        an episode that failed before its first token."""
        values = np.zeros(len(group.rollouts), np.float32)
        if self._by_rewards:
            values = advantages(group.rewards, bool(self._config.policy.normalize_std))
        out = []
        for rollout, scored, value in zip(group.rollouts, group.scored, values, strict=True):
            if scored.reward is None and self._by_rewards:
                continue
            parts = [{"name": p.name, "score": p.score, "status": p.status, "reason": p.reason} for p in scored.parts]
            record = rollout.draw.prompt.record
            reference = record.get("answer", record.get("reference"))
            about = about_of(rollout) | {"reward": scored.reward, "parts": parts, "answer": reference}
            for sample in rollout.samples:
                if not len(sample.tokens):
                    continue
                sample.advantage, sample.about = float(value), about
                out.append(sample)
        return out

    def _parts(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Divide a round into its updates, group by group in the order of the draws."""
        groups: dict[int, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        pieces = np.array_split(np.arange(len(groups)), self._config.rollouts.updates)
        every = list(groups.values())
        return [[sample for number in piece for sample in every[number]] for piece in pieces]

    def _prune(self, step: int) -> None:
        """Delete old rounds; the newest, and those that a checkpoint may be in the middle of, stay."""
        steps = sorted(
            int(file.stem) for file in self._folder.glob("*.npz") if file.stem.isdigit() and int(file.stem) < step
        )
        updates = self._config.rollouts.updates
        needed = {saved // updates * updates for saved in self._saved_steps()}
        if self._config.rollouts.mesh is not None:
            needed |= {begun + updates for begun in needed}
        for old in steps[: max(len(steps) - max(self._config.rollouts.keep, 1), 0)]:
            if old in needed:
                continue
            for suffix in (".npz", ".jsonl"):
                (self._folder / f"{old}{suffix}").unlink(missing_ok=True)


def sampled(rollout: Rollout) -> Sampled:
    """Return what a reward sees of an answer."""
    draw = rollout.draw
    return Sampled(
        record=draw.prompt.record, messages=draw.prompt.messages if rollout.trace is None else rollout.trace.messages,
        generation=rollout.generation, mode=draw.mode, budget=draw.budget, halted=rollout.halted, trace=rollout.trace,
    )  # fmt: skip
