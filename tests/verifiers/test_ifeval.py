"""IFEval's instructions: the verdicts of lm-evaluation-harness on generated answers, and what is refused."""

from importlib import util
from pathlib import Path

import pytest

from qwen3_jax.verifiers import verify, verify_all
from qwen3_jax.verifiers.ifeval import INSTRUCTIONS
from tests.verifiers import ifeval_cases, peer

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize(
    "number", [80, pytest.param(500, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.soak)]
)
def test_verdicts_are_those_of_lm_evaluation_harness(number):
    cases = ifeval_cases.cases(number, seed=number)
    assert {name for row, _ in cases for name in row["instruction_id_list"]} == set(INSTRUCTIONS)
    expected = peer.verdicts("tests.verifiers.ifeval_cases", cases)
    pairs = [(answer, row) for row, answer in cases]
    for place, loose in enumerate((False, True)):
        verdicts = verify_all("ifeval", pairs, {"loose": loose}, threads=1 if number < 100 else None)
        for (row, answer), verdict, said in zip(cases, verdicts, expected, strict=True):
            assert list(verdict.parts) == said[place], (row, answer)
            assert (verdict.status == "right") == all(said[place])
    followed = [part for said in expected for part in said[0]]
    assert 0.1 < sum(followed) / len(followed) < 0.9


def test_there_are_the_papers_25_instructions():
    assert len(INSTRUCTIONS) == 25


def test_the_score_is_the_share_that_is_followed():
    row = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, None]}
    verdict = verify("ifeval", "no comma", row)
    assert (verdict.score, verdict.status, verdict.parts) == (0.5, "wrong", (True, False))
    assert verdict.reason == "1 of 2 instructions are followed, not startend:quotation"
    assert verify("ifeval", '"no comma"', row).status == "right"
    assert verify("ifeval", '<think>\nhm, a comma\n</think>\n\n"none"', row).status == "right"  # thinking is no answer


def test_columns_with_gaps_are_read_and_a_zero_counts():
    """Tables write 2.0 for 2 and null for what an instruction does not have; the harness leaves a 0 out and draws a number."""
    row = {
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 2.0, "relation": None, "keywords": None}],
    }
    assert verify("ifeval", "* a\n* b", row).status == "right"
    row["kwargs"][0]["num_bullets"] = 0
    assert verify("ifeval", "* a\n* b", row).status == "wrong"
    assert verify("ifeval", "none", row).status == "right"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]},
            "no instruction 'punctuation:no_coma'. Did you mean",
        ),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "keywords:existence needs keywords"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": []}, "1 instructions and 0 kwargs"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["("]}]}, "is no regular expression"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 5, "relation": "more than"}],
            },
            "relation is 'more than'; it must be one of less than, at least",
        ),
        ("no row", "needs a row with instruction_id_list and kwargs"),
    ],
)
def test_a_row_that_says_too_little_is_an_error_not_a_wrong_answer(row, reason):
    verdict = verify("ifeval", "text", row)
    assert verdict.status == "error"
    assert reason in verdict.reason
