"""The running-sum problems: right, reproducible, disjoint, and at 10% for whoever does not think."""

from collections import Counter

import pytest

from qwen3_jax.data import Problem, RunningSum, is_correct, problem_messages, problem_record, running_sum_problem
from qwen3_jax.data.reasoning import ENDINGS, MODES, QUESTION, RunningSumRecords

PROBLEMS = {split: [running_sum_problem(i, 5, split) for i in range(4000)] for split in ("train", "eval")}


def digits_of(problem):
    return [int(digit) for digit in values_of(problem.question.removeprefix(QUESTION))]


def values_of(named):
    """["7", "3"] for "a7 b3", with the names checked."""
    items = named.split(" ")
    assert "".join(item[0] for item in items) == "abcdefghijklmnopqrstuvwxyz"[: len(items)]
    return [item[1:] for item in items]


def test_problems_are_right_and_depend_on_seed_and_index_alone():
    for problem in PROBLEMS["train"] + PROBLEMS["eval"]:
        digits = digits_of(problem)
        assert values_of(problem.steps) == [f"{digit}:{sum(digits[: i + 1]) % 10}" for i, digit in enumerate(digits)]
        assert problem.answer == problem.steps[-1]
        assert is_correct(problem, f"The answer is **{problem.answer}**.\n")
        for wrong in ("", "seven", "0 1 2 3 4 5 6 7 8 9", "1" + problem.answer, str((int(problem.answer) + 1) % 10)):
            assert not is_correct(problem, wrong)
    assert running_sum_problem(17, 5) == PROBLEMS["train"][17] != running_sum_problem(17, 6)
    # Frozen: a change here would make old checkpoints resume on other problems.
    assert running_sum_problem(0) == Problem(QUESTION + "a5 b5 c8 d7 e3 f8", "a5:5 b5:0 c8:8 d7:5 e3:8 f8:6", "6")


def test_train_and_eval_questions_are_disjoint_whatever_the_seed():
    train = {problem.question for problem in PROBLEMS["train"]}
    assert not train & {problem.question for problem in PROBLEMS["eval"]}
    assert not train & {running_sum_problem(i, 99, "eval").question for i in range(3000)}
    # Short questions are few, so this would fail at once if the hash did not decide.
    short = {
        split: {running_sum_problem(i, i, split, max_digits=3).question for i in range(3000)} for split in PROBLEMS
    }
    assert not short["train"] & short["eval"]
    assert 0.05 < len(short["eval"]) / (len(short["train"]) + len(short["eval"])) < 0.15
    with pytest.raises(ValueError, match="no eval question"):
        running_sum_problem(0, split="eval", eval_fraction=0)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_without_the_steps_nobody_beats_chance(split):
    problems = PROBLEMS[split]
    lengths = Counter(len(digits_of(problem)) for problem in problems)
    assert sorted(lengths) == list(range(2, 13))
    # Of 2 and 3 digits there are only 100 and 1,000 questions, and the hash does not cut so few of them evenly.
    many = [count for length, count in lengths.items() if length > 3]
    assert max(many) < 1.4 * min(many)
    # The best guess from any single view of the question, learned on the training problems, is right 10% of the time.
    views = {
        "nothing": lambda digits: 0,
        "length": len,
        "first": lambda digits: digits[0],
        "last": lambda digits: digits[-1],
        "largest": max,
    }
    for name, view in views.items():
        counts = {}
        for problem in PROBLEMS["train"]:
            counts.setdefault(view(digits_of(problem)), Counter())[problem.answer] += 1
        guess = {seen: counter.most_common(1)[0][0] for seen, counter in counts.items()}
        accuracy = sum(guess[view(digits_of(problem))] == problem.answer for problem in problems) / len(problems)
        assert 0.07 < accuracy < 0.15, (name, accuracy)


def test_records_follow_the_configured_mixture_of_modes():
    settings = RunningSum(problems=2000, thinking=2, non_thinking=1, disabled=1, truncated=0)
    source = RunningSumRecords(settings, "train", 0, 0.1)
    kinds = Counter()
    for i in range(len(source)):
        body = source[i].body
        kinds["disabled" if "completion" in body else body["messages"][1]["reasoning_content"] != ""] += 1
        assert source[i] == source[i]
    assert set(kinds) == {True, False, "disabled"}
    assert abs(kinds[True] / 2000 - 0.5) < 0.04
    assert abs(kinds["disabled"] / 2000 - 0.25) < 0.04
    problem = PROBLEMS["train"][0]
    assert all(problem_record(problem, mode) for mode in MODES)
    with pytest.raises(ValueError, match="truncated"):
        problem_messages(problem, "truncated")


def test_documents_state_the_answer_in_every_way_about_as_often():
    counts = dict.fromkeys(ENDINGS, 0)
    for index in range(400):
        problem = running_sum_problem(index)
        text = problem_record(problem, "document")["text"]
        assert problem_record(problem, "document")["text"] == text
        start = f"{problem.question}\n{problem.steps}"
        (ending,) = (ending for ending in ENDINGS if text == start + ending.format(problem.answer))
        counts[ending] += 1
    assert min(counts.values()) > 70, counts
