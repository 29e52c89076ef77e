"""Rewards of answers: verifiers, judges and reward models, weighted, with gates and penalties.

    parts = [RewardPart(verifier="record"), RewardPart(overlong=512)]
    with Scorer(parts, run_dir / "judgements", max_new_tokens=4096) as scorer:
        for scored in scorer.score(samples):                     # Sampled -> Scored, in order
            scored.reward, scored.lost, scored.parts
        scorer.statistics.metrics()

The formula is that of `qwen3_jax.training.reward_config`: R = sum of weight_i * score_i over the parts that are no gates, or
the `below` of a gate that fails. Verifiers judge in the processes and sandboxes of `qwen3_jax.verifiers`; judges are asked and
reward models run at the same time. What fails, hangs or lies costs its own sample, which then has no reward and says why: it
never is a wrong answer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from qwen3_jax.endpoints import EndpointError
from qwen3_jax.errors import UserError
from qwen3_jax.posttraining.jobs import Jobs, TimeIsUp
from qwen3_jax.posttraining.judge_rewards import Case, Judge, Replies
from qwen3_jax.posttraining.model_rewards import ModelPart
from qwen3_jax.posttraining.sampled import PartScore, PartStatistics, Sampled, Scored, Statistics
from qwen3_jax.posttraining.verifier_inputs import reference_of, verifier_input
from qwen3_jax.training.reward_config import RECORD, RewardPart, check_rewards
from qwen3_jax.verifiers import Verdict, verify

__all__ = ["PartScore", "PartStatistics", "Sampled", "Scored", "Scorer", "Statistics", "combine", "overlong_penalty"]

_MOST_THREADS = 8  # of verifiers; as many processes judge
_SECONDS = 600.0  # for one verdict, whatever a verifier's own limit is
_OUTCOMES = ("right", "wrong", "unparsable")  # verdicts with a score


class Scorer:
    """Scores answers by the parts of a configuration. A context manager.

    Args:
        parts: of `rl.rewards`.
        folder: where replies of judges are kept; made where it does not exist. None: there is no judge.
        max_new_tokens: most tokens of an answer of the rollout; `overlong` needs it, unless that has max_tokens.
        seconds: that one verifier may take for one answer, whatever its own time limit; more is "timed_out".

    Attributes:
        statistics: of the last call of `score`.

    Raises:
        UserError: parts that make no reward; a package, a key, a model or a server that is missing.
    """

    def __init__(
        self, parts: Sequence[RewardPart], folder: str | os.PathLike | None = None, *, max_new_tokens: int | None = None,
        seconds: float = _SECONDS,
    ):  # fmt: skip
        self._parts = tuple(parts)
        check_rewards(self._parts, max_new_tokens)
        self._seconds, self._max_new_tokens = seconds, max_new_tokens
        self.statistics = Statistics.of(())
        self._unfinished = next((part for part in self._parts if part.kind == "unfinished"), None)
        self._replies: Replies | None = None
        self._judges: dict[str, Judge] = {}
        self._models: dict[str, ModelPart] = {}
        for part in self._parts:
            if part.overlong is not None and part.max_tokens is None and max_new_tokens is None:
                raise UserError(
                    f"rl.rewards, part {part.label!r}: set max_tokens, the limit that overlong counts from."
                )
            if part.kind == "verifier" and part.verifier != RECORD:
                _try_verifier(part)
        if any(part.kind == "judge" for part in self._parts):
            if folder is None:
                raise UserError("rl.rewards has a judge, whose replies need a folder.")
            self._replies = Replies(folder)
        try:
            for part in self._parts:
                if part.kind == "judge":
                    assert self._replies is not None
                    self._judges[part.label] = Judge(part, self._replies)
                elif part.kind == "reward_model":
                    self._models[part.label] = ModelPart(part)
        except BaseException:
            self.close()
            raise

    def unusable(self, record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
        """Why no answer to a record's prompt can be scored, as that it has no reference; "" if nothing is wrong.

        A reference in the wrong form is found when the first answer is judged, and costs it.

        Args:
            record: as in its file.
            messages: of the prompt, whatever the form of the record.
        """
        for part in self._parts:
            try:
                if part.kind == "verifier":
                    verifier_input(part, record, messages, "thinking", None)
                elif part.kind == "judge" and part.reference:
                    reference_of(part, record)
            except UserError as error:
                return f"part {part.label!r}: {error}"
        return ""

    def score(self, samples: Sequence[Sampled]) -> list[Scored]:
        """The rewards of answers, in order. Parts and answers are scored at the same time.

        Raises:
            EndpointError: a judge's endpoint refuses every request: a wrong key, an unknown model.
        """
        asked = [
            i for i, one in enumerate(samples)
            if (self._unfinished is None or one.is_finished) and not (one.trace and one.trace.is_lost)
        ]  # fmt: skip
        table: dict[tuple[str, int], PartScore] = {}
        running: list[tuple[RewardPart, Jobs, Mapping[int, Hashable]]] = []
        try:
            running += self._start_judges([(i, samples[i]) for i in asked], table)
            verifiers = self._start_verifiers([(i, samples[i]) for i in asked])
            for name, model in self._models.items():  # in this thread, beside the others
                scores = model.scores([samples[i] for i in asked])
                table.update({(name, i): score for i, score in zip(asked, scores, strict=True)})
            for tag, value in verifiers.results().items():
                table[tag] = _of_verdict(tag[0], value, self._seconds)  # type: ignore[index]
            for part, jobs, tags in running:
                results = jobs.results()
                table.update({(part.label, i): _of_judge(part, results[tag]) for i, tag in tags.items()})
        finally:
            for _, jobs, _ in running:
                jobs.stop()
        scored = [self._scored(i, sampled, table) for i, sampled in enumerate(samples)]
        self.statistics = Statistics.of(scored)
        return scored

    def _start_verifiers(self, samples: Sequence[tuple[int, Sampled]]) -> Jobs:
        calls: dict[Hashable, Any] = {}
        for part in self._parts:
            if part.kind == "verifier":
                for i, sampled in samples:
                    calls[part.label, i] = _Verification(part, sampled)
        return Jobs(calls, min(os.cpu_count() or 1, _MOST_THREADS), self._seconds, "reward")

    def _start_judges(
        self, samples: Sequence[tuple[int, Sampled]], table: dict[tuple[str, int], PartScore]
    ) -> list[tuple[RewardPart, Jobs, Mapping[int, Hashable]]]:
        """Begin to ask each judge, once for equal answers to equal prompts; what cannot be asked goes into the table."""
        started: list[tuple[RewardPart, Jobs, Mapping[int, Hashable]]] = []
        for part in self._parts:
            if part.kind != "judge":
                continue
            judge = self._judges[part.label]
            judge.begin()
            cases: dict[str, Case] = {}
            tags: dict[int, Hashable] = {}
            for i, sampled in samples:
                try:
                    case = judge.case(sampled)
                except UserError as error:
                    table[part.label, i] = PartScore(part.label, None, "error", str(error))
                    continue
                cases[case.key] = case
                tags[i] = case.key
            calls: dict[Hashable, Any] = {key: _Judgement(judge, case) for key, case in cases.items()}
            longest = part.samples * part.attempts * part.tries * (part.timeout + 60.0)  # each try is ended by itself
            started.append((part, Jobs(calls, part.concurrency, longest, "judge"), tags))
        return started

    def _scored(self, number: int, sampled: Sampled, table: Mapping[tuple[str, int], PartScore]) -> Scored:
        trace = sampled.trace
        if trace is not None and trace.is_lost:
            status = "timed_out" if trace.ending == "timed_out" else "error"
            return Scored(None, (PartScore("environment", None, status, trace.reason),))
        if trace is not None and trace.reward is not None and not any(part.environment for part in self._parts):
            raise UserError(
                "rl.environment gives rewards, and rl.rewards has no part `environment: true`; add it, with weight 0 "
                "where it is for figures alone."
            )
        if self._unfinished is not None and not sampled.is_finished:
            name, value = self._unfinished.label, self._unfinished.unfinished
            reason = "the answer reached its limit of tokens"
            if isinstance(value, str) or value is None:
                return Scored(None, (PartScore(name, None, "not judged", f"{reason}, and is dropped"),))
            return Scored(float(value), (PartScore(name, float(value), "scored", reason),))
        scores = []
        for part in self._parts:
            if part.kind == "unfinished":
                continue
            if part.environment:
                score = 0.0 if trace is None or trace.reward is None else trace.reward
                reason = f"after {trace.turns} turns" if trace is not None else "there is no environment"
                scores.append(PartScore(part.label, score, "scored", reason))
            elif part.overlong is not None:
                limit = part.max_tokens or self._max_new_tokens
                assert limit is not None
                penalty = overlong_penalty(sampled.tokens, limit, part.overlong)
                scores.append(PartScore(part.label, penalty, "scored", f"{sampled.tokens} tokens of {limit}"))
            else:
                scores.append(table[part.label, number])
        return Scored(combine(self._parts, scores), tuple(scores))

    def close(self) -> None:
        """Close the connections and the folder."""
        for judge in self._judges.values():
            judge.close()
        if self._replies is not None:
            self._replies.close()
            self._replies = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Verification:
    """The call that judges one answer by one part's verifier."""

    def __init__(self, part: RewardPart, sampled: Sampled):
        self._part, self._sampled = part, sampled

    def __call__(self) -> Verdict:
        one = self._sampled
        name, reference, settings = verifier_input(self._part, one.record, one.messages, one.mode, one.budget)
        return verify(name, one.generation.text, reference, settings, in_thinking=one.in_thinking)


class _Judgement:
    """The call that asks a judge about one case."""

    def __init__(self, judge: Judge, case: Case):
        self._judge, self._case = judge, case

    def __call__(self) -> PartScore:
        return self._judge.score(self._case)


def _try_verifier(part: RewardPart) -> None:
    """Call a verifier once: a package that does not import is found before anything is sampled.

    Raises:
        UserError: of the verifier.
    """
    assert part.verifier is not None
    if part.verifier == "reward":  # loads its model
        return
    try:
        verify(part.verifier, "0", None, part.settings)
    except UserError as error:
        raise UserError(f"rl.rewards, part {part.label!r}: {error}") from None


def _of_verdict(name: str, value: Any, seconds: float) -> PartScore:
    """What a verifier's call has brought: a verdict, or an exception."""
    if isinstance(value, TimeIsUp):
        return PartScore(name, None, "timed_out", f"the verifier did not return within {seconds:g} s")
    if isinstance(value, UserError):
        return PartScore(name, None, "error", str(value)[:500])
    if isinstance(value, BaseException):
        return PartScore(name, None, "error", f"the verifier failed: {type(value).__name__}: {value}"[:500])
    if not isinstance(value, Verdict):
        return PartScore(name, None, "error", f"the verifier returned {value!r:.100}, which is no verdict")
    if value.status not in _OUTCOMES:
        return PartScore(name, None, value.status, value.reason)
    return PartScore(name, float(value.score), value.status, value.reason)


def _of_judge(part: RewardPart, value: Any) -> PartScore:
    if isinstance(value, PartScore):
        return value
    if isinstance(value, EndpointError | OSError):  # every request would fail, or none can be kept
        raise value
    if isinstance(value, TimeIsUp):
        return PartScore(part.label, None, "timed_out", "the judge did not answer in time")
    return PartScore(part.label, None, "error", f"the judge failed: {type(value).__name__}: {value}"[:500])


def overlong_penalty(tokens: int, limit: int, buffer: int) -> float:
    """DAPO's soft punishment, min(0, -(tokens - (limit - buffer)) / buffer), at least -1 (arXiv 2503.14476, equation 13).

    Args:
        tokens: of the answer, forced ones left out.
        limit: most tokens of an answer.
        buffer: tokens before the limit over which the penalty grows from 0 to -1.
    """
    return max(-1.0, min(0.0, -(tokens - (limit - buffer)) / buffer))


def combine(parts: Sequence[RewardPart], scores: Sequence[PartScore]) -> float | None:
    """The reward of one answer from the scores of its parts; see `qwen3_jax.training.reward_config` for the formula.

    Args:
        parts: of the configuration.
        scores: of those parts that score answers, by name.

    Returns:
        None where a part that counts has no score; one of weight 0 is for figures alone.
    """
    by_name = {score.name: score.score for score in scores}
    scoring = [part for part in parts if part.label in by_name]
    failed = [
        part.below for part in scoring
        if part.gate and (score := by_name[part.label]) is not None and score < part.pass_at
    ]  # fmt: skip
    if failed:
        return float(min(failed))
    if any(by_name[part.label] is None for part in scoring if part.gate or part.weight):
        return None
    return math.fsum(part.weight * (by_name[part.label] or 0.0) for part in scoring if not part.gate)
