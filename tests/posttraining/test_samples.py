"""Samples of reinforcement learning: packed into rows, taken back, kept on disk; advantages; where `<think>` was banned."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data.token_targets import TopTokens
from qwen3_jax.errors import UserError
from qwen3_jax.generation import Request, Sampling, ThinkingTokens
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.advantages import advantages, teaches
from qwen3_jax.posttraining.rollouts import Rollout, banned_places, nothing
from qwen3_jax.posttraining.rounds import Group, Rounds
from qwen3_jax.posttraining.sampled import Scored
from qwen3_jax.posttraining.samples import Sample, arrange, pack, spread, take_back
from qwen3_jax.posttraining.traces import Trace
from qwen3_jax.training.distillation import IDS, LOG_PROBS
from qwen3_jax.training.rl_config import RolloutConfig
from tests.helpers.episodes import draw

LENGTH = 24


def experts_of(pairs: int) -> st.SearchStrategy[np.ndarray | None]:
    """Of two layers with three experts per token; an episode that failed has none."""
    some = np.arange(pairs * 6, dtype=np.int16).reshape(-1, 2, 3)
    return st.one_of(st.none(), st.integers(0, 99).map(lambda first: (first + some).astype(np.int16)))


@st.composite
def sample(draw) -> Sample:
    """A sample of at most LENGTH pairs, with tokens that were forced."""
    prompt = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8))
    tokens = draw(st.lists(st.integers(0, 99), min_size=1, max_size=12))
    learned = np.asarray(draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
    numbers = np.arange(len(tokens), dtype=np.float32)
    count, first = int(learned.sum()), draw(st.integers(0, 60_000))
    ids = (first + np.arange(3 * count).reshape(-1, 3)).astype(np.uint16)
    top = TopTokens(ids, np.where(ids % 5 == 4, -np.inf, -(ids % 7).astype(np.float16)).astype(np.float16))
    return Sample(
        np.asarray(prompt, np.int32), np.asarray(tokens, np.int32), learned, ~learned,
        np.where(learned, -1 - numbers, np.nan).astype(np.float32), draw(st.integers(0, 2**40)), draw(st.integers(0, 9)),
        draw(st.floats(-3, 3, width=32)), np.where(learned, -2 - numbers, np.nan).astype(np.float32),
        np.where(learned, -3 - numbers, np.nan).astype(np.float32), draw(experts_of(len(prompt) + len(tokens) - 1)),
        {"content": draw(st.text(max_size=5)), "reward": 0.5}, top,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(sample(), max_size=9), st.integers(1, 3))
def test_every_token_is_in_the_batch_once_with_its_numbers(samples, parts):
    rows = spread(pack([one.pairs for one in samples], 9 * parts, LENGTH), parts)
    assert sorted(number for row in rows for number in row) == list(range(len(samples)))
    assert all(sum(samples[number].pairs for number in row) <= LENGTH for row in rows)
    filled = [[bool(row) for row in rows[part * 9 : part * 9 + 9]] for part in range(parts)]
    # Filled rows come first on each device, and no device has two more than another.
    assert all(part == sorted(part, reverse=True) for part in filled)
    assert max(map(sum, filled)) - min(map(sum, filled)) <= 1
    batch = arrange(samples, rows, LENGTH)
    assert {array.shape[:2] for array in batch.values()} == {(9 * parts, LENGTH)}
    assert batch["loss_mask"].sum() == sum(one.learned.sum() for one in samples)
    assert (batch["segment_ids"] > 0).sum() == sum(one.pairs for one in samples)
    for row, numbers in enumerate(rows):
        for segment, number in enumerate(numbers, start=1):
            one, at = samples[number], batch["segment_ids"][row] == segment
            whole = [*one.prompt, *one.tokens]
            assert batch["tokens"][row, at].tolist() == whole[:-1]
            assert batch["targets"][row, at].tolist() == whole[1:]
            assert batch["positions"][row, at].tolist() == list(range(len(whole) - 1))
            learned = at & (batch["loss_mask"][row] > 0)
            assert batch["targets"][row, learned].tolist() == one.tokens[one.learned].tolist()
            assert (batch["advantages"][row, learned] == np.float32(one.advantage)).all()
            for name in ("behaviour", "old", "reference"):
                np.testing.assert_array_equal(batch[name][row, learned], getattr(one, name)[one.learned])
            for name, values in zip((IDS, LOG_PROBS), one.teacher.fields(), strict=True):
                np.testing.assert_array_equal(batch[name][row, learned], values)
            assert (batch[IDS][row, at & ~learned] == -1).all()
            if one.experts is not None:
                np.testing.assert_array_equal(batch["experts"][row, at], one.experts.reshape(-1, 6))
            elif "experts" in batch:
                assert (batch["experts"][row, at] == -1).all()
            assert batch["banned"][row, at].sum() == one.banned.sum()
    # Nothing of a token that is not learned is left, not even its NaN.
    for name in ("advantages", "behaviour", "old", "reference"):
        assert (batch[name][batch["loss_mask"] == 0] == 0).all()
    for one, values in zip(samples, take_back(batch["old"], samples, rows), strict=True):
        np.testing.assert_array_equal(values, one.old)


@settings(max_examples=30, deadline=None)
@given(st.lists(sample(), max_size=5))
def test_a_round_on_disk_is_the_round_that_was_written(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("rollouts")
    assert storage.load(folder, 7) is None
    storage.save(folder, 7, samples, {"draws": [3]}, {"reward": 0.1})
    loaded, position, figures = storage.load(folder, 7)
    assert (position, figures) == ({"draws": [3]}, {"reward": 0.1})
    assert len(loaded) == len(samples)
    for one, other in zip(samples, loaded, strict=True):
        for field in dataclasses.fields(Sample):
            before, after = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(before, after)
            assert type(before) is type(after)
            assert getattr(before, "dtype", None) == getattr(after, "dtype", None)
    assert len((folder / "7.jsonl").read_text().splitlines()) == len(samples)
    (folder / "7.npz").write_bytes((folder / "7.npz").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"7\.npz is damaged .*samples the round again"):
        storage.load(folder, 7)


def test_advantages_are_their_definition():
    rewards = [1.0, 0.0, 0.25, 0.0]
    mean, std = sum(rewards) / 4, math.sqrt(sum((r - sum(rewards) / 4) ** 2 for r in rewards) / 3)
    np.testing.assert_allclose(advantages(rewards, True), [(r - mean) / (std + 1e-4) for r in rewards], rtol=1e-6)
    np.testing.assert_allclose(advantages(rewards, False), [r - mean for r in rewards], rtol=1e-6)
    # An answer without a reward is no part of the group; equal rewards, and one alone, teach nothing.
    np.testing.assert_allclose(advantages([1.0, None, 0.0], False), [0.5, np.nan, -0.5])
    for equal in ([0.1, 0.1, 0.1], [0.3, None], [None, None]):
        assert not np.nansum(np.abs(advantages(equal, True)))
        assert not teaches(equal)
    assert teaches([0.1, None, 0.2])


@pytest.mark.parametrize("by_rewards", [True, False])
def test_an_episode_that_failed_before_its_first_token_is_no_sample(by_rewards, tmp_path):
    """Distillation learns from answers without a reward too, and has no place for one without a token."""
    config = SimpleNamespace(rollouts=RolloutConfig(), policy=SimpleNamespace(normalize_std=True))
    rounds = Rounds(config, None, None, None, tmp_path, by_rewards=by_rewards)
    asked, empty, some = draw(), np.zeros(0), np.ones(3)
    samples = [
        Sample(x[:2].astype(np.int32), x.astype(np.int32), x > 0, x > 1, x.astype(np.float32), 0, number)
        for number, x in enumerate((empty, some))
    ]
    lost = Trace("error", "no reset", ())
    rollouts = [Rollout(asked, one.episode, one, nothing(), False, lost) for one in samples]
    left = rounds._samples(Group(asked, rollouts, [Scored(None, ()), Scored(None if by_rewards else 1.0, ())]))
    assert [one.episode for one in left] == ([] if by_rewards else [1])
    assert arrange(left, pack([one.pairs for one in left], 1, 8), 8)["loss_mask"].sum() == (0 if by_rewards else 3)


def test_rounds_that_a_checkpoint_needs_are_kept(tmp_path):
    """Ten rounds of three updates; the checkpoint of step 4 is in the middle of the second one."""
    config = SimpleNamespace(rollouts=RolloutConfig(prompts=3, updates=3, keep=2))
    rounds = Rounds(config, None, None, None, tmp_path, saved_steps=lambda: [4])
    for step in range(0, 30, 3):
        storage.save(tmp_path, step, [], {})
        rounds._prune(step)
    left = sorted(int(file.stem) for file in tmp_path.glob("*.npz"))
    assert left == [3, 21, 24, 27]
    assert left == sorted(int(file.stem) for file in tmp_path.glob("*.jsonl"))


def test_where_think_was_banned():
    tokens = ThinkingTokens(start=90, end=91, stop=(7, 91, 8), newlines=(10,))
    request = Request((1,), Sampling(), 20, budget=2, thinking=True, thinking_tokens=tokens)
    # Two thinking tokens, the forced stop text, three tokens of the answer.
    forced = np.asarray([False, False, True, True, True, False, False, False])
    thinking = [True, True, *[False] * 6]
    assert banned_places(request, forced, thinking).tolist() == [*[False] * 5, True, True, True]
    # It ended its thinking by itself, below the budget.
    assert not banned_places(request, np.zeros(3, bool), [True, False, False]).any()
    assert not banned_places(dataclasses.replace(request, budget=None), forced, thinking).any()
