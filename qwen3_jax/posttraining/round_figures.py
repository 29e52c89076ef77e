"""Figures of a round, for metrics.jsonl: rewards and their parts, lengths, pass rates, and what the time went to."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen3_jax.posttraining.advantages import teaches
from qwen3_jax.posttraining.sampled import Statistics
from qwen3_jax.training.rl_config import PASS_RATE_BINS

if TYPE_CHECKING:
    from qwen3_jax.posttraining.rounds import Group
    from qwen3_jax.posttraining.traces import Trace


class RoundFigures:
    """Collects the figures of one round; `row` has them by the names of metrics.

        reward, reward_std, pass_rate                mean over answers, spread over answers, mean over prompts
        part.NAME, part.NAME.STATUS                  mean score of a part, share of the answers with a status
        lost                                         share of the answers without a reward
        tokens, thinking_tokens                      sampled tokens of an answer; forced ones do not count
        halted, truncated                            share of the answers that the budget or the limit of tokens ended
        pass_rates.BIN                               share of the prompts by the share of their answers that are right
        environment.turns, .calls, .truncated_results, .seconds    of an episode, means; seconds are those of its environment
        environment.failed_calls, .ended.ENDING      share of the calls that brought an error, of the episodes by how they ended
        equal                                        share of the prompts whose answers all have the same reward
        seconds_rollout, _rewards, _log_probabilities, _round, rollout_tokens_per_second
        staleness, seconds_waited                    with rollouts.mesh: updates since the weights that sampled, trainer's wait

    Figures of rewards and lengths are over all answers that were sampled, those of groups that dynamic sampling replaced
    included: they are the policy's.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of a block."""
        started = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - started

    def add_groups(self, groups: Sequence[Group], left_out: Sequence[Group] = ()) -> None:
        """Add what the answers of a round are like."""
        self.values["groups"] = len(groups)
        self.values |= figures_of([*groups, *left_out])

    def row(self) -> dict[str, float]:
        """Return all figures."""
        seconds = {f"seconds_{name}": value for name, value in self._seconds.items()}
        out = self.values | seconds
        if self._seconds["rollout"] > 0 and "sampled_tokens" in out:
            out["rollout_tokens_per_second"] = out["sampled_tokens"] / self._seconds["rollout"]
        return out


def figures_of(groups: Sequence[Group]) -> dict[str, float]:
    """Return the figures of the answers of some groups; see `RoundFigures`."""
    answers = [
        (rollout, scored) for group in groups for rollout, scored in zip(group.rollouts, group.scored, strict=True)
    ]
    if not answers:
        return {}
    statistics = Statistics.of([scored for _, scored in answers])
    rewards = [scored.reward for _, scored in answers if scored.reward is not None]
    tokens = [one.tokens for one, _ in answers]
    out = {
        "tokens": float(np.mean(tokens)), "sampled_tokens": float(sum(tokens)),
        "thinking_tokens": float(np.mean([one.thinking_tokens for one, _ in answers])),
        "halted": float(np.mean([one.halted for one, _ in answers])),
        "truncated": float(np.mean([one.is_cut for one, _ in answers])),
    }  # fmt: skip
    if not statistics.parts:  # nothing was judged
        return out | _episodes([one.trace for one, _ in answers if one.trace is not None])
    rates = [group.pass_rate for group in groups]
    equal = float(np.mean([not teaches(group.rewards) for group in groups]))
    out |= {"lost": statistics.lost, "pass_rate": float(np.mean(rates)), "equal": equal}
    if statistics.mean is not None:
        out |= {"reward": statistics.mean, "reward_std": float(np.std(rewards))}
    counts = Counter(_bin(rate) for rate in rates)
    out |= {f"pass_rates.{name}": counts[name] / len(rates) for name in PASS_RATE_BINS}
    out |= {f"part.{name}": value for name, value in statistics.part_metrics().items()}
    return out | _episodes([one.trace for one, _ in answers if one.trace is not None])


def _episodes(traces: Sequence[Trace]) -> dict[str, float]:
    """Return the figures of environments."""
    if not traces:
        return {}
    calls = sum(one.calls for one in traces)
    out = {
        name: float(np.mean([getattr(one, name) for one in traces]))
        for name in ("turns", "calls", "truncated_results", "seconds")
    }
    out["failed_calls"] = sum(one.failed_calls for one in traces) / max(calls, 1)
    endings = Counter(one.ending for one in traces)
    out |= {f"ended.{ending}": count / len(traces) for ending, count in endings.items()}
    return {f"environment.{name}": value for name, value in out.items()}


def _bin(rate: float) -> str:
    if rate in (0, 1):
        return PASS_RATE_BINS[0 if rate == 0 else -1]
    return PASS_RATE_BINS[1 + min(int(rate * 4), 3)]
