"""Metrics against their definitions: brute force over subsets and draws, NumPy, SciPy."""

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation import tables
from qwen3_jax.evaluation.comparison import paired
from qwen3_jax.evaluation.metrics import Scored, clustered, figures, majority, pass_at, powers, summarise

answers = st.lists(st.booleans(), min_size=1, max_size=7)


@given(answers, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    assert pass_at(len(right), sum(right), k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 3000), st.data())
def test_pass_at_k_is_a_probability_that_grows_with_k_and_with_right_answers(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at(n, c, k)
    assert 0 <= value <= 1
    assert pass_at(n, c, 1) == pytest.approx(c / n)
    assert value <= pass_at(n, c, min(k + 1, n)) + 1e-12
    assert value <= pass_at(n, min(c + 1, n), k) + 1e-12
    assert (value == 1) == (k > n - c) or value > 1 - 1e-15


def test_pass_at_k_refuses_what_no_draw_gives():
    for n, c, k in ((3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)):
        with pytest.raises(UserError, match=f"pass@{k} of {c} right answers in {n}"):
            pass_at(n, c, k)
    assert [powers(n) for n in (1, 2, 3, 4, 10)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 10]]


votes = st.lists(
    st.one_of(st.tuples(st.just(True), st.just("5")), st.tuples(st.just(False), st.sampled_from([None, "1", "2", "3"]))),
    min_size=1, max_size=8,
)  # fmt: skip


@given(votes, st.randoms())
def test_the_majority_is_the_expectation_of_a_draw_among_the_most_frequent(cast, random):
    texts = [text for _, text in cast if text is not None]
    counts = {text: texts.count(text) for text in texts}
    most = [text for text in counts if counts[text] == max(counts.values())]
    expected = most.count("5") / len(most) if most else 0.0
    shuffled = list(cast)
    random.shuffle(shuffled)
    assert majority(cast) == majority(shuffled) == pytest.approx(expected)


def test_right_answers_that_are_written_in_two_ways_vote_together():
    assert majority([(True, "1/2"), (True, "0.5"), (False, "7"), (False, "7"), (False, "8")]) == 0.5
    assert majority([(True, "1/2"), (True, "0.5"), (True, None), (False, "7"), (False, "7")]) == 1


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=2, max_size=9))
def test_the_error_of_a_mean_is_that_of_the_questions_means(values):
    means = [np.mean(each) for each in values]
    mean, error = clustered(values)
    assert mean == pytest.approx(np.mean(means))
    assert error == pytest.approx(scipy.stats.sem(means), abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_paired_figures_are_those_of_scipy(pairs):
    first, second = zip(*pairs, strict=True)
    found = paired(first, second)
    differences = np.subtract(second, first)
    assert found["difference"] == pytest.approx(differences.mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(differences), abs=1e-12)
    if differences.std() > 1e-9:
        interval = scipy.stats.ttest_rel(second, first).confidence_interval(0.95)
        assert found["interval"] == pytest.approx([interval.low, interval.high], abs=1e-9)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    assert (found["better"], found["worse"]) == (better, worse)
    exact = sum(math.comb(better + worse, i) for i in range(min(better, worse) + 1)) / 2 ** (better + worse) * 2
    assert found["p"] == pytest.approx(min(exact, 1.0))


def scored(problem: str, number: int, status: str, **fields) -> Scored:
    default = dict(
        task="t", problem=problem, mode="thinking", budget=None, sample=number, group="", digest="d", status=status,
        score=float(status == "right"), extracted=status, finish_reason="stop", thinking_tokens=10, answer_tokens=4,
        halted=False,
    )  # fmt: skip
    return Scored(**default | fields)


def test_figures_of_a_run_are_counted_by_hand():
    nothing = dict(extracted=None, thinking_tokens=None, answer_tokens=None, halted=None)
    questions = [
        [scored("a", 0, "right"), scored("a", 1, "wrong", score=0.5, thinking_tokens=20, halted=True)],
        [scored("b", 0, "unparsable", extracted=None, finish_reason="length"), scored("b", 1, "right")],
        [scored("c", 0, "timed_out", extracted=None), scored("c", 1, "right", answer_tokens=16)],
        [
            scored("d", 0, "error", finish_reason="too_long", **nothing),
            scored("d", 1, "error", **nothing),
        ],
    ]  # fmt: skip
    found = figures(questions, "accuracy")
    assert (found["questions"], found["samples"]) == (4, 2)
    assert found["value"] == found["accuracy"] == 3 / 8
    assert found["standard_error"] == pytest.approx(statistics.stdev([0.5, 0.5, 0.5, 0]) / 2)
    assert found["score"] == pytest.approx((0.75 + 0.5 + 0.5 + 0) / 4)
    assert found["judged"] == 3 / 5  # a time-out and two errors are not judged
    assert found["pass"] == {"1": 3 / 8, "2": 3 / 4}
    assert found["majority"] == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    shares = {name: found[name] for name in ("unparsable", "timed_out", "error", "too_long", "cut_off", "halted")}
    assert shares == dict(unparsable=1 / 8, timed_out=1 / 8, error=1 / 8, too_long=1 / 8, cut_off=1 / 8, halted=1 / 6)
    assert (found["thinking_tokens"], found["answer_tokens"]) == (70 / 6, 36 / 6)
    assert figures(questions, "score")["value"] == found["score"]
    assert figures(questions[:1], "accuracy")["standard_error"] is None
    assert figures([[scored("a", 0, "right", extracted=None)] * 2], "accuracy")["majority"] is None
    uneven = figures([questions[0], questions[1][:1]], "accuracy")
    assert (uneven["samples"], uneven["pass"]) == ([1, 2], {"1": 0.25})


def test_rows_are_of_tasks_modes_budgets_and_groups():
    samples = [
        scored(problem, 0, "right" if group == "easy" else "wrong", budget=budget, group=group)
        for budget in (None, 4)
        for problem, group in (("a", "easy"), ("b", "hard"), ("c", "hard"))
    ]
    rows = summarise(samples, {})
    named = {(row["thinking_budget"], row["group"]): (row["value"], row["questions"]) for row in rows}
    both = {None: (pytest.approx(1 / 3), 3), "easy": (1, 1), "hard": (0, 2)}
    assert named == {(budget, group): value for budget in (None, 4) for group, value in both.items()}
    shown = tables.results(rows, "a [title]")
    assert "a [title]" in shown
    assert "33.3%" in shown
    assert "unlimited" in shown


def test_the_table_shows_pass_and_majority_where_there_are_several_answers():
    one, two = ([[scored("a", number, "right") for number in range(count)]] for count in (1, 2))
    shown = [tables.results([dict(task="t", mode="thinking", thinking_budget=None, group=None, **figures(q, "accuracy"))], "")
             for q in (one, two)]  # fmt: skip
    assert " maj " not in shown[0]
    assert " maj " in shown[1]
    assert "pass@2 100.0%" in shown[1]
