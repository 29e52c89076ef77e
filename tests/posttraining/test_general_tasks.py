"""The generated tasks: a right answer scores 1 and wrong ones 0, whatever the seed; records; the command that writes them."""

import itertools
import json
import re

import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.tasks.registry import find as evaluation_task
from qwen3_jax.evaluation.tasks.registry import load
from qwen3_jax.posttraining import general_tasks
from qwen3_jax.posttraining.general_tasks import find, names, records
from qwen3_jax.posttraining.rewards import Scorer
from qwen3_jax.text import soft_switch
from qwen3_jax.training.reward_config import RewardPart
from qwen3_jax.verifiers import verify_all
from tests.helpers.sampled import sampled

GYM = ("arithmetic", "puzzles")
OWN = [name for name in names() if name not in GYM]


def judged(name: str, seed: int, count: int) -> int:
    """Judge the right and the wrong answers of a task's first problems as its records say; the number of wrong ones."""
    wrong = 0
    for problem in itertools.islice(find(name).problems(seed), count):
        record = json.loads(json.dumps(problem.record(name)))
        pairs = [(text, record["answer"]) for text in (problem.right, *problem.wrong)]
        verdicts = verify_all(record["verifier"], pairs, record.get("settings"), threads=2)
        assert verdicts[0].status == "right", (name, seed, problem.right, verdicts[0])
        for text, verdict in zip(problem.wrong, verdicts[1:], strict=True):
            assert (verdict.score, verdict.status in ("wrong", "unparsable")) == (0, True), (name, seed, text, verdict)
        assert len(set(problem.wrong)) >= 2, (name, problem.wrong)
        wrong += len(problem.wrong)
    return wrong


@pytest.mark.parametrize("name", OWN)
def test_a_right_answer_scores_1_and_wrong_ones_0(name):
    assert sum(judged(name, seed, 2) for seed in range(3)) >= 12


@pytest.mark.parametrize("name", GYM)
def test_sets_of_reasoning_gym_are_judged_by_their_last_tag(name):
    assert judged(name, 0, 8) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_so_it_is_for_many_seeds(name):
    for seed in range(100, 120):
        judged(name, seed, 4)


def test_there_are_more_than_20_tasks_and_records_are_made_from_their_seed():
    assert len(names()) == len(set(names())) > 40
    first = list(records(2 * len(OWN), 7, OWN))
    assert [record["task"] for record in first[: len(OWN)]] == OWN
    assert list(records(10, 7, OWN)) == first[:10]
    assert list(records(10, 8, OWN)) != first[:10]
    allowed = {"messages", "tools", "verifier", "answer", "settings", "task", "mode"}
    for record in first:
        assert json.loads(json.dumps(record)) == record
        assert record.keys() <= allowed
        assert record["messages"][-1]["role"] in ("user", "tool")
        assert all(message.get("content") or message.get("tool_calls") for message in record["messages"])
    assert {record["mode"] for record in first if "mode" in record} == {"thinking"}


def test_problems_differ():
    for name in OWN:
        prompts = {json.dumps(one.record(name)) for one in itertools.islice(find(name).problems(0), 30)}
        assert len(prompts) >= (8 if name in ("tool_none", "tool_ask", "impossible") else 20), name


def test_problems_are_not_those_of_the_evaluation():
    for name, task in (("length_ctrl", "length_ctrl"), ("tool_turns", "tool_use"), ("false_premise", "counterfact_qa")):
        asked = {json.dumps(list(problem.prompt)) for problem in load(evaluation_task(task), None, {})}
        drawn = [json.dumps(list(one.messages)) for one in itertools.islice(find(name).problems(0), 40)]
        assert sum(text in asked for text in drawn) < len(drawn) / 2, name  # well-known facts are few


def test_the_last_flag_holds():
    for name in ("think_flag", "think_flag_turns"):
        seen = set()
        for problem in itertools.islice(find(name).problems(3), 40):
            thinks = problem.reference[0]["reference"]
            assert thinks == (soft_switch(problem.messages) is not False)
            seen.add((thinks, soft_switch(problem.messages)))
        assert seen == {(True, None), (True, True), (False, False)}


def test_rewards_judge_the_records():
    drawn = [next(find(name).problems(5)) for name in OWN]
    pairs = [(problem, problem.record(name)) for problem, name in zip(drawn, OWN, strict=True)]
    with Scorer([RewardPart()]) as scorer:
        assert [scorer.unusable(record, record["messages"]) for _, record in pairs] == [""] * len(pairs)
        scored = scorer.score([sampled(problem.right, record) for problem, record in pairs])
        assert [one.reward for one in scored] == [1.0] * len(pairs)
        scored = scorer.score([sampled(problem.wrong[-1], record) for problem, record in pairs])
        assert [one.reward for one in scored] == [0.0] * len(pairs)


def test_the_command_writes_lists_and_refuses(tmp_path, capsys, monkeypatch):
    file = tmp_path / "tasks.jsonl"
    words = ["--output", str(file), "--count", "5", "--seed", "3", "--task", "persona", "json_object"]
    assert main(["data", "tasks", *words]) == 0
    assert [json.loads(line) for line in file.read_text().splitlines()] == list(
        records(5, 3, ["persona", "json_object"])
    )
    assert "5 prompts of 2 tasks" in capsys.readouterr().err
    assert main(["data", "tasks", "--list", "--task", "persona", "retrieval"]) == 0
    shown = capsys.readouterr().out
    assert f"persona: {find('persona').about}" in shown
    assert "  right: " in shown
    for arguments, message in (
        ([], "give --output, the file to write, or --list"),
        (["--list", "--output", str(file)], "--list writes no file"),
        (["--output", str(file), "--task", "personas"], "there is no task 'personas'.*Did you mean 'persona'"),
        (["--output", str(file), "--task", "persona", "persona"], "the task 'persona' is named twice"),
    ):
        assert main(["data", "tasks", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"the task arithmetic: .*reasoning-gym: pip install \"qwen3-jax\[reasoning\]\""
    ):
        list(records(1, 0, ["arithmetic"]))
    assert general_tasks.find("arithmetic").missing
