"""The points of a budget curve are the counts of its answers. No model runs."""

import json
from types import SimpleNamespace

import pytest

from qwen3_jax.data import DataConfig, RunningSum, Source, running_sum_problem
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation import budget_curve
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.evaluation.reply import Reply

SOURCE = Source(
    "sums", "synthetic:running_sum", eval_fraction=0.3, running_sum=RunningSum(min_digits=3, max_digits=5, problems=50)
)
DATA = DataConfig([Source("text", "unused"), SOURCE], seed=5)


def test_problems_are_the_first_of_the_evaluation_split_of_the_named_source():
    expected = [
        running_sum_problem(index, 5, "eval", min_digits=3, max_digits=5, eval_fraction=0.3) for index in range(4)
    ]
    assert budget_curve.held_out_problems(DATA, "sums", 4) == expected
    text = budget_curve.suggestion("a folder", BudgetCurveConfig("sums"), DATA)
    assert text.startswith("qwen3 infer --model 'a folder' --prompt ")
    assert expected[0].question.split()[0] in text


@pytest.mark.parametrize("right", [0, 1, 3, 4])
def test_a_point_is_the_share_of_right_answers_with_its_binomial_error(tmp_path, monkeypatch, capsys, right):
    problems = budget_curve.held_out_problems(DATA, "sums", 4)
    asked, engines = [], []

    class Answers:
        def __init__(self, engine, tokenizer):
            engines.append(engine)

        def answers(self, families):
            for item in (item for family in families for item in family):
                place = int(item.key.problem)
                asked.append((item.budget, item.max_new_tokens, item.sampling.temperature))
                assert item.question.problem.prompt == ({"role": "user", "content": problems[place].question},)
                text = problems[place].answer if place < right else "none"
                forced = 3 if place == 2 else 0
                yield item, Reply(text, None, text, (), "stop", 5, 10 * place + forced + 1, 10 * place, forced)

    monkeypatch.setattr(budget_curve, "load", lambda folder: (None, SimpleNamespace(supports_thinking=True)))
    monkeypatch.setattr(budget_curve, "Engine", lambda model, *, rows, offline: rows)
    monkeypatch.setattr(budget_curve, "EngineSource", Answers)
    config = BudgetCurveConfig("sums", budgets=[16, 0, None], problems=4, max_new_tokens=99, batch_size=7)
    points = budget_curve.measure(tmp_path, config, DATA, tmp_path)
    assert sorted(asked, key=str) == sorted(((budget, 99, 0) for budget in (0, 16, None) for _ in problems), key=str)
    assert engines == [7]
    share = right / 4
    expected = {
        "accuracy": share, "standard_error": pytest.approx((share * (1 - share) / 4) ** 0.5), "thinking_tokens": 15.0,
        "halted": 0.25, "problems": 4,
    }  # fmt: skip
    written = json.loads((tmp_path / "budget_curve.json").read_text())
    assert written == [{"budget": budget} | expected for budget in (16, 0, None)]
    assert [point.accuracy for point in points] == [share] * 3
    table = capsys.readouterr().out
    assert "unlimited" in table
    assert f"{100 * share:.1f}%" in table
    assert (tmp_path / "budget_curve.png").read_bytes().startswith(b"\x89PNG")


def test_budgets_of_less_than_nothing_are_refused():
    for changes, message in (
        ({"budgets": [4, -1]}, r"budget_curve\.budgets is -1; it must be at least 0"),
        ({"budgets": []}, r"budget_curve\.budgets is empty"),
        ({"budgets": [4, None, None]}, r"budget_curve\.budgets has null twice"),
        ({"problems": 0}, r"budget_curve\.problems is 0"),
        ({"batch_size": 0}, r"budget_curve\.batch_size is 0"),
    ):
        with pytest.raises(UserError, match=message):
            BudgetCurveConfig("sums", **changes)
